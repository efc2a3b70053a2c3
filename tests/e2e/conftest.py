"""The local cluster with images loaded and the chart installed, once for all end-to-end tests.

A cluster that existed before stays, also one that was unwell; one that these tests made is taken away. The namespace is
their own.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.bed import NAMESPACE, NEXT_SIM, RELEASE, ROOT, Bed, renamed_archive, run, tool
from e2e.figures import Figures

CLUSTER = ROOT / "ci/cluster/cluster"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything below this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """A running local cluster; its kubeconfig."""
    # One that is there and unwell is somebody's all the same: only what nobody had is taken away.
    was_there = subprocess.run([CLUSTER, "kubeconfig"], capture_output=True, check=False).returncode == 0
    run([CLUSTER, "up", "--nodes", "2"])
    yield Path(run([CLUSTER, "kubeconfig"]).strip())
    if not was_there:
        run([CLUSTER, "down"])


@pytest.fixture(scope="session")
def archives(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The images on every node, and the simulator once more under the name of its next version."""
    lines = run([ROOT / "ci/images/build", "llmfleet", "sim", "redis"]).splitlines()
    paths = {name.rsplit("/", 1)[1].split(":")[0]: Path(path) for name, path in (line.split(" ", 1) for line in lines)}
    following = renamed_archive(paths["engine-sim"], NEXT_SIM, tmp_path_factory.mktemp("images"))
    run([CLUSTER, "load", *paths.values(), following])
    return paths


@pytest.fixture(scope="session")
def bed(cluster: Path, archives: dict[str, Path]) -> Iterator[Bed]:
    """The chart installed as a person would, without the dev profile's model: the tests make their own instances."""
    helm = [tool("helm"), f"--kubeconfig={cluster}", "--namespace", NAMESPACE]
    values = ["--values", "values/dev.yaml", "--set", "fleet.models=null", "--set", "fleet.redis.enabled=false"]
    run([*helm, "upgrade", RELEASE, "charts/llmfleet", "--install", "--create-namespace", *values, "--wait"])
    found = Bed(cluster)
    yield found
    run([*helm, "uninstall", RELEASE, "--wait", "--timeout", "5m"])
    leftovers = json.loads(run([tool("kubectl"), f"--kubeconfig={cluster}", "get", "llmc", "-A", "-o", "json"]))[
        "items"
    ]
    assert not [item for item in leftovers if item["metadata"]["namespace"] == NAMESPACE]
    run([tool("kubectl"), f"--kubeconfig={cluster}", "delete", "namespace", NAMESPACE, "--wait", "--timeout", "300s"])


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """Measured figures of this run, printed and kept for the documentation."""
    kept = Figures(ROOT / "build/figures/e2e.json")
    yield kept
    kept.write()
