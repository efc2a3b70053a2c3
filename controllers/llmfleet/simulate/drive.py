"""A run over fleets of objects: every request is a `Job`, every engine an `Engine`.

In: a trace, a scenario, fleets. Out: the same fleets later, and misses by tick. It is the definition of what a run is;
`packed.py` is the same in arrays, for a compiler.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from llmfleet.api.types import Role
from llmfleet.simulate.engine import Job
from llmfleet.simulate.fleet import TRANSFER_FIXED, TRANSFER_TOKEN, Sim
from llmfleet.simulate.scenario import EPOCH, Scenario, Tick
from llmfleet.simulate.trace import Draw, Trace


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

    @staticmethod
    def of(trace: Trace, scenario: Scenario, draw: Draw) -> Drive:
        sims = {
            role: Sim(
                profile=scenario.profile_of(role), cold_start=scenario.cold_start, draw=draw, begin=EPOCH, role=role
            )
            for role in scenario.first
        }
        return Drive(trace=trace, scenario=scenario, sims=sims)

    @property
    def front(self) -> Sim:
        """Where requests arrive."""
        return self.sims.get(Role.PREFILL) or self.sims[Role.BOTH]

    @property
    def now(self) -> float:
        return self.front.now

    def pass_until(self, until: float) -> None:
        """Everything that happens until then, and who of it missed."""
        pass_time(self, until)
        judge(self)

    def is_over(self) -> bool:
        """Nobody will come, and nobody is under way."""
        idle = all(sim.is_idle() for sim in self.sims.values())
        return idle and self.place >= len(self.trace) and not self.legs and not self.travelling

    def lost(self) -> int:
        """Requests that have no answer."""
        lost = len(self.trace) - self.place + len(self.legs) + len(self.travelling)
        return lost + (self.sims.get(Role.DECODE) or self.front).unanswered()


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
