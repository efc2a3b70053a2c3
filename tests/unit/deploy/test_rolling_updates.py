"""A template change reaches a fleet one instance at a time, and goes back when it does not work."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from world import World

from llmfleet import names
from llmfleet.deploy.records import Figures

FLEET = ("a", "b", "c")


def fleet(*, members: Sequence[str] = FLEET, **spec: object) -> World:
    world = World()
    for name in members:
        world.create(name, fleet="f", **spec)
    world.run(80, until=world.all_serving)
    return world


def edit_all(world: World, **spec: object) -> None:
    for name in FLEET:
        world.edit(name, **spec)


def rolled_out(world: World, image: str) -> bool:
    return world.all_serving() and all(world.images(name) == {image} for name in FLEET)


def test_a_drain_never_says_that_no_router_is_known_before_it_asked() -> None:
    world = fleet()
    world.serve_routers()
    world.edit("a", image="engine:2")
    world.run(10)
    notes = [note for name, reason, note in world.events if (name, reason) == ("a", "Draining")]
    assert notes
    assert not [note for note in notes if "no router is known" in note]


def test_an_image_change_rolls_one_by_one_and_loses_no_request() -> None:
    world = fleet()
    world.traffic = True
    world.run(20)
    edit_all(world, image="engine:2")
    most_down = 0

    def done() -> bool:
        nonlocal most_down
        most_down = max(most_down, sum(not world.ready(name) for name in FLEET))
        return rolled_out(world, "engine:2")

    world.run(400, until=done)
    assert most_down == 1
    assert world.lost_requests == 0
    assert world.served_requests > 50
    assert world.broken_rules == []
    assert [world.restarts(name) for name in FLEET] == [0, 0, 0]


def test_a_long_request_ends_before_its_instance_is_updated() -> None:
    world = fleet(members=("a",))
    leader = world.processes[world.pod("a", 0)["metadata"]["uid"]]
    leader.requests = [world.now + timedelta(seconds=120)]
    world.edit("a", image="engine:2")
    world.run(110)
    assert (world.reason("a"), world.images("a")) == ("Draining", {"engine:1"})
    world.run(120, until=lambda: world.all_serving() and world.images("a") == {"engine:2"})
    assert world.lost_requests == 0


def test_a_template_edited_by_hand_while_waiting_heals_to_the_one_that_served() -> None:
    world = fleet()
    edit_all(world, image="engine:2")
    world.run(3)
    waiting = next(name for name in FLEET if world.reason(name) == "WaitingForTurn")
    sts = world.objects[("statefulsets", "d", waiting)]
    sts["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1"
    world.touch(sts)
    world.run(1)
    assert sts["spec"]["template"]["spec"]["containers"][0]["image"] == "engine:1"


def test_waiting_instances_say_whose_turn_it_is_and_keep_serving() -> None:
    world = fleet()
    edit_all(world, image="engine:2")
    world.run(3)
    waiting = [name for name in FLEET if world.reason(name) == "WaitingForTurn"]
    assert len(waiting) == 2
    assert all(world.ready(name) and world.images(name) == {"engine:1"} for name in waiting)
    assert all(world.condition(name, "Reconciling")["status"] == "True" for name in waiting)
    assert "is first" in world.message(waiting[0])


def test_a_pod_that_dies_before_its_turn_comes_back_from_the_old_template() -> None:
    world = fleet()
    edit_all(world, image="engine:2")
    world.run(3)
    waiting = next(name for name in FLEET if world.reason(name) == "WaitingForTurn")
    world.kill_pod(waiting, 1)
    world.run(3)
    assert world.images(waiting) == {"engine:1"}
    world.run(400, until=lambda: rolled_out(world, "engine:2"))
    assert world.broken_rules == []


def test_an_instance_that_is_down_goes_first() -> None:
    world = fleet()
    world.broken_images.add("engine:1")
    world.kill("c", 1)
    world.run(5)
    edit_all(world, image="engine:2")
    world.run(3)
    assert world.template("c") != world.records("c").good
    world.run(400, until=lambda: rolled_out(world, "engine:2"))


def test_a_template_that_cannot_start_halts_the_roll_and_goes_back() -> None:
    world = fleet()
    world.broken_images.add("engine:2")
    edit_all(world, image="engine:2")
    world.run(400, until=lambda: any(world.reason(name) == "UpdateHalted" and world.ready(name) for name in FLEET))
    world.run(60)
    halted = [name for name in FLEET if world.reason(name) == "UpdateHalted"]
    assert len(halted) == 1
    assert all(world.ready(name) and world.images(name) == {"engine:1"} for name in FLEET)
    assert world.condition(halted[0], "Stalled")["status"] == "True"
    others = [name for name in FLEET if name not in halted]
    assert all(world.condition(name, "Stalled")["status"] == "False" for name in others)
    assert all(halted[0] in world.message(name) for name in others)
    assert world.broken_rules == []


def test_an_image_that_does_not_exist_halts_after_the_startup_timeout() -> None:
    world = fleet(lifecycle={"startupTimeoutSeconds": 40})
    world.missing_images.add("engine:2")
    edit_all(world, image="engine:2")
    world.run(300, until=lambda: any(world.reason(name) == "UpdateHalted" and world.ready(name) for name in FLEET))
    assert all(world.images(name) == {"engine:1"} for name in FLEET)


def test_an_update_that_finds_no_place_halts_after_the_startup_timeout() -> None:
    world = fleet(members=("a",), lifecycle={"startupTimeoutSeconds": 40})
    world.edit("a", image="engine:2")
    world.run(3)
    world.nodes["n1"].devices = 1
    world.run(30, until=lambda: world.reason("a") == "Unschedulable")
    world.run(60, until=lambda: world.records("a").failed is not None)
    world.nodes["n1"].devices = 8
    world.run(100, until=lambda: world.reason("a") == "UpdateHalted" and world.ready("a"))


def test_a_pod_that_dies_in_a_halted_roll_comes_back_on_the_old_image() -> None:
    world = fleet()
    world.broken_images.add("engine:2")
    edit_all(world, image="engine:2")
    world.run(400, until=lambda: any(world.reason(name) == "UpdateHalted" and world.ready(name) for name in FLEET))
    for name in FLEET:
        world.kill_pod(name, 0)
    world.run(120, until=lambda: all(world.ready(name) for name in FLEET))
    assert all(world.images(name) == {"engine:1"} for name in FLEET)


def test_another_change_while_halted_starts_the_roll_again() -> None:
    world = fleet()
    world.broken_images.add("engine:2")
    edit_all(world, image="engine:2")
    world.run(400, until=lambda: any(world.reason(name) == "UpdateHalted" and world.ready(name) for name in FLEET))
    edit_all(world, image="engine:3")
    world.run(400, until=lambda: rolled_out(world, "engine:3"))
    assert all(world.records(name).failed is None for name in FLEET)


def test_going_back_to_the_old_spec_while_halted_is_settled_at_once() -> None:
    world = fleet()
    world.broken_images.add("engine:2")
    edit_all(world, image="engine:2")
    world.run(400, until=lambda: any(world.reason(name) == "UpdateHalted" and world.ready(name) for name in FLEET))
    before = {name: world.restarts(name) for name in FLEET}
    edit_all(world, image="engine:1")
    world.run(5, until=world.all_serving)
    assert {name: world.restarts(name) for name in FLEET} == before


def test_a_paused_instance_keeps_its_template_and_does_not_block_the_others() -> None:
    world = fleet()
    edit_all(world, image="engine:2")
    world.edit("a", update={"paused": True})
    world.run(300, until=lambda: world.images("b") == world.images("c") == {"engine:2"} and world.ready("c"))
    world.run(5)
    assert world.reason("a") == "UpdatePaused"
    assert world.images("a") == {"engine:1"}
    assert world.ready("a")
    world.edit("a", update={"paused": False})
    world.run(100, until=lambda: rolled_out(world, "engine:2"))


def test_a_change_that_touches_no_template_restarts_nothing() -> None:
    world = fleet()
    before = {pod["metadata"]["uid"] for name in FLEET for pod in world.pods(name)}
    edit_all(world, router={"weight": 7}, lifecycle={"startupTimeoutSeconds": 700})
    world.run(30)
    assert world.all_serving()
    assert {pod["metadata"]["uid"] for name in FLEET for pod in world.pods(name)} == before


def test_an_invalid_spec_keeps_what_runs_and_says_why() -> None:
    world = fleet()
    world.edit("a", podTemplate={"spec": {"containers": [{"name": "engine", "args": ["--port", "1"]}]}})
    world.run(5)
    assert (world.reason("a"), world.ready("a")) == ("InvalidSpec", True)
    assert "spec.podTemplate.spec.containers[engine].args" in world.message("a")
    assert world.condition("a", "Stalled")["status"] == "True"
    world.kill("a", 1)
    world.run(90, until=lambda: world.restarts("a") == 1 and world.ready("a"))
    assert world.images("a") == {"engine:1"}


def test_a_deleted_statefulset_comes_back_with_the_template_that_served() -> None:
    world = fleet()
    edit_all(world, image="engine:2")
    world.run(3)
    waiting = next(name for name in FLEET if world.reason(name) == "WaitingForTurn")
    world.drop(world.objects[("statefulsets", "d", waiting)])
    world.reconcile_all()
    world.tick()
    assert world.images(waiting) == {"engine:1"}
    world.run(400, until=lambda: rolled_out(world, "engine:2"))


@pytest.mark.parametrize("kind", ["services", "poddisruptionbudgets"])
def test_deleted_children_come_back(kind: str) -> None:
    world = fleet()
    for where in [where for where in world.objects if where[0] == kind]:
        world.drop(world.objects[where])
    world.run(2)
    assert sum(where[0] == kind for where in world.objects) == (6 if kind == "services" else 1)


def test_a_template_edited_by_hand_heals() -> None:
    world = fleet()
    sts = world.objects[("statefulsets", "d", "a")]
    sts["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1"
    world.touch(sts)
    world.run(1)
    assert sts["spec"]["template"]["spec"]["containers"][0]["image"] == "engine:1"


def test_prefill_and_decode_take_turns() -> None:
    world = World()
    for name in ("p1", "p2"):
        world.create(name, fleet="f", role="prefill")
    for name in ("d1", "d2"):
        world.create(name, fleet="f", role="decode")
    world.run(80, until=world.all_serving)
    members = ("d1", "d2", "p1", "p2")
    for name in members:
        world.edit(name, image="engine:2")
    order: list[str] = []

    def done() -> bool:
        order.extend(name for name in members if world.images(name) == {"engine:2"} and name not in order)
        return len(order) == 4 and world.all_serving()

    world.run(500, until=done)
    assert [name[0] for name in order] in (["d", "p", "d", "p"], ["d", "p", "p", "d"])


CANARY = {"canary": {"enabled": True, "analysisSeconds": 30, "weightPercent": 5}}


def on_trial(*, failed: float, ttft: float) -> World:
    """A fleet whose first updated instance is on trial and was asked a hundred times."""
    world = fleet(update=CANARY)
    world.serve_routers()
    edit_all(world, image="engine:2")
    world.figures = {name: Figures(requests=10, ttft_sum=5, ttft_count=10) for name in FLEET}
    world.run(200, until=lambda: any(world.reason(name) == "CanaryAnalysis" for name in FLEET))
    world.run(5)
    canary = next(name for name in FLEET if world.reason(name) == "CanaryAnalysis")
    world.figures = {name: Figures(requests=110, ttft_sum=55, ttft_count=110) for name in FLEET}
    world.figures[canary] = Figures(requests=110, errors=failed, ttft_sum=5 + 100 * ttft, ttft_count=110)
    return world


def test_a_good_canary_lets_the_roll_go_on() -> None:
    world = on_trial(failed=0, ttft=0.6)
    canary = next(name for name in FLEET if world.reason(name) == "CanaryAnalysis")
    assert world.cluster(canary)["metadata"]["annotations"]["serving.ai/canary-weight"] == "5"
    world.run(400, until=lambda: rolled_out(world, "engine:2"))
    assert "serving.ai/canary-weight" not in world.cluster(canary)["metadata"]["annotations"]


@pytest.mark.parametrize(("failed", "ttft", "word"), [(5, 0.5, "failed"), (0, 0.9, "TTFT")])
def test_a_bad_canary_drains_and_goes_back(failed: float, ttft: float, word: str) -> None:
    world = on_trial(failed=failed, ttft=ttft)
    world.traffic = True
    world.run(300, until=lambda: any(world.reason(name) == "CanaryFailed" and world.ready(name) for name in FLEET))
    assert all(world.images(name) == {"engine:1"} for name in FLEET)
    failed_one = next(name for name in FLEET if world.reason(name) == "CanaryFailed")
    assert word in world.message(failed_one)
    assert world.lost_requests == 0


def test_a_canary_nobody_asked_stays_on_trial() -> None:
    world = fleet(update=CANARY)
    world.serve_routers()
    edit_all(world, image="engine:2")
    world.figures = {name: Figures() for name in FLEET}
    world.run(200, until=lambda: any(world.reason(name) == "CanaryAnalysis" for name in FLEET))
    world.run(120)
    assert sum(world.images(name) == {"engine:2"} for name in FLEET) == 1


def test_the_kept_template_is_the_only_one() -> None:
    world = fleet()
    for image in ("engine:2", "engine:3"):
        edit_all(world, image=image)
        world.run(400, until=lambda image=image: rolled_out(world, image))
    world.run(2)
    kept = [where for where in world.objects if where[0] == "controllerrevisions"]
    assert len(kept) == 3


def kept_templates(world: World) -> list[dict[str, Any]]:
    return [obj for (plural, _, _), obj in world.objects.items() if plural == "controllerrevisions"]


def test_a_template_that_came_back_is_replaced_like_any_other() -> None:
    world = fleet(members=["a"])
    for image in ("engine:2", "engine:1", "engine:3"):
        world.edit("a", image=image)
        world.run(200, until=lambda image=image: world.all_serving() and world.images("a") == {image})
    world.run(2)
    assert len(kept_templates(world)) == 1


def test_the_template_that_came_back_is_the_newest_kept_one() -> None:
    world = fleet(members=["a"])
    for image in ("engine:2", "engine:1"):
        world.edit("a", image=image)
        world.run(200, until=lambda image=image: world.all_serving() and world.images("a") == {image})
    world.run(2)
    (kept,) = kept_templates(world)
    assert kept["revision"] == 3


@pytest.mark.parametrize("writes", range(5))
def test_a_crash_while_a_template_is_proven_never_loses_the_good_one(writes: int) -> None:
    world = fleet(members=["a"])
    world.edit("a", image="engine:2")
    world.run(200, until=lambda: world.images("a") == {"engine:2"} and world.all_ready("a"))
    world.crash_after = writes
    world.reconcile_all()
    good = world.records("a").good
    assert f"a-{good}" in [kept["metadata"]["name"] for kept in kept_templates(world)]
    for image in ("engine:2", "engine:3"):
        world.edit("a", image=image)
        world.run(200, until=lambda image=image: world.all_serving() and world.images("a") == {image})
    world.run(2)
    assert len(kept_templates(world)) == 1


def test_a_failed_template_is_tried_on_when_the_good_one_is_gone() -> None:
    world = fleet(members=["a"])
    world.missing_images.add("engine:2")
    world.edit("a", image="engine:2", lifecycle={"startupTimeoutSeconds": 60})
    world.run(30)
    for kept in kept_templates(world):
        world.drop(kept)
    world.restart_operator()
    world.run(100)
    assert world.images("a") == {"engine:2"}
    world.missing_images.clear()
    world.run(100, until=world.all_serving)
    assert world.images("a") == {"engine:2"}


def test_the_draining_mark_is_gone_after_the_roll() -> None:
    world = fleet()
    edit_all(world, image="engine:2")
    world.run(400, until=lambda: rolled_out(world, "engine:2"))
    assert all(names.DRAINING_ANNOTATION not in world.cluster(name)["metadata"]["annotations"] for name in FLEET)
