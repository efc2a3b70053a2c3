"""A local cluster whose nodes say that they have GPUs, with everything that the production profiles expect to find.

What is there: the images under the very names the profiles ask for (the engine is the simulator), a claim `models`, a
Secret `hugging-face`, a namespace that enforces the restricted standard. GPUs and RDMA devices are extended resources
that the test writes into the nodes' status, as a cluster's administrator may: scheduler and kubelets count them as they
count those of a device plug-in. The cluster is the tests' own and goes away with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from charts.rendering import images, render
from e2e.bed import ROOT, renamed_archive, run
from profiles.ground import CLUSTER_NAME, PATTERNS, Ground

CLUSTER = ROOT / "ci/cluster/cluster"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything below this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """A running local cluster of two nodes; its kubeconfig. What an interrupted run left of it goes first."""
    run([CLUSTER, "down", "--name", CLUSTER_NAME])
    try:
        run([CLUSTER, "up", "--name", CLUSTER_NAME, "--nodes", "2"])
        yield Path(run([CLUSTER, "kubeconfig", "--name", CLUSTER_NAME]).strip())
    finally:
        run([CLUSTER, "down", "--name", CLUSTER_NAME])


@pytest.fixture(scope="session")
def ground(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """The cluster with images, devices, claim and Secret."""
    folder = tmp_path_factory.mktemp("profiles")
    lines = run([ROOT / "ci/images/build", "llmfleet", "sim"]).splitlines()
    built = {Path(path).name.partition("-")[0]: Path(path) for path in (line.split(" ", 1)[1] for line in lines)}
    wanted = {image for profile in PATTERNS for image in images(render(profile))}
    archives = [renamed_archive(built["sim" if "vllm" in image else "llmfleet"], image, folder) for image in wanted]
    run([CLUSTER, "load", "--name", CLUSTER_NAME, *archives])
    found = Ground(cluster)
    found.prepare(folder / "models")
    return found
