"""Whether a request may be sent again: a budget of second attempts, and bodies that kill engines.

In: requests, second attempts and lost engines as they happen. Out: yes or no. Second attempts are at most a share of
the requests of the last seconds, so that a fleet in trouble is not asked twice for everything; what adds no work (the
engine is known to be gone) is free and not counted here. A body that was on two engines when they were lost, and was
never answered, is not sent to a third. It never reads a clock, keeps a body or sends anything.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from xxhash import xxh3_128_digest

MARK_SECONDS: Final = 1.0
MAX_SUSPECTS: Final = 10_000
SAME_DEATH_SECONDS: Final = 1.0  # an engine lost twice within this is lost once


class Budget:
    """Second attempts of one model; the hot path only adds to `requests`."""

    __slots__ = ("_marks", "refused", "requests", "retries")

    def __init__(self) -> None:
        self.requests = self.retries = self.refused = 0
        self._marks: deque[tuple[float, int, int]] = deque()

    def mark(self, now: float, window: float) -> None:
        """Remember where the counts stand; called a few times a second."""
        marks = self._marks
        if not marks or now - marks[-1][0] >= MARK_SECONDS:
            marks.append((now, self.requests, self.retries))
        while len(marks) > 1 and marks[1][0] <= now - window:
            marks.popleft()

    def spend(self, now: float, *, ratio: float, floor: int, window: float) -> bool:
        """Take one second attempt out of the budget, if there is one: a share of the requests, or a few when idle."""
        self.mark(now, window)
        _, requests, retries = self._marks[0]
        if self.retries - retries >= max(floor, ratio * (self.requests - requests)):
            self.refused += 1
            return False
        self.retries += 1
        return True


class Quarantine:
    """Bodies that were at an engine, unanswered, when it was lost; kept as hashes."""

    __slots__ = ("_after", "_seconds", "refused", "suspects")

    def __init__(self, *, after: int, seconds: float) -> None:
        self._after, self._seconds = after, seconds
        self.suspects: OrderedDict[bytes, list[tuple[str, float]]] = OrderedDict()
        self.refused = 0

    def strike(self, body: bytes, engine: str, now: float) -> bool:
        """An engine was lost with this body on it; returns whether the body may not go to another one."""
        if not self._after:
            return False
        key = xxh3_128_digest(body)
        deaths = self.suspects.setdefault(key, [])
        self.suspects.move_to_end(key)
        if not any(engine == other and now - at < SAME_DEATH_SECONDS for other, at in deaths):
            deaths.append((engine, now))
            del deaths[: -self._after]
        if len(self.suspects) > MAX_SUSPECTS:
            self.suspects.popitem(last=False)
        return self.holds(body, now)

    def holds(self, body: bytes, now: float) -> bool:
        """Say whether a body is kept from engines; only asked while there are suspects."""
        deaths = self.suspects.get(xxh3_128_digest(body))
        return deaths is not None and sum(now - at < self._seconds for _, at in deaths) >= self._after

    def passed(self, body: bytes) -> None:
        """A body was answered: it kills nobody."""
        self.suspects.pop(xxh3_128_digest(body), None)

    def forget(self, now: float) -> None:
        """Drop what is too old to matter."""
        while self.suspects:
            key, deaths = next(iter(self.suspects.items()))
            if now - deaths[-1][1] < self._seconds:
                break
            del self.suspects[key]
