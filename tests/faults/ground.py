"""A cluster to break: end its control plane, or one process inside one pod, by id.

In: the name of a cluster this project started. Out: what was ended. A process of a pod is found by the pod's UID in its
control group, so that nothing else can be hit; `kill` in a container could not do it, as its PID 1 takes no SIGKILL
from inside.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.bed import ROOT, run
from e2e.load import Outcome

CLUSTER = ROOT / "ci/cluster/cluster"
CONTROL_PLANE = ("kube-controller-manager", "kube-scheduler", "kube-apiserver", "etcd")


@dataclass(frozen=True)
class Ground:
    """A running cluster of our own."""

    name: str

    @property
    def kubeconfig(self) -> Path:
        """Where its kubeconfig is."""
        return Path(run([CLUSTER, "kubeconfig", "--name", self.name]).strip())

    def status(self) -> dict[str, Any]:
        """What it says of itself, healthy or not."""
        done = subprocess.run([CLUSTER, "status", "--json", "--name", self.name], capture_output=True, check=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def up(self) -> None:
        """Start it, or what of it has ended."""
        run([CLUSTER, "up", "--nodes", "3", "--name", self.name])

    def down(self) -> None:
        """Take it away."""
        run([CLUSTER, "down", "--name", self.name])

    def load(self, archives: Sequence[str]) -> None:
        """Put images on its nodes."""
        run([CLUSTER, "load", *archives, "--name", self.name])

    @contextmanager
    def without(self, *components: str) -> Iterator[None]:
        """Kill components; they are back when the block ends."""
        pids = {part["name"]: part["pid"] for part in self.status()["components"]}
        end_now([pids[component] for component in components])
        try:
            yield
        finally:
            self.up()


def processes_of(pod_uid: str, word: str) -> list[int]:
    """Ids of the processes of one pod that were started with a word."""
    marks = (pod_uid.encode(), pod_uid.replace("-", "_").encode())
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                ours = any(mark in (folder / "cgroup").read_bytes() for mark in marks)
                if ours and word.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Death:
    """When a process was killed and when it was dead, Unix time in seconds.

    In between the kernel still accepts connections for it, to reset them as it closes them.
    """

    killed: float
    dead: float

    def cut(self, outcome: Outcome) -> bool:
        """Whether a request was open, or began, while the process died."""
        return outcome.begin <= self.dead and outcome.end >= self.killed


def kill_in(pod_uid: str, word: str) -> Death:
    """SIGKILL the process of a pod that was started with a word, and wait until it is dead; nothing is finished."""
    pids = processes_of(pod_uid, word)
    assert pids, f"no process of pod {pod_uid} was started with {word!r}"
    return end_now(pids)


def end_now(pids: Sequence[int]) -> Death:
    """SIGKILL processes and wait until each has closed its files."""
    handles = [os.pidfd_open(pid) for pid in pids]
    killed = time.time()
    for handle in handles:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    for pid, handle in zip(pids, handles, strict=True):
        wait = select.poll()  # not select(): a client with a thousand streams open has descriptors too large for it
        wait.register(handle, select.POLLIN)
        ended = wait.poll(60_000)
        os.close(handle)
        assert ended, f"process {pid} outlived SIGKILL"
    return Death(killed, time.time())
