"""Decide how far the hand-over of an instance's traffic has come, before it is deleted, updated or restarted on
purpose.

In: facts: what the published documents say about the instance, which document generation each router has, whether
the engine is idle, the deadline. Out: a `Drained` verdict with a sentence. It never decides to drain and never waits
by itself.

The order is what makes it safe: a router that has not seen the new document may still send a request, so an idle
engine proves nothing before every router has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

IDLE_LOOKS: Final = 2
SETTLE: Final = timedelta(seconds=3)
"""Without routers of ours nobody says that clients have stopped; give their own discovery this long."""


class Stage(StrEnum):
    """What a drain waits for."""

    DOCUMENT = "Document"
    ROUTERS = "Routers"
    ENGINE = "Engine"
    DONE = "Done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What one backends ConfigMap says, and how far its routers are."""

    name: str
    offers: bool
    """The instance is still a ready endpoint in it."""
    generation: int
    routers: Mapping[str, int | None]
    """Router pod -> generation it reported, None when it did not answer."""

    @property
    def behind(self) -> list[str]:
        """Routers that may still work with an older document."""
        return sorted(pod for pod, seen in self.routers.items() if seen is None or seen < self.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainFacts:
    """Everything a drain depends on."""

    since: datetime
    timeout: timedelta
    serving: bool
    """Rank 0 may have requests: its container runs and it answered, or nothing is known."""
    idle_looks: int
    published: tuple[Published, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """Where the drain is, for people and for the next step."""

    stage: Stage
    message: str
    forced: bool = False

    @property
    def done(self) -> bool:
        return self.stage is Stage.DONE


def judge(facts: DrainFacts, now: datetime) -> Drained:
    """The first thing the drain still waits for."""
    if not facts.serving:
        return Drained(stage=Stage.DONE, message="rank 0 does not serve")
    waiting = wait_for_document(facts) or wait_for_routers(facts) or wait_for_engine(facts, now)
    if waiting is None:
        return Drained(stage=Stage.DONE, message="every router has let go and the engine is idle")
    if now - facts.since >= facts.timeout:
        return Drained(stage=Stage.DONE, message=f"drain deadline passed while {waiting.message}", forced=True)
    return waiting


def wait_for_document(facts: DrainFacts) -> Drained | None:
    for published in facts.published:
        if published.offers:
            return Drained(stage=Stage.DOCUMENT, message=f"{published.name} still offers the instance")
    return None


def wait_for_routers(facts: DrainFacts) -> Drained | None:
    for published in facts.published:
        if published.behind:
            message = f"waiting for router {published.behind[0]} to take the new backends"
            return Drained(stage=Stage.ROUTERS, message=message)
    return None


def wait_for_engine(facts: DrainFacts, now: datetime) -> Drained | None:
    if not facts.published and now - facts.since < SETTLE:
        return Drained(stage=Stage.ENGINE, message="no router is known; waiting for clients to notice")
    if facts.idle_looks < IDLE_LOOKS:
        return Drained(stage=Stage.ENGINE, message="waiting for the engine's requests to end")
    return None
