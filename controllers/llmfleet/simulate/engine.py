"""One engine, step by step: continuous batching, chunked prefill, KV admission, preemption.

In: requests and moments. Out: when each request got its first and its last token; the counters a real engine exports.
A step takes `a + b x batch + c x prefill tokens + d x context tokens`. Steps with prefill in them are made one by one;
between them, as long as nothing begins or ends, many steps are one sum. Whoever arrives during a step waits for its
end. An engine is moved only when its number of requests can have changed (`due`), so `advance` takes several arrivals
at once; it is one long function because a call for each of millions of steps would be most of the time. Prefix caches
are not modelled.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from heapq import heapify, heappop, heappush
from typing import Final

from llmfleet.capacity.profiles import Profile

WATERMARK: Final = 0.99
"""A new request is let in while this share of the KV cache is not exceeded."""
TTFT_EDGES: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)
TPOT_EDGES: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Edges of vLLM's own histograms, as far as they matter."""


class Job:
    """One request on its way; times are seconds of the trace."""

    __slots__ = ("arrived", "at", "begun", "done", "ended", "first", "left", "output", "prompt")

    def __init__(self, arrived: float, prompt: int, output: int) -> None:
        self.arrived = self.at = arrived
        """At the router, and at the engine."""
        self.prompt, self.output = prompt, output
        self.left = prompt
        """Prompt tokens that are not computed yet; after a preemption those of the answer so far too."""
        self.done = self.begun = 0
        """Tokens answered before the last preemption, and the step after which the rest began."""
        self.first = self.ended = math.inf


class Engine:
    """Requests in, tokens out."""

    def __init__(self, profile: Profile, now: float) -> None:
        self.profile, self.clock = profile, now
        self.due = math.inf
        """Before this moment no request can end."""
        self.in_flight = 0
        self.count = 0
        """Steps; a running request ends at a known one."""
        self.running: list[tuple[int, int, Job]] = []
        """Heap of (last step, number, job)."""
        self.filling: deque[Job] = deque()
        self.waiting: deque[Job] = deque()
        self.over: list[Job] = []
        """Requests that ended; whoever reads the list empties it."""
        self.context = self.reserved = 0
        """KV tokens of running requests, and of prompts that are being computed."""
        self.number = 0
        self.prefilled = self.generated = self.finished = 0
        self.itl_seconds = 0.0
        self.itl_count = 0
        self.ttft = [0] * (len(TTFT_EDGES) + 1)
        self.tpot = [0] * (len(TPOT_EDGES) + 1)
        """Requests by the first edge that is not exceeded."""

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache in use."""
        return min(1.0, (self.context + self.reserved) / self.profile.kv_tokens)

    def waits(self, now: float) -> int:
        """Requests that have arrived and were not let in."""
        return sum(job.at <= now for job in self.waiting)

    def add(self, job: Job, now: float) -> None:
        """A request arrives; nothing happens before `advance`."""
        steps = self.profile.steps
        job.at = now
        self.in_flight += 1
        self.waiting.append(job)
        soonest = max(self.clock, now) + steps.c * job.left + steps.a * (job.output - job.done)
        if soonest < self.due:
            self.due = soonest

    def advance(self, until: float) -> None:
        """Make steps until that moment; the step under way then is made whole."""
        clock = self.clock
        if clock >= until:
            return
        profile, running, filling, waiting = self.profile, self.running, self.filling, self.waiting
        steps, sequences, batched, kv_tokens = (
            profile.steps,
            profile.sequences,
            profile.batched_tokens,
            profile.kv_tokens,
        )
        a, b, c, d = steps.a, steps.b, steps.c, steps.d
        room = WATERMARK * kv_tokens
        count, context, reserved = self.count, self.context, self.reserved
        while clock < until:
            batch = len(running)
            # One alone always finds room.
            while waiting and waiting[0].at <= clock and batch + len(filling) < sequences:
                # What it will hold: prompts that others computed arrive with nothing left to compute.
                need = waiting[0].prompt + waiting[0].done
                if context + reserved + need > room and (batch or filling):
                    break
                reserved += need
                filling.append(waiting.popleft())
            if filling:
                budget, chunk, begins = max(batched - batch, 1), 0, 0
                for job in filling:
                    left = job.left
                    if left > budget - chunk:
                        job.left = left - budget + chunk
                        chunk = budget
                        break
                    chunk += left
                    job.left = 0
                    begins += 1
                seconds = a + b * (batch + begins) + c * chunk + d * context
                clock += seconds
                self.prefilled += chunk
                passed = 1
            elif batch:
                begins = 0
                first, growth = a + b * batch + d * context, d * batch
                passed = running[0][0] - count
                stop = until
                if waiting and clock < waiting[0].at < until:
                    stop = waiting[0].at
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
                clock = min(until, waiting[0].at) if waiting else until
                continue
            count += passed
            if batch:
                tokens = batch * passed
                context += tokens
                self.generated += tokens
                self.itl_count += tokens
                self.itl_seconds += batch * seconds
                while running and running[0][0] <= count:
                    job = heappop(running)[2]
                    context -= job.prompt + job.output
                    self._end(job, clock)
            for _ in range(begins):
                job = filling.popleft()
                held = job.prompt + job.done
                reserved -= held
                self.generated += 1
                job.done += 1
                if job.first == math.inf:
                    job.first = clock
                    self.ttft[bisect_left(TTFT_EDGES, clock - job.at)] += 1
                if job.done >= job.output:
                    self._end(job, clock)
                    continue
                context += held + 1
                job.begun = count
                self.number += 1
                heappush(running, (count + job.output - job.done, self.number, job))
            while context + reserved > kv_tokens and len(running) > 1:
                context -= self._relieve(count)
        self.clock, self.count, self.context, self.reserved = clock, count, context, reserved
        self._foresee()

    def _end(self, job: Job, clock: float) -> None:
        job.ended = clock
        self.in_flight -= 1
        self.finished += 1
        self.over.append(job)
        if job.output > 1:
            self.tpot[bisect_left(TPOT_EDGES, (clock - job.first) / (job.output - 1))] += 1

    def _relieve(self, count: int) -> int:
        """Without room for the next token the newest request gives its KV back and is computed again."""
        newest = max(self.running, key=lambda entry: entry[1])
        self.running.remove(newest)
        heapify(self.running)
        job = newest[2]
        job.done += count - job.begun
        job.left = job.prompt + job.done
        self.waiting.appendleft(job)
        return job.left

    def _foresee(self) -> None:
        """When the next request can end at the soonest."""
        steps, batch = self.profile.steps, len(self.running)
        self.due = math.inf
        if batch:
            step = steps.a + steps.b * batch + steps.d * self.context
            self.due = self.clock + (self.running[0][0] - self.count) * step
        if self.filling or self.waiting:
            self.due = min(self.due, self.clock + steps.a)


def steps_within(seconds: float, first: float, growth: float) -> int:
    """How many steps begin within a time, each longer than the one before by `growth`."""
    if growth <= 0:
        return math.ceil(seconds / first)
    half = first - growth / 2
    return math.ceil((math.sqrt(half * half + 2 * growth * seconds) - half) / growth)
