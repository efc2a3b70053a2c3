"""What one fleet's autoscaler remembers between two looks.

In: nothing, or what a status kept. Out: frozen values; a step returns new ones. What was learned over hours (headroom,
factors) goes into the status in short and comes back from there; the rest is a cache: without it the fleet holds (a
new process must watch for a whole window before it may shrink). Moments are seconds since the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from llmfleet.scale.signals import EngineReading, RouterReading
from llmfleet.scale.work import Rates

FIRST_ALPHA: Final = 0.9
KEPT: Final = 64
"""Quantiles of past peaks that a status keeps: enough for any share that headroom is asked for."""
FACTORS: Final = (1 / 8, 8.0)
"""No factor was ever learned outside."""
EXCESSES: Final = (-1.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Offered load at one look, and the requests behind it."""

    at: float
    load: float
    requests: float
    rates: Rates
    queued: float = 0.0
    """What waited in routers."""

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
    ranked = memory.ranked
    last = len(ranked) - 1
    shown = ranked if len(ranked) <= KEPT else tuple(ranked[round(n * last / (KEPT - 1))] for n in range(KEPT))
    return {
        "alpha": f"{memory.alpha:.4f}",
        "stepFactor": f"{memory.learned.a:.4f}",
        "workFactor": f"{memory.learned.work:.4f}",
        "excess": [f"{value:.4f}" for value in shown],
    }


def restored(memory: Memory, kept: object) -> Memory:
    """A memory with what a status kept of it; nothing of it when a figure of it cannot be true."""
    if not isinstance(kept, Mapping):
        return memory
    excess = kept.get("excess")
    texts = excess if isinstance(excess, list) else []
    alpha, step, work, *ranked = figures((*(kept.get(key) for key in ("alpha", "stepFactor", "workFactor")), *texts))
    whole = within((alpha,), 0.0, 1.0) and within((step, work), *FACTORS) and within(ranked, *EXCESSES)
    if not whole or len(ranked) > KEPT:
        return memory
    ranked.sort()
    # The oldest go first, and those must not be the smallest.
    mixed = tuple(ranked[n] for n in sorted(range(len(ranked)), key=lambda n: (n * 0.618034) % 1.0))
    return replace(memory, alpha=alpha, learned=Learned(a=step, work=work), ratios=mixed, ranked=tuple(ranked))


def figures(texts: Sequence[object]) -> Iterator[float]:
    """Numbers as written; what is none is not a number."""
    for text in texts:
        try:
            yield float(str(text))
        except ValueError:
            yield math.nan


def within(values: Sequence[float], low: float, high: float) -> bool:
    return all(low <= value <= high for value in values)
