"""Lanes of tests that share one cluster: what each has of its own, and what is done once for all of them.

In: the name pytest-xdist gives to its worker. Out: a namespace, what the lane's release and instances are told, and a
lock. Without workers there is one lane. The first release watches every namespace, as the chart does by itself; those
beside it keep to their own, and mark their instances, which the first one then leaves alone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LANE = os.environ.get("PYTEST_XDIST_WORKER", "")
NAMESPACE = f"llmfleet-e2e-{LANE}" if LANE else "llmfleet-e2e"
BESIDE = LANE not in ("", "gw0")


def settings() -> list[str]:
    """What every install and upgrade of this lane's release is told."""
    told = ["--values=values/dev.yaml", "--set=fleet.redis.enabled=false"]
    if BESIDE:
        told += [f"--set=controllers.{name}.watchNamespaces={{{NAMESPACE}}}" for name in ("operator", "autoscaler")]
    return told


def marks(release: str) -> dict[str, str]:
    """Annotations of an instance that is made by hand in this lane, for its release."""
    return {"serving.ai/managed-by": f"{NAMESPACE}/{release}"} if BESIDE else {}


@dataclass(frozen=True)
class Shared:
    """A folder that all lanes of a run know."""

    folder: Path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One lane after the other."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def once(self, name: str, action: Callable[[], None]) -> None:
        """Do something in one lane while the others wait; when it fails, the next one tries."""
        with self.alone():
            if not self.has(name):
                action()
                self.note(name)

    def note(self, name: str) -> None:
        """Leave a note for the others."""
        (self.folder / name).touch()

    def has(self, name: str) -> bool:
        """Whether somebody left a note."""
        return (self.folder / name).exists()
