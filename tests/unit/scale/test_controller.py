"""The real controller in a small world: creating, waiting, deleting, replacing, adopting, and dying at every write."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from pytest import MonkeyPatch

from crds.crd_objects import FLEET, disaggregated, monolithic, shape
from llmfleet.kube.refs import AUTOSCALER, LLMCLUSTER
from llmfleet.scale.rivals import elder
from unit.scale.builders import COEFFICIENTS
from unit.scale.world import World, WorldCache

PLAIN = {
    "workBudget.capacity.coefficients": COEFFICIENTS,
    "workBudget.coldStartSeconds": 40,
    "workBudget.slo.errorBudget": "0.05",
    "workBudget.forecast.lookbackSeconds": 1200,
    "behavior": {"scaleDown": {"stabilizationSeconds": 120, "cooldownSeconds": 30, "step": 1}},
}


def scaled(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return monolithic({**PLAIN, **(changes or {})})


def world_of(changes: Mapping[str, Any] | None = None, **options: Any) -> World:
    """A fleet at rest at its minimum of two."""
    world = World(**options)
    world.create(scaled(changes))
    world.run(120, lambda: world.ready() >= world.scaler()["spec"]["minInstances"])
    world.run(20)
    return world


def test_a_new_autoscaler_makes_its_minimum_at_once_and_says_so() -> None:
    world = World()
    world.create(scaled(), annotations={"serving.ai/managed-by": "system/llmfleet"})
    world.run(1)
    assert world.names() == ["llama-0", "llama-1"]
    made = world.clusters()[0]
    assert made["spec"] == shape()
    assert made["metadata"]["labels"] == {**FLEET, "serving.ai/autoscaler": "llama"}
    assert made["metadata"]["annotations"]["serving.ai/managed-by"] == "system/llmfleet"
    [owner] = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == (
        "LLMClusterAutoscaler",
        world.scaler()["metadata"]["uid"],
        True,
    )
    assert world.reason() == "AtMinimum"
    assert world.condition("Ready")["status"] == "False"
    assert [event[1:3] for event in world.events] == [("AtMinimum", "ScaledUp")]
    assert world.status()["selector"] == "serving.ai/fleet=prod"


def test_it_follows_load_up_and_down_by_whole_instances() -> None:
    world = world_of()
    world.load = lambda role: 3.0
    world.run(60, lambda: len(world.names()) > 2)
    assert world.reason() in ("ForecastAboveCapacity", "QueueAboveCapacity", "PendingSuffices")
    world.run(300, lambda: world.ready() >= 4)
    world.run(300)
    world.load = lambda role: 0.2
    sizes = []
    for _ in range(2400):
        world.run(1)
        sizes.append(len(world.names()))
    assert sizes[-1] == 2
    assert all(after - before >= -1 for before, after in itertools.pairwise(sizes)), sizes
    actions = {event[2]: event[1] for event in world.events}
    assert actions["ScaledDown"] == "SustainedSurplus"
    assert world.status()["lastScaleAction"] == "ScaleDown"
    assert world.status()["observedGeneration"] == 1


def test_a_fleet_at_rest_writes_nothing_but_figures_now_and_then() -> None:
    world = world_of()
    world.run(120)
    world.writes.clear()
    world.run(300)
    assert set(world.writes) <= {"status llama"}
    assert len(world.writes) <= 6


def test_the_reason_is_the_same_word_everywhere() -> None:
    world = world_of()
    world.load = lambda role: 3.0
    world.run(60, lambda: len(world.names()) > 2)
    reason = world.events[-1][1]
    labels = {"fleet": "d/llama", "role": "both", "decision": "grow", "reason": reason}
    assert world.metrics.registry.get_sample_value("llmfleet_autoscaler_decisions_total", labels)
    assert world.condition("ScalingActive")["reason"] in (reason, "PendingSuffices")


def test_instances_of_others_count_and_are_never_touched() -> None:
    world = World()
    metadata = {"name": "llama-0", "namespace": "d", "labels": dict(FLEET)}
    world.store(
        LLMCLUSTER, {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": metadata, "spec": shape()}
    )
    world.create(scaled())
    world.run(200)
    assert world.names() == ["llama-0", "llama-1"]
    world.edit("llama", lambda spec: spec.update(minInstances=0, maxInstances=1))
    world.run(200)
    assert world.names() == ["llama-0"]
    assert "patch llama-0" not in world.writes


def test_a_name_that_is_taken_outside_the_fleet_is_skipped() -> None:
    world = World()
    metadata = {"name": "llama-1", "namespace": "d", "labels": {"serving.ai/fleet": "another"}}
    world.store(
        LLMCLUSTER, {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": metadata, "spec": shape()}
    )
    world.create(scaled())
    world.run(1)
    assert world.names() == ["llama-0", "llama-1", "llama-2"]


def test_an_instance_that_somebody_made_a_moment_ago_is_not_taken_over() -> None:
    world = World()
    metadata = {"name": "llama-0", "namespace": "d", "labels": {"serving.ai/fleet": "another"}}
    theirs = {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": metadata}
    world.store(LLMCLUSTER, {**theirs, "spec": {**shape(), "image": "theirs:1"}})
    seen = WorldCache.list
    late = MonkeyPatch()
    # The cache has not heard of it yet.
    late.setattr(WorldCache, "list", lambda self, *of: [o for o in seen(self, *of) if o["metadata"] != live(world)])
    world.create(scaled())
    world.run(3)
    late.undo()
    world.run(3)
    assert world.names() == ["llama-0", "llama-1", "llama-2"]
    [found] = [obj for obj in world.clusters() if obj["metadata"]["name"] == "llama-0"]
    assert (found["spec"]["image"], found["metadata"].get("ownerReferences")) == ("theirs:1", None)


def live(world: World) -> Any:
    return world.objects[(LLMCLUSTER.plural, "d", "llama-0")]["metadata"]


def test_a_new_autoscaler_adopts_what_an_orphaned_one_left() -> None:
    world = world_of()
    before = {obj["metadata"]["uid"] for obj in world.clusters()}
    for obj in world.clusters():
        obj["metadata"].pop("ownerReferences")
    world.objects.pop((AUTOSCALER.plural, "d", "llama"))
    world.create(scaled())
    world.run(5)
    assert {obj["metadata"]["uid"] for obj in world.clusters()} == before
    owner = world.scaler()["metadata"]["uid"]
    assert all(obj["metadata"]["ownerReferences"][0]["uid"] == owner for obj in world.clusters())


def test_a_change_of_mutable_fields_is_patched_into_its_own_instances() -> None:
    world = world_of()
    uids = {obj["metadata"]["uid"] for obj in world.clusters()}
    world.edit("llama", lambda spec: spec["instanceTemplate"]["spec"].update(image="vllm/vllm-openai:v0.34.0"))
    world.run(2)
    assert {obj["spec"]["image"] for obj in world.clusters()} == {"vllm/vllm-openai:v0.34.0"}
    assert {obj["metadata"]["uid"] for obj in world.clusters()} == uids
    assert ("TemplateChanged", "None") in {event[1:3] for event in world.events}


def test_a_changed_shape_is_replaced_one_by_one_new_before_old() -> None:
    world = world_of()
    world.load = lambda role: 0.8
    world.checks.append(lambda: world.broken_rules.extend([] if world.ready() >= 2 else ["too few are ready"]))
    most: list[int] = []
    world.checks.append(lambda: most.append(len(world.names())))

    def bigger(spec: dict[str, Any]) -> None:
        spec["instanceTemplate"]["spec"].update(replicas=1, gpusPerPod=8)

    world.edit("llama", bigger)
    world.run(400, lambda: all(obj["spec"]["gpusPerPod"] == 8 for obj in world.clusters()))
    world.run(60)
    assert len(world.names()) == 2
    assert max(most) == 3
    assert world.broken_rules == []


def test_a_name_that_was_replaced_once_may_be_used_again() -> None:
    world = world_of()
    world.edit("llama", lambda spec: spec["instanceTemplate"]["spec"].update(replicas=1, gpusPerPod=8))
    world.run(600, lambda: all(obj["spec"]["gpusPerPod"] == 8 for obj in world.clusters()))
    world.run(60)
    assert world.names() == ["llama-2", "llama-3"]
    world.writes.clear()
    world.edit("llama", lambda spec: spec.update(minInstances=3, maxInstances=3))
    world.run(200)
    assert world.names() == ["llama-0", "llama-2", "llama-3"]
    assert [write for write in world.writes if not write.startswith("status")] == ["create llama-0"]


def test_a_replacement_that_never_starts_gives_way_to_the_next_template() -> None:
    world = world_of()
    good = shape()["image"]
    world.broken.add("bad:1")
    world.edit("llama", lambda spec: spec["instanceTemplate"]["spec"].update(replicas=4, gpusPerPod=2, image="bad:1"))
    world.run(100)
    assert world.names() == ["llama-0", "llama-1", "llama-2"]
    ready: list[int] = []
    world.checks.append(lambda: ready.append(world.ready()))
    world.edit("llama", lambda spec: spec["instanceTemplate"]["spec"].update(replicas=1, gpusPerPod=8, image=good))
    world.run(400, lambda: all(obj["spec"]["gpusPerPod"] == 8 for obj in world.clusters()))
    assert min(ready) >= 2


def test_a_template_that_is_taken_back_leaves_the_old_instances_alone() -> None:
    world = world_of()
    before = {name: shape()[name] for name in ("replicas", "gpusPerPod")}
    world.edit("llama", lambda spec: spec["instanceTemplate"]["spec"].update(replicas=4, gpusPerPod=2))
    world.run(10)
    assert world.names() == ["llama-0", "llama-1", "llama-2"]
    world.edit("llama", lambda spec: spec["instanceTemplate"]["spec"].update(**before))
    world.run(200)
    assert world.names() == ["llama-0", "llama-1"]


def test_without_a_surge_the_old_one_goes_first() -> None:
    world = world_of({"behavior": {"maxSurge": 0}})
    most: list[int] = []
    world.checks.append(lambda: most.append(len(world.names(staying=True))))
    world.edit("llama", lambda spec: spec["instanceTemplate"]["spec"].update(replicas=1, gpusPerPod=8))
    world.run(400, lambda: all(obj["spec"]["gpusPerPod"] == 8 for obj in world.clusters()))
    assert max(most) == 2


def test_an_instance_that_does_not_start_is_replaced_once_and_then_it_is_said() -> None:
    world = World()
    world.broken.add(shape()["image"])
    world.create(scaled({"minInstances": 1}))
    world.run(600)
    created = [write for write in world.writes if write.startswith("create")]
    assert created == ["create llama-0", "create llama-1"]
    degraded = world.condition("Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "StartupTimeout")
    assert "llama-1" in degraded["message"]


@pytest.mark.parametrize("field", ["paused", "dryRun"])
def test_paused_and_dry_run_write_no_instance(field: str) -> None:
    world = World()
    world.create(scaled({field: True}))
    world.run(60)
    assert world.names() == []
    assert world.reason() == {"paused": "Paused", "dryRun": "DryRun"}[field]
    assert world.condition("ScalingActive")["status"] == "False"


def test_a_spec_nobody_can_use_changes_nothing_and_says_which_field() -> None:
    world = world_of()
    world.edit("llama", lambda spec: spec.update(minInstances=99))
    world.run(30)
    assert world.names() == ["llama-0", "llama-1"]
    condition = world.condition("ScalingActive")
    assert condition["reason"] == "InvalidSpec"
    assert condition["message"] == "spec.minInstances: 99 is above maxInstances 10"


def test_what_the_apiserver_refuses_is_said_and_tried_again() -> None:
    world = World()
    world.refused_images.add(shape()["image"])
    world.create(scaled())
    world.run(40)
    assert world.events[-1][2] == "ScaleFailed"
    world.refused_images.clear()
    world.run(40, lambda: len(world.names()) == 2)


def test_a_template_that_is_refused_keeps_no_fleet_from_its_size() -> None:
    world = world_of({"minInstances": 3})
    world.refused_images.add("worse:1")
    world.edit("llama", lambda spec: spec["instanceTemplate"]["spec"].update(image="worse:1"))
    world.run(30)
    assert world.status()["observedGeneration"] == 2
    assert world.events[-1][2] == "ScaleFailed"
    world.edit("llama", lambda spec: spec.update(minInstances=1))
    world.run(900, lambda: len(world.names()) == 1)
    assert world.status()["lastScaleAction"] == "ScaleDown"


def test_an_hour_without_figures_holds_and_says_so() -> None:
    world = world_of()
    world.load = lambda role: 3.0
    world.run(400, lambda: world.ready() >= 4)
    size = len(world.names())
    world.problem, world.load = "Prometheus does not answer: 503", lambda role: 0.0
    world.run(3600)
    assert len(world.names()) == size
    assert world.reason() == "SignalsStale"
    assert world.condition("MetricsAvailable")["message"].startswith("Prometheus does not answer")


def test_autoscalers_of_another_operator_are_left_alone() -> None:
    world = World()
    world.create(scaled(), annotations={"serving.ai/managed-by": "other/release"})
    world.run(30)
    assert world.writes == []


@pytest.mark.parametrize("hours", [-1, -1000, 1000])
def test_a_clock_that_is_set_stops_no_decision(hours: int) -> None:
    world = world_of()
    world.run(300)
    world.wrong = timedelta(hours=hours)
    world.load = lambda role: 3.0
    world.run(120)
    grown = len(world.names())
    assert grown > 4
    assert len([write for write in world.writes[-20:] if write == "status llama"]) >= 1
    world.load = lambda role: 0.0
    # It watches for a whole window of the clock as it is now.
    world.run(100)
    assert len(world.names()) >= grown
    world.run(900, lambda: len(world.names()) == 2)


def test_external_follows_the_scale_subresource_at_once() -> None:
    world = World()
    world.create(scaled({"policy": "External", "instances": 5}))
    world.run(2)
    assert len(world.names()) == 5
    world.edit("llama", lambda spec: spec.update(instances=3))
    world.run(2)
    assert len(world.names()) == 3
    assert world.status()["currentInstances"] >= 3


def test_external_that_nobody_has_set_holds_and_says_what_an_hpa_waits_for() -> None:
    world = World()
    world.create(scaled({"policy": "External"}))
    world.run(60)
    assert len(world.names()) == 2
    active = world.condition("ScalingActive")
    assert active["status"] == "False"
    assert "an HPA stays off until somebody does: kubectl scale --replicas=N" in active["message"]
    world.edit("llama", lambda spec: spec.update(instances=3))
    world.run(2)
    assert (len(world.names()), world.condition("ScalingActive")["status"]) == (3, "True")


def test_to_zero_and_back_for_one_request() -> None:
    world = world_of({"minInstances": 0, "scaleToZero.afterSeconds": 120})
    world.queued = 1
    world.run(120, lambda: world.ready() == 1)
    world.queued = 0
    world.run(300, lambda: world.names() == [])
    assert "IdleToZero" in {event[1] for event in world.events}
    world.run(30)
    world.queued = 1
    world.run(4, lambda: len(world.names()) == 1)
    assert world.reason() == "WokenByRequest"


@pytest.mark.parametrize("up", [{"stabilizationSeconds": 120}, {"cooldownSeconds": 3600}])
def test_a_request_that_waits_for_an_empty_fleet_waits_for_no_window(up: dict[str, int]) -> None:
    behavior = {"scaleUp": up, "scaleDown": {"stabilizationSeconds": 120}}
    world = world_of({"minInstances": 0, "scaleToZero.afterSeconds": 120, "behavior": behavior})
    for _ in range(2):
        world.queued = 1
        world.run(4, lambda: len(world.names()) == 1)
        world.run(60, lambda: world.ready() == 1)
        world.queued = 0
        world.run(400, lambda: world.clusters() == [])


def test_what_never_starts_and_nobody_asks_for_goes_to_zero() -> None:
    world = world_of({"minInstances": 0, "scaleToZero.afterSeconds": 120})
    world.broken.add(shape()["image"])
    world.queued = 1
    world.run(4, lambda: len(world.names()) == 1)
    world.queued = 0
    world.run(400, lambda: world.names() == [])


ROLES: dict[str, Any] = {**PLAIN, "prefill.maxInstances": 6, "decode.maxInstances": 6}


def roles_world(*, most: int = 2, **options: Any) -> World:
    world = World(**options)
    world.create(disaggregated(ROLES))

    def ratio() -> None:
        prefill, decode = (
            world.ready("prefill"),
            sum(not obj["metadata"].get("deletionTimestamp") and ready_one(obj) for obj in world.clusters("decode")),
        )
        if prefill > most * decode:
            world.broken_rules.append(f"{world.now:%H:%M:%S}: {prefill} prefill to {decode} decode")

    world.checks.append(ratio)
    return world


def ready_one(obj: Mapping[str, Any]) -> bool:
    return any(item["status"] == "True" for item in (obj.get("status") or {}).get("conditions") or ())


def test_two_roles_keep_their_ratio_at_every_moment() -> None:
    world = roles_world()
    world.run(300, lambda: world.ready("prefill") >= 1 and world.ready("decode") >= 1)
    world.load = lambda role: {"prefill": 3.5, "decode": 0.2}.get(role, 0.0)
    world.run(600, lambda: world.ready("prefill") >= 5)
    assert len(world.clusters("decode")) >= 3
    world.load = lambda role: 0.1
    world.run(3000)
    assert (len(world.clusters("prefill")), len(world.clusters("decode"))) == (1, 1)
    assert world.broken_rules == []
    status = world.status("llama-pd")
    assert status["prefill"]["desiredInstances"] == status["decode"]["desiredInstances"] == 1


@pytest.mark.parametrize("drain_seconds", [5, 100])
def test_prefill_of_another_shape_does_not_break_the_ratio_while_both_are_there(drain_seconds: float) -> None:
    world = roles_world(drain_seconds=drain_seconds)
    world.edit("llama-pd", lambda spec: spec["prefill"].update(minInstances=2))
    world.run(300, lambda: (world.ready("prefill"), world.ready("decode")) == (2, 1))
    world.edit("llama-pd", lambda spec: spec["prefill"]["instanceTemplate"]["spec"].update(replicas=1, gpusPerPod=8))
    ready: list[int] = []
    world.checks.append(lambda: ready.append(world.ready("prefill")))
    world.run(600, lambda: all(obj["spec"]["gpusPerPod"] == 8 for obj in world.clusters("prefill")))
    assert min(ready) >= 1
    assert world.broken_rules == []


@pytest.mark.parametrize("later", [0, 20, 39, 40, 41, 42, 60])
def test_both_roles_of_another_shape_keep_the_ratio_whenever_they_change(later: int) -> None:
    world = roles_world()
    world.edit("llama-pd", lambda spec: spec["prefill"].update(minInstances=2))
    world.run(300, lambda: (world.ready("prefill"), world.ready("decode")) == (2, 1))
    for role, seconds in (("decode", later), ("prefill", 0)):
        world.edit(
            "llama-pd",
            lambda spec, role=role: spec[role]["instanceTemplate"]["spec"].update(replicas=1, gpusPerPod=8),  # type: ignore[misc]
        )
        world.run(seconds)
    world.run(900, lambda: all(obj["spec"]["gpusPerPod"] == 8 for obj in world.clusters()))
    assert world.broken_rules == []


def test_the_only_prefill_instance_is_replaced_by_one_of_another_shape_also_at_a_ratio_of_one() -> None:
    world = roles_world(most=1)
    world.edit("llama-pd", lambda spec: spec.update(coordination={"maxPrefillPerDecode": 1}))
    world.run(300, lambda: (world.ready("prefill"), world.ready("decode")) == (1, 1))
    world.edit("llama-pd", lambda spec: spec["prefill"]["instanceTemplate"]["spec"].update(replicas=1, gpusPerPod=8))
    ready: list[int] = []
    world.checks.append(lambda: ready.append(world.ready("prefill")))
    world.run(600, lambda: all(obj["spec"]["gpusPerPod"] == 8 for obj in world.clusters("prefill")))
    assert "RatioRaisedDecode" in {event[1] for event in world.events}
    world.run(900, lambda: len(world.clusters("decode")) == 1)
    assert min(ready) >= 1
    assert world.broken_rules == []


# Two by mistake.


def test_of_two_autoscalers_for_the_same_instances_the_elder_acts_and_the_other_says_so() -> None:
    world = world_of()
    second = scaled({"minInstances": 5})
    second["metadata"]["name"] = "second"
    world.create(second)
    before = list(world.writes)
    world.run(600)
    assert world.names() == ["llama-0", "llama-1"]
    assert set(world.writes[len(before) :]) <= {"status llama", "status second"}
    condition = world.condition("ScalingActive", "second")
    assert (condition["status"], condition["reason"]) == ("False", "InvalidSpec")
    assert "llama is older and sizes the same instances" in condition["message"]


def test_the_younger_autoscaler_takes_over_as_soon_as_the_elder_no_longer_acts() -> None:
    world = world_of()
    second = scaled({"minInstances": 5})
    second["metadata"]["name"] = "second"
    world.create(second)
    world.run(10)
    world.edit("llama", lambda spec: spec.update(paused=True))
    world.run(2)
    assert len(world.names()) == 5
    assert world.reason("second") == "AtMinimum"
    world.edit("llama", lambda spec: spec.update(paused=False))
    world.run(600)
    # What the other one made is not the elder's to delete.
    assert world.names() == ["llama-2", "llama-3", "llama-4"]
    assert world.condition("ScalingActive", "second")["reason"] == "InvalidSpec"
    world.drop(world.scaler("llama"))
    world.run(2)
    assert world.condition("ScalingActive", "second")["reason"] != "InvalidSpec"


def labelled(name: str, selector: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, Any]:
    made = scaled()
    made["metadata"]["name"] = name
    made["spec"]["scaleTargetRef"]["labelSelector"]["matchLabels"] = dict(selector)
    made["spec"]["instanceTemplate"].update(namePrefix=f"{name}-", labels=dict(labels))
    return made


def test_one_that_is_held_back_holds_nobody_back_until_it_acts() -> None:
    world = World()
    for made in (
        labelled("first", {"x": "1"}, {"x": "1"}),
        labelled("second", {"y": "1"}, {"x": "1", "y": "1"}),
        labelled("third", {"y": "1"}, {"y": "1", "z": "1"}),
    ):
        world.create(made)
        world.run(1)
    world.run(60)
    assert "first is older" in world.condition("ScalingActive", "second")["message"]
    assert world.condition("ScalingActive", "third")["status"] == "True"
    assert world.names() == ["first-0", "first-1", "third-0", "third-1"]
    world.drop(world.scaler("first"))
    world.run(5)
    assert "second is older" in world.condition("ScalingActive", "third")["message"]


def test_an_elder_that_nobody_can_use_holds_nobody_back() -> None:
    world = world_of()
    world.create(labelled("second", FLEET, FLEET))
    world.run(10)
    assert world.condition("ScalingActive", "second")["reason"] == "InvalidSpec"
    world.edit("llama", lambda spec: spec.update(minInstances="many"))
    world.run(10)
    assert world.condition("ScalingActive", "second")["status"] == "True"
    world.edit("llama", lambda spec: spec.update(minInstances=2))
    world.run(10)
    assert "llama is older" in world.condition("ScalingActive", "second")["message"]


def test_an_elder_of_another_operator_holds_nobody_back() -> None:
    world = world_of()
    world.scaler()["metadata"]["annotations"] = {"serving.ai/managed-by": "gone/gone"}
    world.create(labelled("second", FLEET, FLEET))
    world.run(10)
    assert world.condition("ScalingActive", "second")["status"] == "True"


def test_a_long_chain_of_autoscalers_is_looked_at_once_each() -> None:
    def link(number: int) -> dict[str, Any]:
        made = labelled(f"a{number}", {f"l{number}": "1"}, {f"l{n}": "1" for n in range(number - 2, number + 1)})
        return {**made, "metadata": {"name": f"a{number}", "uid": f"{number:03}"}}

    chain, asked = [link(number) for number in range(200)], list[str]()

    def able(scaler: Mapping[str, Any]) -> bool:
        asked.append(scaler["metadata"]["name"])
        return True

    found = elder(chain[-1], chain, able)
    assert found is not None
    assert len(asked) == len(set(asked)) <= 200


def test_one_that_only_says_what_it_would_do_may_stand_beside_another() -> None:
    world = world_of()
    second = scaled({"minInstances": 5, "dryRun": True})
    second["metadata"]["name"] = "second"
    world.create(second)
    world.run(60)
    assert len(world.names()) == 2
    assert world.reason("second") == "DryRun"


# Dying.


def story(world: World) -> None:
    """Up, a template change, down."""
    world.create(scaled({"behavior": {"scaleDown": {"stabilizationSeconds": 60, "cooldownSeconds": 0, "step": 2}}}))
    world.run(100)
    world.load = lambda role: 3.0
    world.run(200)
    world.edit("llama", lambda spec: spec["instanceTemplate"]["spec"].update(image="next:1"))
    world.run(30)
    world.load = lambda role: 0.1
    world.run(500)


def end_of(world: World) -> tuple[Any, ...]:
    return tuple(sorted((obj["metadata"]["name"], obj["spec"]["image"]) for obj in world.clusters()))


def undisturbed() -> World:
    world = World()
    story(world)
    return world


CALM = undisturbed()


def crashing(number: int) -> Callable[[World], None]:
    def begin(world: World) -> None:
        world.crash_after = number

    return begin


@pytest.mark.parametrize("number", range(len(CALM.writes)))
def test_dying_before_or_after_any_write_ends_in_the_same_state(number: int) -> None:
    world = World()
    world.crash_after = number
    story(world)
    assert world.crashes == 1 or number >= len(CALM.writes) - 2
    assert len(end_of(world)) == len(end_of(CALM)) == 2
    assert {image for _, image in end_of(world)} == {"next:1"}
    created = [write for write in world.writes if write.startswith("create")]
    # A new process has lost what it learned about headroom: one instance more or less, never the same one twice.
    assert len(created) == len(set(created)) <= 6
    assert world.broken_rules == []


def test_dying_again_and_again_never_shrinks_early_nor_grows_twice() -> None:
    world = World()
    world.create(scaled())
    world.run(100)
    world.load = lambda role: 3.0
    for _ in range(20):
        world.run(13)
        world.restart()
    size = len(world.names())
    assert size in (4, 5, 6)
    world.load = lambda role: 0.1
    for _ in range(20):
        world.run(50)
        world.restart()
    assert len(world.names()) == size


def test_a_new_process_begins_with_what_the_one_before_it_learned() -> None:
    world = world_of({"maxInstances": 20})
    loads = [3.0, 0.5]
    for minute in range(60):
        world.load = lambda role, minute=minute: loads[minute // 3 % 2]  # type: ignore[misc]
        world.run(60)
    [kept] = world.status()["learned"]
    world.restart()
    world.run(90)
    [back] = world.status()["learned"]
    assert float(back["alpha"]) == pytest.approx(float(kept["alpha"]), abs=0.05)
    before, after = ([float(one) for one in item["excess"]] for item in (kept, back))
    assert len(after) >= len(before) > 31
    assert statistics.median(after) == pytest.approx(statistics.median(before), abs=0.2)
