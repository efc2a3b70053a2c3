"""A deleted instance keeps its finalizer until its traffic has gone, and not a moment longer."""

from __future__ import annotations

import pytest
from world import World

from llmfleet import names


def serving(**spec: object) -> World:
    world = World()
    world.create("a", fleet="f", **spec)
    world.run(60, until=world.all_serving)
    return world


def gone(world: World) -> bool:
    return not any(where[0] == "llmclusters" for where in world.objects)


def test_everything_an_instance_owns_goes_with_it() -> None:
    world = serving()
    world.delete("a")
    world.run(60, until=lambda: not world.objects)


def test_a_busy_instance_drains_before_it_goes() -> None:
    world = serving()
    world.traffic = True
    world.run(20)
    world.delete("a")
    world.run(2)
    assert world.reason("a") == "Draining"
    world.run(60, until=lambda: gone(world))
    world.run(60)
    assert world.lost_requests == 0
    assert world.served_requests > 0


def test_the_drain_deadline_ends_a_drain() -> None:
    world = serving(lifecycle={"drainTimeoutSeconds": 10})
    leader = world.processes[world.pod("a", 0)["metadata"]["uid"]]
    leader.requests = [world.now.replace(year=2027)]
    world.delete("a")
    world.run(8)
    assert not gone(world)
    world.run(6, until=lambda: gone(world))


@pytest.mark.parametrize("seconds", [0, 1, 5])
def test_an_instance_that_does_not_serve_yet_goes_at_once(seconds: int) -> None:
    world = World()
    world.create("a")
    world.run(seconds)
    world.delete("a")
    world.run(3, until=lambda: gone(world))


def test_a_terminating_namespace_is_not_held_up() -> None:
    world = serving()
    world.traffic = True
    world.run(5)
    world.terminating_namespaces.add("d")
    world.delete("a")
    world.run(2, until=lambda: gone(world))


def test_an_instance_of_another_operator_is_left_alone() -> None:
    world = World()
    world.create("a")
    world.cluster("a")["metadata"]["annotations"] = {names.MANAGED_BY_ANNOTATION: "other/release"}
    world.run(5)
    assert world.writes == []


def test_a_statefulset_of_somebody_else_is_left_alone_and_named() -> None:
    world = World()
    world.create("a")
    world.reconcile_all()
    sts = world.objects[("statefulsets", "d", "a")]
    sts["metadata"]["annotations"] = {}
    world.restart_operator()
    start = len(world.writes)
    world.run(5)
    assert not [write for write in world.writes[start:] if "StatefulSet" in write]
    assert world.reason("a") == "InvalidSpec"
    assert "StatefulSet a" in world.message("a")


def test_the_budget_of_a_fleet_names_its_living_members() -> None:
    world = World()
    for name in ("a", "b"):
        world.create(name, fleet="f")
    world.run(60, until=world.all_serving)
    budget = world.objects[("poddisruptionbudgets", "d", "f")]
    assert [owner["name"] for owner in budget["metadata"]["ownerReferences"]] == ["a", "b"]
    world.delete("a")
    world.run(60, until=lambda: ("llmclusters", "d", "a") not in world.objects)
    world.run(2)
    assert [owner["name"] for owner in budget["metadata"]["ownerReferences"]] == ["b"]


def test_nothing_is_written_at_rest() -> None:
    world = serving()
    start = len(world.writes)
    world.run(700)
    assert world.writes[start:] == []
