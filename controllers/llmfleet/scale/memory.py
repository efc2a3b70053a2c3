"""What one fleet's autoscaler remembers between two looks.

In: nothing, or what a status kept. Out: frozen values; a step returns new ones. What was learned over hours (headroom,
factors) goes into the status in short and comes back from there; the rest is a cache: without it the fleet holds (a
new process must watch for a whole window before it may shrink). Moments are seconds since the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

from llmfleet.scale.signals import EngineReading, RouterReading
from llmfleet.scale.work import Rates, is_behind

FIRST_ALPHA: Final = 0.9
KEPT: Final = 64
"""Quantiles of past peaks that a status keeps: enough for any share that headroom is asked for."""
MOST_SAMPLES: Final = 2880
"""A day of them: what comes back weighs no more, and one burst among them is one of so many."""
FACTORS: Final = (1 / 8, 8.0)
"""No factor was ever learned outside."""
ALPHA_LOW: Final = 0.5
ALPHA_HIGH: Final = 0.999
MOST_EXCESS: Final = 4.0
"""One freak burst must not hold a fleet at its maximum for a day."""
EXCESSES: Final = (-1.0, MOST_EXCESS)
"""No load is below nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Offered load at one look, and the requests behind it."""

    at: float
    load: float
    """As the table has it, without the factor on it: what is learned of that is no load that grows or falls."""
    requests: float
    rates: Rates
    queued: float = 0.0
    """What waited in routers."""

    @property
    def behind(self) -> bool:
        """More came than engines took."""
        return is_behind(self.rates, self.queued)

    @property
    def quiet(self) -> bool:
        """Nobody asked for anything, and nothing was being answered."""
        return not (self.queued or self.rates.running or self.rates.waiting or self.rates.finished)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A forecast whose time has not come: what the load was, and when to compare."""

    made: float
    due: float
    base: float
    scale: float
    """What its excess is measured by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Factors on the capacity table: on the fixed part of a step, and on the rest."""

    a: float = 1.0
    work: float = 1.0
    about: str = ""
    """Which table, of which engines; factors on another one say nothing of this."""
    outliers: int = 0
    """Looks in a row that contradict both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How many instances a look asked for."""

    at: float
    instances: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Everything kept of one fleet (one role)."""

    since: float
    """From when on looks were taken without a gap."""
    looked: float
    engines: Mapping[str, EngineReading] = field(default_factory=lambda: MappingProxyType({}))
    routers: Mapping[str, RouterReading] = field(default_factory=lambda: MappingProxyType({}))
    rates: Mapping[str, Rates] = field(default_factory=lambda: MappingProxyType({}))
    points: tuple[Point, ...] = ()
    pending: tuple[Pending, ...] = ()
    ratios: tuple[float, ...] = ()
    """By how much peaks exceeded their bases, in the order they were seen."""
    ranked: tuple[float, ...] = ()
    """The same, by size."""
    alpha: float = FIRST_ALPHA
    learned: Learned = Learned()
    wishes: tuple[Wish, ...] = ()
    busy: float
    """When somebody last asked for anything."""
    scaled_up: float = float("-inf")
    scaled_down: float = float("-inf")


def begin(now: float) -> Memory:
    """A memory without memories."""
    return Memory(since=now, looked=now, busy=now)


def saved(memory: Memory) -> dict[str, Any]:
    """What was learned, in short, as decimal strings."""
    return {
        "about": memory.learned.about,
        "alpha": f"{memory.alpha:.4f}",
        "stepFactor": f"{memory.learned.a:.4f}",
        "workFactor": f"{memory.learned.work:.4f}",
        "excess": [f"{memory.ranked[place]:.4f}" for place in places(len(memory.ranked))],
        "samples": len(memory.ranked),
    }


def places(count: int) -> list[int]:
    """Which of so many ranked figures are kept: all of them, or as many as may be, the extremes among them."""
    return list(range(count)) if count <= KEPT else [round(n * (count - 1) / (KEPT - 1)) for n in range(KEPT)]


def expanded(kept: Sequence[float], count: int) -> list[float]:
    """As many figures as there were, with those that were kept in their places and straight lines between them."""
    found, at = [], places(count)
    for (low, first), (high, second) in pairwise(zip(at, kept, strict=True)):
        found += [first + (second - first) * n / (high - low) for n in range(high - low)]
    return [*found, *kept[-1:]]


def restored(memory: Memory, kept: object) -> Memory:
    """A memory with what a status kept of it; nothing of it when a figure of it cannot be true."""
    if not isinstance(kept, Mapping):
        return memory
    excess = kept.get("excess")
    texts = excess if isinstance(excess, list) else []
    alpha, step, work, *ranked = figures((*(kept.get(key) for key in ("alpha", "stepFactor", "workFactor")), *texts))
    whole = within((alpha,), ALPHA_LOW, ALPHA_HIGH) and within((step, work), *FACTORS) and within(ranked, *EXCESSES)
    samples = kept.get("samples", len(ranked))
    if not whole or not isinstance(samples, int) or len(ranked) != min(samples, KEPT):
        return memory
    ranked = expanded(sorted(ranked), min(samples, MOST_SAMPLES))
    # The oldest go first, and those must not be the smallest.
    mixed = tuple(ranked[n] for n in sorted(range(len(ranked)), key=lambda n: (n * 0.618034) % 1.0))
    learned = Learned(a=step, work=work, about=str(kept.get("about", "")))
    return replace(memory, alpha=alpha, learned=learned, ratios=mixed, ranked=tuple(ranked))


def about(memory: Memory, table: str) -> Memory:
    """The memory as far as it speaks of this table: factors on another one are forgotten."""
    return memory if memory.learned.about == table else replace(memory, learned=Learned(about=table))


def figures(texts: Sequence[object]) -> Iterator[float]:
    """Numbers as written; what is none is not a number."""
    for text in texts:
        try:
            yield float(str(text))
        except ValueError:
            yield math.nan


def within(values: Sequence[float], low: float, high: float) -> bool:
    return all(low <= value <= high for value in values)
