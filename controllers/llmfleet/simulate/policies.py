"""Who decides in a simulation: our own autoscaler, or one of those it is compared with.

In: the fleet and an observation at each tick. Out: how many instances. `work-budget` is `scale.replay.step`, unchanged.
`hpa` is Kubernetes' HorizontalPodAutoscaler v2 on the share of step time sold, with its documented tolerance, windows
and rate limits; `hysteresis` is the classic pair of thresholds with windows and a cooldown; `static` never moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from llmfleet.api.autoscaler import AutoscalerSpec
from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity
from llmfleet.scale.decide import Decision
from llmfleet.scale.fleet import Fleet
from llmfleet.scale.look import View, look
from llmfleet.scale.memory import Memory, begin
from llmfleet.scale.replay import acted, step
from llmfleet.scale.signals import Observation

TOLERANCE: Final = 0.1
HPA_DOWN: Final = 300.0


class Policy(Protocol):
    """Decides at each tick."""

    def decide(self, fleet: Fleet, seen: Observation, now: float) -> int: ...


@dataclass(slots=True, kw_only=True)
class WorkBudget:
    """Our own; it keeps what it decided, so that a run can be replayed."""

    spec: AutoscalerSpec
    capacity: Capacity
    memories: Mapping[Role, Memory] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)

    def decide(self, fleet: Fleet, seen: Observation, now: float) -> int:
        found = step(self.spec, {Role.BOTH: fleet}, {Role.BOTH: seen}, {Role.BOTH: self.capacity}, self.memories, now)
        decision = found.decisions[Role.BOTH]
        grew, shrank = decision.instances > fleet.size, decision.instances < fleet.size
        self.memories = {Role.BOTH: acted(found.memories[Role.BOTH], grew=grew, shrank=shrank, now=now)}
        self.decisions.append(decision)
        return decision.instances


@dataclass(slots=True, kw_only=True)
class Static:
    """As many as it was told."""

    instances: int

    def decide(self, fleet: Fleet, seen: Observation, now: float) -> int:
        return self.instances


@dataclass(slots=True, kw_only=True)
class Watching:
    """What the compared policies look at: mean utilisation of ready instances over a minute, and who waits."""

    capacity: Capacity
    low: int
    high: int
    memory: Memory | None = None
    sold: list[tuple[float, float]] = field(default_factory=list)
    wishes: list[tuple[float, int]] = field(default_factory=list)

    def view(self, seen: Observation, now: float) -> View:
        """One look; what it remembers is only what was sold."""
        self.memory, view = look(
            self.memory or begin(now),
            seen,
            role=Role.BOTH,
            capacity=self.capacity,
            now=now,
            lead=60.0,
            window=60.0,
            keep=0.0,
        )
        self.sold = [(at, work) for at, work in self.sold if at > now - 60]
        self.sold.append((now, view.rates.work(self.capacity.steps, Role.BOTH)))
        return view

    def load(self) -> float:
        """Busy instances, mean of the last minute."""
        return sum(work for _, work in self.sold) / len(self.sold)

    def bounded(self, wanted: int) -> int:
        return min(max(wanted, self.low), self.high)


@dataclass(slots=True, kw_only=True)
class Hpa:
    """HorizontalPodAutoscaler v2 on utilisation."""

    watching: Watching
    target: float

    def decide(self, fleet: Fleet, seen: Observation, now: float) -> int:
        watching = self.watching
        watching.view(seen, now)
        ready, size = max(fleet.ready, 1), fleet.size
        ratio = watching.load() / ready / self.target
        wanted = size if abs(ratio - 1) <= TOLERANCE else math.ceil(ready * ratio)
        if wanted > size > fleet.ready:
            # Instances that are not ready count as idle on the way up.
            ratio = watching.load() / size / self.target
            wanted = size if ratio <= 1 + TOLERANCE else math.ceil(size * ratio)
        watching.wishes = [(at, wish) for at, wish in watching.wishes if at > now - HPA_DOWN]
        watching.wishes.append((now, wanted))
        if wanted > size:
            return watching.bounded(min(wanted, max(2 * size, size + 4)))
        return watching.bounded(min(size, max(wish for _, wish in watching.wishes)))


@dataclass(slots=True, kw_only=True)
class Hysteresis:
    """Up above one threshold for a while, down below another for a longer while, never soon after."""

    watching: Watching
    up: float = 0.60
    down: float = 0.35
    up_seconds: float = 120.0
    down_seconds: float = 600.0
    cooldown: float = 60.0
    moved: float = float("-inf")

    def decide(self, fleet: Fleet, seen: Observation, now: float) -> int:
        watching = self.watching
        view = watching.view(seen, now)
        ready, size = max(fleet.ready, 1), fleet.size
        middle, wanted = (self.up + self.down) / 2, size
        if watching.load() / ready > self.up or (view.waiting + view.queued) / ready > 2:
            wanted = max(size, math.ceil(watching.load() / middle), ready + 1 if fleet.ready == size else size)
        elif watching.load() / ready < self.down:
            wanted = max(1, min(size - 1, math.ceil(watching.load() / middle)))
        watching.wishes = [(at, wish) for at, wish in watching.wishes if at > now - self.down_seconds]
        watching.wishes.append((now, wanted))
        chosen = self._held(size, now)
        if chosen != size:
            self.moved = now
        return watching.bounded(chosen)

    def _held(self, size: int, now: float) -> int:
        """What held for its whole window."""
        wishes = self.watching.wishes
        if now - self.moved < self.cooldown:
            return size
        lowest = min(wish for at, wish in wishes if at > now - self.up_seconds)
        highest = max(wish for _, wish in wishes)
        if lowest > size:
            return lowest
        return highest if highest < size and now - wishes[0][0] > self.down_seconds - 30 else size


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every policy may use."""

    spec: AutoscalerSpec
    capacity: Capacity
    low: int
    high: int

    def watching(self) -> Watching:
        return Watching(capacity=self.capacity, low=self.low, high=self.high)


BUILDERS: Final[Mapping[str, Callable[[Setting, Mapping[str, float]], Policy]]] = {
    "work-budget": lambda setting, options: WorkBudget(spec=setting.spec, capacity=setting.capacity),
    "hpa": lambda setting, options: Hpa(watching=setting.watching(), target=options.get("target", 0.6)),
    "hysteresis": lambda setting, options: Hysteresis(watching=setting.watching(), **options),
    "static": lambda setting, options: Static(instances=int(options.get("instances", setting.high))),
}
OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "work-budget": frozenset(),
    "hpa": frozenset({"target"}),
    "hysteresis": frozenset({"up", "down", "up_seconds", "down_seconds", "cooldown"}),
    "static": frozenset({"instances"}),
}


class PolicyError(ValueError):
    """The text names no policy; the message says what to write."""


def parse_policy(text: str) -> tuple[str, dict[str, float]]:
    """`NAME` or `NAME:key=value,key=value`."""
    name, _, rest = text.partition(":")
    if name not in BUILDERS:
        raise PolicyError(f"{name!r} is no policy: write one of {', '.join(BUILDERS)}")
    options: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            options[key] = float(value)
        except ValueError:
            raise PolicyError(f"{part!r}: write {key or 'KEY'}=NUMBER") from None
        if key not in OPTIONS[name]:
            raise PolicyError(f"{name} has no option {key!r}; it has {', '.join(sorted(OPTIONS[name])) or 'none'}")
    return name, options


def build_policy(text: str, setting: Setting) -> Policy:
    """The policy a person asked for."""
    name, options = parse_policy(text)
    return BUILDERS[name](setting, options)
