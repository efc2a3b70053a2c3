"""What a person would ask of the autoscaler: how many instances, and the one word why."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from crds.crd_objects import REMOVED
from crds.refused_autoscalers import metric, metrics
from llmfleet.api.autoscaler import MetricType
from llmfleet.api.reasons import DecisionReason as Why
from llmfleet.api.types import Role
from llmfleet.scale.replay import acted, step
from llmfleet.scale.signals import EngineReading, Observation, RouterReading
from unit.scale.builders import TICK, Toy, capacities_of, fleet_of, spec_of, toy

# An instance carries a load of 0.8 (a 10 ms, TPOT 50 ms); the first headroom is x1.4.


@pytest.mark.parametrize(
    ("case", "load", "ready", "pending", "instances", "reason"),
    [
        ("what it has is what it needs", 1.0, 2, 0, 2, Why.ON_TARGET),
        ("the peak of a cold start from now needs more", 2.0, 2, 0, 4, Why.FORECAST_ABOVE_CAPACITY),
        ("a step bounds one move", 9.0, 2, 0, 6, Why.FORECAST_ABOVE_CAPACITY),
        ("the maximum bounds all of them", 30.0, 9, 0, 10, Why.AT_MAXIMUM),
        ("no load still leaves the minimum", 0.0, 2, 0, 2, Why.AT_MINIMUM),
        ("what is starting counts", 2.0, 2, 2, 4, Why.PENDING_SUFFICES),
        ("more than what is starting is asked for at once", 4.0, 2, 2, 7, Why.FORECAST_ABOVE_CAPACITY),
        ("a fleet below its minimum grows before anything is known", 0.0, 1, 0, 2, Why.AT_MINIMUM),
        ("a fleet above its maximum shrinks", 9.0, 12, 0, 10, Why.AT_MAXIMUM),
    ],
)
def test_the_work_budget(case: str, load: float, ready: int, pending: int, instances: int, reason: Why) -> None:
    decision = toy(ready=ready, pending=pending).run(load, 4)
    assert (decision.instances, decision.reason) == (instances, reason), (case, decision)


def test_the_message_says_the_figures() -> None:
    decision = toy().run(2.0, 3)
    assert decision.message == "offered load 2.50 instances, headroom x1.42 over 105 s lead -> 4; bounds 2..10"


def test_a_surplus_must_last_the_whole_window() -> None:
    bed = toy(ready=6)
    assert bed.run(1.0, 7).reason is Why.STABILIZING
    decision = bed.run(1.0, 3)
    assert (decision.instances, decision.reason) == (2, Why.SUSTAINED_SURPLUS)


def test_one_busy_look_within_the_window_keeps_what_it_needed() -> None:
    bed = toy(ready=6)
    bed.run(1.0, 5)
    bed.run(3.0, 1)
    decision = bed.run(1.0, 5)
    assert (decision.instances, decision.reason) == (4, Why.SUSTAINED_SURPLUS)


def test_a_restarted_autoscaler_watches_a_whole_window_before_it_shrinks() -> None:
    bed = toy(ready=6)
    bed.run(0.1, 20)
    bed.memories = {}
    assert {bed.run(0.1, 1).instances for _ in range(8)} == {6}


def test_a_gap_in_its_own_looks_begins_a_new_window() -> None:
    bed = toy(ready=6)
    bed.run(0.1, 6)
    bed.now += 600
    assert bed.run(0.1, 6).instances == 6


def test_a_clock_that_was_set_back_begins_a_new_window_and_forgets_no_lesson() -> None:
    bed = toy({"workBudget.coldStartSeconds": 60}, ready=4)
    bed.run(1.0, 60)
    before = bed.memories[Role.BOTH]
    bed.now -= 3600
    decision = bed.run(3.0, 2)
    assert decision.reason is not Why.SIGNALS_STALE
    after = bed.memories[Role.BOTH]
    assert (after.ranked, after.learned) == (before.ranked, before.learned)
    assert after.since == bed.now - TICK
    assert bed.run(3.0, 10).instances > 4
    bed.now -= 3600
    assert bed.run(0.1, 6).instances >= 4


def test_a_cooldown_is_over_in_its_own_time_though_the_clock_was_set_back() -> None:
    bed = toy({"behavior": {"scaleUp": {"cooldownSeconds": 60}}}, ready=2)
    bed.run(0.5, 4)
    bed.memories = {Role.BOTH: acted(bed.memories[Role.BOTH], grew=True, shrank=False, now=bed.now)}
    bed.now -= 3600
    assert bed.run(5.0, 8).instances > 2


def test_cooldowns_count_from_the_last_move() -> None:
    rules = {"scaleUp": {"cooldownSeconds": 60}, "scaleDown": {"stabilizationSeconds": 15, "cooldownSeconds": 600}}
    bed = toy({"behavior": rules})
    assert bed.follow(2.0, 3)[-1] == 4
    decision = bed.run(6.0, 1)
    assert (decision.instances, decision.reason) == (4, Why.COOLING_DOWN)
    assert bed.follow(6.0, 8)[-1] > 4
    assert bed.run(0.1, 10).reason is Why.COOLING_DOWN


def test_a_step_up_must_hold_where_a_window_is_asked_for() -> None:
    bed = toy({"behavior": {"scaleUp": {"stabilizationSeconds": 120}}})
    bed.run(1.0, 10)
    assert bed.run(3.0, 3).reason is Why.STABILIZING
    assert bed.run(3.0, 7).instances > 2


def test_requests_that_wait_are_load_too() -> None:
    bed = toy()
    bed.run(1.0, 4)
    decision = bed.run(1.0, 1, queued=5000)
    assert decision.reason is Why.QUEUE_ABOVE_CAPACITY
    assert decision.instances > 2
    assert "requests waiting" in decision.message


def test_requests_that_were_turned_away_are_load_too() -> None:
    calm, refused = toy(), toy()
    calm.run(1.0, 4)
    refused.run(1.0, 4)
    refused.refused = 100
    assert refused.run(1.0, 1).instances > calm.run(1.0, 1).instances


def test_missing_engines_hold_and_say_which() -> None:
    bed = toy(ready=6)
    bed.run(0.1, 20)
    decision = bed.run(0.1, 4, silent=frozenset({"llama-1"}))
    assert (decision.instances, decision.reason) == (6, Why.SIGNALS_STALE)
    assert "no fresh figures of 1 of 6 engines: llama-1, holding" in decision.message


def test_an_engine_that_has_just_become_ready_is_no_outage() -> None:
    bed = toy(ready=2)
    bed.run(1.0, 5)
    bed.resize(3)
    decision = bed.run(1.0, 1)
    assert (decision.instances, decision.reason) == (3, Why.PENDING_SUFFICES)
    assert "llama-2 just became ready, its second look is due" in decision.message


def test_the_first_look_of_a_process_says_nothing() -> None:
    decision = toy(ready=5).run(0.0, 1)
    assert (decision.instances, decision.reason) == (5, Why.SIGNALS_STALE)
    assert "first look at 5 engines" in decision.message


def test_one_missed_look_is_no_outage() -> None:
    bed = toy(ready=2)
    bed.run(1.0, 5)
    assert bed.run(1.0, 1, silent=frozenset({"llama-1"})).reason is Why.ON_TARGET


def test_a_lower_bound_above_capacity_grows_even_so() -> None:
    bed = toy(ready=4)
    bed.run(1.0, 4)
    decision = bed.run(8.0, 4, silent=frozenset({"llama-0"}))
    assert decision.reason is Why.LOWER_BOUND_ABOVE_CAPACITY
    assert decision.instances == 8


def test_a_router_roll_out_does_not_freeze_growth_and_never_shrinks() -> None:
    bed = toy(ready=4)
    bed.run(0.1, 20, routers=1)
    unseen = bed.run(0.1, 20, routers=0)
    assert (unseen.instances, unseen.reason) == (4, Why.SIGNALS_STALE)
    assert bed.run(6.0, 4, routers=0).instances == 8


def test_a_window_of_weak_looks_is_no_window() -> None:
    bed = toy(ready=6)
    bed.run(1.0, 20, routers=0)
    assert bed.run(1.0, 1).instances == 6
    assert bed.run(1.0, 9).instances == 2


def test_a_router_that_leaves_does_not_answer_for_one_that_is_silent() -> None:
    bed = toy(ready=6)
    for _ in range(20):
        bed.now += TICK
        seen = replace(bed.observe(1.0, routers=2), routers_wanted=("r0", "r2"))
        bed.now -= TICK
        bed.tick(1.0, observation=seen)
    assert bed.last is not None
    decision = bed.last.decisions[Role.BOTH]
    assert (decision.instances, decision.reason) == (6, Why.SIGNALS_STALE)
    assert "no fresh figures of 1 of 2 routers" in decision.message


@pytest.mark.parametrize("policy", [{}, {"policy": "Metrics", **metrics(metric("QueueLength", "100", "20"))}])
def test_a_fleet_of_which_nothing_is_ready_is_not_idle(policy: dict[str, Any]) -> None:
    bed = toy(policy, ready=6)
    bed.run(3.0, 20)
    bed.fleet = replace(bed.fleet, instances=tuple(replace(one, ready=False) for one in bed.fleet.instances))
    assert bed.run(0.0, 40).instances == 6


def test_a_problem_of_the_source_is_said() -> None:
    bed = toy(ready=3)
    bed.run(0.1, 20)
    seen = Observation(serving=bed.fleet.serving, problem="Prometheus does not answer: 503")
    bed.tick(0.0, observation=seen)
    assert bed.last is not None
    decision = bed.last.decisions[Role.BOTH]
    assert (decision.instances, decision.reason) == (3, Why.SIGNALS_STALE)
    assert decision.message.startswith("Prometheus does not answer: 503, holding")


def test_paused_holds_whatever_happens() -> None:
    decision = toy({"paused": True}, ready=5).run(90.0, 5)
    assert (decision.instances, decision.reason) == (5, Why.PAUSED)


def test_a_dry_run_says_what_it_would_do() -> None:
    decision = toy({"dryRun": True}).run(2.0, 4)
    assert decision.reason is Why.DRY_RUN
    assert decision.message.startswith("would be ForecastAboveCapacity: offered load")


def test_a_schedule_is_a_floor_while_its_window_is_open() -> None:
    window = {"name": "noon", "start": "0 12 * * *", "end": "0 13 * * *", "minInstances": 5}
    bed = toy({"workBudget.forecast.schedule": [window]})
    bed.now = datetime(2026, 7, 1, 12, 30, tzinfo=UTC).timestamp()
    decision = bed.run(0.1, 3)
    assert (decision.instances, decision.reason) == (5, Why.SCHEDULE_FLOOR)
    bed.now = datetime(2026, 7, 1, 14, 30, tzinfo=UTC).timestamp()
    assert bed.run(0.1, 3).reason is Why.AT_MINIMUM


@pytest.mark.parametrize(
    ("size", "cached", "seconds"),
    [
        # As long as usual, or shorter: a usual request's work each.
        (4_000.0, 0.0, 5.0),
        (100.0, 0.0, 5.0),
        # Four times as long.
        (16_000.0, 0.0, 20.0),
        # The same, and three quarters of every prompt come from a cache.
        (16_000.0, 0.75, 5.0),
        # An image is no text.
        (4_000_000.0, 0.0, 40.0),
    ],
)
def test_what_waits_in_routers_is_charged_by_its_length(size: float, cached: float, seconds: float) -> None:
    bed = toy()
    for number in range(8):
        # A request of 1,000 computed prompt tokens costs a second.
        at, tokens = bed.now + TICK, 1000.0 * number
        one = EngineReading(instance="", at=at, prefill=tokens, prompts=tokens / (1 - cached), finished=number)
        engines = tuple(replace(one, instance=name) for name in bed.fleet.serving)
        router = RouterReading(router="r", at=at, queued=5.0, queued_bytes=5 * size)
        seen = Observation(engines=engines, routers=(router,), serving=bed.fleet.serving, routers_expected=1)
        found = bed.tick(0.0, observation=seen)
    assert found.views[Role.BOTH].backlog == pytest.approx(seconds)


def test_external_follows_what_is_written_within_the_bounds() -> None:
    assert toy({"policy": "External", "instances": 7}).run(0.0, 1).instances == 7
    assert toy({"policy": "External", "instances": 70}).run(0.0, 1).reason is Why.AT_MAXIMUM
    unset = toy({"policy": "External"}, ready=3).run(0.0, 1)
    assert (unset.instances, unset.reason) == (3, Why.ON_TARGET)
    down = toy({"policy": "External", "instances": 2}, ready=5).run(0.0, 1)
    assert (down.instances, down.reason) == (2, Why.EXTERNAL_TARGET)


# Zero.

ZERO = {"minInstances": 0, "scaleToZero.afterSeconds": 300}


def test_the_last_instance_goes_only_after_the_idle_time() -> None:
    bed = toy(ZERO, ready=1)
    bed.run(0.5, 4)
    assert bed.run(0.0, 19).instances == 1
    decision = bed.run(0.0, 2)
    assert (decision.instances, decision.reason) == (0, Why.IDLE_TO_ZERO)


def test_silence_of_the_figures_is_not_silence_of_the_clients() -> None:
    bed = toy(ZERO, ready=1)
    bed.run(0.5, 4)
    assert bed.run(0.0, 60, silent=frozenset({"llama-0"})).instances == 1


def test_an_empty_fleet_sleeps_until_a_request_waits() -> None:
    bed = toy(ZERO, ready=0)
    asleep = bed.run(0.0, 3)
    assert (asleep.instances, asleep.reason) == (0, Why.AT_MINIMUM)
    woken = bed.run(0.0, 1, queued=1)
    assert (woken.instances, woken.reason) == (1, Why.WOKEN_BY_REQUEST)


def test_without_scale_to_zero_one_instance_stays() -> None:
    assert toy({"minInstances": 0}, ready=1).run(0.0, 100).instances == 1


# Thresholds.

QUEUE = {"policy": "Metrics", **metrics(metric("QueueLength", "100", "20"))}


@pytest.mark.parametrize(
    ("case", "queued", "instances", "reason"),
    [
        ("between its thresholds nothing happens", 50, 3, Why.ON_TARGET),
        ("above, it grows in proportion", 190, 6, Why.METRIC_ABOVE_THRESHOLD),
        ("barely above is one more", 101, 4, Why.METRIC_ABOVE_THRESHOLD),
        ("a flood is bounded by the step", 10**6, 7, Why.METRIC_ABOVE_THRESHOLD),
        ("below, it waits for the window", 1, 3, Why.STABILIZING),
    ],
)
def test_thresholds(case: str, queued: int, instances: int, reason: Why) -> None:
    decision = toy(QUEUE, ready=3).run(0.5, 4, queued=queued)
    assert (decision.instances, decision.reason) == (instances, reason), case


def test_all_metrics_must_be_below_to_shrink() -> None:
    both = {"policy": "Metrics", **metrics(metric("QueueLength", "100", "20"), metric("RequestRate", "9", "0.1"))}
    bed = toy(both, ready=3)
    assert bed.run(1.0, 20).reason is Why.ON_TARGET
    decision = bed.run(0.01, 20)
    assert (decision.instances, decision.reason) == (2, Why.ALL_METRICS_BELOW_THRESHOLD)


def test_a_histogram_that_no_engine_has_is_no_figure() -> None:
    decision = toy({"policy": "Metrics", **metrics(metric("TTFT", "3", "1"))}, ready=5).run(1.0, 30)
    assert (decision.instances, decision.reason) == (5, Why.SIGNALS_STALE)
    assert "no figure for TTFT" in decision.message


LATENCY = metric("RequestLatency", "60", "20")


def latency_bed(at: str) -> Callable[..., Any]:
    """A fleet of four whose engines have a histogram of latencies that does not move, and who is busy where."""
    bed = toy({"policy": "Metrics", **metrics(LATENCY)}, ready=4)

    def run(ticks: int, busy: bool = True) -> Any:
        for _ in range(ticks):
            seen = bed.observe(0.0, queued=3.0 if busy and at == "routers" else 0.0)
            counted = {MetricType.REQUEST_LATENCY: ((60.0, 90.0), (math.inf, 100.0))}
            engines = tuple(
                replace(
                    one,
                    buckets=counted,
                    finished=0.0,
                    running=float(busy and at == "running"),
                    waiting=float(busy and at == "waiting"),
                )
                for one in seen.engines
            )
            bed.tick(0.0, observation=replace(seen, engines=engines))
        assert bed.last is not None
        return bed.last.decisions[Role.BOTH]

    return run


@pytest.mark.parametrize("at", ["running", "waiting", "routers"])
def test_a_busy_fleet_of_which_nobody_has_an_answer_has_no_latency_of_zero(at: str) -> None:
    decision = latency_bed(at)(40)
    assert (decision.instances, decision.reason) == (4, Why.SIGNALS_STALE)
    assert "no figure for RequestLatency" in decision.message


def test_one_busy_look_within_the_window_is_not_silence_and_silence_is_a_latency_of_zero() -> None:
    run = latency_bed("running")
    run(10)
    assert run(1, busy=False).reason is Why.SIGNALS_STALE
    assert run(40, busy=False).reason is Why.ALL_METRICS_BELOW_THRESHOLD


def test_above_its_threshold_what_is_starting_may_suffice() -> None:
    decision = toy(QUEUE, ready=2, pending=4).run(0.5, 4, queued=120)
    assert (decision.instances, decision.reason) == (6, Why.PENDING_SUFFICES)


def test_a_metric_without_a_figure_never_shrinks() -> None:
    custom: dict[str, Any] = {
        "policy": "Metrics",
        "source": {"type": "Prometheus", "prometheus": {"address": "http://p:9090"}},
        **metrics(metric("Custom", query="sum(up)")),
    }
    decision = toy(custom, ready=5).run(0.0, 50)
    assert (decision.instances, decision.reason) == (5, Why.SIGNALS_STALE)
    assert "no figure for Custom" in decision.message


# Two roles.


def decide_roles(spec: Any, prefill: tuple[int, int], decode: tuple[int, int], loads: tuple[float, float]) -> Any:
    """Four looks at a prefill and a decode fleet."""
    toys = {
        role: Toy(spec=spec, fleet=fleet_of(*counts, role=role, prefix=f"llama-{role}-"))
        for role, counts in ((Role.PREFILL, prefill), (Role.DECODE, decode))
    }
    memories: Any = {}
    for _ in range(4):
        seen = {}
        for (role, bed), load in zip(toys.items(), loads, strict=True):
            bed.now += TICK
            seen[role] = bed.observe(load)
        fleets = {role: bed.fleet for role, bed in toys.items()}
        result = step(spec, fleets, seen, capacities_of(spec), memories, toys[Role.PREFILL].now)
        memories = result.memories
    return result


WIDE = {"prefill.maxInstances": 8, "decode.maxInstances": 8, "behavior.scaleUp": {"step": 8}}


def test_decode_is_raised_before_prefill_would_outnumber_it() -> None:
    result = decide_roles(spec_of(WIDE, roles=True), (2, 0), (2, 0), (3.0, 0.1))
    decode, prefill = result.decisions[Role.DECODE], result.decisions[Role.PREFILL]
    assert (decode.instances, decode.reason) == (3, Why.RATIO_RAISED_DECODE)
    assert (prefill.instances, prefill.reason) == (4, Why.RATIO_HELD_PREFILL)
    assert "until more than 2 decode instances are ready" in prefill.message


def test_prefill_is_held_where_decode_is_at_its_maximum() -> None:
    spec = spec_of({**WIDE, "decode.maxInstances": 2}, roles=True)
    result = decide_roles(spec, (2, 0), (2, 0), (4.0, 0.1))
    prefill = result.decisions[Role.PREFILL]
    assert (prefill.instances, prefill.reason) == (4, Why.RATIO_HELD_PREFILL)


def test_prefill_does_not_start_before_the_decode_it_needs_is_ready() -> None:
    result = decide_roles(spec_of(WIDE, roles=True), (0, 0), (0, 2), (0.0, 0.0))
    assert result.decisions[Role.PREFILL].instances == 0
    assert result.decisions[Role.DECODE].instances == 2


def test_a_role_has_its_own_schedule() -> None:
    window = {"name": "always", "start": "* * * * *", "end": "0 0 1 1 *", "minInstances": 3, "role": "decode"}
    result = decide_roles(
        spec_of({**WIDE, "workBudget.forecast.schedule": [window]}, roles=True), (1, 0), (1, 0), (0.1, 0.1)
    )
    assert result.decisions[Role.DECODE].reason is Why.SCHEDULE_FLOOR
    assert result.decisions[Role.PREFILL].instances == 1


def test_the_same_inputs_give_the_same_bytes() -> None:
    first, second = toy(ready=3), toy(ready=3)
    loads = [0.5, 1.0, 3.0, 0.1, 7.0, 2.0] * 6
    assert [repr(first.tick(load)) for load in loads] == [repr(second.tick(load)) for load in loads]


def test_an_observation_is_not_used_twice() -> None:
    bed = toy(ready=2)
    bed.run(1.0, 4)
    seen = bed.observe(1.0)
    bed.tick(0.0, observation=seen)
    before = bed.memories[Role.BOTH].rates
    bed.tick(0.0, observation=seen)
    assert bed.memories[Role.BOTH].rates == before


def test_a_removed_field_of_a_spec_is_its_default() -> None:
    assert replace(spec_of({"behavior": REMOVED}).fleets()[Role.BOTH]).behavior.scale_down.stabilization_seconds == 600
