"""What is explained is what the real controller decided, and the thresholds that are named are its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from crds.crd_objects import FLEET, disaggregated, monolithic
from llmfleet.api.reasons import DecisionReason
from llmfleet.explain import report
from llmfleet.explain.core import Explanation, explain
from llmfleet.explain.words import words_of
from unit.scale.builders import COEFFICIENTS
from unit.scale.world import World

PLAIN = {
    "workBudget.capacity.coefficients": COEFFICIENTS,
    "workBudget.coldStartSeconds": 40,
    "workBudget.slo.errorBudget": "0.05",
    "behavior": {"scaleDown": {"stabilizationSeconds": 120, "cooldownSeconds": 30, "step": 1}},
}
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def world_of(changes: Mapping[str, Any] | None = None) -> World:
    """A fleet at rest at its minimum, with a little load."""
    world = World()
    world.create(monolithic({**PLAIN, **(changes or {})}))
    world.load = lambda role: 0.5
    world.run(600)
    return world


def explained(world: World) -> Explanation:
    return explain(world.scaler(), world.clusters(), events_of(world), world.now)


def events_of(world: World) -> list[dict[str, Any]]:
    at = world.now.isoformat()
    return [
        {"reason": reason, "action": action, "note": note, "eventTime": at} for _, reason, action, note in world.events
    ]


def shown(found: Explanation, now: datetime = NOW) -> str:
    return "\n".join(report.text(found, now))


def number(found: Explanation, pattern: str) -> float:
    text = " ".join(found.fleets[0].changes)
    match = re.search(pattern, text)
    assert match, text
    return float(match[1])


def test_a_fleet_at_rest_says_its_size_its_reason_and_its_figures() -> None:
    world = world_of()
    found = explained(world)
    [fleet] = found.fleets
    assert (fleet.current, fleet.ready, fleet.desired, fleet.least, fleet.most) == (2, 2, 2, 2, 10)
    assert fleet.reason == world.reason()
    assert fleet.means == words_of(world.reason()).means
    assert {one.name for one in fleet.figures} == {"offeredLoad", "loadNow", "headroom", "waitingRequests"}
    assert [one.state for one in found.instances] == ["Serving", "Serving"]
    assert all(one.own for one in found.instances)
    assert found.problems == ()
    assert "fewer than 2: only a smaller minInstances" in fleet.changes


def test_a_load_just_below_the_named_one_changes_nothing_and_one_above_it_does() -> None:
    rho = 1 - 0.01 / 0.05
    world = world_of()
    limit = number(explained(world), r"or a load above ([\d.]+) at this moment")
    world.load = lambda role: (limit - 0.15) * rho
    world.run(30)
    before = explained(world).fleets[0]
    averaged = number(explained(world), r"offered load above ([\d.]+) instances")
    assert before.desired == 2 or float(before.figures[0].value) > averaged
    world = world_of()
    world.load = lambda role: (limit + 0.15) * rho
    world.run(45)
    assert explained(world).fleets[0].desired == 3


def test_it_shrinks_once_the_named_load_was_not_reached_for_the_window() -> None:
    world = world_of()
    world.load = lambda role: 3.0
    world.run(600)
    high = explained(world).fleets[0].desired
    assert high > 3
    limit = number(explained(world), r"fewer: offered load below ([\d.]+)")
    assert limit < high
    world.load = lambda role: 0.1
    world.run(1500)
    assert explained(world).fleets[0].desired < high


def test_what_it_did_is_listed_newest_first_and_at_most_twenty() -> None:
    events = [
        {
            "reason": "OnTarget",
            "action": "ScaledUp",
            "note": f"n{number}",
            "eventTime": (NOW - timedelta(minutes=number)).isoformat(),
        }
        for number in range(30)
    ]
    found = explain(monolithic(), [], list(reversed(events)), NOW)
    assert [one.note for one in found.past] == [f"n{number}" for number in range(20)]


def test_the_last_moment_of_a_series_counts() -> None:
    event = {
        "reason": "AtMaximum",
        "eventTime": (NOW - timedelta(hours=3)).isoformat(),
        "series": {"count": 7, "lastObservedTime": (NOW - timedelta(seconds=30)).isoformat()},
    }
    found = explain(monolithic(), [], [event], NOW)
    assert "30s ago  -            AtMaximum:  (7 times)" in shown(found)


def test_one_that_nobody_looked_at_says_so() -> None:
    found = explain(monolithic(), [], [], NOW)
    assert "it has no decision yet: no autoscaler follows it, or none has looked" in found.problems
    assert found.fleets[0].reason == ""
    assert found.fleets[0].do.startswith("check that the autoscaler runs and leads")


def test_a_spec_that_cannot_be_used_is_named_with_its_path() -> None:
    found = explain(monolithic({"minInstances": 20}), [], [], NOW)
    assert any("spec.minInstances: 20 is above maxInstances 10" in problem for problem in found.problems)


def test_the_condition_of_a_refused_spec_is_the_reason() -> None:
    world = world_of()
    world.edit("llama", lambda spec: spec.update(minInstances=20))
    world.run(2)
    assert explained(world).fleets[0].reason == "InvalidSpec"


def refused_rival(**status: Any) -> Explanation:
    message = "spec.scaleTargetRef.labelSelector: old is older and sizes the same instances: delete one of the two"
    conditions = [
        {"type": kind, "status": value, "reason": "InvalidSpec", "message": message}
        for kind, value in (("Ready", "False"), ("ScalingActive", "False"), ("Degraded", "True"))
    ]
    scaler = monolithic()
    scaler["metadata"]["annotations"] = {"serving.ai/managed-by": "system/prod"}
    return explain({**scaler, "status": {"conditions": conditions, **status}}, [], [], NOW)


def test_a_refused_rival_that_never_decided_is_followed_and_refused() -> None:
    found = refused_rival()
    assert found.problems[0] == "it is refused (InvalidSpec): nothing is decided until that is mended"
    assert "follows it" not in shown(found)
    assert "belongs to" not in shown(found)
    assert (found.fleets[0].reason, found.fleets[0].do) == ("InvalidSpec", "write what the message says")
    assert "old is older and sizes the same instances" in found.fleets[0].message


def test_what_a_refused_rival_decided_before_is_not_shown_as_live() -> None:
    figures = [{"name": name, "value": "2", "ageSeconds": 5} for name in ("offeredLoad", "headroom", "loadNow")]
    found = refused_rival(
        desiredInstances=5,
        currentInstances=3,
        readyInstances=3,
        decision={"reason": "ForecastAboveCapacity", "message": "m"},
        observedMetrics=figures,
    )
    [fleet] = found.fleets
    assert (fleet.reason, fleet.figures, fleet.changes) == ("InvalidSpec", (), ())
    assert (fleet.current, fleet.ready, fleet.desired) == (3, 3, 3)
    assert found.problems[0].endswith("its last decision, ForecastAboveCapacity, is of before")


def test_an_old_status_is_said_to_be_old() -> None:
    world = world_of()
    scaler = world.scaler()
    scaler["metadata"]["generation"] += 1
    assert any("the last change was not seen yet" in one for one in explained(world).problems)


def test_missing_figures_are_named_first() -> None:
    world = world_of()
    world.silent = {"llama-0"}
    world.run(300)
    found = explained(world)
    assert found.fleets[0].reason == "SignalsStale"
    assert any(one.startswith("MetricsAvailable is False: ") and "llama-0" in one for one in found.problems)


def test_a_paused_one_changes_nothing() -> None:
    world = world_of()
    world.edit("llama", lambda spec: spec.update(paused=True))
    world.run(30)
    [fleet] = explained(world).fleets
    assert fleet.changes == ("nothing, while spec.paused is true",)
    assert fleet.do == "set spec.paused: false to go on"


def test_at_the_maximum_only_a_larger_one_helps() -> None:
    world = world_of({"maxInstances": 2})
    world.load = lambda role: 9.0
    world.run(300)
    [fleet] = explained(world).fleets
    assert fleet.reason == "AtMaximum"
    assert "more than 2: only a larger maxInstances" in fleet.changes
    assert not any(change.startswith("more: ") for change in fleet.changes)


def test_both_roles_of_a_split_fleet_have_their_own_reasons() -> None:
    world = World()
    world.create(disaggregated({**PLAIN}, name="llama"))
    world.load = lambda role: 0.2
    world.run(400)
    found = explained(world)
    assert [fleet.role for fleet in found.fleets] == ["decode", "prefill"]
    assert all(fleet.reason and fleet.figures for fleet in found.fleets)


def test_thresholds_are_said_as_they_are_written() -> None:
    rules = {
        "policy": "Metrics",
        "metrics": [
            {"type": "QueueLength", "threshold": {"scaleUp": "20", "scaleDown": "5"}},
            {"type": "TTFT", "threshold": {"scaleUp": "2", "scaleDown": "0.5"}},
        ],
    }
    world = world_of(rules)
    changes = explained(world).fleets[0].changes
    assert changes[0] == "more: QueueLength above 20 or TTFT above 2"
    assert changes[1] == "fewer: QueueLength below 5 and TTFT below 0.5, for 120 s"


def test_an_external_size_names_who_sets_it() -> None:
    world = world_of({"policy": "External"})
    assert explained(world).fleets[0].changes[0].startswith("another spec.instances: kubectl scale llmca")


def test_windows_of_the_schedule_are_named() -> None:
    windows = [
        {"name": "always", "start": "* * * * *", "end": "0 0 1 1 *", "minInstances": 3},
        {"name": "launch", "start": "0 9 29 2 *", "end": "0 10 29 2 *", "minInstances": 9},
    ]
    world = world_of({"workBudget.forecast.schedule": windows})
    text = " ".join(explained(world).fleets[0].changes)
    assert "schedule always is open and keeps at least 3" in text
    assert "schedule launch asks for 9 from 0 9 29 2 *" in text


def test_an_instance_that_somebody_else_made_is_marked() -> None:
    world = world_of()
    stranger = {
        "apiVersion": "serving.ai/v1alpha1",
        "kind": "LLMCluster",
        "metadata": {"name": "by-hand", "namespace": "d", "labels": FLEET},
        "spec": {},
    }
    found = explain(world.scaler(), [*world.clusters(), stranger], [], world.now)
    assert [one.own for one in found.instances if one.name == "by-hand"] == [False]
    assert "by-hand  both     Pending              0s  (not made by it: counted, never taken away)" in shown(found)


def test_an_age_that_is_no_number_says_nothing() -> None:
    figures = [{"name": "loadNow", "value": "2", "ageSeconds": "x"}]
    status = {"decision": {"reason": "OnTarget"}, "observedMetrics": figures}
    [figure] = explain({**monolithic(), "status": status}, [], [], NOW).fleets[0].figures
    assert (figure.value, figure.age) == ("2", 0.0)


def test_a_broken_time_is_no_time() -> None:
    found = explain(monolithic(), [], [{"reason": "X", "eventTime": "yesterday"}], NOW)
    assert found.past[0].at is None
    assert "    ? ago" in shown(found)


@pytest.mark.parametrize("reason", list(DecisionReason), ids=str)
def test_every_reason_has_its_own_words(reason: DecisionReason) -> None:
    assert "newer autoscaler" not in words_of(str(reason)).means


def test_a_reason_of_the_future_is_not_hidden() -> None:
    assert "newer autoscaler" in words_of("QuantumFlux").means


def test_json_says_what_the_text_says() -> None:
    world = world_of()
    found = report.as_json(explained(world))
    assert found["fleets"][0]["desired"] == 2
    assert found["past"][0]["at"] == world.now.isoformat()
