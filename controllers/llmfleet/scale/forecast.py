"""How much load there will be when an instance that is asked for now is ready.

In: offered load at past looks, and a memory of how far peaks went beyond what was known before. Out: a base, a factor
of headroom, and the new memory. At leads of minutes the present is hard to beat as an estimate; what matters is the
upper tail of the peak within the lead. Its quantile is taken from the fleet's own past and moved until misses come as
often as the error budget allows (adaptive conformal prediction), counted by requests and not by looks: requests crowd
into the looks that miss. It never falls below where it began. It never extrapolates a trend.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from llmfleet.scale.memory import ALPHA_HIGH, FIRST_ALPHA, MOST_EXCESS, Memory, Pending, Point

SHORT_SECONDS: Final = 60.0
LONG_SECONDS: Final = 300.0
SAMPLE_SECONDS: Final = 30.0
"""One forecast in this time is remembered and judged."""
ENOUGH: Final = 31
FIRST_EXCESS: Final = 0.35
SMALL: Final = 0.5
"""Instances: below this load a peak is measured by it, or the first request after a pause would be an infinite one."""
ETA: Final = 0.006
AIM: Final = 0.8
"""Of the budget: the fleet is sized for a little less than it may miss."""
MOST_MISSED: Final = 300.0
"""Budgets that one look can use up: an outage must not fill the memory."""
MOST_WEIGHT: Final = 5.0
WAVES: Final = 4
"""Looks whose mean is the load of a fleet that is behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Load expected at most within the lead."""

    base: float
    peak: float

    @property
    def headroom(self) -> float:
        """The peak over the base, for people."""
        return self.peak / self.base if self.base > 0 else 1.0


def mean(points: tuple[Point, ...], since: float) -> float:
    """Mean load of the points after a moment; of the last one when none is."""
    loads = [point.load for point in points if point.at > since]
    if not loads:
        return points[-1].load if points else 0.0
    return sum(loads) / len(loads)


def base_of(points: tuple[Point, ...], now: float) -> float:
    """The present load: half a minute's mean, half that of five."""
    return 0.5 * mean(points, now - SHORT_SECONDS) + 0.5 * mean(points, now - LONG_SECONDS)


def forecast(memory: Memory, now: float, one: float) -> Forecast:
    """What the memory expects; `one` is the load that one instance carries."""
    base = base_of(memory.points, now) * memory.learned.work
    return Forecast(base=base, peak=base + quantile(memory.ranked, memory.alpha) * (base + SMALL * one))


def quantile(ranked: tuple[float, ...], alpha: float) -> float:
    """Excess of a peak over its base, as a share of it: never below 0, and a guess while little was seen."""
    if len(ranked) < ENOUGH:
        return FIRST_EXCESS
    place = alpha * (len(ranked) - 1)
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return max(0.0, ranked[low] + (ranked[high] - ranked[low]) * (place - low))


def remember(memory: Memory, point: Point, *, one: float, lead: float, keep: float, window: float) -> Memory:
    """Add a look: judge forecasts that are due, make a new one when it is time."""
    horizon = point.at - max(lead, LONG_SECONDS, window) - SAMPLE_SECONDS
    points = (*(old for old in memory.points if old.at > horizon), point)
    memory = replace(memory, points=points)
    while memory.pending and memory.pending[0].due <= point.at:
        memory = judge(memory, memory.pending[0], keep)
    if not memory.pending or point.at - memory.pending[-1].made >= SAMPLE_SECONDS:
        base = base_of(points, point.at)
        made = Pending(made=point.at, due=point.at + lead, base=base, scale=base + SMALL * one)
        memory = replace(memory, pending=(*memory.pending, made))
    return memory


def judge(memory: Memory, due: Pending, keep: float) -> Memory:
    """How far the peak of a lead went beyond its base; the oldest such figures go."""
    peak = peak_of([point for point in memory.points if due.made < point.at <= due.due], due.base)
    excess = min(MOST_EXCESS, (peak - due.base) / due.scale)
    ratios, ranked = [*memory.ratios, excess], list(memory.ranked)
    insort(ranked, excess)
    while len(ratios) > max(int(keep / SAMPLE_SECONDS), ENOUGH):
        del ranked[bisect_left(ranked, ratios.pop(0))]
    return replace(memory, pending=memory.pending[1:], ratios=tuple(ratios), ranked=tuple(ranked))


def peak_of(points: Sequence[Point], base: float) -> float:
    """The greatest load among looks.

    While a fleet is behind, work is sold in waves and the queue shrinks in others, so that one look shows twice the
    load there is and the next a third of it. There the mean of the last few looks counts: a peak that never was is
    paid for with instances for a day.
    """
    found = []
    for place in range(len(points)):
        recent = points[max(0, place - WAVES + 1) : place + 1]
        behind = any(point.behind for point in recent)
        found.append(sum(point.load for point in recent) / len(recent) if behind else points[place].load)
    return max(found, default=base)


def lowest(budget: float) -> float:
    """Where the quantile begins, and below which it never goes.

    Misses would move it there in hours, and each lesson is a miss: with a budget of a thousandth, a first quantile of
    0.9 missed eleven times the budget in three hours of a trace, and 0.97 a quarter of it at no more cost. An hour
    without a miss is no proof either that the next is as calm: it took the quantile from 0.9 to 0.7, and one jump of
    the load then missed more than the budget of a day.
    """
    return min(ALPHA_HIGH, max(FIRST_ALPHA, 1 - math.sqrt(budget) / 2))


def adapt(memory: Memory, *, missed: float, budget: float) -> Memory:
    """Move the quantile: up by what missed, down a little by every look, both by the requests in it.

    Odds are moved and not the quantile itself, and misses are measured by the budget, so that a budget ten times
    smaller is as quickly found. In the long run misses come as often as the budget allows, or, where the least
    headroom is already more than that takes, less often.
    """
    weight = request_weight(memory.points)
    odds = math.log(memory.alpha / (1 - memory.alpha))
    odds += ETA * weight * (min(missed / (AIM * budget), MOST_MISSED) - 1)
    alpha = 1 / (1 + math.exp(-odds))
    return replace(memory, alpha=min(ALPHA_HIGH, max(lowest(budget), alpha)))


def fresh(memory: Memory, budget: float) -> Memory:
    """A memory without a look and without a past begins at the least quantile that suits its budget."""
    if memory.points or memory.ratios:
        return memory
    return replace(memory, alpha=lowest(budget))


def request_weight(points: tuple[Point, ...]) -> float:
    """Requests of the last look over their mean."""
    usual = sum(point.requests for point in points) / len(points) if points else 0.0
    if usual <= 0:
        return 0.0
    return min(MOST_WEIGHT, points[-1].requests / usual)
