"""One run: clients at a rate of their own, faults in between, and the history of it all.

In: a `Plan`; its seed decides what is asked and done. Out: a `History`. Requests start when they are due, whether
earlier ones were answered or not.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from history.bed import Bed
from history.checker import PATIENCE as PATIENCE_FOR_ABORTS
from history.client import Wish, call, follow
from history.fake_engine import FATES
from history.records import LEFT, Call, History, Sighting, Try

PATIENCE = 120.0  # how long a client waits: an answer that takes longer is none
LONG = 400  # pieces of an answer that outlasts the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is made of."""

    requests: int
    rate: float
    engines: int = 3
    slots: int = 8
    seed: int = 1
    bad: float = 0.15  # share of tries that an engine spoils
    leavers: float = 0.08
    jobs: float = 0.0  # share of clients that ask for a job
    faults: tuple[str, ...] = ()
    fault_every: float = 3.0
    burst: int = 30  # requests at once, now and then
    mutant: str = ""
    rest: float = 120.0  # seconds in which everything held must have been given back


def wish(plan: Plan, number: int, chance: random.Random) -> Wish:
    """Draw what one client asks for."""
    stream = chance.random() < 0.7
    fates = tuple(chance.choice(FATES) if chance.random() < plan.bad else "ok" for _ in range(2))
    background = chance.random() < plan.jobs
    leaves = not background and chance.random() < plan.leavers
    return Wish(
        tag=f"c{plan.seed}-{number}",
        stream=stream,
        pieces=chance.randint(2, 12),
        gap=chance.choice((0.0, 0.002, 0.01)),
        fates=(fates[0], fates[1]),
        leave_after=chance.random() * 0.1 if leaves else None,
        leave_how=chance.choice(("close", "reset", "half-close")),
        slow=0.01 if chance.random() < 0.03 else 0.0,
        poisoned=chance.random() < 0.2,
        background=background,
    )


def long_leaver(plan: Plan, number: int) -> Wish:
    """A client that leaves in the middle of an answer that would outlast the run."""
    return Wish(tag=f"l{plan.seed}-{number}", stream=True, pieces=LONG, gap=0.5, fates=("ok", "ok"), leave_after=1.5)


async def run(plan: Plan, say: Callable[[str], None] = lambda _: None) -> History:
    with tempfile.TemporaryDirectory(prefix="llmfleet-history-") as folder:
        async with Bed(folder, engines=plan.engines, slots=plan.slots, mutant=plan.mutant, jobs=plan.jobs > 0) as bed:
            chance = random.Random(plan.seed)
            over = asyncio.Event()
            nemesis = asyncio.create_task(_nemesis(bed, plan, over))
            calls, sightings = await _clients(bed, plan, chance, say)
            over.set()
            await nemesis
            await bed.rest(plan.rest)
            return History(
                calls=calls,
                tries=await _settled(bed, calls),
                read_at=time.monotonic(),
                faults=bed.faults,
                sightings=sightings,
                rests=bed.rests,
                slots=plan.slots,
                engines=plan.engines,
            )


async def _clients(
    bed: Bed, plan: Plan, chance: random.Random, say: Callable[[str], None]
) -> tuple[list[Call], list[Sighting]]:
    """Start every request when it is due, and wait for all."""
    began = time.monotonic()
    tasks: list[asyncio.Task[Call]] = []
    sightings: list[Sighting] = []
    reported = began

    def port() -> int:
        assert bed.current is not None
        return bed.current.port

    async def client(one: Wish, cancel: bool) -> Call:
        assert bed.current is not None
        seen = await call(bed.current.port, bed.current.name, one, PATIENCE)
        if seen.job:
            sightings.extend(await follow(port, seen, cancel=cancel, seconds=PATIENCE))
        return seen

    def start(one: Wish) -> None:
        tasks.append(asyncio.create_task(client(one, chance.random() < 0.1)))

    for number in range(6):
        start(long_leaver(plan, number))
    number = 0
    while number < plan.requests:
        due = int((time.monotonic() - began) * plan.rate)
        # A machine that was busy elsewhere must not turn a rate into one flood.
        for _ in range(min(due - number, plan.burst, plan.requests - number)):
            start(wish(plan, number, chance))
            number += 1
        if number % (plan.burst * 10) < 3:
            for _ in range(min(plan.burst, plan.requests - number)):
                start(wish(plan, number, chance))
                number += 1
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            still = sum(not task.done() for task in tasks)
            say(f"{number} of {plan.requests} requests, {still} open, {len(bed.faults)} faults")
        await asyncio.sleep(0.005)
    return list(await asyncio.gather(*tasks)), sightings


async def _nemesis(bed: Bed, plan: Plan, over: asyncio.Event) -> None:
    """Do one fault after another until the clients are done; every kind comes in turn, and none is left half done."""
    chance = random.Random(plan.seed + 1)
    turn = 0
    while plan.faults:
        with suppress(TimeoutError):
            async with asyncio.timeout(plan.fault_every * (0.5 + chance.random())):
                await over.wait()
            return
        what, engine = plan.faults[turn % len(plan.faults)], chance.choice(sorted(bed.ports))
        turn += 1
        if what == "engine-kill":
            await bed.kill_engine(engine)
        elif what == "engine-freeze":
            await bed.freeze_engine(engine, 0.5 + 3 * chance.random())
        elif what == "router-roll":
            await bed.roll_router()
        elif what == "router-kill":
            await bed.kill_router()
        elif what == "store-kill":
            await bed.kill_store(0.2 + chance.random())
        else:
            raise ValueError(f"no such fault: {what}")


async def _settled(bed: Bed, calls: list[Call]) -> list[Try]:
    """Read the engines' logs, once the work for clients that left has ended or has had its time to."""
    left = {call.tag for call in calls if call.how == LEFT}
    end = time.monotonic() + PATIENCE_FOR_ABORTS + 1
    while True:
        tries = bed.tries()
        if time.monotonic() > end or all(one.ended for one in tries if one.tag in left):
            return tries
        await asyncio.sleep(1)


FAULTS = ("engine-kill", "engine-freeze", "router-roll", "router-kill")
JOB_FAULTS = (*FAULTS, "store-kill")


def tell(history: History) -> str:
    """Say in a few lines what happened."""
    hows = Counter(f"{c.how} {c.status or ''}{' ' + c.error if c.error else ''}".strip() for c in history.calls)
    ends = Counter(t.how or "never ended" for t in history.tries)
    second = sum(t.request_id.endswith("-r") for t in history.tries)
    faults = Counter(f.what for f in history.faults)
    ended = {s.job: s.state for s in sorted(history.sightings, key=lambda s: s.at)}
    jobs = Counter(ended.values())
    lines = [f"{len(history.calls)} requests, {len(history.tries)} tries at engines, {second} of them second ones"]
    lines += [f"  {count:7} {what}" for what, count in hows.most_common()]
    lines += ["tries: " + ", ".join(f"{count} {what}" for what, count in ends.most_common())]
    lines += ["jobs: " + (", ".join(f"{count} {state}" for state, count in jobs.most_common()) or "none")]
    lines += ["faults: " + (", ".join(f"{count} {what}" for what, count in faults.items()) or "none")]
    zero = min((c.began for c in history.calls), default=0.0)
    lines += [f"  {fault.at - zero:7.1f} s {fault.what} {fault.target}" for fault in history.faults]
    slow = sorted(history.calls, key=lambda c: c.began - c.ended)[:5]
    lines += ["longest: " + ", ".join(f"{c.ended - c.began:.0f} s from {c.began - zero:.0f} s ({c.how})" for c in slow)]
    return "\n".join(lines)
