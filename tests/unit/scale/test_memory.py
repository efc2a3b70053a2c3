"""What a status keeps of what was learned, and what comes back of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.scale.forecast import quantile
from llmfleet.scale.memory import KEPT, Learned, Memory, begin, restored, saved
from unit.scale.builders import START

GOOD: dict[str, Any] = {"alpha": "0.9500", "stepFactor": "1.2000", "workFactor": "0.8000", "excess": ["0.1", "0.3"]}


def memory_of(excess: list[float], **changes: Any) -> Memory:
    return Memory(since=START, looked=START, busy=START, ratios=tuple(excess), ranked=tuple(sorted(excess)), **changes)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    excess=st.lists(st.floats(-0.9, 4.0), min_size=31, max_size=400),
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
    low, high = (quantile(memory.ranked, share) for share in (max(alpha - 0.02, 0), min(alpha + 0.02, 1)))
    assert low - 1e-3 <= quantile(back.ranked, alpha) <= high + 1e-3
    assert sorted(back.ratios) == list(back.ranked)
    assert saved(back)["excess"] == kept["excess"]


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
        {**GOOD, "alpha": "nan"},
        {**GOOD, "alpha": None},
        {**GOOD, "stepFactor": "1e308"},
        {**GOOD, "workFactor": "0"},
        {**GOOD, "excess": ["0.1", "inf"]},
        {**GOOD, "excess": ["-3"]},
        {**GOOD, "excess": ["0.1"] * (KEPT + 1)},
    ],
)
def test_figures_that_cannot_be_true_do_not_come_back(kept: object) -> None:
    assert restored(begin(START), kept) == begin(START)
