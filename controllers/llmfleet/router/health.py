"""Which engines look bad: by what they did to requests, and by how they answer health checks.

In: lost and failed attempts, answered ones, what engines say of themselves, the outcome of health checks. Out: for each
engine one reason why it is not chosen, or none; and whether it comes after the others. Many failures in a row or a bad
share of many eject an engine for a while, longer each time, and never more than a share of a model's engines. An engine
whose connections break one after the other, or that does not answer its checks, is lost: out until a check or the end
of its time says otherwise. When most engines of a model look bad, looks deceive: the bad ones are used again, after the
good ones, but for those that said themselves that they are dead. An engine whose last attempt failed comes after the
others for a moment: what is broken answers fastest, so it is the least loaded and would draw requests. It never reads a
clock or asks an engine anything.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final

MARK_SECONDS: Final = 1.0
RATIO_SECONDS: Final = 10.0
MAX_DOUBLINGS: Final = 16
DOUBT_SECONDS: Final = 0.25  # after the first failure since an answer, then twice as long each time


class Why(StrEnum):
    """Why an engine is out."""

    CONSECUTIVE = "consecutive_failures"
    RATIO = "failure_ratio"
    SEVERED = "connections_lost"
    CHECKS = "health_checks"
    DEAD = "engine_dead"  # it said so


LOST: Final = frozenset({Why.SEVERED, Why.CHECKS})
CERTAIN: Final = LOST | {Why.DEAD}  # out, however many others are


class Rules:
    """When an engine is out, and for how long; settings.health, in short names."""

    __slots__ = ("base", "checks", "consecutive", "least", "longest", "ratio", "severed")

    def __init__(
        self, *, consecutive: int, severed: int, ratio: float, least: int, base: float, longest: float, checks: int
    ) -> None:
        self.consecutive, self.severed, self.ratio, self.least = consecutive, severed, ratio, least
        self.base, self.longest, self.checks = base, longest, checks


class Vitals:
    """What is known of one engine's health. `streak` is read for every answer, the rest only when something failed."""

    __slots__ = (
        "_doubt",
        "_marks",
        "_severed",
        "_unanswered",
        "doubted",
        "ejections",
        "since",
        "streak",
        "times",
        "until",
        "why",
    )

    def __init__(self) -> None:
        self.streak = 0  # failures since the last answer
        self._severed = 0  # of these, broken connections one after the other
        self._unanswered = 0  # health checks
        self._marks: deque[tuple[float, int, int]] = deque()
        self.doubted = False  # it comes after the others
        self._doubt = 0.0  # until then
        self.why: Why | None = None  # out, for this one reason
        self.since = self.until = 0.0
        self.times = 0  # ejections not yet forgiven
        self.ejections = 0  # ever

    @property
    def lost(self) -> bool:
        """Whether the engine is taken for gone."""
        return self.why in LOST

    @property
    def dead(self) -> bool:
        """Whether the engine said that it will answer nothing more."""
        return self.why is Why.DEAD

    def failed(self, now: float, rules: Rules, *, severed: bool) -> Why | None:
        """An attempt failed; returns why the engine should be out from now on, if it should."""
        self.streak += 1
        self._doubt = now + min(rules.longest, DOUBT_SECONDS * 2.0 ** (min(self.streak, MAX_DOUBLINGS) - 1))
        self._severed = self._severed + 1 if severed else 0
        if self._severed >= rules.severed > 0 and self.why not in CERTAIN:
            return Why.SEVERED
        if self.why is None and self.streak >= rules.consecutive > 0:
            return Why.CONSECUTIVE
        return None

    def answered(self) -> None:
        """A request was answered as it should be."""
        self.streak = self._severed = 0

    def counted(self, now: float, asked: int, failures: int, rules: Rules) -> Why | None:
        """Look at the share of failures lately; called a few times a second with running totals."""
        marks = self._marks
        if not marks or now - marks[-1][0] >= MARK_SECONDS:
            marks.append((now, asked, failures))
        while len(marks) > 1 and marks[1][0] <= now - RATIO_SECONDS:
            marks.popleft()
        recent, bad = asked - marks[0][1], failures - marks[0][2]
        if self.why is None and rules.ratio > 0 and recent >= rules.least and bad >= rules.ratio * recent:
            return Why.RATIO
        return None

    def checked(self, now: float, rules: Rules, *, alive: bool) -> Why | None:
        """A health check ended; an answer takes a lost engine back in at once."""
        if alive:
            self._unanswered = 0
            if self.lost:
                self.back()
            return None
        self._unanswered += 1
        return Why.CHECKS if self._unanswered >= rules.checks > 0 and self.why not in CERTAIN else None

    def out(self, why: Why, now: float, rules: Rules) -> None:
        """Leave the engine out, each time for twice as long."""
        if self.why is None:
            self.times = min(self.times + 1, MAX_DOUBLINGS)
            self.ejections += 1
        self.why, self.since = why, now
        self.until = now + min(rules.longest, rules.base * 2.0 ** (self.times - 1))

    def doubt(self, now: float) -> bool:
        """Look whether the engine comes after the others at this moment; returns whether that is new."""
        before, self.doubted = self.doubted, self.streak > 0 and now < self._doubt
        return before is not self.doubted

    def back(self) -> None:
        """Choose the engine again; what counted against it starts from nothing."""
        self.why = None
        self.streak = self._severed = self._unanswered = 0
        self._marks.clear()

    def tick(self, now: float, rules: Rules, *, checked: bool) -> bool:
        """Let time pass; returns whether the engine came back. A lost one that is checked waits for its check.

        So does a dead one whose checks fail, but one that passes them is out all the same until its time is over: an
        engine that shuts down answers them to its end, and refuses every request.
        """
        if self.why is None:
            if self.times and now - self.until > rules.base * 2.0**self.times:
                self.times -= 1  # forgiven, one by one
                self.until = now
            return False
        failing = self.dead and self._unanswered >= rules.checks > 0
        if now < self.until or (checked and (self.lost or failing)):
            return False
        self.back()
        self.until = now
        return True


def may_eject(out: int, total: int, share: float) -> bool:
    """Say whether one more engine of a model may be left out for its failures."""
    return out + 1 <= share * total


def deceiving(good: int, total: int, share: float) -> bool:
    """Say whether so few engines look good that looks cannot be believed."""
    return total > 0 and good < share * total
