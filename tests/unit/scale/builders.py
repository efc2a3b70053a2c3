"""Fleets, readings and specs for the tests of scale/, and a toy world whose engines count what they serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crds.crd_objects import disaggregated, monolithic
from llmfleet.api.autoscaler import AutoscalerSpec, parse_autoscaler
from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity, build_capacity
from llmfleet.capacity.profiles import StepTime
from llmfleet.scale.fleet import Fleet, Instance
from llmfleet.scale.memory import Memory
from llmfleet.scale.replay import Step, acted, step
from llmfleet.scale.signals import EngineReading, Observation, RouterReading

START = 1_800_000_000.0
TICK = 15.0
# One prefill token costs 1 ms and nothing else costs anything: load is prefill tokens a second over 1000.
PLAIN = StepTime(a=0.01, b=0.0, c=0.001, d=0.0)
COEFFICIENTS = {"a": "0.01", "b": "0", "c": "0.001", "d": "0.00000000001"}


def spec_of(changes: Mapping[str, Any] | None = None, *, roles: bool = False) -> AutoscalerSpec:
    """A spec with plain coefficients and short windows, and changes laid over it."""
    plain = {
        "workBudget.capacity.coefficients": COEFFICIENTS,
        "workBudget.coldStartSeconds": 60,
        "behavior": {"scaleDown": {"stabilizationSeconds": 120, "cooldownSeconds": 0, "step": 10}},
    }
    made = disaggregated({**plain, **(changes or {})}) if roles else monolithic({**plain, **(changes or {})})
    return parse_autoscaler(made["spec"])


def instance(number: int, **changes: Any) -> Instance:
    fields: dict[str, Any] = {
        "name": f"llama-{number}",
        "uid": f"u{number}",
        "ordinal": number,
        "created": START - 10_000 + number,
        "ready": True,
    }
    return Instance(**{**fields, **changes})


def fleet_of(ready: int, pending: int = 0, *, role: Role = Role.BOTH, prefix: str = "llama-", **changes: Any) -> Fleet:
    made = [instance(n, name=f"{prefix}{n}", ready=n < ready, **changes) for n in range(ready + pending)]
    return Fleet(role=role, instances=tuple(made))


def capacities_of(spec: AutoscalerSpec) -> dict[Role, Capacity]:
    from llmfleet.api.autoscaler import parse_template

    return {
        role: build_capacity(parse_template(rules.instance_template, "t"), spec.work_budget)
        for role, rules in spec.fleets().items()
    }


@dataclass
class Counters:
    """What a toy engine has counted."""

    prefill: float = 0.0
    generated: float = 0.0
    steps: float = 0.0
    finished: float = 0.0


@dataclass
class Toy:
    """A fleet of one role that serves whatever load it is given, and an autoscaler step for each tick."""

    spec: AutoscalerSpec
    fleet: Fleet
    now: float = START
    engines: dict[str, Counters] = field(default_factory=dict)
    memories: Mapping[Role, Memory] = field(default_factory=dict)
    refused: float = 0.0
    last: Step | None = None

    def observe(
        self, load: float, *, queued: float = 0.0, routers: int = 1, silent: frozenset[str] = frozenset()
    ) -> Observation:
        """Counters after a tick of this load (in busy instances), spread evenly."""
        serving = self.fleet.serving
        readings = []
        for name in serving:
            counters = self.engines.setdefault(name, Counters())
            share = load / max(len(serving), 1) * TICK
            counters.prefill += share / PLAIN.c
            counters.finished += share / PLAIN.c / 1000
            counters.steps += TICK / 0.02
            if name not in silent:
                readings.append(
                    EngineReading(
                        instance=name,
                        at=self.now,
                        prefill=counters.prefill,
                        steps=counters.steps,
                        finished=counters.finished,
                        running=1.0 if load else 0.0,
                    )
                )
        made = tuple(
            RouterReading(router=f"r{n}", at=self.now, queued=queued, refused=self.refused) for n in range(routers)
        )
        return Observation(engines=tuple(readings), routers=made, serving=serving, routers_expected=max(routers, 1))

    def tick(self, load: float, *, observation: Observation | None = None, **seen: Any) -> Step:
        """One look, without acting on it."""
        self.now += TICK
        role = self.fleet.role
        observed = observation if observation is not None else self.observe(load, **seen)
        self.last = step(
            self.spec, {role: self.fleet}, {role: observed}, capacities_of(self.spec), self.memories, self.now
        )
        self.memories = self.last.memories
        return self.last

    def run(self, load: float, ticks: int, **seen: Any) -> Any:
        """Several looks; the last decision."""
        for _ in range(ticks):
            self.tick(load, **seen)
        assert self.last is not None
        return self.last.decisions[self.fleet.role]

    def follow(self, load: float, ticks: int, **seen: Any) -> list[int]:
        """Looks whose decisions happen at once; the size after each."""
        sizes = []
        for _ in range(ticks):
            decision = self.tick(load, **seen).decisions[self.fleet.role]
            before = self.fleet.size
            self.resize(decision.instances)
            memory = self.memories[self.fleet.role]
            moved = acted(memory, grew=decision.instances > before, shrank=decision.instances < before, now=self.now)
            self.memories = {self.fleet.role: moved}
            sizes.append(decision.instances)
        return sizes

    def resize(self, size: int, *, ready: bool = True) -> None:
        kept = self.fleet.instances[:size]
        more = tuple(instance(n, ready=ready) for n in range(len(kept), size))
        self.fleet = replace(self.fleet, instances=kept + more)


def toy(changes: Mapping[str, Any] | None = None, *, ready: int = 2, pending: int = 0) -> Toy:
    return Toy(spec=spec_of(changes), fleet=fleet_of(ready, pending))
