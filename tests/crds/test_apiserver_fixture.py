"""The apiserver of the tests starts where others start theirs, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes import apiserver
from fakes.apiserver import StartError, free_ports, running_apiserver

pytestmark = pytest.mark.apiserver

EtcdCommand = Callable[[Path, int, int], list[str]]


def children() -> set[int]:
    """Process ids that this process started and that still run."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


@pytest.fixture
def before() -> Iterator[set[int]]:
    """The processes that were there before."""
    yield children()


def test_a_taken_port_is_answered_with_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: set[int]
) -> None:
    chosen = iter([[1, 1, 1], free_ports(3)])
    monkeypatch.setattr(apiserver, "free_ports", lambda _: next(chosen))
    monkeypatch.setattr(apiserver, "etcd_command", etcd_that_cannot_listen_on_1(apiserver.etcd_command))
    with running_apiserver(tmp_path / "a b") as server:
        assert server.session.get(server.url + "/readyz", timeout=10).status_code == 200
        assert len(children() - before) == 2
    assert children() == before


def etcd_that_cannot_listen_on_1(build: EtcdCommand) -> EtcdCommand:
    """As root any port can be taken, so port 1 stands for a taken one."""
    return lambda directory, client, peer: ["false"] if client == 1 else build(directory, client, peer)


def test_a_server_that_cannot_start_says_why(tmp_path: Path, before: set[int]) -> None:
    with (
        pytest.raises(StartError, match="unknown flag: --no-such-flag"),
        running_apiserver(tmp_path, arguments=["--no-such-flag"]),
    ):
        raise AssertionError("it cannot start")
    assert children() == before
