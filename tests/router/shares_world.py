"""Routers that share engines, in simulated time: arrivals, answers, gossip with delay and loss, deaths and restarts.

In: engines, routers, a load, a seed. Out: every wait, the most requests an engine had over its slots, and what became
of the ownership of slots. Nothing here sleeps; the same seed gives the same figures.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from llmfleet.router.division import equal_part
from llmfleet.router.reports import parse_report, render_report
from llmfleet.router.shares import INTERVAL_SECONDS, Load, Room, Shares


@dataclass
class Job:
    arrived: float
    service: float


class RouterModel:
    """One router: a line of waiting requests, what it has on each engine, and its shares."""

    def __init__(self, world: World, name: str, policy: str) -> None:
        self.world, self.name, self.policy = world, name, policy
        self.incarnation = f"{name}-{next(world.numbers)}"
        self.shares = Shares(name, self.incarnation, world.linger)
        self.shares.peers(dict.fromkeys(world.names, False), world.now)
        self.line: deque[Job] = deque()
        self.busy = dict.fromkeys(world.engines, 0)
        self.allowed = dict.fromkeys(world.engines, 0)
        self.alive, self.draining = True, False
        self.phase = world.random.uniform(0, INTERVAL_SECONDS)

    def loads(self) -> dict[str, Load]:
        return {key: Load(slots, self.busy[key]) for key, slots in self.world.engines.items()}

    def rooms(self) -> dict[str, Room]:
        oldest = self.world.now - self.line[0].arrived if self.line else 0.0
        return {"m": Room(list(self.world.engines), len(self.line), oldest)}

    def tick(self) -> None:
        world = self.world
        if self.policy == "static":
            self.allowed = {k: max(1, equal_part(s, world.names, self.name)) for k, s in world.engines.items()}
        elif self.policy == "gossip":
            self.allowed = self.shares.tick(self.loads(), self.rooms(), draining=self.draining, now=world.now)
            world.owned_over = max([world.owned_over, *(world.owned(k) - s for k, s in world.engines.items())])
        else:
            self.allowed = dict(world.engines)
        self.serve()

    def serve(self) -> None:
        world = self.world
        while self.line:
            if self.policy == "pooled":
                free = [k for k, s in world.engines.items() if world.total(k) < s]
            else:
                free = [k for k, limit in self.allowed.items() if self.busy[k] < limit]
            if not free:
                return
            elsewhere = self.shares.elsewhere(world.now) if len(free) > 1 else {}
            seen = {k: self.busy[k] + elsewhere.get(k, 0) for k in free}
            key = min(free, key=lambda k: seen[k])
            job = self.line.popleft()
            self.busy[key] += 1
            world.waits.append((self.name, job.arrived, world.now - job.arrived))
            world.note(key)
            world.at(world.now + job.service, lambda key=key: self.over(key))

    def over(self, key: str) -> None:
        if self.alive:
            self.busy[key] -= 1
            if self.policy == "pooled":
                self.world.serve_oldest()
            else:
                self.serve()


@dataclass
class World:
    engines: dict[str, int]
    routers: int
    policy: str = "gossip"
    seed: int = 1
    delay: float = 0.005
    loss: float = 0.0
    linger: float = 60.0
    now: float = 0.0
    waits: list[tuple[str, float, float]] = field(default_factory=list)
    over: dict[str, int] = field(default_factory=dict)
    wasted: float = 0.0  # seconds times slots that were free while somebody waited
    owned_over: int = 0  # slots that were owned beyond those there are, at most

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.numbers, self.order = itertools.count(), itertools.count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.names = [f"router-{i}" for i in range(self.routers)]
        self.over = dict.fromkeys(self.engines, 0)
        self.fleet: dict[str, RouterModel] = {}
        self.looked = 0.0
        for name in self.names:
            self.boot(name)

    # ---- time ----

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), what))

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            when, _, what = heapq.heappop(self.events)
            if when > self.now:
                self._waste(when - self.now)
                self.now = when
            what()
        self._waste(until - self.now)
        self.now = until

    def _waste(self, seconds: float) -> None:
        waiting = sum(len(r.line) for r in self.fleet.values() if r.alive)
        if waiting:
            free = sum(max(0, slots - self.total(key)) for key, slots in self.engines.items())
            self.wasted += seconds * min(free, waiting)

    # ---- the fleet ----

    def boot(self, name: str) -> RouterModel:
        router = self.fleet[name] = RouterModel(self, name, self.policy)
        self.at(self.now, lambda: self.round(router, first=True))
        return router

    def kill(self, name: str) -> None:
        """SIGKILL: its connections are gone, and with them what the engines did for it."""
        router = self.fleet[name]
        router.alive = False
        router.busy = dict.fromkeys(self.engines, 0)
        router.line.clear()

    def total(self, key: str) -> int:
        return sum(router.busy[key] for router in self.fleet.values())

    def note(self, key: str) -> None:
        self.over[key] = max(self.over[key], self.total(key) - self.engines[key])

    def serve_oldest(self) -> None:
        while (waiting := [r for r in self.fleet.values() if r.line]) and any(
            self.total(k) < s for k, s in self.engines.items()
        ):
            first = min(waiting, key=lambda r: r.line[0].arrived)
            rest = deque(itertools.islice(first.line, 1, None))
            first.line = deque([first.line[0]])
            first.serve()
            first.line.extend(rest)

    # ---- gossip ----

    def round(self, router: RouterModel, first: bool = False) -> None:
        """Ask every peer, decide when the answers are there, and again after an interval."""
        if not router.alive or self.fleet[router.name] is not router:
            return
        slowest = 0.0
        if self.policy == "gossip":
            for name in router.shares._peers:
                delay = self.random.uniform(0, 2 * self.delay)
                slowest = max(slowest, delay)
                if self.random.random() >= self.loss:
                    self.at(self.now + delay / 2, lambda name=name, rest=delay / 2: self.ask(router, name, rest))
        self.at(self.now + min(slowest + 1e-6, 0.2), router.tick)
        start = router.phase if first else INTERVAL_SECONDS
        self.at(self.now + start, lambda: self.round(router))

    def ask(self, router: RouterModel, name: str, rest: float) -> None:
        peer = self.fleet[name]
        if not peer.alive:
            return
        said = peer.shares.report(peer.loads(), peer.rooms(), draining=peer.draining, now=self.now)
        answer = parse_report(render_report(said))
        self.at(self.now + rest, lambda: router.alive and router.shares.heard(answer, self.now))

    # ---- load ----

    def arrive(self, name: str, service: float) -> None:
        router = self.fleet[name]
        if not router.alive:
            return
        router.line.append(Job(self.now, service))
        if self.policy == "pooled":
            self.serve_oldest()
        else:
            router.serve()

    def poisson(
        self, rate: float, mean: float, until: float, start: float = 1.0, weights: list[float] | None = None
    ) -> None:
        when = start
        while (when := when + self.random.expovariate(rate)) < until:
            name = self.random.choices(self.names, weights)[0]
            service = self.random.expovariate(1 / mean)
            self.at(when, lambda name=name, service=service: self.arrive(name, service))

    # ---- what is asked ----

    def owned(self, key: str) -> int:
        """All slots somebody owns, and those on their way from one to another."""
        total = 0
        for router in self.fleet.values():
            own = router.shares._own.get(key)
            if router.alive and own is not None:
                total += own.owned
                for taker, given in own.given.items():
                    peer = self.fleet[taker]
                    taken = peer.shares._own.get(key)
                    if peer.alive and router.shares._heard[taker].incarnation == peer.incarnation:
                        total += given - (taken.got.get(router.name, 0) if taken is not None else 0)
        return total

    def p99(self, name: str | None = None) -> float:
        waits = sorted(w for n, _, w in self.waits if name in (None, n))
        return waits[int(len(waits) * 0.99)] if waits else 0.0

    def mean(self, name: str | None = None) -> float:
        waits = [w for n, _, w in self.waits if name in (None, n)]
        return sum(waits) / max(1, len(waits))
