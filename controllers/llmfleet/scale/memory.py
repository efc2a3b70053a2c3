"""What one fleet's autoscaler remembers between two looks.

In: nothing. Out: frozen values; a step returns new ones. All of it is a cache: without it the fleet holds (a new
process must watch for a whole window before it may shrink) and headroom starts from a cautious guess. Moments are
seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from llmfleet.scale.signals import EngineReading, RouterReading
from llmfleet.scale.work import Rates

FIRST_ALPHA: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Offered load at one look, and the requests behind it."""

    at: float
    load: float
    requests: float
    rates: Rates


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
