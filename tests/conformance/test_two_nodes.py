"""A group of two "nodes" on loopback: what a lost rank does to the other."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.engine import REAL, launch, patience
from sim.engine import Process, free_port, wait_for


@contextmanager
def group(kind: str, folder: Path) -> Iterator[tuple[Process, Process]]:
    """Start a leader and a follower of one tensor-parallel group."""
    seconds = str(int(patience(kind)))
    shape = ("--tensor-parallel-size", "2", "--nnodes", "2", "--distributed-timeout-seconds", seconds)
    place = ("--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    env = {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "30"}
    with (
        launch(kind, folder, *shape, *place, "--node-rank", "1", "--headless", env=env) as follower,
        launch(kind, folder, *shape, *place, "--node-rank", "0", env=env) as leader,
    ):
        yield leader.until_up(patience(kind)), follower


def test_a_lost_follower_shows_only_at_the_next_request_and_the_leader_ends_with_status_0(kind, tmp_path):
    with group(kind, tmp_path) as (leader, follower):
        assert leader.complete().status == 200
        assert "-tp2-" in leader.complete().json()["system_fingerprint"]
        assert not follower.up()
        os.killpg(follower.process.pid, signal.SIGKILL)
        time.sleep(2)
        assert leader.get("/health").status == 200
        assert leader.process.poll() is None
        reply = leader.complete()
        assert (reply.status, reply.json()["error"]["code"]) == (500, 500)
        assert leader.exit_code(300) == 0


def test_a_leader_alone_gives_up_after_the_rendezvous_timeout(kind, tmp_path):
    seconds = "2" if kind != REAL else "20"
    flags = ("--tensor-parallel-size", "2", "--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1")
    place = ("--master-port", str(free_port()), "--distributed-timeout-seconds", seconds)
    with launch(kind, tmp_path, *flags, *place) as leader:
        assert leader.exit_code(patience(kind)) == 1
        assert wait_for(lambda: b"1/2 clients joined" in leader.log.read_bytes())
        assert not leader.up()
