"""An operator that dies before or after any write ends in the same state, and nothing that must not happen happens."""

from __future__ import annotations

import pytest
from exploring import cases
from hypothesis import example, given
from hypothesis import strategies as st
from world import World

MEMBERS = ("a", "b")


def story(crash_after: int | None) -> World:
    """Create, roll, lose a rank, delete: with one crash after so many writes."""
    world = World()
    world.traffic = True
    world.crash_after = crash_after
    for name in MEMBERS:
        world.create(name, fleet="f")
    world.run(90, until=world.all_serving)
    for name in MEMBERS:
        world.edit(name, image="engine:2")
    world.run(250, until=lambda: world.all_serving() and all(world.images(name) == {"engine:2"} for name in MEMBERS))
    world.run(10)
    lost = world.lost_requests
    assert lost == 0
    world.kill("a", 1)
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    lost = world.lost_requests
    world.delete("b")
    world.run(90, until=lambda: ("llmclusters", "d", "b") not in world.objects)
    world.run(40, until=lambda: not world.pods("b"))
    assert world.lost_requests == lost
    return world


def end_state(world: World) -> object:
    """What is left, without what differs between any two runs."""
    cluster = world.cluster("a")
    conditions = [(c["type"], c["status"], c["reason"]) for c in cluster["status"]["conditions"]]
    records = world.records("a")
    return (
        sorted(where for where in world.objects if where[0] != "pods"),
        conditions,
        cluster["status"]["restarts"],
        (records.restarts, records.good == world.template("a"), records.incident, records.failed),
        world.images("a"),
    )


def test_a_crash_at_every_write_changes_nothing_in_the_end() -> None:
    calm = story(None)
    expected = end_state(calm)
    for writes in range(len(calm.writes) + 5):
        world = story(writes)
        assert end_state(world) == expected, f"crash after {writes} writes"
        assert world.broken_rules == [], f"crash after {writes} writes"


FAULTS = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.sampled_from(["kill", "kill_pod", "evict", "edit", "crash", "bad", "sleep"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=12,
)


@cases(20)
@given(faults=FAULTS, seed=st.integers(0, 10_000))
@example(faults=[(40, "edit", "a", 0), (11, "edit", "a", 0), (38, "kill", "a", 0), (39, "bad", "b", 0)], seed=1204)
@example(faults=[(1, "kill", "b", 1), (31, "kill", "b", 0), (25, "bad", "b", 1)], seed=1)
def test_no_order_of_faults_breaks_a_rule_and_all_ends_well(faults: list[tuple[int, str, str, int]], seed: int) -> None:
    world = World(seed=seed)
    world.broken_images.add("engine:bad")
    for name in ("a", "b", "c"):
        world.create(name, fleet="f")
    world.run(80, until=world.all_serving)
    for number, (seconds, fault, name, rank) in enumerate(faults):
        inflict(world, fault, name, rank, number)
        world.run(seconds)
    for name in ("a", "b", "c"):
        world.edit(name, image="engine:final")
    world.run(2500, until=lambda: world.all_serving() and world.images("a") == world.images("b") == world.images("c"))
    assert world.images("a") == {"engine:final"}
    assert world.broken_rules == []


def inflict(world: World, fault: str, name: str, rank: int, number: int) -> None:
    exists = ("pods", "d", f"{name}-{rank}") in world.objects
    running = exists and world.pod(name, rank)["metadata"]["uid"] in world.processes
    if fault == "kill" and running:
        world.kill(name, rank)
    elif fault == "kill_pod" and exists:
        world.kill_pod(name, rank)
    elif fault == "evict" and exists:
        world.evict(name, rank)
    elif fault == "edit":
        world.edit(name, image=f"engine:{number}")
    elif fault == "bad":
        world.edit(name, image="engine:bad")
    elif fault == "crash":
        world.crash_after = number % 4
    elif fault == "sleep":
        for _ in range(20):
            world.tick()


@cases(10)
@given(kills=st.lists(st.integers(0, 2), min_size=1, max_size=4), crash=st.integers(0, 6))
def test_every_kill_of_a_whole_group_is_one_incident(kills: list[int], crash: int) -> None:
    world = World()
    world.create("a", replicas=3, lifecycle={"restartBackoffSeconds": 1})
    world.run(80, until=world.all_serving)
    for number, rank in enumerate(kills, start=1):
        world.crash_after = crash
        world.kill("a", rank)
        world.run(120, until=lambda number=number: world.restarts("a") == number and world.all_serving())
        world.run(5)
    assert world.restarts("a") == len(kills)
    assert world.broken_rules == []


@pytest.mark.parametrize("seed", range(3))
def test_a_roll_under_traffic_loses_nothing_however_passes_are_ordered(seed: int) -> None:
    world = World(seed=seed)
    world.traffic = True
    for name in ("a", "b", "c"):
        world.create(name, fleet="f")
    world.run(80, until=world.all_serving)
    for name in ("c", "a", "b"):
        world.edit(name, image="engine:2")
        world.run(world.random.randint(0, 9))
    world.run(400, until=lambda: world.all_serving() and world.images("c") == {"engine:2"})
    assert (world.lost_requests, world.broken_rules) == (0, [])
