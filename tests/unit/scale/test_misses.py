"""What counts as a miss, and how the headroom follows from it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.api.autoscaler import MetricType, Slo
from llmfleet.capacity.capacity import Capacity, Shape
from llmfleet.scale.forecast import adapt, lowest
from llmfleet.scale.look import View
from llmfleet.scale.memory import ALPHA_HIGH, ALPHA_LOW, Memory, Point, begin
from llmfleet.scale.misses import beyond, missed_share
from llmfleet.scale.signals import Evidence
from llmfleet.scale.work import Rates
from unit.scale.builders import PLAIN

QUIET = settings(derandomize=True, max_examples=60, deadline=None)
ABLE = Capacity(steps=PLAIN, kv_tokens=0, slots=256, tpot=0.05, known=True)
"""Carries 0.8."""
TTFT = ((1.0, 90.0), (2.5, 96.0), (math.inf, 100.0))
TPOT = ((0.025, 50.0), (0.05, 99.0), (math.inf, 100.0))


def view_of(load: float, *, queued: float = 0.0, **buckets: Any) -> View:
    held = tuple(sorted((MetricType(kind), edges) for kind, edges in buckets.items()))
    rates = Rates(at=0.0, buckets=held)
    return View(now=0.0, evidence=Evidence.FULL, load=load, queued=queued, rates=rates, shape=Shape(), capacity=ABLE)


def test_what_requests_got_counts_and_not_what_the_load_looks_like() -> None:
    soon, quick = ((1.0, 100.0), (math.inf, 100.0)), ((0.05, 100.0), (math.inf, 100.0))
    assert missed_share(view_of(5.0, TTFT=soon, TPOT=quick), Slo(), 1) == 0.0
    assert missed_share(view_of(0.1, TTFT=TTFT, TPOT=TPOT), Slo(), 1) == pytest.approx(
        0.10 ** (1 / 3) * 0.04 ** (2 / 3) + 0.01
    )


def test_without_histograms_load_beyond_capacity_stands_for_misses() -> None:
    assert missed_share(view_of(0.81), Slo(), 1) == 1.0
    assert missed_share(view_of(0.79), Slo(), 1) == 0.0
    assert missed_share(view_of(0.81), Slo(), 2) == 0.0
    nobody = ((2.5, 0.0), (math.inf, 0.0))
    assert missed_share(view_of(0.81, TTFT=nobody), Slo(), 1) == 1.0


def test_who_waits_in_a_router_of_an_overloaded_fleet_is_late_though_no_engine_counted_it() -> None:
    good = ((1.0, 100.0), (2.5, 100.0), (math.inf, 100.0))
    assert missed_share(view_of(0.9, queued=3.0, TTFT=good), Slo(), 1) == 1.0
    assert missed_share(view_of(0.7, queued=3.0, TTFT=good), Slo(), 1) == 0.0


@pytest.mark.parametrize(
    ("objective", "share"),
    [(1.0, 0.10), (1.75, math.sqrt(0.10 * 0.04)), (2.5, 0.04), (10.0, 0.04), (0.5, math.sqrt(0.1))],
)
def test_between_two_edges_a_share_falls_as_tails_do(objective: float, share: float) -> None:
    assert beyond(TTFT, objective) == pytest.approx(share)


def test_a_full_bucket_around_the_objective_is_not_taken_for_nobody() -> None:
    share = beyond(((1.0, 0.0), (2.5, 100.0), (math.inf, 100.0)), 2.0)
    assert share is not None
    assert 0.01 < share < 0.5
    assert beyond(((1.0, 100.0), (2.5, 100.0), (math.inf, 100.0)), 2.0) == 0.0


@QUIET
@given(counts=st.lists(st.floats(0, 100), min_size=4, max_size=4), first=st.floats(0.1, 20), second=st.floats(0.1, 20))
def test_more_patience_never_means_more_misses(counts: list[float], first: float, second: float) -> None:
    edges = tuple(zip((0.5, 1.0, 2.5, math.inf), itertools.accumulate(counts), strict=True))
    sooner, later = (beyond(edges, objective) for objective in sorted((first, second)))
    if sooner is not None and later is not None:
        assert 0 <= later <= sooner + 1e-9 <= 1 + 2e-9


def test_an_empty_histogram_says_nothing() -> None:
    assert beyond((), 1.0) is None


def memory_of(alpha: float, requests: float = 10.0) -> Memory:
    points = tuple(Point(at=float(n), load=1.0, requests=requests, rates=Rates(at=float(n))) for n in range(5))
    return replace(begin(0.0), points=points, alpha=alpha)


@QUIET
@given(
    alpha=st.floats(ALPHA_LOW, ALPHA_HIGH), missed=st.floats(0, 1), more=st.floats(0, 1), budget=st.floats(1e-4, 0.1)
)
def test_headroom_grows_with_misses_and_stays_within_bounds(
    alpha: float, missed: float, more: float, budget: float
) -> None:
    low, high = sorted((missed, more))
    first, second = (adapt(memory_of(alpha), missed=share, budget=budget).alpha for share in (low, high))
    assert lowest(budget) <= first <= second <= ALPHA_HIGH
    if high > budget and alpha < ALPHA_HIGH:
        assert second > alpha
    if high == 0 and alpha > lowest(budget):
        assert second < alpha


@pytest.mark.parametrize(("budget", "least"), [(0.25, 0.9), (0.01, 0.95), (0.001, 0.9842)])
def test_a_calm_day_takes_no_headroom_below_where_it_began(budget: float, least: float) -> None:
    memory = memory_of(0.99)
    for _ in range(5_760):
        memory = adapt(memory, missed=0.0, budget=budget)
    assert memory.alpha == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize("budget", [0.001, 0.01])
def test_in_the_long_run_misses_come_as_often_as_the_budget_allows(budget: float) -> None:
    """A world that misses less the more headroom there is finds its level, whatever the budget."""
    memory, missed = memory_of(0.9), 0.0
    for look in range(20_000):
        share = 0.2 * (1 - memory.alpha)
        missed += share if look >= 10_000 else 0.0
        memory = adapt(memory, missed=share, budget=budget)
    assert 0.5 * budget <= missed / 10_000 <= budget
