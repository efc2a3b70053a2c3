"""A group that loses a rank is recreated once, rank 0 first, and never meets a rank of another generation."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from world import World, set_condition

from llmfleet.api.types import Lifecycle
from llmfleet.deploy.records import Cause, Incident, Records
from llmfleet.deploy.restart import last_words, not_before
from llmfleet.kube.refs import Key


@pytest.fixture
def world() -> World:
    world = World()
    world.create("a", fleet="f", replicas=3)
    world.run(80, until=world.all_serving)
    return world


def uids(world: World) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in world.pods("a")}


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_container_costs_the_whole_group_once(world: World, rank: int) -> None:
    before = uids(world)
    world.kill("a", rank)
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    assert not set(before.values()) & set(uids(world).values())
    world.run(60)
    assert world.restarts("a") == 1
    assert world.broken_rules == []


def test_a_broken_group_gets_no_time_to_drain_but_its_kubelet_ends_it(world: World) -> None:
    """Every wait here is one of an outage; without any grace the pod would be gone before its processes."""
    world.writes.clear()
    world.kill("a", 1)
    world.run(90, until=lambda: world.restarts("a") == 1)
    assert [write for write in world.writes if write.startswith("delete")] == [
        "delete Pod a-0 1",
        "delete Pod a-1 1",
        "delete Pod a-2 1",
    ]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_pod_that_is_gone_costs_the_whole_group_once(world: World, rank: int) -> None:
    before = uids(world)
    world.kill_pod("a", rank)
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    assert not set(before.values()) & set(uids(world).values())
    assert world.broken_rules == []


def test_a_cache_that_lags_behind_undoes_nothing(world: World) -> None:
    world.kill("a", 1)
    where = ("statefulsets", "d", "a")
    world.run(90, until=lambda: world.records("a").incident is not None and not world.doomed("a"))
    old = copy.deepcopy(world.objects[where])
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    now = world.records("a")
    world.stale[where] = old
    world.reconcile(Key("d", "a"))
    assert world.records("a") == now


def test_exit_code_zero_is_no_success(world: World) -> None:
    world.kill("a", 0, code=0)
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())


def test_rank_zero_goes_first_and_the_others_only_when_it_is_gone(world: World) -> None:
    world.kill("a", 2)
    start = len(world.writes)
    world.run(90, until=lambda: world.restarts("a") == 1)
    deletes = [write.split()[2] for write in world.writes[start:] if write.startswith("delete Pod")]
    assert deletes == ["a-0", "a-1", "a-2"]
    assert world.broken_rules == []


def test_a_fresh_rank_at_the_gate_is_never_deleted(world: World) -> None:
    world.kill_pod("a", 2)
    world.tick()
    fresh = uids(world)["a-2"]
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    assert uids(world)["a-2"] == fresh


def test_every_rank_lost_at_once_is_one_incident_without_a_delete(world: World) -> None:
    for rank in range(3):
        world.kill_pod("a", rank)
    start = len(world.writes)
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    assert not [write for write in world.writes[start:] if write.startswith("delete Pod")]


def test_a_group_replaced_while_the_operator_slept_is_not_restarted_again(world: World) -> None:
    for rank in range(3):
        world.kill_pod("a", rank)
    for _ in range(40):
        world.tick()
    before = uids(world)
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    assert uids(world) == before


def test_the_second_restart_waits_and_each_further_one_twice_as_long() -> None:
    world = World()
    world.broken_images.add("engine:1")
    world.create("a", lifecycle={"restartBackoffSeconds": 10, "startupTimeoutSeconds": 6000})
    times = []
    for _ in range(400):
        before = world.restarts("a") if world.condition("a") else 0
        world.run(1)
        if world.restarts("a") > before:
            times.append(int(world.now.timestamp()))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] < gaps[2] < gaps[3], gaps
    assert gaps[3] >= 80, gaps


@pytest.mark.parametrize(("ahead", "waits"), [(0, True), (3600, False)])
def test_nobody_waits_for_a_restart_that_a_clock_wrote_down_ahead_of_time(ahead: int, waits: bool) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    records = Records(streak=1, last_restart=now + timedelta(seconds=ahead))
    assert (not_before(records, Incident(cause=Cause.LOST_RANK, since=now), Lifecycle(), now) is not None) is waits


def test_ten_calm_minutes_forget_the_backoff(world: World) -> None:
    world.kill("a", 1)
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    assert world.records("a").streak == 1
    world.run(620)
    assert world.records("a").streak == 0
    assert world.restarts("a") == 1


def test_a_group_that_cannot_load_says_so_with_the_last_words() -> None:
    world = World()
    world.broken_images.add("engine:1")
    world.create("a")
    world.run(60, until=lambda: world.reason("a") == "ModelLoadFailed")
    assert "last words" in world.message("a")
    assert "exit code 1" in world.message("a")


def test_last_words_are_one_line_and_the_end_of_what_was_said() -> None:
    traceback = "Traceback (most recent call last):\n  File 'a.py'\n\nRuntimeError: no such model\n"
    assert last_words(traceback) == "Traceback (most recent call last): | File 'a.py' | RuntimeError: no such model"
    assert last_words("x" * 500 + "the end") == "..." + ("x" * 500 + "the end")[-400:]
    assert last_words(" \n") == ""


def test_a_group_that_keeps_crashing_ends_in_crash_loop_and_then_stalled() -> None:
    world = World()
    world.broken_images.add("engine:1")
    world.create("a", lifecycle={"restartBackoffSeconds": 1})
    world.run(600, until=lambda: world.reason("a") == "CrashLoop")
    assert world.condition("a", "Stalled")["status"] == "False"
    world.run(600, until=lambda: world.condition("a", "Stalled").get("status") == "True")


def test_a_single_pod_restarts_in_place_and_is_only_counted() -> None:
    world = World()
    world.create("a", replicas=1)
    world.run(60, until=world.all_serving)
    before = uids(world)
    world.kill("a", 0)
    world.run(60, until=lambda: world.restarts("a") == 1 and world.all_serving())
    world.run(40)
    assert uids(world) == before
    assert world.restarts("a") == 1


def test_a_single_pod_is_warmed_again_after_a_restart_in_place() -> None:
    world = World()
    world.create("a", replicas=1)
    world.run(60, until=world.all_serving)
    first = world.records("a").warmed
    world.kill("a", 0)
    world.run(60, until=lambda: world.restarts("a") == 1 and world.all_serving())
    assert world.records("a").warmed not in ("", first)


def test_a_start_that_takes_too_long_is_restarted_and_says_so() -> None:
    world = World()
    world.create("a", lifecycle={"startupTimeoutSeconds": 10, "restartBackoffSeconds": 30})
    world.run(40, until=lambda: world.reason("a") == "StartupTimeout")
    world.run(60, until=lambda: world.restarts("a") == 1)
    world.run(300, until=lambda: world.condition("a", "Stalled").get("status") == "True")


def test_ranks_at_the_gate_are_not_restarted_by_the_startup_timeout() -> None:
    world = World()
    world.missing_images.add("engine:1")
    world.create("a", lifecycle={"startupTimeoutSeconds": 10})
    world.run(60)
    assert world.reason("a") == "ImagePullFailed"
    assert not [write for write in world.writes if write.startswith("delete Pod")]
    assert world.condition("a", "Stalled")["status"] == "True"


def test_an_evicted_pod_drains_before_its_group_is_recreated(world: World) -> None:
    world.traffic = True
    world.run(30)
    world.evict("a", 1)
    world.run(120, until=lambda: world.restarts("a") == 1 and world.all_serving())
    assert world.lost_requests == 0
    assert world.served_requests > 0


def test_a_pod_on_a_dead_node_is_forced_out_only_after_its_grace_and_a_minute() -> None:
    world = World(nodes={"n1": 1, "n2": 2})
    world.create("a", replicas=2)
    world.run(60, until=world.all_serving)
    world.nodes["n1"].alive = False
    world.evict("a", 0)
    world.run(340 + 55)
    assert not [write for write in world.writes if write.startswith("delete Pod a-0 0")]
    world.run(60, until=lambda: any(write.startswith("delete Pod a-0 0") for write in world.writes))
    world.run(90, until=lambda: world.restarts("a") == 1)


def test_an_overdue_pod_on_a_living_node_is_not_forced_out() -> None:
    world = World()
    world.create("a", replicas=2)
    world.run(60, until=world.all_serving)
    pod = world.pod("a", 1)
    world.evict("a", 1)
    world.processes[pod["metadata"]["uid"]].stopping = None
    world.run(500)
    assert not [write for write in world.writes if write.startswith("delete Pod a-1 0")]


def test_half_placed_groups_do_not_block_each_other_for_ever() -> None:
    world = World(nodes={"n1": 2})
    world.create("old", replicas=2)
    world.create("young", replicas=2, created=1)
    world.reconcile_all()
    for name in ("old", "young"):
        world.run_statefulsets()
        del world.objects[("pods", "d", f"{name}-1")]
    world.run_scheduler()
    world.run(120, until=lambda: world.ready("old"))
    assert world.reason("young") == "Unschedulable"


def test_an_unschedulable_group_says_what_the_scheduler_says() -> None:
    world = World(nodes={"n1": 1})
    world.create("a")
    world.run(10)
    assert (world.reason("a"), world.message("a")) == ("Unschedulable", "no node has a free device")


def passed_the_gate(world: World, rank: int, *, ready_since: datetime) -> None:
    """The kubelet of this rank says that it is past the start gate."""
    pod = world.pod("a", rank)
    pod["status"]["containerStatuses"][0]["started"] = True
    world.processes[pod["metadata"]["uid"]].stage = "parked"
    if rank:
        set_condition(pod, "Ready", True, ready_since)
    world.touch(pod)


def starting() -> World:
    """A group of two that is at the start gate; only `passed_the_gate` lets one of them through."""
    world = World()
    world.create("a", replicas=2)
    world.run_gate = lambda name: None  # type: ignore[method-assign]
    world.run(30, until=lambda: len([pod for pod in world.pods("a") if world.stage(pod) == "gate"]) == 2)
    return world


def test_ranks_that_passed_the_gate_apart_are_recreated_once() -> None:
    world = starting()
    passed_the_gate(world, 1, ready_since=world.now)
    del world.run_gate
    before = uids(world)
    world.run(25)
    assert world.restarts("a") == 0
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    assert uids(world)["a-1"] != before["a-1"]
    world.run(60)
    assert world.restarts("a") == 1


@pytest.mark.parametrize("skew", [timedelta(hours=-1), timedelta(seconds=-31), timedelta(0), timedelta(hours=1)])
def test_a_kubelet_with_another_clock_costs_no_group_that_starts(skew: timedelta) -> None:
    """Ranks are seen past the gate some moments after one another; that is no proof of two generations."""
    world = starting()
    passed_the_gate(world, 1, ready_since=world.now + skew)
    world.run(10)
    assert world.records("a").torn_since is not None
    passed_the_gate(world, 0, ready_since=world.now)
    world.run(60)
    assert (world.restarts("a"), world.records("a").torn_since) == (0, None)


@pytest.mark.parametrize("skew", [timedelta(hours=-1), timedelta(hours=1)])
def test_a_kubelet_with_another_clock_hides_no_torn_group(skew: timedelta) -> None:
    world = starting()
    passed_the_gate(world, 1, ready_since=world.now + skew)
    del world.run_gate
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())


def test_an_operator_that_restarts_goes_on_counting_how_long_ranks_were_apart() -> None:
    world = starting()
    passed_the_gate(world, 1, ready_since=world.now)
    world.run(20)
    world.restart_operator()
    world.run(15, until=lambda: world.records("a").incident is not None)
