"""Correct the capacity table by what engines show.

In: what a fleet did between two looks. Out: new factors: one on `a`, one on `b`, `c` and `d` together. The four cannot
be told apart from scrapes, and a step's time can be measured only while requests stream. A quiet fleet teaches `a`, a
busy one the rest; a look that contradicts the table by more than a factor of four teaches nothing, and many such looks
in a row that what was learned is wrong. Factors are bounded and move slowly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from llmfleet.capacity.capacity import LEARNED_HIGH, LEARNED_LOW, LEARNED_WIDE, Capacity
from llmfleet.scale.memory import Learned
from llmfleet.scale.work import Rates

LEAST_TOKENS: Final = 50.0
"""Inter-token gaps in a look; fewer say nothing."""
OUTLIER: Final = 4.0
OUTLIERS: Final = 40
"""So many looks in a row are no accident: ten minutes of them."""
QUIET: Final = 0.2
BUSY: Final = 0.5
PACE: Final = 0.05


def learn(learned: Learned, rates: Rates, capacity: Capacity, seconds: float) -> Learned:
    """One look's lesson."""
    learned = bounded(learned, capacity)
    if rates.itl_count * seconds < LEAST_TOKENS or rates.steps <= 0:
        return learned
    table = capacity.steps
    seen = rates.itl_seconds / rates.itl_count
    work = (table.b * rates.generated + table.c * rates.prefill + table.d * rates.attended) / rates.steps
    expected = learned.a * table.a + learned.work * work
    wide = OUTLIER if capacity.known else LEARNED_WIDE
    if not expected / wide < seen < expected * wide:
        return doubted(learned)
    learned = replace(learned, outliers=0)
    share = learned.work * work / expected
    if share < QUIET and table.a > 0:
        return replace(learned, a=moved(learned.a, (seen - learned.work * work) / table.a, capacity))
    if share > BUSY:
        return replace(learned, work=moved(learned.work, (seen - learned.a * table.a) / work, capacity))
    return learned


def bounded(learned: Learned, capacity: Capacity) -> Learned:
    """Factors within what this table allows; another one may have allowed more."""
    low, high = bounds(capacity)
    a, work = min(high, max(low, learned.a)), min(high, max(low, learned.work))
    return learned if (a, work) == (learned.a, learned.work) else replace(learned, a=a, work=work)


def doubted(learned: Learned) -> Learned:
    """One more look that contradicts what was learned: after many the table speaks for itself again."""
    if learned.a == learned.work == 1.0:
        return learned
    if learned.outliers + 1 >= OUTLIERS:
        return Learned(about=learned.about)
    return replace(learned, outliers=learned.outliers + 1)


def bounds(capacity: Capacity) -> tuple[float, float]:
    return (LEARNED_LOW, LEARNED_HIGH) if capacity.known else (1 / LEARNED_WIDE, LEARNED_WIDE)


def moved(factor: float, seen: float, capacity: Capacity) -> float:
    """A small step towards what was seen, within bounds."""
    low, high = bounds(capacity)
    return min(high, max(low, factor + PACE * (min(high, max(low, seen)) - factor)))
