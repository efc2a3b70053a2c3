"""A fleet of simulated engines of one role behind one router.

In: requests, a wanted size now and then, lots for cold starts. Out: what a real fleet would show: instances as
decisions see them, readings as scrapes see them, seconds held. An instance starts (its time has a jitter and now and
then a long tail), serves, and drains before it goes. The router sends each request to the ready instance with the
fewest, holds it while none has a slot, and never loses one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from llmfleet.api.autoscaler import MetricType, Victim
from llmfleet.api.types import Role
from llmfleet.capacity.profiles import Profile
from llmfleet.scale.fleet import Fleet, Instance
from llmfleet.scale.signals import Buckets, EngineReading, Observation, RouterReading
from llmfleet.scale.victim import victims
from llmfleet.simulate.engine import TPOT_EDGES, TTFT_EDGES, Engine, Job
from llmfleet.simulate.trace import Draw

JITTER: Final = 0.1
TAIL_SHARE: Final = 0.05
TAIL: Final = 2.0
HELD_LOOK: Final = 0.05
"""Seconds between two looks for a free slot while requests are held."""
DRAIN: Final = 30.0
"""Seconds that an instance which was ready is held at least after its deletion."""

TRANSFER_FIXED: Final = 0.001
TRANSFER_TOKEN: Final = 8e-6
"""Seconds that the KV cache of one token travels: 400 Gbit/s InfiniBand and a 70B model."""


@dataclass(slots=True, kw_only=True)
class Member:
    """One instance."""

    number: int
    created: float
    ready_at: float
    engine: Engine
    leaving_at: float = math.inf

    @property
    def name(self) -> str:
        return f"i-{self.number}"

    @property
    def leaving(self) -> bool:
        return math.isfinite(self.leaving_at)


@dataclass(slots=True, kw_only=True)
class Sim:
    """The fleet at one moment."""

    profile: Profile
    cold_start: float
    draw: Draw
    begin: float
    """What the trace's zero is in seconds since the epoch."""
    role: Role = Role.BOTH
    now: float = 0.0
    members: list[Member] = field(default_factory=list)
    serving: list[Engine] = field(default_factory=list)
    """Engines that are ready and stay."""
    held: deque[Job] = field(default_factory=deque)
    numbers: int = 0
    gone_seconds: float = 0.0
    """Instance seconds of members that are gone."""
    over: list[Job] = field(default_factory=list)
    """Requests that ended in members that are gone."""

    def start(self, count: int, *, ready: bool = False) -> None:
        """Create instances."""
        for _ in range(count):
            seconds = 0.0 if ready else cold_start_of(self.cold_start, self.draw)
            engine = Engine(self.profile, self.now + seconds)
            self.members.append(
                Member(number=self.numbers, created=self.now, ready_at=self.now + seconds, engine=engine)
            )
            self.numbers += 1
        self._list()

    def _list(self) -> None:
        self.serving = [one.engine for one in self.members if not one.leaving and one.ready_at <= self.now]

    def resize(self, size: int, *, ready_may_go: int | None = None) -> int:
        """Create or drain until so many stay; returns the change."""
        fleet = self.fleet()
        change = size - fleet.size
        self.start(max(change, 0))
        gone = names_to_go(fleet, -change, ready_may_go)
        for one in self.members:
            if one.name in gone:
                one.leaving_at = self.now
        self._bury()
        return change if change > 0 else -len(gone)

    def move(self, now: float) -> None:
        """Let time pass for everybody."""
        self.now = now
        for one in self.members:
            if one.ready_at <= now:
                one.engine.advance(now)
        self._bury()
        self._release()

    def arrive(self, job: Job, now: float) -> None:
        """A request at the router: to whoever has the fewest, or held while nobody has a slot."""
        if self.held:
            self.held.append(job)
            return
        least, chosen = self.profile.sequences, None
        for engine in self.serving:
            if engine.due <= now:
                engine.advance(now)
            if engine.in_flight < least:
                least, chosen = engine.in_flight, engine
        if chosen is None:
            self.held.append(job)
        else:
            chosen.add(job, now)

    def next_look(self, now: float) -> float:
        """When something can change by itself: a start that ends, or a slot while requests are held."""
        starts = [one.ready_at for one in self.members if one.ready_at > self.now]
        soon = math.inf
        if self.held and self.serving:
            soon = max(now + HELD_LOOK, min(engine.due for engine in self.serving))
        return min([*starts, soon])

    def next_end(self) -> float:
        """Before this no request ends."""
        return min((one.engine.due for one in self.members), default=math.inf)

    def _release(self) -> None:
        held = self.held
        while held:
            before = len(held)
            job = held.popleft()
            self.held = deque()
            self.arrive(job, self.now)
            if self.held:
                held.appendleft(job)
            self.held = held
            if len(held) == before:
                return

    def _bury(self) -> None:
        """Leaving instances go when they are idle, or were never ready."""
        stay = []
        for one in self.members:
            never = one.leaving and one.ready_at > one.leaving_at
            if never or (one.leaving and not one.engine.in_flight and self.now >= one.leaving_at + DRAIN):
                self.gone_seconds += (one.leaving_at if never else self.now) - one.created
                self.over += one.engine.over
            else:
                stay.append(one)
        self.members = stay
        self._list()

    def taken(self) -> Iterator[Job]:
        """Requests that ended since the last call."""
        found, self.over = self.over, []
        yield from found
        for one in self.members:
            found, one.engine.over = one.engine.over, []
            yield from found

    def instance_seconds(self) -> float:
        """Seconds of instances held so far: starting, ready and draining."""
        return self.gone_seconds + sum(self.now - one.created for one in self.members)

    def is_idle(self) -> bool:
        return not self.unanswered()

    def unanswered(self) -> int:
        """Requests that are held or in flight."""
        return len(self.held) + sum(one.engine.in_flight for one in self.members)

    def ready_count(self) -> int:
        return len(self.serving)

    def held_count(self) -> int:
        """Instances that cost: starting, ready and draining."""
        return len(self.members)

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
        return Fleet(role=self.role, instances=tuple(sorted(made, key=lambda one: one.name)))

    def observe(self) -> Observation:
        """A scrape of everybody, now."""
        at = self.begin + self.now
        return Observation(
            engines=tuple(self._reading(one, at) for one in self.members if one.ready_at <= self.now),
            routers=(RouterReading(router="router", at=at, queued=float(len(self.held))),),
            serving=tuple(sorted(one.name for one in self.members if not one.leaving and one.ready_at <= self.now)),
            routers_expected=1,
        )

    def _reading(self, one: Member, at: float) -> EngineReading:
        engine = one.engine
        waiting = engine.waits(self.now)
        return EngineReading(
            instance=one.name,
            at=at,
            prefill=float(engine.prefilled),
            generated=float(engine.generated),
            steps=float(engine.count),
            finished=float(engine.finished),
            itl_seconds=engine.itl_seconds,
            itl_count=float(engine.itl_count),
            running=float(engine.in_flight - waiting),
            waiting=float(waiting),
            kv_usage=engine.kv_usage,
            kv_tokens=float(engine.profile.kv_tokens),
            buckets={
                MetricType.TTFT: cumulative(TTFT_EDGES, engine.ttft),
                MetricType.TPOT: cumulative(TPOT_EDGES, engine.tpot),
            },
        )


def names_to_go(fleet: Fleet, count: int, ready_may_go: int | None) -> set[str]:
    """Which instances are drained when so many are too many; of ready ones at most as many as may go."""
    chosen = victims(fleet.staying, Victim.LEAST_UTILIZED, count)
    ready = [one for one in chosen if one.ready]
    kept = set() if ready_may_go is None else {one.name for one in ready[ready_may_go:]}
    return {one.name for one in chosen} - kept


def cold_start_of(usual: float, draw: Draw) -> float:
    """How long one instance takes to start."""
    factor = max(0.5, 1 + JITTER * draw.gauss(0, 1))
    return usual * factor * (TAIL if draw.random() < TAIL_SHARE else 1.0)


def cumulative(edges: tuple[float, ...], counts: list[int]) -> Buckets:
    """A histogram as Prometheus writes it."""
    total, found = 0.0, []
    for edge, count in zip((*edges, math.inf), counts, strict=True):
        total += count
        found.append((edge, total))
    return tuple(found)
