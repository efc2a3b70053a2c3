"""Drive a fleet through a trace under a policy, and say how it did.

In: requests, a scenario, a policy, lots. Out: a `Report`. The policy is asked at every tick with what a scrape at that
moment shows. The same seed gives the same report.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llmfleet.capacity.profiles import Profile
from llmfleet.simulate.engine import Job
from llmfleet.simulate.fleet import Sim
from llmfleet.simulate.policies import Policy
from llmfleet.simulate.trace import Draw, Request

EPOCH = 1_767_225_600.0
"""A trace begins on 2026-01-01, 00:00 UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is the same for every policy."""

    profile: Profile
    cold_start: float
    ttft: float
    tpot: float
    first: int
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


def run(
    requests: list[Request],
    scenario: Scenario,
    policy: Policy,
    draw: Draw,
    progress: Callable[[float], None] = lambda _share: None,
) -> Report:
    """One policy over one trace."""
    sim = Sim(profile=scenario.profile, cold_start=scenario.cold_start, draw=draw, begin=EPOCH)
    sim.start(scenario.first, ready=True)
    jobs = [Job(request.at, request.prompt, request.output) for request in requests]
    end = requests[-1].at if requests else 0.0
    sizes, actions, place, tick = [scenario.first], 0, 0, scenario.tick
    while tick <= end + scenario.tick:
        place = pass_time(sim, jobs, place, tick)
        wanted = policy.decide(sim.fleet(), sim.observe(), EPOCH + sim.now)
        actions += sim.resize(wanted) != 0
        sizes.append(len(sim.members))
        tick += scenario.tick
        progress(min(tick / max(end, 1.0), 1.0))
    held = sim.instance_seconds()
    finish(sim)
    return report(jobs, scenario, sizes, actions, held, end)


def pass_time(sim: Sim, jobs: list[Job], place: int, until: float) -> int:
    """Everything that happens before the next tick; returns the next request's place."""
    while True:
        arrival = jobs[place].arrived if place < len(jobs) else math.inf
        moment = min(arrival, sim.next_look(), until)
        sim.move(moment)
        if moment == arrival and moment <= until and place < len(jobs):
            sim.arrive(jobs[place])
            place += 1
        elif moment >= until:
            return place


def finish(sim: Sim) -> None:
    """Let what is under way end; it is judged but costs nothing more."""
    for _ in range(100_000):
        if not sim.held and not any(one.engine.in_flight for one in sim.members):
            return
        sim.move(max(sim.now + 1.0, min(sim.next_look(), sim.now + 60.0)))


def report(
    jobs: list[Job], scenario: Scenario, sizes: list[int], actions: int, instance_seconds: float, end: float
) -> Report:
    """Judge every request."""
    late = [job.first - job.arrived > scenario.ttft for job in jobs]
    slow = [job.output > 1 and (job.ended - job.first) / (job.output - 1) > scenario.tpot for job in jobs]
    lost = [math.isinf(job.ended) for job in jobs]
    missed = sum(any(one) for one in zip(late, slow, lost, strict=True))
    return Report(
        requests=len(jobs),
        missed_ttft=sum(late),
        missed_tpot=sum(slow),
        missed=missed,
        dropped=sum(lost),
        slo_attainment=1 - missed / len(jobs) if jobs else 1.0,
        instance_seconds=instance_seconds,
        gpu_seconds=instance_seconds * scenario.profile.gpus,
        actions=actions,
        actions_per_day=actions / (end / 86400) if end else 0.0,
        max_instances=max(sizes),
        mean_instances=instance_seconds / end if end else 0.0,
        seconds=end,
    )
