"""Correct the capacity table by what engines show.

In: what a fleet did between two looks. Out: new factors: one on `a`, one on `b`, `c` and `d` together. The four cannot
be told apart from scrapes, and a step's time can be measured only while requests stream. Both factors move with each
look, and looks at different loads tell them apart. A look that contradicts the table by more than a factor of four
teaches nothing, and many such looks in a row that what was learned is wrong. Factors are bounded and move slowly.

A fleet that is behind teaches nothing either: its engines prefill in waves and decode in waves, a gap between tokens
counts as often as requests stream in it, and the mean of them says a step is up to twice as long as steps are. A factor
learned from that made a fleet so large that no look at it was busy enough to correct it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from llmfleet.capacity.capacity import LEARNED_HIGH, LEARNED_LOW, LEARNED_WIDE, Capacity
from llmfleet.scale.memory import Learned
from llmfleet.scale.work import Rates, is_behind

LEAST_TOKENS: Final = 50.0
"""Inter-token gaps in a look; fewer say nothing."""
OUTLIER: Final = 4.0
OUTLIERS: Final = 40
"""So many looks in a row are no accident: ten minutes of them."""
PACE: Final = 0.05
ALIKE: Final = 0.8
"""How far an error of one factor is expected in the other."""


def learn(learned: Learned, rates: Rates, capacity: Capacity, seconds: float, queued: float = 0.0) -> Learned:
    """One look's lesson; `queued` waits in routers."""
    learned = bounded(learned, capacity)
    if is_behind(rates, queued):
        return learned
    if rates.itl_count * seconds < LEAST_TOKENS or rates.steps <= 0:
        return learned
    table = capacity.steps
    seen = rates.itl_seconds / rates.itl_count
    work = (table.b * rates.generated + table.c * rates.prefill + table.d * rates.attended) / rates.steps
    expected = learned.a * table.a + learned.work * work
    wide = OUTLIER if capacity.known else LEARNED_WIDE
    if not expected / wide < seen < expected * wide:
        return doubted(learned)
    return corrected(replace(learned, outliers=0), table.a, work, seen - expected, capacity)


def corrected(learned: Learned, a: float, work: float, error: float, capacity: Capacity) -> Learned:
    """A small step of both factors, along the line on which they are most probably wrong, within bounds.

    One look cannot say which of the two is wrong. Looks at different loads can; until then both are taken to be wrong
    in much the same way, as those of another GPU are.
    """
    towards_a, towards_work = a + ALIKE * work, ALIKE * a + work
    scale = a * towards_a + work * towards_work
    if scale <= 0:
        return learned
    low, high = bounds(capacity)
    step = PACE * error / scale
    return replace(
        learned,
        a=min(high, max(low, learned.a + step * towards_a)),
        work=min(high, max(low, learned.work + step * towards_work)),
    )


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
