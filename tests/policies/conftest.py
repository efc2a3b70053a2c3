"""A local cluster of its own on which policies count, with the release of the list installed under default-deny.

Installing it says that the list is enough: operator, router and autoscaler start and the engines become ready under the
very policies whose connections are tried. The cluster goes away with the tests.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ci" / "cluster"))

from llmfleet_cluster import store

from charts.matrix import PROFILE, RELEASE, VALUES
from charts.rendering import PROFILES
from e2e.bed import ROOT, run
from policies.ground import CLUSTER_NAME, Ground

CLUSTER = ROOT / "ci/cluster/cluster"
NODES = ("node-0", "node-1")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """A running cluster; its kubeconfig. What an interrupted run left of it goes first."""
    assert os.geteuid() == 0, "these tests enter the networks of pods: run them as root"
    run([CLUSTER, "down", "--name", CLUSTER_NAME])
    try:
        run([CLUSTER, "up", "--backend", "built", "--policies", "--nodes", str(len(NODES)), "--name", CLUSTER_NAME])
        yield Path(run([CLUSTER, "kubeconfig", "--name", CLUSTER_NAME]).strip())
    finally:
        run([CLUSTER, "down", "--name", CLUSTER_NAME])


@pytest.fixture(scope="session")
def ground(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The release installed, everybody around it in place, and a way into every network."""
    lines = run([ROOT / "ci/images/build", "llmfleet", "sim", "redis"]).splitlines()
    run([CLUSTER, "load", "--name", CLUSTER_NAME, *(line.split(" ", 1)[1] for line in lines)])
    found = Ground(cluster, store.layout_of(CLUSTER_NAME, store.read_record(CLUSTER_NAME)), nodes=NODES)
    own = tmp_path_factory.mktemp("policies") / "values.json"
    own.write_text(json.dumps(VALUES))
    values = [word for name in PROFILES[PROFILE] for word in ("--values", f"values/{name}")]
    found.must(
        "install", RELEASE, "charts/llmfleet", "--create-namespace", *values, "--values", own, "--wait", "--timeout=10m"
    )
    with found.closing:
        found.settle_places()
        found.wait_until_they_count()
        yield found
    found.must("uninstall", RELEASE, "--wait", "--timeout=10m")
    assert found.instances() == [], "the step before the uninstallation did its work under the policies, too"
