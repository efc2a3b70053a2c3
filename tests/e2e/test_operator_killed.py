"""The operator killed at random, again and again, while instances are made, lost, rolled and deleted: it converges.

The operator runs as a plain process beside the cluster, so that SIGKILL hits it anywhere, between any two writes, and
the next one starts at once: no kubelet back-off, no Lease to wait for.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kubernetes import client

from e2e.bed import NEXT_SIM, RELEASE, Bed, engine_spec, eventually
from e2e.figures import Figures
from e2e.load import SILENT, open_loop

KILLS = 50
SEED = 20261


@pytest.fixture
def no_operator(bed: Bed) -> Iterator[None]:
    """The release's own operator put to rest, and back afterwards."""
    scale(bed, 0)
    yield
    scale(bed, 1)


def scale(bed: Bed, replicas: int) -> None:
    """Set the operator's replicas and wait until its pods are as many."""
    apps = client.AppsV1Api(bed.api)
    body = {"spec": {"replicas": replicas}}
    apps.patch_namespaced_deployment_scale(f"{RELEASE}-operator", bed.namespace, body)
    selector = "app.kubernetes.io/component=operator"
    eventually(lambda: len(bed.pods(selector)) == replicas, 60)


class Operator:
    """One operator process after the other."""

    def __init__(self, bed: Bed, log: Path) -> None:
        self.kills, self.log, self.process = 0, log, None
        self.command = [sys.executable, "-m", "llmfleet", "operator", f"--kubeconfig={bed.kubeconfig}"]
        self.command += ["--namespace", bed.namespace, "--identity", f"{bed.namespace}/{RELEASE}"]
        self.command += ["--no-leader-election", "--metrics-port=0", "--health-port=0"]

    def start(self) -> None:
        """Start the next one."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is said."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def torment(self, dice: random.Random, over: threading.Event) -> None:
        """Kill and restart at random moments, at least `KILLS` times and until `over`; one is left running."""
        while self.kills < KILLS or not over.is_set():
            self.start()
            time.sleep(dice.uniform(0.8, 5.0))
            self.kill()
            self.kills += 1
        self.start()


@contextmanager
def tormented(bed: Bed, log: Path) -> Iterator[Operator]:
    """An operator that is killed while the block runs, and left alone after it."""
    operator, over = Operator(bed, log), threading.Event()
    thread = threading.Thread(target=operator.torment, args=(random.Random(SEED), over))
    thread.start()
    try:
        yield operator
    finally:
        over.set()
        thread.join()


@pytest.mark.usefixtures("no_operator")
def test_killed_fifty_times_amid_everything_it_converges(bed: Bed, figures: Figures, tmp_path: Path) -> None:
    names, gone = [f"chaos-{number}" for number in range(3)], "chaos-9"
    spec = engine_spec("chaos")
    with tormented(bed, tmp_path / "operator.log") as operator:
        for name in (*names, gone):
            bed.create(name, spec, fleet="chaos")
        for name in (*names, gone):
            eventually(lambda name=name: bed.is_ready(name), 240, lambda: bed.why("chaos"))
        with open_loop(bed.router_url(), "chaos", rate=3, tokens=20) as load:
            bed.delete(gone)
            for name in names:
                bed.patch(name, {"image": NEXT_SIM})
            eventually(lambda: bed.instance(gone) is None, 240, lambda: bed.why("chaos"))
            for name in names:
                eventually(lambda name=name: bed.images(name) == {NEXT_SIM}, 300, lambda: bed.why("chaos"))
            bed.core.delete_namespaced_pod(f"{names[0]}-1", bed.namespace, grace_period_seconds=0)
        eventually(lambda: operator.kills >= KILLS, 300)
    try:
        assert_converged(bed, names)
        assert load.kinds()[SILENT] == 0
        assert operator.process.poll() is None, (tmp_path / "operator.log").read_text()[-3000:]
        for name in names:
            bed.delete(name)
        eventually(lambda: not bed.instances("chaos"), 120, lambda: bed.why("chaos"))
        assert_nothing_left(bed)
    finally:
        operator.kill()
    figures.count("operator killed at random, times", operator.kills)
    figures.count("requests while the operator was killed, by outcome", dict(load.kinds()))


def assert_converged(bed: Bed, names: list[str]) -> None:
    """Every instance is whole, Ready, on the new image, with one set of children."""
    for name in names:
        eventually(lambda name=name: bed.is_ready(name), 180, lambda: bed.why("chaos"))
        assert bed.images(name) == {NEXT_SIM}
        assert [pod["metadata"]["name"] for pod in bed.ranks(name)] == [f"{name}-0", f"{name}-1"]
    sets = client.AppsV1Api(bed.api).list_namespaced_stateful_set(
        bed.namespace, label_selector="serving.ai/fleet=chaos"
    )
    assert sorted(item.metadata.name for item in sets.items) == names


def assert_nothing_left(bed: Bed) -> None:
    """No child outlives its instance."""
    apps, policy = client.AppsV1Api(bed.api), client.PolicyV1Api(bed.api)
    eventually(
        lambda: not apps.list_namespaced_stateful_set(bed.namespace, label_selector="serving.ai/fleet=chaos").items, 60
    )
    eventually(lambda: not bed.pods("serving.ai/fleet=chaos"), 90)
    budgets = [item.metadata.name for item in policy.list_namespaced_pod_disruption_budget(bed.namespace).items]
    assert "chaos" not in budgets, budgets
