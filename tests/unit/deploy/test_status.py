"""Every situation has one reason, and its conditions are what Helm, Flux and Argo CD can read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import World

from llmfleet.api.conditions import ConditionType
from llmfleet.api.reasons import Reason
from llmfleet.deploy.status import State, conditions


def kstatus(world: World, name: str) -> str:
    """The rules of kstatus for a resource it does not know."""
    if world.condition(name, "Stalled").get("status") == "True":
        return "Failed"
    if world.condition(name, "Reconciling").get("status") == "True":
        return "InProgress"
    cluster = world.cluster(name)
    observed = cluster["status"].get("observedGeneration")
    return "Current" if observed == cluster["metadata"]["generation"] else "InProgress"


def test_an_instance_goes_from_starting_to_serving_and_says_its_figures() -> None:
    world = World()
    world.create("a", fleet="f")
    world.reconcile_all()
    assert (world.reason("a"), kstatus(world, "a")) == ("Starting", "InProgress")
    world.run(60, until=world.all_serving)
    status = world.cluster("a")["status"]
    assert kstatus(world, "a") == "Current"
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (2, 2, 2)
    assert (status["shape"], status["ready"], status["url"]) == ("2x1 tp2", "2/2", "http://a.d.svc:8000")
    assert status["modelLoadSeconds"] == 20
    assert status["engineRevision"]
    assert status["restarts"] == 0


@pytest.mark.parametrize(
    ("selector", "router", "said"),
    [
        ("app.kubernetes.io/instance=rel", {}, True),
        ("serving.ai/fleet=f", {}, False),
        ("", {}, False),
        ("app.kubernetes.io/instance=rel", {"enabled": False}, False),
    ],
)
def test_an_instance_that_no_router_selects_says_which_labels_are_asked_for(
    selector: str, router: dict[str, Any], said: bool
) -> None:
    world = World()
    world.serve_routers(selector)
    world.create("a", fleet="f", router=router)
    world.run(60, until=world.all_serving)
    asked = "; no router serves it, because of its labels (backends asks for app.kubernetes.io/instance=rel)"
    assert world.message("a") == f"all ranks are ready{asked if said else ''}"


def test_the_warm_up_request_comes_before_traffic() -> None:
    world = World()
    world.hang_prober = True
    world.create("a")
    world.run(60, until=lambda: world.reason("a") == "WarmingUp")
    assert not world.ready("a")
    assert not list(world.endpoints())
    world.hang_prober = False
    world.run(5, until=world.all_serving)


def test_without_warm_up_ready_is_serving() -> None:
    world = World()
    world.hang_prober = True
    world.create("a", lifecycle={"warmup": {"enabled": False}})
    world.run(60, until=world.all_serving)


def test_an_engine_that_answers_no_warm_up_misses_its_startup_timeout() -> None:
    world = World()
    world.hang_prober = True
    world.create("a", lifecycle={"startupTimeoutSeconds": 40})
    world.run(60, until=lambda: world.reason("a") == "StartupTimeout")


def test_the_revision_in_the_status_is_the_one_that_runs() -> None:
    world = World()
    for name in ("a", "b"):
        world.create(name, fleet="f")
    world.run(60, until=world.all_serving)
    before = world.cluster("b")["status"]["engineRevision"]
    for name in ("a", "b"):
        world.edit(name, image="engine:2")
    world.run(3)
    waiting = next(name for name in ("a", "b") if world.reason(name) == "WaitingForTurn")
    assert world.cluster(waiting)["status"]["engineRevision"] == before
    assert world.cluster(waiting)["status"]["updatedReplicas"] == 0


def test_a_first_spec_that_is_invalid_fails_a_wait_at_once() -> None:
    world = World()
    world.create("a", podTemplate={"spec": {"restartPolicy": "Never"}})
    world.run(2)
    assert (world.reason("a"), kstatus(world, "a")) == ("InvalidSpec", "Failed")
    assert not [where for where in world.objects if where[0] == "statefulsets"]


def test_an_evicted_rank_shows_as_draining() -> None:
    world = World()
    world.create("a")
    world.run(60, until=world.all_serving)
    world.processes[world.pod("a", 0)["metadata"]["uid"]].requests = [world.now.replace(year=2027)]
    world.evict("a", 1)
    world.run(3)
    assert (world.reason("a"), world.message("a")) == ("Draining", "rank 1 is being removed")


def test_every_transition_is_an_event_with_the_same_word() -> None:
    world = World()
    world.create("a")
    world.run(60, until=world.all_serving)
    world.kill("a", 1)
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    world.delete("a")
    world.run(30)
    reasons = [reason for _, reason, _ in world.events]
    # The second WarmingUp and Serving only count up the first ones' events.
    assert reasons == ["Starting", "WarmingUp", "Serving", "GroupRestarting", "Draining", "Draining"]
    assert set(reasons) <= {str(reason) for reason in Reason}


def test_the_operators_figures_use_the_same_words() -> None:
    world = World()
    for name in ("a", "b"):
        world.create(name)
    world.run(60, until=world.all_serving)
    assert world.measured("instances", "Serving") == 2
    world.kill("a", 1)
    world.run(90, until=lambda: world.restarts("a") == 1 and world.all_serving())
    assert world.measured("transitions_total", "GroupRestarting") == 1
    assert world.measured("transitions_total", "Serving") == 3
    world.delete("b")
    world.run(60, until=lambda: ("llmclusters", "d", "b") not in world.objects)
    world.run(31)
    assert world.measured("instances", "Serving") == 1
    assert world.measured("instances", "Draining") == 0


OF_AN_INSTANCE = [
    ConditionType.READY,
    ConditionType.RECONCILING,
    ConditionType.PROGRESSING,
    ConditionType.DEGRADED,
    ConditionType.STALLED,
]
FLAGS = st.fixed_dictionaries({flag: st.booleans() for flag in ("ready", "reconciling", "degraded", "stalled")})


@given(flags=FLAGS)
def test_conditions_have_every_type_once_with_the_states_reason(flags: dict[str, Any]) -> None:
    built = conditions(State(reason=Reason.STARTING, message="m", **flags))
    assert [item.type for item in built] == OF_AN_INSTANCE
    assert {item.reason for item in built} == {"Starting"}
    assert all(item.message == "m" for item in built if item.true or item.type == "Ready")


@pytest.mark.parametrize("generation", [1, 5])
def test_the_observed_generation_follows_the_spec(generation: int) -> None:
    world = World()
    world.create("a")
    for number in range(generation - 1):
        world.edit("a", router={"weight": number})
    world.run(60, until=world.all_serving)
    assert world.cluster("a")["status"]["observedGeneration"] == generation
