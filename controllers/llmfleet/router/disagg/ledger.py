"""What a prefill engine owes and whether it may be asked: outstanding hand-offs and a circuit breaker.

In: what happened and when. Out: counts and a yes or no. A hand-off nobody reads pins blocks of the prefill engine
until its lease ends, so those are counted too, until then. It never reads a clock.
"""

from __future__ import annotations

import heapq
from collections import Counter
from enum import StrEnum
from typing import Final

LONGEST_PAUSE: Final = 8  # of a breaker, in its first pauses


class Fate(StrEnum):
    """What became of a hand-off; each has exactly one."""

    USED = "used"  # the decode engine answered: it has read the KV, or computed the prompt itself
    FAILED = "failed"  # the decode engine was asked and did not answer with it
    ABANDONED = "abandoned"  # the client left
    EXPIRED = "expired"  # it was not sent, as its lease was about to end


class Ledger:
    """The hand-offs of one prefill engine."""

    __slots__ = ("_stranded", "fates", "pending")

    def __init__(self) -> None:
        self.pending = 0  # being read, or about to be
        self._stranded: list[float] = []  # when the lease of each ends that nobody is known to have read
        self.fates: Counter[str] = Counter()

    def opened(self) -> None:
        """A first leg answered with a hand-off."""
        self.pending += 1

    def closed(self, fate: Fate, expires_at: float) -> None:
        """A hand-off has met its fate; one that may not have been read holds its blocks until its lease ends."""
        self.pending -= 1
        self.fates[fate] += 1
        if fate is not Fate.USED:
            heapq.heappush(self._stranded, expires_at)

    def outstanding(self, now: float) -> int:
        """Count the hand-offs whose blocks the engine may still hold."""
        stranded = self._stranded
        while stranded and stranded[0] <= now:
            heapq.heappop(stranded)
        return self.pending + len(stranded)


class Breaker:
    """Keeps requests from an engine that fails again and again; now and then one tries whether it has recovered."""

    __slots__ = ("_failures", "_pause", "_until", "opened")

    def __init__(self) -> None:
        self._failures = 0  # in a row
        self._pause = 0.0  # 0: closed
        self._until = 0.0
        self.opened = 0  # how often

    def allows(self, now: float) -> bool:
        """Whether the engine may be asked."""
        return not self._pause or now >= self._until

    def taken(self, now: float) -> None:
        """The engine is asked; while the breaker is open that is a trial, and the next one comes a pause later."""
        if self._pause:
            self._until = now + self._pause

    def failed(self, now: float, limit: int, seconds: float) -> None:
        """An attempt failed that may have been this engine's fault."""
        self._failures += 1
        if self._failures >= limit:
            self._pause = min(self._pause * 2, seconds * LONGEST_PAUSE) if self._pause else seconds
            self._until = now + self._pause
            self.opened += 1

    def succeeded(self) -> None:
        """The engine's work was good."""
        self._failures = 0
        self._pause = 0.0
