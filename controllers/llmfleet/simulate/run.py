"""Drive a fleet through a trace under a policy, and say how it did.

In: a trace, a scenario, a policy, lots. Out: a `Report` and, tick by tick, what happened. The policy is asked at every
tick with what a scrape at that moment shows. In mode disaggregated a request is computed by a prefill instance, its
KV cache travels, and a decode instance answers. The same seed gives the same report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from llmfleet.api.types import Role
from llmfleet.capacity.profiles import Profile
from llmfleet.simulate.engine import Job
from llmfleet.simulate.fleet import Sim
from llmfleet.simulate.policies import Policy
from llmfleet.simulate.trace import Draw, Trace

EPOCH: Final = 1_767_225_600.0
"""A trace begins on 2026-01-01, 00:00 UTC."""
TRANSFER_FIXED: Final = 0.001
TRANSFER_TOKEN: Final = 8e-6
"""Seconds that the KV cache of one token travels: 400 Gbit/s InfiniBand and a 70B model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is the same for every policy."""

    profile: Profile
    cold_start: float
    ttft: float
    tpot: float
    first: Mapping[Role, int]
    """Instances that are ready when the trace begins."""
    tick: float = 15.0


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


@dataclass(slots=True, kw_only=True)
class Tick:
    """What happened between two decisions; requests are counted where they arrived."""

    at: float
    ready: int
    size: int
    """Instances held: starting, ready and draining."""
    requests: int = 0
    late: int = 0
    """To the first token."""
    slow: int = 0
    """After it."""
    missed: int = 0
    work: float = 0.0
    """Seconds of step time asked for."""


@dataclass(slots=True, kw_only=True)
class Drive:
    """A run under way."""

    trace: Trace
    scenario: Scenario
    sims: Mapping[Role, Sim]
    ticks: list[Tick] = field(default_factory=list)
    place: int = 0
    travelling: list[tuple[float, int, Job]] = field(default_factory=list)
    legs: dict[int, Job] = field(default_factory=dict)
    number: int = 0

    @property
    def front(self) -> Sim:
        """Where requests arrive."""
        return self.sims.get(Role.PREFILL) or self.sims[Role.BOTH]


def run(
    trace: Trace,
    scenario: Scenario,
    policy: Policy,
    draw: Draw,
    progress: Callable[[float], None] = lambda _share: None,
) -> tuple[Report, list[Tick]]:
    """One policy over one trace."""
    sims = {
        role: Sim(profile=scenario.profile, cold_start=scenario.cold_start, draw=draw, begin=EPOCH, role=role)
        for role in scenario.first
    }
    for role, sim in sims.items():
        sim.start(scenario.first[role], ready=True)
    drive = Drive(trace=trace, scenario=scenario, sims=sims)
    actions, end = 0, trace.end
    for number in range(1, math.ceil(end / scenario.tick) + 2):
        drive.ticks.append(tick_of(drive, (number - 1) * scenario.tick))
        pass_time(drive, number * scenario.tick)
        judge(drive)
        actions += act(drive, policy)
        progress(min(number * scenario.tick / max(end, 1.0), 1.0))
    held = sum(sim.instance_seconds() for sim in sims.values())
    finish(drive)
    return report(drive, actions, held), drive.ticks


def tick_of(drive: Drive, at: float) -> Tick:
    sims = drive.sims.values()
    return Tick(at=at, ready=sum(len(sim.serving) for sim in sims), size=sum(len(sim.members) for sim in sims))


def act(drive: Drive, policy: Policy) -> int:
    """Ask the policy, resize; how many fleets changed."""
    fleets = {role: sim.fleet() for role, sim in drive.sims.items()}
    seen = {role: sim.observe() for role, sim in drive.sims.items()}
    wanted = policy.decide(fleets, seen, EPOCH + drive.front.now)
    return sum(
        sim.resize(wanted.sizes[role], ready_may_go=wanted.ready_may_go.get(role)) != 0
        for role, sim in drive.sims.items()
    )


def pass_time(drive: Drive, until: float) -> None:
    """Everything that happens before the next tick."""
    if Role.PREFILL in drive.sims:
        pass_time_of_two(drive, until)
    else:
        pass_time_of_one(drive, until)


def pass_time_of_one(drive: Drive, until: float) -> None:
    """Arrivals at one fleet; the loop is short because it runs for millions of them."""
    sim, trace, tick, place, count = drive.front, drive.trace, drive.ticks[-1], drive.place, len(drive.trace)
    moments, which, prompts, outputs = trace.at, trace.which, trace.prompts, trace.outputs
    arrive, work, now = sim.arrive, 0.0, sim.now
    steps = drive.scenario.profile.steps
    b, c, d = steps.b, steps.c, steps.d
    while True:
        stop = min(sim.next_look(now), until)
        while place < count and (now := moments[place]) <= stop:
            length = which[place]
            prompt, output = prompts[length], outputs[length]
            work += c * prompt + output * (b + d * (prompt + output / 2))
            arrive(Job(now, prompt, output), now)
            place += 1
            if sim.held:
                stop = min(sim.next_look(now), until)
        now = stop
        sim.move(stop)
        if stop >= until:
            break
    tick.requests += place - drive.place
    tick.work += work
    drive.place = place


def pass_time_of_two(drive: Drive, until: float) -> None:
    """The same for two roles: the end of a prefill is the beginning of a decode."""
    prefill, decode = drive.sims[Role.PREFILL], drive.sims[Role.DECODE]
    trace, tick, travelling = drive.trace, drive.ticks[-1], drive.travelling
    now = prefill.now
    while True:
        arrival = trace.at[drive.place] if drive.place < len(trace) else math.inf
        arrived = travelling[0][0] if travelling else math.inf
        looks = min(prefill.next_look(now), decode.next_look(now))
        now = min(arrival, arrived, max(now, prefill.next_end()), looks, until)
        if prefill.next_end() <= now or looks <= now or now >= until:
            prefill.move(now)
            send_on(drive)
        if looks <= now or now >= until:
            decode.move(now)
        if arrived <= now:
            decode.arrive(heappop(travelling)[2], now)
        elif arrival <= now:
            length = trace.which[drive.place]
            job = Job(now, trace.prompts[length], 1)
            drive.legs[id(job)] = Job(now, trace.prompts[length], trace.outputs[length])
            tick.requests += 1
            tick.work += drive.scenario.profile.steps.work(trace.prompts[length], trace.outputs[length])
            prefill.arrive(job, now)
            drive.place += 1
        elif now >= until:
            return


def send_on(drive: Drive) -> None:
    """Prefills that ended travel to decode instances."""
    for leg in drive.sims[Role.PREFILL].taken():
        job = drive.legs.pop(id(leg))
        job.left = 0
        drive.number += 1
        arrival = leg.ended + TRANSFER_FIXED + TRANSFER_TOKEN * leg.prompt
        heappush(drive.travelling, (arrival, drive.number, job))


def finish(drive: Drive) -> None:
    """Let what is under way end; it is judged but costs nothing more."""
    for _ in range(100_000):
        idle = all(sim.is_idle() for sim in drive.sims.values())
        if idle and drive.place >= len(drive.trace) and not drive.legs and not drive.travelling:
            return
        pass_time(drive, drive.front.now + 10.0)
        judge(drive)


def ended(drive: Drive) -> Iterator[Job]:
    yield from (drive.sims.get(Role.DECODE) or drive.front).taken()


def judge(drive: Drive) -> None:
    """Count what ended where it had arrived."""
    ticks, scenario = drive.ticks, drive.scenario
    ttft, tpot, width, last = scenario.ttft, scenario.tpot, scenario.tick, len(drive.ticks) - 1
    for job in ended(drive):
        late = job.first - job.arrived > ttft
        slow = job.output > 1 and (job.ended - job.first) > tpot * (job.output - 1)
        if late or slow:
            tick = ticks[min(int(job.arrived / width), last)]
            tick.missed += 1
            tick.late += late
            tick.slow += slow


def report(drive: Drive, actions: int, instance_seconds: float) -> Report:
    """Add it all up; who never got an answer missed too."""
    ticks, requests, end = drive.ticks, len(drive.trace), drive.trace.end
    lost = requests - drive.place + len(drive.legs) + len(drive.travelling)
    last = drive.sims.get(Role.DECODE) or drive.front
    lost += len(last.held) + sum(one.engine.in_flight for one in last.members)
    missed = sum(tick.missed for tick in ticks) + lost
    return Report(
        requests=requests,
        missed_ttft=sum(tick.late for tick in ticks),
        missed_tpot=sum(tick.slow for tick in ticks),
        missed=missed,
        dropped=lost,
        slo_attainment=1 - missed / requests if requests else 1.0,
        instance_seconds=instance_seconds,
        gpu_seconds=instance_seconds * drive.scenario.profile.gpus,
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
