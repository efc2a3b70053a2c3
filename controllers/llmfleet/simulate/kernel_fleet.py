"""A simulated fleet in flat arrays, for a compiler: router, held queue, drains, what travels between two roles.

In: the arrays of `kernel.py` and a trace. Out: the same arrays at a later moment. Each function is what the one of its
name in `fleet.py` or `drive.py` is, line for line. It draws no lots: cold starts come from outside.
"""

from __future__ import annotations

import math
from typing import Any

from llmfleet.simulate.compiler import fast
from llmfleet.simulate.fleet import DRAIN, HELD_LOOK, TRANSFER_FIXED, TRANSFER_TOKEN
from llmfleet.simulate.kernel import (
    FREE,
    GONE_HEAD,
    GONE_TAIL,
    HELD,
    HELD_HEAD,
    HELD_TAIL,
    IN_FLIGHT,
    LEGS,
    MEMBERS,
    NOBODY,
    OVER_HEAD,
    OVER_TAIL,
    PLACE,
    SERVING,
    SUMS,
    TRAVEL_NUMBER,
    TRAVELS,
    Moments,
    Pool,
    Rack,
    add,
    advance,
    pop,
    push,
)


@fast
def dispatch(r: Rack, p: Pool, job: int, now: float) -> bool:
    """To the serving engine with the fewest, if one has a slot."""
    least, chosen = r.sequences, NOBODY
    for place in range(r.marks[SERVING]):
        e = r.serving[place]
        if r.due[e] <= now:
            advance(r, p, e, now)
        in_flight = r.sums[e * SUMS + IN_FLIGHT]
        if in_flight < least:
            least, chosen = in_flight, e
    if chosen == NOBODY:
        return False
    add(r, p, chosen, job, now)
    return True


@fast
def arrive(r: Rack, p: Pool, job: int, now: float) -> None:
    """A request at the router."""
    marks = r.marks
    if marks[HELD] == 0 and dispatch(r, p, job, now):
        return
    p.behind[job] = NOBODY
    if marks[HELD] == 0:
        marks[HELD_HEAD] = job
    else:
        p.behind[marks[HELD_TAIL]] = job
    marks[HELD_TAIL] = job
    marks[HELD] += 1


@fast
def release(r: Rack, p: Pool) -> None:
    """Whoever is held goes first come, first served, while there are slots."""
    marks = r.marks
    while marks[HELD] > 0:
        job = marks[HELD_HEAD]
        after = p.behind[job]
        if not dispatch(r, p, job, r.moments[0]):
            return
        marks[HELD_HEAD] = after
        marks[HELD] -= 1


@fast
def bury(r: Rack, p: Pool) -> None:
    """Leaving instances go when they are idle, or were never ready."""
    now, stay = r.moments[0], 0
    for place in range(r.marks[MEMBERS]):
        e = r.members[place]
        leaving_at = r.leaving_at[e]
        leaving = leaving_at < math.inf
        never = leaving and r.ready_at[e] > leaving_at
        if never or (leaving and r.sums[e * SUMS + IN_FLIGHT] == 0 and now >= leaving_at + DRAIN):
            r.moments[1] += (leaving_at if never else now) - r.created[e]
            r.created[e] = -1.0
            follow(r, p, e)
        else:
            r.members[stay] = e
            stay += 1
    r.marks[MEMBERS] = stay
    enlist(r)


@fast
def follow(r: Rack, p: Pool, e: int) -> None:
    """What ended in an instance that goes is still to be sent on."""
    head, tail = r.sums[e * SUMS + OVER_HEAD], r.sums[e * SUMS + OVER_TAIL]
    if head == NOBODY:
        return
    if r.marks[GONE_HEAD] == NOBODY:
        r.marks[GONE_HEAD] = head
    else:
        p.behind[r.marks[GONE_TAIL]] = head
    r.marks[GONE_TAIL] = tail
    r.sums[e * SUMS + OVER_HEAD] = NOBODY


@fast
def enlist(r: Rack) -> None:
    """Who is ready and stays."""
    found = 0
    for place in range(r.marks[MEMBERS]):
        e = r.members[place]
        if r.leaving_at[e] == math.inf and r.ready_at[e] <= r.moments[0]:
            r.serving[found] = e
            found += 1
    r.marks[SERVING] = found


@fast
def move(r: Rack, p: Pool, now: float) -> None:
    """Let time pass for everybody."""
    r.moments[0] = now
    for place in range(r.marks[MEMBERS]):
        e = r.members[place]
        if r.ready_at[e] <= now:
            advance(r, p, e, now)
    bury(r, p)
    release(r, p)


@fast
def next_look(r: Rack, now: float) -> float:
    """When something can change by itself: a start that ends, or a slot while requests are held."""
    soon = math.inf
    if r.marks[HELD] > 0 and r.marks[SERVING] > 0:
        due = math.inf
        for place in range(r.marks[SERVING]):
            due = min(due, r.due[r.serving[place]])
        soon = max(now + HELD_LOOK, due)
    for place in range(r.marks[MEMBERS]):
        ready_at = r.ready_at[r.members[place]]
        if ready_at > r.moments[0]:
            soon = min(soon, ready_at)
    return soon


@fast
def next_end(r: Rack) -> float:
    """Before this no request ends."""
    soon = math.inf
    for place in range(r.marks[MEMBERS]):
        soon = min(soon, r.due[r.members[place]])
    return soon


@fast
def asked(p: Pool, t: Moments, place: int, now: float, two: int) -> int:
    """A request of the trace, in a free place of the pool; of two roles only its prompt is computed first."""
    p.marks[FREE] -= 1
    job = p.free[p.marks[FREE]]
    length = t.which[place]
    p.arrived[job] = p.at[job] = now
    p.prompt[job] = p.left[job] = t.prompts[length]
    p.answer[job] = t.outputs[length]
    p.output[job] = 1 if two else t.outputs[length]
    p.done[job] = p.begun[job] = 0
    p.first[job] = p.ended[job] = math.inf
    return int(job)


@fast
def pass_time_of_one(r: Rack, p: Pool, t: Moments, until: float) -> float:
    """Everything that happens at one fleet until a moment; returns the work asked for."""
    place, count, now, work = p.marks[PLACE], len(t.at), r.moments[0], 0.0
    b, c, d = r.b, r.c, r.d
    while True:
        stop = min(next_look(r, now), until)
        while place < count:
            now = t.at[place]
            if now > stop:
                break
            length = t.which[place]
            prompt, output = t.prompts[length], t.outputs[length]
            work += c * prompt + output * (b + d * (prompt + output / 2))
            arrive(r, p, asked(p, t, place, now, 0), now)
            place += 1
            if r.marks[HELD] > 0:
                stop = min(next_look(r, now), until)
        now = stop
        move(r, p, stop)
        if stop >= until:
            break
    p.marks[PLACE] = place
    return work


@fast
def pass_time_of_two(r: Rack, s: Rack, p: Pool, t: Moments, until: float) -> float:
    """The same for two roles: the end of a prefill is the beginning of a decode."""
    now, count, work = r.moments[0], len(t.at), 0.0
    while True:
        place = p.marks[PLACE]
        arrival = t.at[place] if place < count else math.inf
        arrived = p.travel_at[0] if p.marks[TRAVELS] > 0 else math.inf
        looks = min(next_look(r, now), next_look(s, now))
        now = min(min(arrival, arrived), min(max(now, next_end(r)), min(looks, until)))
        if next_end(r) <= now or looks <= now or now >= until:
            move(r, p, now)
            send_on(r, p)
        if looks <= now or now >= until:
            move(s, p, now)
        if arrived <= now:
            job = pop(p.travel_at, p.travel_number, p.travel_job, 0, p.marks[TRAVELS])
            p.marks[TRAVELS] -= 1
            arrive(s, p, job, now)
        elif arrival <= now:
            length = t.which[place]
            prompt, output = t.prompts[length], t.outputs[length]
            work += r.c * prompt + r.b * output + r.d * output * (prompt + output / 2)
            p.marks[LEGS] += 1
            arrive(r, p, asked(p, t, place, now, 1), now)
            p.marks[PLACE] += 1
        elif now >= until:
            return work


@fast
def send_on(r: Rack, p: Pool) -> None:
    """Prefills that ended travel to decode instances: those of instances that are gone first."""
    depart(p, r.marks[GONE_HEAD])
    r.marks[GONE_HEAD] = NOBODY
    for place in range(r.marks[MEMBERS]):
        row = r.members[place] * SUMS
        depart(p, r.sums[row + OVER_HEAD])
        r.sums[row + OVER_HEAD] = NOBODY


@fast
def depart(p: Pool, job: int) -> None:
    """A list of them."""
    while job != NOBODY:
        after = p.behind[job]
        p.marks[LEGS] -= 1
        p.marks[TRAVEL_NUMBER] += 1
        arrival = p.ended[job] + TRANSFER_FIXED + TRANSFER_TOKEN * p.prompt[job]
        p.output[job], p.left[job], p.done[job], p.begun[job] = p.answer[job], 0, 0, 0
        p.first[job] = p.ended[job] = math.inf
        push(
            p.travel_at,
            p.travel_number,
            p.travel_job,
            0,
            p.marks[TRAVELS],
            arrival,
            p.marks[TRAVEL_NUMBER],
            job,
        )
        p.marks[TRAVELS] += 1
        job = after


@fast
def spread(t: Moments, prefills: Any, decodes: Any, lasting: Any, width: float, bins: Any, change: Any) -> None:
    """Work by bins of the trace: prefill where it arrives, decode evenly over the time of its answer."""
    size = len(bins)
    for n in range(len(t.at)):
        at, place = t.at[n], t.which[n]
        prefill, decode = prefills[place], decodes[place]
        first = int(at / width)
        last = int((at + lasting[place]) / width)
        if last == first or first == size - 1:
            bins[first] += prefill + decode
            continue
        bins[first] += prefill
        last = min(last, size - 1)
        each = decode / (last - first + 1)
        change[first] += each
        change[last + 1] -= each
