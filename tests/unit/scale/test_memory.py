"""What a status keeps of what was learned, and what comes back of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity
from llmfleet.capacity.profiles import FALLBACK, PROFILES
from llmfleet.scale.forecast import adapt, forecast, fresh, judge, peak_of, quantile, remember
from llmfleet.scale.learn import OUTLIERS, learn
from llmfleet.scale.memory import (
    ALPHA_HIGH,
    ALPHA_LOW,
    KEPT,
    MOST_SAMPLES,
    Learned,
    Memory,
    Pending,
    Point,
    begin,
    restored,
    saved,
)
from llmfleet.scale.work import Rates
from unit.scale.builders import COEFFICIENTS, START, toy

GOOD: dict[str, Any] = {"alpha": "0.9500", "stepFactor": "1.2000", "workFactor": "0.8000", "excess": ["0.1", "0.3"]}


def memory_of(excess: list[float], **changes: Any) -> Memory:
    return Memory(since=START, looked=START, busy=START, ratios=tuple(excess), ranked=tuple(sorted(excess)), **changes)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    excess=st.lists(st.floats(-0.9, 4.0), min_size=0, max_size=400),
    alpha=st.floats(0.5, 0.999),
    factors=st.tuples(st.floats(0.125, 8), st.floats(0.125, 8)),
)
def test_headroom_comes_back_between_its_neighbours(
    excess: list[float], alpha: float, factors: tuple[float, float]
) -> None:
    memory = memory_of(excess, alpha=alpha, learned=Learned(a=factors[0], work=factors[1]))
    kept = saved(memory)
    back = restored(begin(START + 5), kept)
    assert len(kept["excess"]) <= KEPT
    assert back.alpha == pytest.approx(alpha, abs=1e-4)
    assert (back.learned.a, back.learned.work) == pytest.approx(factors, abs=1e-4)
    assert len(back.ranked) == len(back.ratios) == len(excess)
    low, high = (quantile(memory.ranked, share) for share in (max(alpha - 0.02, 0), min(alpha + 0.02, 1)))
    assert low - 1e-3 <= quantile(back.ranked, alpha) <= high + 1e-3
    assert sorted(back.ratios) == list(back.ranked)
    again = saved(back)
    assert [float(text) for text in again["excess"]] == [float(text) for text in kept["excess"]]
    assert {**again, "excess": []} == {**kept, "excess": []}


def test_a_short_past_comes_back_whole() -> None:
    kept = saved(memory_of([0.5, 0.25]))
    assert restored(begin(START), kept).ranked == (0.25, 0.5)


def test_what_comes_back_still_waits_for_its_window() -> None:
    back = restored(begin(START), GOOD)
    assert (back.since, back.points, back.wishes) == (START, (), ())


@pytest.mark.parametrize(
    "kept",
    [
        None,
        "text",
        {},
        {**GOOD, "alpha": "1.5"},
        {**GOOD, "alpha": "1"},
        {**GOOD, "alpha": "0"},
        {**GOOD, "alpha": "0.9995"},
        {**GOOD, "alpha": "0.4999"},
        {**GOOD, "alpha": "nan"},
        {**GOOD, "alpha": None},
        {**GOOD, "stepFactor": "1e308"},
        {**GOOD, "workFactor": "0"},
        {**GOOD, "excess": ["0.1", "inf"]},
        {**GOOD, "excess": ["-3"]},
        {**GOOD, "excess": ["4.1"]},
        {**GOOD, "samples": 3},
        {**GOOD, "samples": -2},
        {**GOOD, "samples": "2"},
        {**GOOD, "excess": ["0.1"] * 40, "samples": 64},
        {**GOOD, "excess": ["0.1"] * (KEPT + 1)},
    ],
)
def test_figures_that_cannot_be_true_do_not_come_back(kept: object) -> None:
    assert restored(begin(START), kept) == begin(START)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(alpha=st.sampled_from(["0.5", "0.5000", "0.9", "0.999", "0.9990"]), missed=st.floats(0, 1))
def test_whatever_comes_back_can_go_on_learning(alpha: str, missed: float) -> None:
    back = restored(begin(START), {**GOOD, "alpha": alpha})
    assert back.alpha == float(alpha)
    assert ALPHA_LOW <= adapt(back, missed=missed, budget=0.01).alpha <= ALPHA_HIGH


def burst(memory: Memory) -> Memory:
    """The same after one peak of ten times its base."""
    point = Point(at=START, load=10.0, requests=1.0, rates=Rates(at=START))
    due = Pending(made=START - 60, due=START, base=1.0, scale=1.5)
    return judge(replace(memory, points=(point,), pending=(due,)), due, 86400.0)


def test_one_burst_after_a_restart_weighs_no_more_than_without_one() -> None:
    past = [-0.2 + 0.5 * (n * 0.618034 % 1.0) for n in range(2880)]
    memory = memory_of(past, alpha=0.998)
    back = restored(begin(START), saved(memory))
    for one in (memory, back):
        assert quantile(burst(one).ranked, 0.998) == pytest.approx(quantile(memory.ranked, 0.998), abs=0.01)


def test_the_weight_of_what_comes_back_is_bounded() -> None:
    back = restored(begin(START), {**GOOD, "excess": ["0.1"] * KEPT, "samples": 1_000_000})
    assert len(back.ranked) == MOST_SAMPLES


# Factors on a table.

WORK = {"workBudget.capacity.profile": "llama-70b-fp8-h100-tp8", "workBudget.capacity.coefficients": {}}
LEARNED = Learned(a=1.5, work=1.5)


def after_a_look(learned: Learned, changes: Mapping[str, Any] | None = None) -> Learned:
    """What is left of factors after one look without traffic at a fleet of this spec."""
    bed = toy(changes)
    bed.memories = {Role.BOTH: replace(begin(START), learned=learned)}
    bed.run(0.0, 1)
    return bed.memories[Role.BOTH].learned


@pytest.mark.parametrize(
    "changes",
    [
        {"workBudget.capacity.coefficients": {**COEFFICIENTS, "a": "0.02"}},
        {"workBudget.capacity.coefficients": {}, "workBudget.capacity.profile": "auto"},
        WORK,
        {"instanceTemplate.spec.model": "another/model"},
        {"instanceTemplate.spec.gpusPerPod": 8, "instanceTemplate.spec.replicas": 1},
        {"instanceTemplate.spec.tensorParallelSize": 4, "instanceTemplate.spec.pipelineParallelSize": 2},
    ],
)
def test_factors_on_another_table_are_forgotten_and_those_on_the_same_are_kept(changes: Mapping[str, Any]) -> None:
    here = after_a_look(Learned())
    assert here.about
    kept = replace(LEARNED, about=here.about)
    assert after_a_look(kept) == kept
    fresh = after_a_look(kept, changes)
    assert (fresh.a, fresh.work) == (1.0, 1.0)
    assert fresh.about not in ("", here.about)


def test_factors_of_which_nobody_knows_the_table_are_forgotten() -> None:
    assert after_a_look(LEARNED) == after_a_look(Learned())


def test_a_guess_that_becomes_a_measurement_is_another_table() -> None:
    auto = {"workBudget.capacity.coefficients": {}, "workBudget.capacity.profile": "auto"}
    named = {"workBudget.capacity.coefficients": {}, "workBudget.capacity.profile": FALLBACK}
    assert after_a_look(Learned(), auto).about != after_a_look(Learned(), named).about


STEPS = PROFILES[FALLBACK].steps


def a_look(factor: float) -> Rates:
    """A busy look at engines whose every step takes this times as long as the table says."""
    steps, generated, prefill, attended = 50.0, 3000.0, 40_000.0, 500_000.0
    work = STEPS.b * generated + STEPS.c * prefill + STEPS.d * attended
    seconds = factor * (STEPS.a + work / steps)
    return Rates(
        at=START,
        prefill=prefill,
        generated=generated,
        attended=attended,
        steps=steps,
        itl_seconds=seconds * generated,
        itl_count=generated,
    )


def capacity_of(known: bool) -> Capacity:
    return Capacity(steps=STEPS, kv_tokens=10**5, slots=64, tpot=0.05, known=known)


@pytest.mark.parametrize("factor", [0.125, 8.0])
def test_factors_are_within_the_bounds_of_the_table_before_anything_is_learned(factor: float) -> None:
    found = learn(Learned(a=factor, work=factor), Rates(at=START), capacity_of(True), 15.0)
    assert (found.a, found.work) == (min(2.0, max(0.5, factor)),) * 2
    assert learn(Learned(a=factor), Rates(at=START), capacity_of(False), 15.0) == Learned(a=factor)


def test_many_contradictions_in_a_row_undo_what_was_learned_and_fewer_do_not() -> None:
    learned = start = Learned(a=8.0, work=8.0, about="x")
    guess, contradiction, agreement = capacity_of(False), a_look(0.9), a_look(8.0)
    for _ in range(5):
        for _ in range(OUTLIERS - 1):
            learned = learn(learned, contradiction, guess, 15.0)
        assert (learned.a, learned.work) == pytest.approx((start.a, start.work))
        learned = learn(learned, agreement, guess, 15.0)
    for _ in range(OUTLIERS):
        learned = learn(learned, contradiction, guess, 15.0)
    assert learned == Learned(about="x")
    for _ in range(400):
        learned = learn(learned, contradiction, guess, 15.0)
    assert 0.7 < learned.work < 1.0


def look_at(a: float, work: float, busy: float, **changes: Any) -> Rates:
    """A look at engines whose table is wrong by these factors, with this many times the work of `a_look`."""
    usual = a_look(1.0)
    prefill, generated, attended = usual.prefill * busy, usual.generated * busy, usual.attended * busy
    sold = (STEPS.b * generated + STEPS.c * prefill + STEPS.d * attended) / usual.steps
    seconds = (a * STEPS.a + work * sold) * generated
    figures: dict[str, Any] = {"prefill": prefill, "generated": generated, "attended": attended, "engines": 2.0}
    return replace(usual, **{**figures, "itl_seconds": seconds, "itl_count": generated, **changes})


def after_looks(looks: list[Rates], queued: float = 0.0) -> Learned:
    learned = Learned()
    for rates in looks:
        learned = learn(learned, rates, capacity_of(True), 15.0, queued)
    return learned


@pytest.mark.parametrize("factor", [0.7, 1.3])
@pytest.mark.parametrize("busy", [0.2, 1.0, 3.0])
def test_a_table_that_is_wrong_by_one_factor_is_corrected_at_any_load(factor: float, busy: float) -> None:
    found = after_looks([look_at(factor, factor, busy)] * 200)
    assert (found.a, found.work) == pytest.approx((factor, factor), rel=0.07)


def test_looks_at_different_loads_tell_the_two_factors_apart() -> None:
    found = after_looks([look_at(1.3, 0.8, busy) for _ in range(2400) for busy in (0.2, 1.5)])
    assert (found.a, found.work) == pytest.approx((1.3, 0.8), rel=0.02)


@pytest.mark.parametrize(("waiting", "queued"), [(5.0, 0.0), (0.0, 1.0)])
def test_a_fleet_that_is_behind_teaches_nothing(waiting: float, queued: float) -> None:
    """The gaps of its waves once doubled the price of every request, and the fleet with it, for hours."""
    behind = look_at(1.8, 1.8, 1.0, waiting=waiting)
    assert after_looks([behind] * 50, queued) == Learned()
    assert after_looks([look_at(1.8, 1.8, 1.0, waiting=4.0)] * 50).work > 1.5


def seen(loads: list[float], queued: float) -> list[Point]:
    return [
        Point(at=START + 15.0 * n, load=load, requests=1.0, rates=Rates(at=START), queued=queued)
        for n, load in enumerate(loads)
    ]


def test_the_waves_of_a_fleet_that_is_behind_are_no_peak() -> None:
    waves = [9.0, 17.0, 2.0, 9.0, 16.0, 3.0, 8.0, 17.0]
    assert peak_of(seen(waves, 0.0), 1.0) == 17.0
    assert peak_of(seen(waves, 5.0), 1.0) < 14.0
    assert peak_of([], 1.0) == 1.0


def test_what_is_learned_of_the_table_is_no_load_that_grows() -> None:
    """Points keep the table's figures: a factor that moves from 1 to 1.4 moves the base, and no peak above it."""
    memory = begin(START)
    for n in range(100):
        factor = 1 + 0.4 * n / 99
        memory = replace(memory, learned=Learned(work=factor))
        point = Point(at=START + 15.0 * n, load=10.0, requests=1.0, rates=Rates(at=START))
        memory = remember(memory, point, one=0.8 / factor, lead=60.0, keep=86400.0, window=0.0)
    assert memory.ranked[-1] == pytest.approx(0.0)
    assert forecast(memory, START + 15.0 * 99, 0.8).base == pytest.approx(14.0)


@pytest.mark.parametrize(("budget", "alpha"), [(0.5, 0.9), (0.01, 0.95), (0.001, 0.9842), (1e-9, ALPHA_HIGH)])
def test_a_small_budget_begins_at_a_high_quantile(budget: float, alpha: float) -> None:
    assert fresh(begin(START), budget).alpha == pytest.approx(alpha, abs=1e-4)


def test_what_was_learned_is_not_begun_anew() -> None:
    """A memory that has seen peaks keeps its quantile, also when its looks are gone."""
    memory = memory_of([0.1, 0.3], alpha=0.6)
    assert fresh(memory, 0.001) is memory
