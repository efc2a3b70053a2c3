"""The local cluster with images loaded, once for all end-to-end tests, and the chart installed, once in each lane.

A cluster that existed before stays, also one that was unwell; one that these tests made is taken away, after the last
lane has ended, or before the next run if this one was interrupted. The namespaces are their own.
`pytest -n 3 tests/e2e` runs in three lanes, without `-n` there is one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from e2e.bed import NEXT_SIM, RELEASE, ROOT, Bed, renamed_archive, run, tool
from e2e.figures import Figures
from e2e.lanes import LANE, NAMESPACE, Shared, settings

CLUSTER = ROOT / "ci/cluster/cluster"
FIGURES = ROOT / "build/figures/e2e.json"
SHARED = pytest.StashKey[Shared]()
WORDS = pytest.StashKey[list[str]]()
OURS = "made-by-e2e-tests"  # in the folder of a cluster that these tests made: the process id of their run
RUN = "run"  # in the lanes' folder: the same
LANES = "llmfleet-e2e"  # what a lane is told of the others
TOGETHER = ("test_autoscaler_fleets.py",)  # making the fixture of its module twice takes as long as a short test


class Turns(LoadScopeScheduling):
    """Gives a lane that is free the next test, or the next module that must stay together."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        return path if path.endswith(TOGETHER) else nodeid


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that all lanes know; a lane that is one of several is told which."""
    config.addinivalue_line("markers", "turn(number): begins before the others when there are several lanes")
    given = config.workerinput if hasattr(config, "workerinput") else begin()
    if LANES in given:
        config.stash[SHARED] = Shared(Path(given[LANES]))
    config.stash[WORDS] = []


def begin() -> dict[str, str]:
    """Make what the lanes are told of; the process that does so ends last."""
    folder = tempfile.mkdtemp(prefix="llmfleet-e2e-")
    (Path(folder) / RUN).write_text(str(os.getpid()))
    return {LANES: folder}


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a lane the folder."""
    node.workerinput[LANES] = str(node.config.stash[SHARED].folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything below this folder; in lanes, let the long ones begin, so that all lanes end together.

    Their order also keeps those apart that need the whole machine: one starts many pods, two start many processes.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    if LANE:
        items.sort(key=turn)


def turn(item: pytest.Item) -> float:
    """When it may begin; the others follow as they are written."""
    mark = item.get_closest_marker("turn")
    return float(mark.args[0]) if mark else math.inf


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Turns:
    """By the tests' names: marks such as `xdist_group` do not reach the scheduler with every pytest."""
    return Turns(config, log)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep every lane's figures, and take the cluster away if these tests made it: all lanes have ended."""
    if LANE:
        return
    shared, words = session.config.stash[SHARED], session.config.stash[WORDS]
    words += Figures(FIGURES).merge(sorted(shared.folder.glob("figures*.json")))
    if shared.has("made"):
        try:
            run([CLUSTER, "down"])
        except AssertionError as problem:
            words.append(str(problem))
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    shutil.rmtree(shared.folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures of this run, and what kept the cluster from going away."""
    for line in config.stash[WORDS]:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Shared:
    """What the lanes share."""
    if SHARED not in pytestconfig.stash:  # nobody would know when the last lane has ended
        pytest.fail("in lanes these tests are asked for by name: pytest -n 3 tests/e2e")
    return pytestconfig.stash[SHARED]


@pytest.fixture(scope="session")
def cluster(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A running local cluster with the images on every node; its kubeconfig."""
    shared.once("up", lambda: bring_up(shared, tmp_path_factory.mktemp("images")))
    return Path(run([CLUSTER, "kubeconfig"]).strip())


def kubeconfig() -> Path | None:
    """Where the cluster's kubeconfig is; None: there is no cluster."""
    done = subprocess.run([CLUSTER, "kubeconfig"], capture_output=True, text=True, check=False)
    return None if done.returncode else Path(done.stdout.strip())


def abandoned(note: Path) -> bool:
    """Whether a run made this cluster that is there no more."""
    return note.exists() and not Path("/proc", note.read_text()).exists()


def bring_up(shared: Shared, folder: Path) -> None:
    """Start the cluster, and load the images, the simulator once more under the name of its next version."""
    found = kubeconfig()
    if found and abandoned(found.parent / OURS):
        run([CLUSTER, "down"])  # with the releases and fleets of a run that was interrupted
        found = None
    # One that is there and unwell is somebody's all the same: only what nobody had is taken away.
    if not found:
        shared.note("made")
    run([CLUSTER, "up", "--nodes", "2"])
    if not found:
        (Path(run([CLUSTER, "kubeconfig"]).strip()).parent / OURS).write_text((shared.folder / RUN).read_text())
    lines = run([ROOT / "ci/images/build", "llmfleet", "sim", "redis"]).splitlines()
    paths = {name.rsplit("/", 1)[1].split(":")[0]: Path(path) for name, path in (line.split(" ", 1) for line in lines)}
    following = renamed_archive(paths["engine-sim"], NEXT_SIM, folder)
    run([CLUSTER, "load", *paths.values(), following])


@pytest.fixture(scope="session")
def bed(cluster: Path, shared: Shared) -> Iterator[Bed]:
    """The chart installed as a person would, without the dev profile's model: the tests make their own instances."""
    helm = [tool("helm"), f"--kubeconfig={cluster}", "--namespace", NAMESPACE]
    values = [*settings(), "--set", "fleet.models=null"]
    with shared.alone():  # two that install the CRDs at the same moment is nothing that a person would do
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
def figures(shared: Shared) -> Iterator[Figures]:
    """Measured figures of this run, printed and kept for the documentation."""
    kept = Figures(shared.folder / f"figures{LANE}.json")
    yield kept
    kept.write()
