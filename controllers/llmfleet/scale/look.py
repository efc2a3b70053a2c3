"""Take one observation into the memory, and say what it shows.

In: an observation, the memory of the fleet, its capacity, `now`. Out: a new memory and a `View`: offered load,
backlog, averages, and how far the evidence carries. Readings are compared with the last ones of the same engine or
router; what was not seen twice, or not lately, is missing, and missing is said. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity, Shape, scaled
from llmfleet.scale import forecast
from llmfleet.scale.learn import learn
from llmfleet.scale.memory import Memory, Point, begin
from llmfleet.scale.signals import FRESH_SECONDS, Evidence, Observation, RouterReading, is_plausible
from llmfleet.scale.work import SHORTEST, Rates, rates_between, refused_between, total

NOMINAL_PROMPT: Final = 1000.0
NOMINAL_OUTPUT: Final = 200.0
"""What a request is taken for before any was seen to end."""
BYTES_PER_TOKEN: Final = 4.0
MOST_LONGER: Final = 8.0
"""A body may be long for other reasons than text, an image for one."""
GAP_SECONDS: Final = 120.0
"""Looks further apart than this do not make one window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a look shows."""

    now: float
    evidence: Evidence
    problem: str = ""
    """What is missing, in words."""
    age: float = 0.0
    """Of the oldest figure that counts."""
    load: float = 0.0
    """Offered load: seconds of step time asked for per second."""
    backlog: float = 0.0
    """Work that waits, in seconds of step time."""
    waiting: float = 0.0
    queued: float = 0.0
    demand: bool = False
    """Somebody asks for the model."""
    rates: Rates
    shape: Shape
    capacity: Capacity
    external: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def look(
    memory: Memory,
    seen: Observation,
    *,
    role: Role,
    capacity: Capacity,
    now: float,
    lead: float,
    window: float,
    keep: float,
) -> tuple[Memory, View]:
    """One look."""
    if now < memory.looked:
        memory = set_back(memory, now)
    elif now - memory.looked > GAP_SECONDS:
        memory = replace(memory, since=now, busy=now)
    seconds = now - memory.looked
    memory, refused, more_queued = take(memory, seen, now)
    rates = total((one for one in memory.rates.values() if now - one.at <= FRESH_SECONDS), now)
    queued = sum(one.queued for one in memory.routers.values())
    learned = learn(memory.learned, rates, capacity, seconds, queued)
    able = scaled(capacity, a=learned.a, work=learned.work, kv_tokens=tokens_each(memory))
    evidence, problem = weigh(memory, seen, now)
    request = mean_work(lately(memory, rates), able, role)
    more = rates.more_waiting + (more_queued + refused) / seconds if seconds >= SHORTEST else 0.0
    load = max(0.0, rates.work(able.steps, role) + request * more)
    asked = queued > 0 or refused > 0 or any(one.in_flight > 0 for one in memory.routers.values())
    demand = asked or rates.running > 0 or rates.waiting > 0 or rates.finished > 0
    # Weak evidence is no evidence of silence.
    busy = now if demand or evidence is not Evidence.FULL else memory.busy
    memory = replace(memory, learned=learned, looked=now, busy=busy)
    if evidence.whole and seconds >= SHORTEST:
        requests, table = load / request if request > 0 else 0.0, learned.work
        point = Point(at=now, load=load / table, requests=requests, rates=rates, queued=queued)
        memory = forecast.remember(memory, point, one=able.rho / table, lead=lead, keep=keep, window=window)
    recent = lately(memory, rates)
    view = View(
        now=now,
        evidence=evidence,
        problem=problem,
        age=max((now - one.at for one in memory.engines.values()), default=0.0),
        load=load,
        backlog=request * (queued + rates.waiting) + longer(memory, recent, able, request),
        waiting=rates.waiting,
        queued=queued,
        demand=demand,
        rates=rates,
        shape=shape_of(recent, load, request),
        capacity=able,
        external=seen.external,
    )
    return memory, view


def set_back(memory: Memory, now: float) -> Memory:
    """A memory of moments that have not come: nothing of it can be compared with now, what was learned stays."""
    return replace(
        begin(now),
        ratios=memory.ratios,
        ranked=memory.ranked,
        alpha=memory.alpha,
        learned=memory.learned,
        scaled_up=min(memory.scaled_up, now),
        scaled_down=min(memory.scaled_down, now),
    )


def take(memory: Memory, seen: Observation, now: float) -> tuple[Memory, float, float]:
    """Newer readings in place of older ones; what was refused and how the routers' queues grew since."""
    engines, rates = dict(memory.engines), dict(memory.rates)
    for reading in seen.engines:
        before = engines.get(reading.instance)
        if not is_plausible(reading) or now - reading.at > FRESH_SECONDS or (before and reading.at <= before.at):
            continue
        found = rates_between(before, reading) if before else None
        if found is not None:
            rates[reading.instance] = found
        if before is None or found is not None:
            engines[reading.instance] = reading
    fresh = {one.router: one for one in seen.routers if is_plausible(one) and now - one.at <= FRESH_SECONDS}
    refused = refused_between(memory.routers, fresh.values())
    queues = sum(one.queued - memory.routers[name].queued for name, one in fresh.items() if name in memory.routers)
    memory = replace(
        memory,
        engines={name: one for name, one in engines.items() if now - one.at <= FRESH_SECONDS},
        rates={name: one for name, one in rates.items() if now - one.at <= FRESH_SECONDS},
        routers={name: one for name, one in merged(memory.routers, fresh).items() if now - one.at <= FRESH_SECONDS},
    )
    return memory, refused, queues


def merged(before: Mapping[str, RouterReading], after: Mapping[str, RouterReading]) -> dict[str, RouterReading]:
    return {**before, **after}


def weigh(memory: Memory, seen: Observation, now: float) -> tuple[Evidence, str]:
    """How far the figures carry, and what is missing."""
    if seen.problem:
        return Evidence.LOWER_BOUND, seen.problem
    missing = [name for name in seen.serving if name not in memory.engines]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return Evidence.LOWER_BOUND, f"no fresh figures of {len(missing)} of {len(seen.serving)} engines: {shown}"
    new = [name for name in seen.serving if name not in memory.rates]
    if new and len(new) == len(seen.serving):
        return Evidence.LOWER_BOUND, f"first look at {len(new)} engines"
    if new:
        return Evidence.SETTLING, f"{', '.join(new[:3])} just became ready, its second look is due"
    silent = max(
        seen.routers_expected - len(memory.routers), sum(name not in memory.routers for name in seen.routers_wanted)
    )
    if silent > 0:
        return Evidence.NO_ROUTERS, f"no fresh figures of {silent} of {seen.routers_expected} routers"
    return Evidence.FULL, ""


def tokens_each(memory: Memory) -> int:
    """KV tokens of the smallest engine that says so."""
    return int(min((one.kv_tokens for one in memory.engines.values() if one.kv_tokens > 0), default=0))


def lately(memory: Memory, rates: Rates) -> Rates:
    """Sums over the looks of the last five minutes."""
    recent = [point.rates for point in memory.points if point.at > rates.at - forecast.LONG_SECONDS]
    return total((*recent, rates), rates.at, histograms=False)


def mean_work(recent: Rates, capacity: Capacity, role: Role) -> float:
    """Work of one request, from what ended lately."""
    if recent.finished > 0:
        return recent.work(capacity.steps, role) / recent.finished
    steps = capacity.steps
    return steps.c * NOMINAL_PROMPT if role is Role.PREFILL else steps.work(NOMINAL_PROMPT, NOMINAL_OUTPUT)


def longer(memory: Memory, recent: Rates, capacity: Capacity, request: float) -> float:
    """Work of what waits in routers beyond that of as many usual requests: their bodies are known to be longer."""
    waiting = [one for one in memory.routers.values() if one.queued > 0]
    if recent.finished <= 0 or recent.prompts <= 0 or not waiting:
        return 0.0
    requests, size = sum(one.queued for one in waiting), sum(one.queued_bytes for one in waiting)
    computed = size / BYTES_PER_TOKEN * min(recent.prefill / recent.prompts, 1.0)
    usual = requests * recent.prefill / recent.finished
    return min(capacity.steps.c * max(computed - usual, 0.0), (MOST_LONGER - 1) * requests * request)


def shape_of(recent: Rates, load: float, request: float) -> Shape:
    """How requests look, and how many a second the offered load means."""
    if recent.finished <= 0 or request <= 0:
        return Shape()
    return Shape(
        requests=load / request, prompt=recent.prefill / recent.finished, output=recent.generated / recent.finished
    )
