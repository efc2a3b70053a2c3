"""A cluster of three nodes to break, beside any other on this machine, with the chart installed once.

The cluster is the tests' own and goes away with them. What an interrupted run left of it goes first, with its fleets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.bed import RELEASE, ROOT, Bed, run, tool
from e2e.figures import Figures
from faults.ground import Ground

NAMESPACE = "llmfleet-faults"


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    """A running cluster of our own."""
    found = Ground("faults")
    found.down()
    try:
        found.up()
        lines = run([ROOT / "ci/images/build", "llmfleet", "sim"]).splitlines()
        found.load([line.split(" ", 1)[1] for line in lines])
        yield found
    finally:
        found.down()


@pytest.fixture(scope="session")
def bed(ground: Ground) -> Iterator[Bed]:
    """The chart installed, without the dev profile's model and without Redis."""
    helm = [tool("helm"), f"--kubeconfig={ground.kubeconfig}", "--namespace", NAMESPACE]
    values = ["--values", "values/dev.yaml", "--set", "fleet.models=null", "--set", "fleet.redis.enabled=false"]
    run([*helm, "upgrade", RELEASE, "charts/llmfleet", "--install", "--create-namespace", *values, "--wait"])
    yield Bed(ground.kubeconfig, NAMESPACE)
    run([*helm, "uninstall", RELEASE, "--wait", "--timeout", "5m"])
    kubectl = [tool("kubectl"), f"--kubeconfig={ground.kubeconfig}"]
    run([*kubectl, "delete", "namespace", NAMESPACE, "--wait", "--timeout", "300s"])


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """Measured figures of this run, printed and kept for the documentation."""
    kept = Figures(Path(ROOT / "build/figures/faults.json"))
    yield kept
    kept.write()
