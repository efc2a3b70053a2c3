"""Whether a level keeps the objective.

In: a `Level` and an `Objective`. Out: what it misses, in words; nothing when it passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmfleet.bench.figures import Level, Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What a level must keep; without times, only that nothing fails."""

    ttft: float | None = None
    tpot: float | None = None
    percentile: float = 99.0
    users: frozenset[int] = frozenset()
    """Judged levels; empty: all."""

    def judges(self, users: int) -> bool:
        return not self.users or users in self.users

    def least_requests(self) -> int:
        """With fewer, the percentile is nothing but the slowest request."""
        return math.ceil(round(100 / (100 - self.percentile), 6)) if self.percentile < 100 else 1


def misses(level: Level, objective: Objective) -> list[str]:
    """What this level does not keep; empty too where it is not judged."""
    if not objective.judges(level.users):
        return []
    found = [f"{level.errors} errors"] if level.errors else []
    if not level.requests:
        return [*found, "no request was measured"]
    found += over("TTFT", level.ttft, objective.ttft, objective.percentile)
    # An answer of one token has no TPOT, and so nothing to miss.
    return found + over("TPOT", level.tpot, objective.tpot, objective.percentile)


def over(name: str, values: Spread | None, limit: float | None, percentile: float) -> list[str]:
    if values is None or limit is None or values.at(percentile) <= limit:
        return []
    return [f"{name} p{percentile:g} {duration(values.at(percentile))} > {duration(limit)}"]


def kept(level: Level, objective: Objective) -> float:
    """The share of measured requests that kept both times."""
    good = sum(
        (objective.ttft is None or ttft <= objective.ttft)
        and (objective.tpot is None or tpot is None or tpot <= objective.tpot)
        for ttft, tpot in level.pairs
    )
    return good / len(level.pairs) if level.pairs else 0.0


def duration(seconds: float) -> str:
    """For people: three digits are enough."""
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"
