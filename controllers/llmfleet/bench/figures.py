"""What the requests of one level come to: percentiles, rates, errors by kind.

In: samples and the window in which so many users were at work. Out: a `Level`. No clock, no lots.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmfleet.bench.stream import Kind, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """From the moment every user was warm to the moment the first had nothing more to do."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.begin)

    def share(self, begin: float, end: float) -> float:
        """How much of something that lasted from `begin` to `end` lies inside."""
        if end <= begin:
            return 1.0 if self.begin <= begin <= self.end else 0.0
        return max(0.0, min(end, self.end) - max(begin, self.begin)) / (end - begin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of one figure, in seconds, over all requests of a level."""

    values: tuple[float, ...]
    """Sorted."""

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    def at(self, percent: float) -> float:
        """The percentile by nearest rank: always a value that was measured, and never a smaller one than half-way."""
        return self.values[max(0, math.ceil(percent / 100 * len(self.values)) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Errors of one kind and code."""

    kind: Kind
    code: str
    count: int
    said: str
    """Words of the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One number of users."""

    users: int
    seconds: float
    requests: int
    """Whole answers, measured."""
    warmups: int
    """Whole answers that came before, or while others were still warming up: not measured."""
    cut: int
    """Requests under way when the run was stopped."""
    faults: tuple[Fault, ...]
    requests_per_second: float
    output_tokens_per_second: float
    prompt_tokens: float
    output_tokens: float
    ttft: Spread | None
    tpot: Spread | None
    e2e: Spread | None
    pairs: tuple[tuple[float, float | None], ...]
    """TTFT and TPOT of each request."""
    client_cpu: float
    """CPU seconds of this program for each second: near 1 it measures itself."""

    @property
    def errors(self) -> int:
        return sum(fault.count for fault in self.faults)


def spread(values: Sequence[float]) -> Spread | None:
    return Spread(values=tuple(sorted(values))) if values else None


def summarize(*, users: int, samples: Sequence[Sample], window: Window, cut: int, cpu: float, wall: float) -> Level:
    """Times of whole answers that began in the window, rates inside it, every error wherever it was."""
    good = [one for one in samples if one.problem is None]
    measured = [one for one in good if window.begin <= one.begin]  # nobody begins after its end
    tpots = [one.tpot for one in measured if one.tpot is not None]
    return Level(
        users=users,
        seconds=window.seconds,
        requests=len(measured),
        warmups=len(good) - len(measured),
        cut=cut,
        faults=faults_of(samples),
        requests_per_second=rate(sum(window.share(one.begin, one.end) for one in good), window),
        output_tokens_per_second=rate(sum(tokens_within(one, window) for one in good), window),
        prompt_tokens=mean([one.prompt_tokens for one in measured]),
        output_tokens=mean([one.output_tokens for one in measured]),
        ttft=spread([one.ttft for one in measured]),
        tpot=spread(tpots),
        e2e=spread([one.e2e for one in measured]),
        pairs=tuple((one.ttft, one.tpot) for one in measured),
        client_cpu=cpu / wall if wall > 0 else 0.0,
    )


def tokens_within(sample: Sample, window: Window) -> float:
    """Its tokens in the window, taken as evenly spread between the first and the last."""
    return sample.output_tokens * window.share(sample.first, sample.last)


def rate(amount: float, window: Window) -> float:
    return amount / window.seconds if window.seconds > 0 else 0.0


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def faults_of(samples: Sequence[Sample]) -> tuple[Fault, ...]:
    """By kind and code, the most frequent first."""
    problems = [one.problem for one in samples if one.problem is not None]
    counts = Counter((one.kind, one.code) for one in problems)
    said = {(one.kind, one.code): one.said for one in reversed(problems)}
    return tuple(
        Fault(kind=kind, code=code, count=count, said=said[kind, code]) for (kind, code), count in counts.most_common()
    )
