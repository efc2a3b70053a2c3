"""One real apiserver for every test of a run that wants one, started when the first asks.

In: nothing. Out: an `Apiserver` with the CRDs installed; each test takes a namespace of its own. It ends with the
interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import tempfile
from functools import cache
from pathlib import Path

from fakes.apiserver import ROOT, Apiserver, install_crds, running_apiserver

_numbers = itertools.count(1)


@cache
def shared_apiserver() -> Apiserver:
    """Start it once."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="llmfleet apiserver "))
    server = stack.enter_context(running_apiserver(Path(folder)))
    install_crds(server, ROOT / "charts" / "llmfleet-crds" / "crds")
    return server


def new_namespace(server: Apiserver, prefix: str = "test") -> str:
    """A namespace nobody else uses."""
    name = f"{prefix}-{next(_numbers)}"
    answer = server.call(
        "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    )
    if answer.status != 201:
        raise RuntimeError(answer.message)
    return name
