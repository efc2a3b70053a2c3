"""A fleet of simulated engines behind one router.

In: requests, a wanted size now and then, lots for cold starts. Out: what a real fleet would show: instances as
decisions see them, readings as scrapes see them, seconds held. An instance starts (its time has a jitter and now and
then a long tail), serves, and drains before it goes. The router sends each request to the ready instance with the
fewest, holds it while none has a slot, and never loses one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from llmfleet.api.autoscaler import Victim
from llmfleet.api.types import Role
from llmfleet.capacity.profiles import Profile
from llmfleet.scale.fleet import Fleet, Instance
from llmfleet.scale.signals import EngineReading, Observation, RouterReading
from llmfleet.scale.victim import victims
from llmfleet.simulate.engine import Engine, Job
from llmfleet.simulate.trace import Draw

JITTER: Final = 0.1
TAIL_SHARE: Final = 0.05
TAIL: Final = 2.0
HELD_LOOK: Final = 0.05
"""Seconds between two looks for a free slot while requests are held."""


@dataclass(slots=True, kw_only=True)
class Member:
    """One instance."""

    number: int
    created: float
    ready_at: float
    engine: Engine
    leaving: bool = False

    @property
    def name(self) -> str:
        return f"i-{self.number}"


@dataclass(slots=True, kw_only=True)
class Sim:
    """The fleet at one moment."""

    profile: Profile
    cold_start: float
    draw: Draw
    begin: float
    """What the trace's zero is in seconds since the epoch."""
    now: float = 0.0
    members: list[Member] = field(default_factory=list)
    held: deque[Job] = field(default_factory=deque)
    numbers: int = 0
    gone_seconds: float = 0.0
    """Instance seconds of members that are gone."""

    def ready(self) -> list[Member]:
        return [one for one in self.members if not one.leaving and one.ready_at <= self.now]

    def start(self, count: int, *, ready: bool = False) -> None:
        """Create instances."""
        for _ in range(count):
            seconds = 0.0 if ready else self._cold_start()
            engine = Engine(self.profile, self.now + seconds)
            self.members.append(
                Member(number=self.numbers, created=self.now, ready_at=self.now + seconds, engine=engine)
            )
            self.numbers += 1

    def _cold_start(self) -> float:
        factor = max(0.5, 1 + JITTER * self.draw.gauss(0, 1))
        return self.cold_start * factor * (TAIL if self.draw.random() < TAIL_SHARE else 1.0)

    def resize(self, size: int) -> int:
        """Create or drain until so many stay; returns the change."""
        fleet = self.fleet()
        change = size - fleet.size
        self.start(max(change, 0))
        gone = {one.name for one in victims(fleet.staying, Victim.LEAST_UTILIZED, -change)}
        for one in self.members:
            if one.name in gone:
                one.leaving = True
        self._bury()
        return change

    def move(self, now: float) -> None:
        """Let time pass for everybody."""
        self.now = now
        for one in self.members:
            if one.ready_at <= now:
                one.engine.advance(now)
        self._bury()
        self._release()

    def arrive(self, job: Job) -> None:
        """A request at the router, now."""
        self.held.append(job)
        self._release()

    def next_look(self) -> float:
        """When something can change by itself: a start that ends, or a slot while requests are held."""
        starts = [one.ready_at for one in self.members if one.ready_at > self.now]
        soon = self.now + HELD_LOOK if self.held and self.ready() else float("inf")
        return min([*starts, soon])

    def _release(self) -> None:
        """Send what is held to whoever has the fewest, while somebody has a slot."""
        if not self.held:
            return
        ready = self.ready()
        while self.held and ready:
            least = min(ready, key=lambda one: one.engine.in_flight)
            if least.engine.in_flight >= self.profile.sequences:
                return
            least.engine.add(self.held.popleft(), self.now)

    def _bury(self) -> None:
        """Leaving instances go when they are idle, or were never ready."""
        for one in self.members:
            if one.leaving and (one.ready_at > self.now or not one.engine.in_flight):
                self.gone_seconds += self.now - one.created
        self.members = [
            one for one in self.members if not (one.leaving and (one.ready_at > self.now or not one.engine.in_flight))
        ]

    def instance_seconds(self) -> float:
        """Seconds of instances held so far: starting, ready and draining."""
        return self.gone_seconds + sum(self.now - one.created for one in self.members)

    # What an autoscaler sees.

    def fleet(self) -> Fleet:
        made = (
            Instance(
                name=one.name,
                uid=one.name,
                ordinal=one.number,
                created=self.begin + one.created,
                ready=one.ready_at <= self.now,
                leaving=one.leaving,
                load=float(one.engine.in_flight),
                load_seconds=one.ready_at - one.created if one.ready_at <= self.now else 0.0,
            )
            for one in self.members
        )
        return Fleet(role=Role.BOTH, instances=tuple(sorted(made, key=lambda one: one.name)))

    def observe(self) -> Observation:
        """A scrape of everybody, now."""
        at = self.begin + self.now
        return Observation(
            engines=tuple(self._reading(one, at) for one in self.members if one.ready_at <= self.now),
            routers=(RouterReading(router="router", at=at, queued=float(len(self.held))),),
            serving=tuple(sorted(one.name for one in self.ready())),
            routers_expected=1,
        )

    def _reading(self, one: Member, at: float) -> EngineReading:
        engine = one.engine
        return EngineReading(
            instance=one.name,
            at=at,
            prefill=engine.prefilled,
            generated=engine.generated,
            steps=float(engine.count),
            finished=engine.finished,
            itl_seconds=engine.itl_seconds,
            itl_count=engine.itl_count,
            running=float(len(engine.running) + len(engine.filling)),
            waiting=float(len(engine.waiting)),
            kv_usage=engine.kv_usage,
            kv_tokens=float(engine.profile.kv_tokens),
        )
