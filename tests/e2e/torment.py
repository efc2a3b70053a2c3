"""A controller as a plain process beside the cluster, killed at random and started again at once, again and again.

In: which controller, and dice. Out: a process that was killed so often, and one that is left running. SIGKILL hits it
between any two writes, and the next one starts at once: no kubelet back-off, no Lease to wait for. How long a life may
be follows from how long a start takes on this machine now: one that never gets to its first write proves nothing.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kubernetes import client

from e2e.bed import RELEASE, Bed, eventually
from e2e.beside import beside


@contextmanager
def at_rest(bed: Bed, component: str) -> Iterator[None]:
    """A controller of the release put to rest while the block runs."""
    scale(bed, component, 0)
    try:
        yield
    finally:
        scale(bed, component, 1)


def scale(bed: Bed, component: str, replicas: int) -> None:
    """Set the replicas of a controller and wait until its pods are as many."""
    body = {"spec": {"replicas": replicas}}
    client.AppsV1Api(bed.api).patch_namespaced_deployment_scale(f"{RELEASE}-{component}", bed.namespace, body)
    eventually(lambda: len(bed.pods(f"app.kubernetes.io/component={component}")) == replicas, 180)


class Controller:
    """One process of a controller after the other."""

    def __init__(self, bed: Bed, component: str, log: Path, *flags: str) -> None:
        self.kills, self.log = 0, log
        self.process: subprocess.Popen[bytes] | None = None
        self.command = [sys.executable, "-m", "llmfleet", component, f"--kubeconfig={bed.kubeconfig}"]
        self.command += ["--namespace", bed.namespace, "--identity", f"{bed.namespace}/{RELEASE}"]
        self.command += ["--no-leader-election", "--metrics-port=0", "--health-port=0", *flags]

    def start(self) -> None:
        """Start the next one."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is said."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def torment(
        self, dice: random.Random, lives: tuple[float, float], times: int, over: threading.Event | None = None
    ) -> None:
        """Kill and start again at random, this often at least and until `over`; one is left running.

        `lives`: the shortest and the longest life in seconds, the longest on top of what a start takes now.
        """
        shortest, longest = lives
        start = 0.0
        while self.kills < times or not (over is None or over.is_set()):
            if self.kills % 10 == 0:
                start = self.seconds_to_start()
            self.start()
            time.sleep(dice.uniform(shortest, longest + start))
            self.kill()
            self.kills += 1
        self.start()

    def seconds_to_start(self) -> float:
        """How long such a process takes now until it has read its code."""
        begin = time.monotonic()
        subprocess.run([*self.command[:4], "--help"], capture_output=True, check=True)
        return time.monotonic() - begin

    def runs(self) -> bool:
        """Whether the last one is still there."""
        return self.process is not None and self.process.poll() is None

    def last_words(self) -> str:
        """End of what they all wrote."""
        return self.log.read_text()[-3000:]


@contextmanager
def tormented(controller: Controller, seed: int, lives: tuple[float, float], times: int) -> Iterator[None]:
    """A controller that is killed while the block runs and until it was killed so often, and left alone after it."""
    with beside(partial(controller.torment, random.Random(seed), lives, times)):
        yield
