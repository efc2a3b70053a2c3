"""Offered load: work served, plus how the queue changed, plus what was turned away.

In: two looks at each engine and router. Out: `Rates`, per second. Work served alone is censored by overload, and a
queue alone says nothing of a fleet that keeps up; together they are what clients ask for. Differences survive an
engine's restart: a counter that went down began again at zero. It never fills a gap with a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from llmfleet.api.autoscaler import MetricType
from llmfleet.api.types import Role
from llmfleet.capacity.profiles import StepTime
from llmfleet.scale.signals import Buckets, EngineReading, RouterReading

SHORTEST: Final = 1.0
"""Two looks closer than this tell more about the clock than about the engine."""
WAITING_EACH: Final = 2.0
"""Requests that wait in an engine for a step or two are ordinary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one engine, or a fleet, did per second between two looks, and how it stood at the second."""

    at: float
    prefill: float = 0.0
    prompts: float = 0.0
    """Prompt tokens, those from a cache included."""
    generated: float = 0.0
    attended: float = 0.0
    """Context tokens read by attention."""
    steps: float = 0.0
    finished: float = 0.0
    itl_seconds: float = 0.0
    itl_count: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    more_waiting: float = 0.0
    """By how much the queue grew, per second."""
    kv_usage: float = 0.0
    kv_tokens: float = 0.0
    engines: float = 0.0
    """How many of them this is of."""
    buckets: tuple[tuple[MetricType, Buckets], ...] = ()

    def work(self, steps: StepTime, role: Role) -> float:
        """Seconds of step time sold per second, as the role is charged for it."""
        prefill = steps.c * self.prefill
        if role is Role.PREFILL:
            return prefill
        return prefill + steps.b * self.generated + steps.d * self.attended


def is_behind(rates: Rates, queued: float) -> bool:
    """Whether more comes than engines take: requests wait in routers, or in engines beyond what is ordinary."""
    return queued > 0 or rates.waiting > WAITING_EACH * rates.engines


def grown(before: float, after: float) -> float:
    """How much a counter grew; one that is lower than before started again."""
    return after - before if after >= before else after


def rates_between(before: EngineReading, after: EngineReading) -> Rates | None:
    """What an engine did between two looks; None when they are too close."""
    seconds = after.at - before.at
    if seconds < SHORTEST:
        return None
    steps = grown(before.steps, after.steps) / seconds
    usage = (before.kv_usage + after.kv_usage) / 2
    return Rates(
        at=after.at,
        prefill=grown(before.prefill, after.prefill) / seconds,
        prompts=grown(before.prompts, after.prompts) / seconds,
        generated=grown(before.generated, after.generated) / seconds,
        attended=steps * usage * after.kv_tokens,
        steps=steps,
        finished=grown(before.finished, after.finished) / seconds,
        itl_seconds=grown(before.itl_seconds, after.itl_seconds) / seconds,
        itl_count=grown(before.itl_count, after.itl_count) / seconds,
        running=after.running,
        waiting=after.waiting,
        more_waiting=(after.waiting - before.waiting) / seconds,
        kv_usage=after.kv_usage,
        kv_tokens=after.kv_tokens,
        engines=1.0,
        buckets=tuple(
            (kind, bucket_rates(before.buckets.get(kind, ()), edges, seconds))
            for kind, edges in sorted(after.buckets.items())
        ),
    )


def bucket_rates(before: Buckets, after: Buckets, seconds: float) -> Buckets:
    """Cumulative counts per second. If any of them went down, all of them began again."""
    known = dict(before)
    again = any(count < known.get(edge, 0.0) for edge, count in after)
    return tuple((edge, (count - (0.0 if again else known.get(edge, 0.0))) / seconds) for edge, count in after)


def total(rates: Iterable[Rates], at: float, *, histograms: bool = True) -> Rates:
    """The sum over a fleet; gauges of requests add up, KV usage is a mean weighted by size.

    Histograms are most of the work, and a sum over minutes is asked for nothing else than tokens and requests.
    """
    found = sorted(rates, key=lambda one: (one.at, one.generated, one.prefill))
    tokens = sum(one.kv_tokens for one in found)
    return Rates(
        at=at,
        prefill=sum(one.prefill for one in found),
        prompts=sum(one.prompts for one in found),
        generated=sum(one.generated for one in found),
        attended=sum(one.attended for one in found),
        steps=sum(one.steps for one in found),
        finished=sum(one.finished for one in found),
        itl_seconds=sum(one.itl_seconds for one in found),
        itl_count=sum(one.itl_count for one in found),
        running=sum(one.running for one in found),
        waiting=sum(one.waiting for one in found),
        more_waiting=sum(one.more_waiting for one in found),
        kv_usage=sum(one.kv_usage * one.kv_tokens for one in found) / tokens if tokens else mean_usage(found),
        kv_tokens=tokens,
        engines=sum(one.engines for one in found),
        buckets=add_buckets(one.buckets for one in found) if histograms else (),
    )


def mean_usage(rates: list[Rates]) -> float:
    return sum(one.kv_usage for one in rates) / len(rates) if rates else 0.0


def add_buckets(
    all_of_them: Iterable[tuple[tuple[MetricType, Buckets], ...]],
) -> tuple[tuple[MetricType, Buckets], ...]:
    sums: dict[MetricType, dict[float, float]] = {}
    for histograms in all_of_them:
        for kind, edges in histograms:
            held = sums.setdefault(kind, {})
            for edge, rate in edges:
                held[edge] = held.get(edge, 0.0) + rate
    return tuple((kind, tuple(sorted(edges.items()))) for kind, edges in sorted(sums.items()))


def refused_between(before: Mapping[str, RouterReading], after: Iterable[RouterReading]) -> float:
    """Requests turned away since the last look, over all routers that were seen twice."""
    return sum(grown(before[one.router].refused, one.refused) for one in after if one.router in before)
