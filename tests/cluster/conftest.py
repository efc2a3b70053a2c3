"""Fixtures of the local cluster's tests. They need root and about 3 minutes; no cluster of the user's is touched."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "ci" / "cluster")]

from cluster_driver import Cluster, build_probe  # noqa: E402


@pytest.fixture(scope="session")
def as_root() -> None:
    assert os.geteuid() == 0, "the cluster's tests make namespaces and control groups: run them as root"


@pytest.fixture(scope="session")
def probe(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of an image that serves, resolves and fetches."""
    return build_probe(tmp_path_factory.mktemp("image") / "probe.tar")


@pytest.fixture(scope="session")
def running(probe: Path) -> Iterator[Cluster]:
    """A cluster that stays up for the whole session, with the probe image on its nodes."""
    cluster = Cluster(f"run-{os.getpid()}")
    try:
        cluster.run("up", "--backend", "built")
        cluster.run("load", str(probe))
        yield cluster
    finally:
        cluster.run("down")


@pytest.fixture
def fresh(as_root: None) -> Iterator[Cluster]:
    """A cluster that does not exist yet."""
    cluster = Cluster(f"new-{os.getpid()}")
    try:
        yield cluster
    finally:
        cluster.run("down")


@pytest.fixture
def spaced(as_root: None) -> Iterator[Path]:
    """A short folder with a space in its name: sockets leave no room for pytest's own."""
    with tempfile.TemporaryDirectory(prefix="a b", dir="/tmp") as folder:
        yield Path(folder)
