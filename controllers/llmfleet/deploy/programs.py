"""Read the programs of `scripts/` as text and wrap them as container commands and probe handlers.

In: nothing but the package's own files, read once. Out: command lists. It never touches anything outside the
package; the same files always give the same text.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

PYTHON: Final = ("python3", "-IS", "-c")
SHELL: Final = ("/bin/sh", "-c")


@cache
def text(name: str) -> str:
    """One program as it is written in `scripts/`."""
    return files("llmfleet.deploy.scripts").joinpath(name).read_text(encoding="utf-8")


def gate() -> list[str]:
    """The start gate; the engine's command line follows as its arguments."""
    return [*PYTHON, text("gate.py.txt")]


def start() -> list[str]:
    """A single pod's engine without a gate; its command line follows as arguments."""
    return [*SHELL, text("start.sh")]


def started() -> list[str]:
    """Succeeds once the container is past the gate."""
    return [*SHELL, text("started.sh")]


def ready() -> list[str]:
    """Succeeds once rank 0 serves, or a follower is past the gate."""
    return [*SHELL, text("ready.sh"), asking("ready.py.txt")]


def live() -> list[str]:
    """Fails when the engine loop of rank 0 has stalled."""
    return [*SHELL, text("live.sh"), asking("live.py.txt")]


def stop() -> list[str]:
    """Returns when the engine is idle or the drain deadline has passed."""
    return [*PYTHON, asking("stop.py.txt")]


def asking(name: str) -> str:
    """A program that talks to the engine, with the helpers it needs in front."""
    return f"{text('engine.py.txt')}\n\n{text(name)}"
