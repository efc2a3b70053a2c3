"""The ports that tests hand out: never two of the same, never one that somebody has or may get by chance."""

from __future__ import annotations

import socket

from fakes import ports


def test_ports_differ_and_a_taken_one_is_left_out():
    numbers = ports.in_turn(range(11000, 11009, 3), 1)
    assert [next(numbers) for _ in range(4)] == [11003, 11006, 11000, 11003]
    with socket.create_server(("127.0.0.1", ports.free_port())) as taken:
        assert not ports.is_free(taken.getsockname()[1])
    found = ports.free_ports(50)
    assert len(set(found)) == 50


def test_the_workers_of_a_run_share_no_port_with_each_other_nor_with_a_node_port(monkeypatch):
    slices = []
    for worker in ("gw0", "gw1", "gw5"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        slices.append(set(ports.own_slice()))
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    slices.append(set(ports.own_slice()))
    assert len(set.union(*slices)) == sum(map(len, slices))
    assert max(map(max, slices)) < 30000
