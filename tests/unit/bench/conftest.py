"""A simulated engine behind a real router, both processes of their own on loopback, for all tests of this folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmfleet.api.document import Document, Endpoint, Model, render
from sim.engine import Process, start

HOST = "127.0.0.1"
FAST = ("--sim-profile", "instant", "--max-model-len", "8192", "--sim-load-seconds", "0", "--max-num-seqs", "64")


@contextmanager
def router(folder: Path, engine: Process, *flags: str, slots: int = 64) -> Iterator[str]:
    """The address of a router before one engine."""
    endpoint = Endpoint(instance="tiny-0", address=f"{HOST}:{engine.port}", pod_uid="u", slots=slots)
    (folder / "backends.json").write_bytes(
        render(Document(generation=1, models={"tiny": Model(endpoints=(endpoint,))}))
    )
    command = [sys.executable, "-m", "llmfleet", "router", "--host", HOST, "--port=0", "--admin-port=0", *flags]
    process = subprocess.Popen(
        [*command, f"--backends={folder / 'backends.json'}"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        assert process.stderr is not None
        said = next(one for one in map(json.loads, process.stderr) if one["message"] == "listening")
        yield f"http://{HOST}:{said['port']}"
    finally:
        process.kill()
        process.wait()
        process.stderr.close() if process.stderr else None


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with start(tmp_path_factory.mktemp("engine"), *FAST, "--served-model-name", "tiny", admin=True) as process:
        yield process.until_up()


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory, engine: Process) -> Iterator[str]:
    with router(tmp_path_factory.mktemp("router"), engine) as url:
        yield url
