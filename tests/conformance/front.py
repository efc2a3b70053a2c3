"""A router process in front of the engines under test, as in a cluster.

In: engines by role. Out: the running router, its admin port in `extra`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmfleet.api.document import Document, Endpoint, Model, Role, render, with_generation
from sim.engine import CONTROLLERS, Process, free_port, wait_for

# A pair that shares two cores with whatever else runs may take long for one transfer.
SETTINGS = {"disaggregation": {"kvTimeoutSeconds": 120}, "timeouts": {"stallSeconds": 120}}


@contextmanager
def router(folder: Path, **engines: Process) -> Iterator[Process]:
    """Start a router that knows one engine per role (`both`, or `prefill` and `decode`)."""
    endpoints = tuple(
        Endpoint(instance=role, address=f"127.0.0.1:{engine.port}", pod_uid=role, role=Role(role), slots=8)
        for role, engine in engines.items()
    )
    document = with_generation(Document(models={"tiny": Model(endpoints=endpoints)}), previous=0, now_ms=1)
    (folder / "backends.json").write_bytes(render(document))
    (folder / "settings.yaml").write_text(json.dumps(SETTINGS))
    port, admin = free_port(), free_port()
    command = [sys.executable, "-m", "llmfleet", "router", "--port", str(port), "--admin-port", str(admin)]
    command += ["--backends", str(folder / "backends.json"), "--settings", str(folder / "settings.yaml")]
    log = folder / "router.log"
    with log.open("wb") as output:
        env = {**os.environ, "PYTHONPATH": str(CONTROLLERS)}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
    with Process(process=process, port=port, log=log, extra={"admin": admin}) as running:
        assert wait_for(lambda: running.up() and running.get("/readyz").status == 200), log.read_text()
        yield running
