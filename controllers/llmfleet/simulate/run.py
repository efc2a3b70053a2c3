"""Run a policy over a trace, and say how it did.

In: a trace, a scenario, a policy, lots. Out: a `Report` and, tick by tick, what happened. The policy is asked at every
tick with what a scrape at that moment shows. In mode disaggregated a request is computed by a prefill instance, its
KV cache travels, and a decode instance answers. The same seed gives the same report, compiled or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from llmfleet.api.types import Role
from llmfleet.capacity.profiles import Profile
from llmfleet.scale.fleet import Fleet
from llmfleet.scale.signals import Observation
from llmfleet.simulate.compiler import COMPILED, WORTH
from llmfleet.simulate.drive import Drive
from llmfleet.simulate.packed import PackedDrive
from llmfleet.simulate.policies import Policy
from llmfleet.simulate.scenario import EPOCH, Scenario, Tick
from llmfleet.simulate.trace import Draw, Trace

LONGEST_END = 100_000
"""Looks of ten seconds at what is still under way when a trace is over."""


class Fleets(Protocol):
    """One fleet of a run, as objects or as arrays."""

    def start(self, count: int, *, ready: bool = False) -> None: ...

    def resize(self, size: int, *, ready_may_go: int | None = None) -> int: ...

    def ready_count(self) -> int: ...

    def held_count(self) -> int: ...

    def instance_seconds(self) -> float: ...

    def fleet(self) -> Fleet: ...

    def observe(self) -> Observation: ...


class Stage(Protocol):
    """A run under way."""

    @property
    def sims(self) -> Mapping[Role, Fleets]: ...

    @property
    def ticks(self) -> list[Tick]: ...

    @property
    def now(self) -> float: ...

    def pass_until(self, until: float) -> None: ...

    def is_over(self) -> bool: ...

    def lost(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a policy did."""

    requests: int
    missed_ttft: int
    missed_tpot: int
    missed: int
    dropped: int
    slo_attainment: float
    instance_seconds: float
    gpu_seconds: float
    actions: int
    actions_per_day: float
    max_instances: int
    mean_instances: float
    seconds: float


def run(
    trace: Trace,
    scenario: Scenario,
    policy: Policy,
    draw: Draw,
    progress: Callable[[float], None] = lambda _share: None,
    *,
    packed: bool | None = None,
) -> tuple[Report, list[Tick]]:
    """One policy over one trace; the form of the fleets changes the time it takes and nothing else."""
    if packed is None:
        packed = COMPILED and len(trace) >= WORTH
    stage: Stage = (PackedDrive if packed else Drive).of(trace, scenario, draw)
    for role, sim in stage.sims.items():
        sim.start(scenario.first[role], ready=True)
    actions, end = 0, trace.end
    for number in range(1, math.ceil(end / scenario.tick) + 2):
        stage.ticks.append(tick_of(stage, (number - 1) * scenario.tick))
        stage.pass_until(number * scenario.tick)
        actions += act(stage, policy)
        progress(min(number * scenario.tick / max(end, 1.0), 1.0))
    held = sum(sim.instance_seconds() for sim in stage.sims.values())
    finish(stage)
    return report(stage, trace, scenario, actions, held), stage.ticks


def tick_of(stage: Stage, at: float) -> Tick:
    sims = stage.sims.values()
    return Tick(at=at, ready=sum(sim.ready_count() for sim in sims), size=sum(sim.held_count() for sim in sims))


def act(stage: Stage, policy: Policy) -> int:
    """Ask the policy, resize; how many fleets changed."""
    fleets = {role: sim.fleet() for role, sim in stage.sims.items()}
    seen = {role: sim.observe() for role, sim in stage.sims.items()}
    wanted = policy.decide(fleets, seen, EPOCH + stage.now)
    return sum(
        sim.resize(wanted.sizes[role], ready_may_go=wanted.ready_may_go.get(role)) != 0
        for role, sim in stage.sims.items()
    )


def finish(stage: Stage) -> None:
    """Let what is under way end; it is judged but costs nothing more."""
    for _ in range(LONGEST_END):
        if stage.is_over():
            return
        stage.pass_until(stage.now + 10.0)


def report(stage: Stage, trace: Trace, scenario: Scenario, actions: int, instance_seconds: float) -> Report:
    """Add it all up; who never got an answer missed too."""
    ticks, requests, end, lost = stage.ticks, len(trace), trace.end, stage.lost()
    missed = sum(tick.missed for tick in ticks) + lost
    return Report(
        requests=requests,
        missed_ttft=sum(tick.late for tick in ticks),
        missed_tpot=sum(tick.slow for tick in ticks),
        missed=missed,
        dropped=lost,
        slo_attainment=1 - missed / requests if requests else 1.0,
        instance_seconds=instance_seconds,
        gpu_seconds=instance_seconds * scenario.profile.gpus,
        actions=actions,
        actions_per_day=actions / (end / 86400) if end else 0.0,
        max_instances=max(tick.size for tick in ticks),
        mean_instances=instance_seconds / end if end else 0.0,
        seconds=end,
    )


def ideal(trace: Trace, profile: Profile, ttft: float, tpot: float) -> float:
    """Share of requests that meet the objective alone on an idle instance: no policy can do better."""
    steps, meets = profile.steps, []
    for prompt, output in zip(trace.prompts, trace.outputs, strict=True):
        chunks = max(1, math.ceil(prompt / profile.batched_tokens))
        first = chunks * (steps.a + steps.b) + steps.c * prompt
        later = steps.a + steps.b + steps.d * (prompt + output / 2)
        meets.append(first <= ttft and (output < 2 or later <= tpot))
    return sum(meets[place] for place in trace.which) / len(trace) if len(trace) else 1.0
