"""How much load there will be when an instance that is asked for now is ready.

In: offered load at past looks, and a memory of how far peaks went beyond what was known before. Out: a base, a factor
of headroom, and the new memory. At leads of minutes the present is hard to beat as an estimate; what matters is the
upper tail of the peak within the lead. Its quantile is taken from the fleet's own past and moved until misses come as
often as the error budget allows (adaptive conformal prediction), counted by requests and not by looks: requests crowd
into the looks that miss. It never extrapolates a trend.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, replace
from typing import Final

from llmfleet.scale.memory import Memory, Pending, Point

SHORT_SECONDS: Final = 60.0
LONG_SECONDS: Final = 300.0
SAMPLE_SECONDS: Final = 30.0
"""One forecast in this time is remembered and judged."""
ENOUGH: Final = 31
FIRST_HEADROOM: Final = 1.4
LEAST_BASE: Final = 1e-3
ETA: Final = 0.02
ALPHA_LOW: Final = 0.5
ALPHA_HIGH: Final = 0.999
MOST_WEIGHT: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Load expected at most within the lead: `base` times `headroom`."""

    base: float
    headroom: float

    @property
    def peak(self) -> float:
        return self.base * self.headroom


def mean(points: tuple[Point, ...], since: float) -> float:
    """Mean load of the points after a moment; of the last one when none is."""
    loads = [point.load for point in points if point.at > since]
    if not loads:
        return points[-1].load if points else 0.0
    return sum(loads) / len(loads)


def base_of(points: tuple[Point, ...], now: float) -> float:
    """The present load: half a minute's mean, half that of five."""
    return 0.5 * mean(points, now - SHORT_SECONDS) + 0.5 * mean(points, now - LONG_SECONDS)


def forecast(memory: Memory, now: float) -> Forecast:
    """What the memory expects."""
    return Forecast(base=base_of(memory.points, now), headroom=quantile(memory.ranked, memory.alpha))


def quantile(ranked: tuple[float, ...], alpha: float) -> float:
    """Headroom: never below 1, and a guess while little was seen."""
    if len(ranked) < ENOUGH:
        return FIRST_HEADROOM
    place = alpha * (len(ranked) - 1)
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return max(1.0, ranked[low] + (ranked[high] - ranked[low]) * (place - low))


def remember(memory: Memory, point: Point, *, lead: float, keep: float, window: float) -> Memory:
    """Add a look: judge forecasts that are due, make a new one when it is time."""
    horizon = point.at - max(lead, LONG_SECONDS, window) - SAMPLE_SECONDS
    points = (*(old for old in memory.points if old.at > horizon), point)
    memory = replace(memory, points=points)
    while memory.pending and memory.pending[0].due <= point.at:
        memory = judge(memory, memory.pending[0], keep)
    if not memory.pending or point.at - memory.pending[-1].made >= SAMPLE_SECONDS:
        base = max(base_of(points, point.at), LEAST_BASE)
        made = Pending(made=point.at, due=point.at + lead, base=base)
        memory = replace(memory, pending=(*memory.pending, made))
    return memory


def judge(memory: Memory, due: Pending, keep: float) -> Memory:
    """How far the peak of a lead went beyond its base; the oldest such figures go."""
    peak = max((point.load for point in memory.points if due.made < point.at <= due.due), default=due.base)
    ratio = peak / due.base
    ratios, ranked = [*memory.ratios, ratio], list(memory.ranked)
    insort(ranked, ratio)
    while len(ratios) > max(int(keep / SAMPLE_SECONDS), ENOUGH):
        del ranked[bisect_left(ranked, ratios.pop(0))]
    return replace(memory, pending=memory.pending[1:], ratios=tuple(ratios), ranked=tuple(ranked))


def adapt(memory: Memory, *, missed: bool, budget: float) -> Memory:
    """Move the quantile: up by a miss, down a little by every look without one, both by the requests in it."""
    weight = request_weight(memory.points)
    alpha = memory.alpha + ETA * weight * (float(missed) - budget)
    return replace(memory, alpha=min(ALPHA_HIGH, max(ALPHA_LOW, alpha)))


def request_weight(points: tuple[Point, ...]) -> float:
    """Requests of the last look over their mean."""
    usual = sum(point.requests for point in points) / len(points) if points else 0.0
    if usual <= 0:
        return 0.0
    return min(MOST_WEIGHT, points[-1].requests / usual)
