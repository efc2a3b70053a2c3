"""Simulated engines in flat arrays, for a compiler: the same steps, in the same order, with the same sums.

In: arrays that hold engines, requests in flight and a trace. Out: the same arrays, later. Every function here is what
the function of its name in `engine.py` is, line for line, so that both give the same floats; a
test compares whole runs. With numba (an extra of this package) it is compiled to machine code; without, it is Python
like any other, slower than the objects it mirrors, and only tests run it. It allocates nothing and reads no clock.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from llmfleet.simulate.compiler import fast, floats, integers
from llmfleet.simulate.engine import TPOT_EDGES, TTFT_EDGES, WATERMARK
from llmfleet.simulate.trace import Trace

TTFT_SIZE: Final = len(TTFT_EDGES) + 1
TPOT_SIZE: Final = len(TPOT_EDGES) + 1
NOBODY: Final = -1

# Places in `Rack.sums`, one row for each engine.
IN_FLIGHT, COUNT, CONTEXT, RESERVED, NUMBER, PREFILLED, GENERATED, FINISHED, ITL_COUNT = range(9)
RUNS, FILL_AT, FILLS, WAIT_AT, WAITS, OVER_HEAD, OVER_TAIL = range(9, 16)
SUMS: Final = 16
# Places in `Rack.marks`.
MEMBERS, SERVING, HELD, HELD_HEAD, HELD_TAIL, GONE_HEAD, GONE_TAIL = range(7)
MARKS: Final = 7
# Places in `Pool.marks`.
FREE, TRAVELS, TRAVEL_NUMBER, LEGS, PLACE, LAST = range(6)


class Rack(NamedTuple):
    """One fleet: a row for each engine, requests by their place in the pool."""

    a: float
    b: float
    c: float
    d: float
    sequences: int
    batched: int
    kv_tokens: int
    forwards: int
    """1: who ends travels on; 0: who ends is judged."""
    clock: Any
    due: Any
    itl_seconds: Any
    created: Any
    ready_at: Any
    leaving_at: Any
    sums: Any
    ttft: Any
    tpot: Any
    heap_end: Any
    heap_number: Any
    heap_job: Any
    filling: Any
    waiting: Any
    members: Any
    serving: Any
    marks: Any
    moments: Any
    """Now, and the seconds of instances that are gone."""


class Pool(NamedTuple):
    """Requests in flight, what travels between two fleets, how many missed in each tick."""

    ttft: float
    tpot: float
    width: float
    arrived: Any
    at: Any
    first: Any
    ended: Any
    prompt: Any
    output: Any
    answer: Any
    """Tokens of the answer, while only its prompt is being computed."""
    left: Any
    done: Any
    begun: Any
    behind: Any
    """The next one in whatever list a request is."""
    free: Any
    travel_at: Any
    travel_number: Any
    travel_job: Any
    late: Any
    slow: Any
    missed: Any
    marks: Any


class Moments(NamedTuple):
    """A trace."""

    at: Any
    which: Any
    prompts: Any
    outputs: Any


def moments_of(trace: Trace) -> Moments:
    """A trace as arrays."""
    return Moments(
        at=floats(trace.at),
        which=integers(trace.which),
        prompts=integers(trace.prompts),
        outputs=integers(trace.outputs),
    )


@fast
def push(ends: Any, numbers: Any, jobs: Any, base: int, size: int, end: Any, number: int, job: int) -> None:
    """Into a heap of (end, number) that has `size` entries from `base` on."""
    place = size
    while place > 0:
        above = (place - 1) // 2
        if ends[base + above] < end or (ends[base + above] == end and numbers[base + above] < number):
            break
        ends[base + place] = ends[base + above]
        numbers[base + place] = numbers[base + above]
        jobs[base + place] = jobs[base + above]
        place = above
    ends[base + place], numbers[base + place], jobs[base + place] = end, number, job


@fast
def pop(ends: Any, numbers: Any, jobs: Any, base: int, size: int) -> int:
    """The request at the top of a heap of `size`; one fewer are left."""
    top = jobs[base]
    last = size - 1
    end, number, job = ends[base + last], numbers[base + last], jobs[base + last]
    place = 0
    while True:
        below = 2 * place + 1
        if below >= last:
            break
        right = below + 1
        if right < last and (
            ends[base + right] < ends[base + below]
            or (ends[base + right] == ends[base + below] and numbers[base + right] < numbers[base + below])
        ):
            below = right
        if end < ends[base + below] or (end == ends[base + below] and number < numbers[base + below]):
            break
        ends[base + place] = ends[base + below]
        numbers[base + place] = numbers[base + below]
        jobs[base + place] = jobs[base + below]
        place = below
    ends[base + place], numbers[base + place], jobs[base + place] = end, number, job
    return int(top)


@fast
def steps_within(seconds: float, first: float, growth: float) -> int:
    if growth <= 0:
        return math.ceil(seconds / first)
    half = first - growth / 2
    return math.ceil((math.sqrt(half * half + 2 * growth * seconds) - half) / growth)


@fast
def edge(edges: Any, value: float) -> int:
    """The first edge that is not exceeded."""
    place = 0
    while place < len(edges) and edges[place] < value:
        place += 1
    return place


@fast
def add(r: Rack, p: Pool, e: int, job: int, now: float) -> None:
    """A request arrives at an engine."""
    sums, row = r.sums, e * SUMS
    p.at[job] = now
    sums[row + IN_FLIGHT] += 1
    r.waiting[e * r.sequences + (sums[row + WAIT_AT] + sums[row + WAITS]) % r.sequences] = job
    sums[row + WAITS] += 1
    soonest = max(r.clock[e], now) + r.c * p.left[job] + r.a * (p.output[job] - p.done[job])
    if soonest < r.due[e]:
        r.due[e] = soonest


@fast
def advance(r: Rack, p: Pool, e: int, until: float) -> None:
    """Make steps until that moment; the step under way then is made whole."""
    clock = r.clock[e]
    if clock >= until:
        return
    sums, row, base, sequences, kv_tokens = r.sums, e * SUMS, e * r.sequences, r.sequences, r.kv_tokens
    a, b, c, d = r.a, r.b, r.c, r.d
    room = WATERMARK * kv_tokens
    count, context, reserved = sums[row + COUNT], sums[row + CONTEXT], sums[row + RESERVED]
    while clock < until:
        batch = sums[row + RUNS]
        while sums[row + WAITS] > 0 and batch + sums[row + FILLS] < sequences:
            job = r.waiting[base + sums[row + WAIT_AT]]
            if p.at[job] > clock:
                break
            need = p.prompt[job] + p.done[job]
            if context + reserved + need > room and (batch > 0 or sums[row + FILLS] > 0):
                break
            reserved += need
            r.filling[base + (sums[row + FILL_AT] + sums[row + FILLS]) % sequences] = job
            sums[row + FILLS] += 1
            sums[row + WAIT_AT] = (sums[row + WAIT_AT] + 1) % sequences
            sums[row + WAITS] -= 1
        begins = 0
        if sums[row + FILLS] > 0:
            budget, chunk = max(r.batched - batch, 1), 0
            for place in range(sums[row + FILLS]):
                job = r.filling[base + (sums[row + FILL_AT] + place) % sequences]
                left = p.left[job]
                if left > budget - chunk:
                    p.left[job] = left - budget + chunk
                    chunk = budget
                    break
                chunk += left
                p.left[job] = 0
                begins += 1
            seconds = a + b * (batch + begins) + c * chunk + d * context
            clock += seconds
            sums[row + PREFILLED] += chunk
            passed = 1
        elif batch > 0:
            first, growth = a + b * batch + d * context, d * batch
            passed = r.heap_end[base] - count
            stop = until
            if sums[row + WAITS] > 0:
                arrival = p.at[r.waiting[base + sums[row + WAIT_AT]]]
                if clock < arrival < until:
                    stop = arrival
            seconds = passed * first + growth * passed * (passed - 1) / 2
            if clock + seconds > stop:
                passed = max(1, min(passed, steps_within(stop - clock, first, growth)))
                seconds = passed * first + growth * passed * (passed - 1) / 2
            space = kv_tokens - context - reserved
            if batch * passed > space > 0:
                passed = max(1, space // batch)
                seconds = passed * first + growth * passed * (passed - 1) / 2
            clock += seconds
        else:
            clock = min(until, p.at[r.waiting[base + sums[row + WAIT_AT]]]) if sums[row + WAITS] > 0 else until
            continue
        count += passed
        if batch > 0:
            tokens = batch * passed
            context += tokens
            sums[row + GENERATED] += tokens
            sums[row + ITL_COUNT] += tokens
            r.itl_seconds[e] += batch * seconds
            while sums[row + RUNS] > 0 and r.heap_end[base] <= count:
                job = pop(r.heap_end, r.heap_number, r.heap_job, base, sums[row + RUNS])
                sums[row + RUNS] -= 1
                context -= p.prompt[job] + p.output[job]
                end(r, p, e, job, clock)
        for _ in range(begins):
            job = r.filling[base + sums[row + FILL_AT]]
            sums[row + FILL_AT] = (sums[row + FILL_AT] + 1) % sequences
            sums[row + FILLS] -= 1
            held = p.prompt[job] + p.done[job]
            reserved -= held
            sums[row + GENERATED] += 1
            p.done[job] += 1
            if p.first[job] == math.inf:
                p.first[job] = clock
                r.ttft[e * TTFT_SIZE + edge(TTFT_EDGES, clock - p.at[job])] += 1
            if p.done[job] >= p.output[job]:
                end(r, p, e, job, clock)
                continue
            context += held + 1
            p.begun[job] = count
            sums[row + NUMBER] += 1
            push(
                r.heap_end,
                r.heap_number,
                r.heap_job,
                base,
                sums[row + RUNS],
                count + p.output[job] - p.done[job],
                sums[row + NUMBER],
                job,
            )
            sums[row + RUNS] += 1
        while context + reserved > kv_tokens and sums[row + RUNS] > 1:
            context -= relieve(r, p, e, count)
    r.clock[e] = clock
    sums[row + COUNT], sums[row + CONTEXT], sums[row + RESERVED] = count, context, reserved
    foresee(r, e)


@fast
def end(r: Rack, p: Pool, e: int, job: int, clock: float) -> None:
    """A request has its whole answer: it travels on, or is judged and forgotten."""
    sums, row = r.sums, e * SUMS
    p.ended[job] = clock
    sums[row + IN_FLIGHT] -= 1
    sums[row + FINISHED] += 1
    if p.output[job] > 1:
        r.tpot[e * TPOT_SIZE + edge(TPOT_EDGES, (clock - p.first[job]) / (p.output[job] - 1))] += 1
    if r.forwards:
        p.behind[job] = NOBODY
        if sums[row + OVER_HEAD] == NOBODY:
            sums[row + OVER_HEAD] = job
        else:
            p.behind[sums[row + OVER_TAIL]] = job
        sums[row + OVER_TAIL] = job
    else:
        judge(p, job)


@fast
def judge(p: Pool, job: int) -> None:
    """Count what ended where it had arrived."""
    late = p.first[job] - p.arrived[job] > p.ttft
    slow = p.output[job] > 1 and (p.ended[job] - p.first[job]) > p.tpot * (p.output[job] - 1)
    if late or slow:
        tick = min(int(p.arrived[job] / p.width), p.marks[LAST])
        p.missed[tick] += 1
        p.late[tick] += late
        p.slow[tick] += slow
    p.free[p.marks[FREE]] = job
    p.marks[FREE] += 1


@fast
def relieve(r: Rack, p: Pool, e: int, count: int) -> int:
    """Without room for the next token the newest request gives its KV back and is computed again."""
    sums, row, base = r.sums, e * SUMS, e * r.sequences
    newest = 0
    for place in range(sums[row + RUNS]):
        if r.heap_number[base + place] > r.heap_number[base + newest]:
            newest = place
    job = r.heap_job[base + newest]
    last = sums[row + RUNS] - 1
    # The rest is a heap again when each is put in anew; their order does not depend on how they lie.
    r.heap_end[base + newest], r.heap_number[base + newest] = r.heap_end[base + last], r.heap_number[base + last]
    r.heap_job[base + newest] = r.heap_job[base + last]
    for size in range(last):
        at = base + size
        push(r.heap_end, r.heap_number, r.heap_job, base, size, r.heap_end[at], r.heap_number[at], r.heap_job[at])
    sums[row + RUNS] = last
    p.done[job] += count - p.begun[job]
    p.left[job] = p.prompt[job] + p.done[job]
    sums[row + WAIT_AT] = (sums[row + WAIT_AT] + r.sequences - 1) % r.sequences
    r.waiting[base + sums[row + WAIT_AT]] = job
    sums[row + WAITS] += 1
    return int(p.left[job])


@fast
def foresee(r: Rack, e: int) -> None:
    """When the next request can end at the soonest."""
    sums, row = r.sums, e * SUMS
    batch = sums[row + RUNS]
    r.due[e] = math.inf
    if batch > 0:
        step = r.a + r.b * batch + r.d * sums[row + CONTEXT]
        r.due[e] = r.clock[e] + (r.heap_end[e * r.sequences] - sums[row + COUNT]) * step
    if sums[row + FILLS] > 0 or sums[row + WAITS] > 0:
        r.due[e] = min(r.due[e], r.clock[e] + r.a)
