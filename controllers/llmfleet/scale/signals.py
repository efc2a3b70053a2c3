"""What was measured, typed, with its age; and whether it may be believed.

In: figures of engines and routers. Out: `EngineReading`, `RouterReading`, `Observation`. A figure that cannot be true
(not a number, negative, beyond any fleet) makes its reading none at all: missing is a value here, wrong is not. All
moments are seconds since the epoch. It never asks anybody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from llmfleet.api.autoscaler import MetricType

IMPLAUSIBLE: Final = 1e15
"""No counter of an engine gets here in a lifetime; 1e308 is an overflow somewhere."""
FRESH_SECONDS: Final = 45.0
"""Three looks: one missed scrape is ordinary, three are an outage."""

Buckets = tuple[tuple[float, float], ...]
"""Cumulative counts by upper edge, the last one infinite."""
NO_BUCKETS: Final[Mapping[MetricType, Buckets]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReading:
    """One look at one engine: counters since its start, gauges as they are."""

    instance: str
    at: float
    prefill: float = 0.0
    """Prompt tokens that were computed here, not taken from a cache nor received."""
    prompts: float = 0.0
    """Prompt tokens, wherever they came from."""
    generated: float = 0.0
    """Steps of requests: output tokens, less those a draft model gave away."""
    steps: float = 0.0
    finished: float = 0.0
    itl_seconds: float = 0.0
    itl_count: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    kv_tokens: float = 0.0
    buckets: Mapping[MetricType, Buckets] = field(default_factory=lambda: NO_BUCKETS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterReading:
    """One look at one router, for one model."""

    router: str
    at: float
    queued: float = 0.0
    """Requests it holds because no engine has a free slot."""
    queued_bytes: float = 0.0
    """Bytes of their bodies: nobody has counted their tokens yet."""
    refused: float = 0.0
    """Requests it turned away for want of capacity, since its start."""
    in_flight: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything seen at one moment, and what should have been there to see."""

    engines: tuple[EngineReading, ...] = ()
    routers: tuple[RouterReading, ...] = ()
    serving: tuple[str, ...] = ()
    """Instances that are Ready: each must answer before a fleet may shrink."""
    routers_expected: int = 0
    routers_wanted: tuple[str, ...] = ()
    """Which ones, where that is known: one that leaves does not stand for one that is silent."""
    external: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Values of queries, by what was asked; only from Prometheus."""
    problem: str = ""
    """Why nothing could be asked at all."""


class Evidence(StrEnum):
    """How far the figures carry a decision."""

    FULL = "full"
    """Grow and shrink."""
    NO_ROUTERS = "no routers"
    """What waits in routers is unknown: grow by the whole law, never shrink."""
    SETTLING = "settling"
    """An engine has just become Ready and was seen once: what it serves is not known before the second look."""
    LOWER_BOUND = "lower bound"
    """Engines are missing: what is known is too little; grow only when even that exceeds capacity."""

    @property
    def whole(self) -> bool:
        """Whether all that engines serve is known."""
        return self in (Evidence.FULL, Evidence.NO_ROUTERS)


def plausible(*values: float) -> bool:
    """True when every figure could be one."""
    return all(math.isfinite(value) and 0 <= value <= IMPLAUSIBLE for value in values)


def is_plausible(reading: EngineReading | RouterReading) -> bool:
    """Whether every figure of a reading could be true."""
    if isinstance(reading, RouterReading):
        return plausible(reading.queued, reading.queued_bytes, reading.refused, reading.in_flight)
    counts = [count for buckets in reading.buckets.values() for _, count in buckets]
    return reading.kv_usage <= 1.5 and plausible(
        reading.prefill,
        reading.prompts,
        reading.generated,
        reading.steps,
        reading.finished,
        reading.itl_seconds,
        reading.itl_count,
        reading.running,
        reading.waiting,
        reading.kv_usage,
        reading.kv_tokens,
        *counts,
    )
