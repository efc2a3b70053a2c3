"""Several ranks of one engine: rendezvous, and what happens when a rank is lost."""

import signal
import socket
import time
from contextlib import ExitStack

import pytest

from sim.engine import free_port, process_status, read_all, start, wait_for


@pytest.fixture
def ranks(tmp_path):
    """Start ranks of one group by number."""
    master = free_port()
    with ExitStack() as stack:

        def rank(number, *flags, nodes=2, **more):
            group = ("--nnodes", str(nodes), "--node-rank", str(number), "--tensor-parallel-size", str(nodes))
            place = ("--master-addr", "localhost", "--master-port", str(master), "--sim-step-a", "5")
            headless = ("--headless",) if number else ()
            process = start(tmp_path, *group, *place, *headless, *flags, **more)
            return stack.enter_context(process)

        yield rank


def test_the_leader_listens_only_when_every_rank_is_there(ranks):
    leader = ranks(0, nodes=3)
    first = ranks(1, nodes=3)
    assert wait_for(lambda: b"rank 1 joined, 2 of 3" in leader.log.read_bytes())
    assert not leader.up()
    ranks(2, nodes=3)
    leader.until_up()
    assert leader.complete().status == 200
    assert not first.up()


def test_followers_wait_for_a_leader_that_comes_late(ranks):
    follower = ranks(1)
    assert not wait_for(lambda: follower.process.poll() is not None, 0.5)
    assert ranks(0).until_up().complete().json()["system_fingerprint"].startswith("vllm-0.32.0-tp2-")


def test_a_leader_alone_gives_up_after_the_timeout_with_status_1(ranks):
    leader = ranks(0, "--distributed-timeout-seconds", "1")
    assert leader.exit_code() == 1
    assert b"1/2 clients joined" in leader.log.read_bytes()


def test_a_follower_alone_gives_up_after_the_timeout_with_status_1(ranks):
    assert ranks(1, "--distributed-timeout-seconds", "1").exit_code() == 1


def test_a_name_that_does_not_resolve_yet_is_tried_again(ranks):
    follower = ranks(1, "--master-addr", "not-yet.invalid", "--distributed-timeout-seconds", "1")
    assert follower.exit_code() == 1
    assert b"never reached" in follower.log.read_bytes()


def test_a_dead_follower_is_noticed_at_the_next_request_and_the_leader_ends_with_0(ranks):
    leader, follower = ranks(0, "--sim-teardown-scale", "6"), ranks(1)
    leader.until_up().complete()
    follower.signal(signal.SIGKILL)
    follower.exit_code()
    time.sleep(0.3)
    assert leader.get("/health").status == 200
    assert leader.process.poll() is None
    assert leader.complete().status == 500
    assert leader.get("/health").status == 503
    assert leader.exit_code() == 0


def test_a_follower_that_dies_mid_stream_ends_it_with_an_error_event_and_done(ranks):
    leader, follower = ranks(0), ranks(1)
    stream = leader.until_up().open(stream=True)
    stream.recv(100)
    follower.signal(signal.SIGKILL)
    data = read_all(stream)
    assert b'"type": "InternalServerError", "param": null, "code": 500' in data and b"data: [DONE]\n\n" in data
    assert leader.exit_code() == 0


@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_a_frozen_follower_stalls_the_stream_until_the_execute_timeout(ranks, how):
    env = {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "12"}
    leader, follower = ranks(0, env=env), ranks(1, admin=True)
    stream = leader.until_up().open(stream=True)
    stream.recv(100)
    if how == "stopped":
        follower.signal(signal.SIGSTOP)
    else:
        follower.fault(kind="hang")
    assert wait_for(lambda: _stands_still(leader), 10)
    assert leader.metric("vllm:num_requests_running") == 1
    assert leader.get("/health").status == 200
    assert b'"error"' in read_all(stream)
    assert leader.exit_code() == 0


def test_a_new_follower_never_joins_a_running_leader_and_fails_after_it(ranks):
    leader, follower = ranks(0), ranks(1)
    leader.until_up()
    follower.signal(signal.SIGKILL)
    follower.exit_code()
    late = ranks(1, "--distributed-timeout-seconds", "1", "--sim-teardown-scale", "0.01")
    assert not wait_for(lambda: late.process.poll() is not None, 1.5)
    assert leader.complete().status == 500
    assert leader.exit_code() == 0
    assert late.exit_code() == 1


def test_a_follower_outlives_its_leader_until_a_signal(ranks):
    leader, follower = ranks(0), ranks(1, "--sim-teardown-scale", "0.05")
    leader.until_up()
    leader.signal(signal.SIGKILL)
    assert wait_for(lambda: b"the leader of the group is gone" in follower.log.read_bytes())
    assert not wait_for(lambda: follower.process.poll() is not None, 0.7)
    follower.signal(signal.SIGTERM)
    assert follower.exit_code() == 0


def test_probes_of_the_master_port_disturb_nothing(ranks):
    leader = ranks(0)
    port = int(leader.process.args[leader.process.args.index("--master-port") + 1])

    def probe():
        try:
            socket.create_connection(("localhost", port), timeout=1).close()
        except ConnectionRefusedError:
            return False
        return True

    assert wait_for(probe)
    assert all(probe() for _ in range(20))
    ranks(1)
    assert leader.until_up().complete().status == 200
    assert all(probe() for _ in range(20))
    assert leader.complete().status == 200


def test_a_follower_restarted_before_the_start_is_counted_once(ranks):
    leader, first = ranks(0, nodes=3), ranks(1, nodes=3)
    assert wait_for(lambda: b"rank 1 joined" in leader.log.read_bytes())
    first.signal(signal.SIGKILL)
    first.exit_code()
    ranks(1, nodes=3)
    assert wait_for(lambda: leader.log.read_bytes().count(b"rank 1 joined, 2 of 3") == 2)
    assert not leader.up()
    ranks(2, nodes=3)
    assert leader.until_up().complete().status == 200


def test_an_idle_group_exchanges_nothing(ranks):
    leader, follower = ranks(0), ranks(1)
    leader.until_up().complete()
    assert wait_for(lambda: _is_quiet(follower))


def _stands_still(engine):
    """Whether it makes no step for as long as some sixty would take."""
    before = engine.metric("vllm:iteration_tokens_total_count")
    time.sleep(0.3)
    return engine.metric("vllm:iteration_tokens_total_count") == before


def _is_quiet(process):
    """Whether nothing wakes it for half a second; the end of a request may still do so on a busy machine."""
    before = _switches(process)
    time.sleep(0.5)
    return _switches(process) - before <= 2


def _switches(process):
    return int(process_status(process)["voluntary_ctxt_switches"])
