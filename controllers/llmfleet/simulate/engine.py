"""One engine, step by step: continuous batching, chunked prefill, KV admission, preemption.

In: requests and moments. Out: when each request got its first and its last token; the counters a real engine exports.
A step takes `a + b x batch + c x prefill tokens + d x context tokens`. Steps with prefill in them are made one by one;
between them, as long as nothing begins or ends, many steps are one sum. Whoever arrives during a step waits for its
end. Prefix caches are not modelled.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush
from typing import Final

from llmfleet.capacity.profiles import Profile

WATERMARK: Final = 0.99
"""A new request is let in while this share of the KV cache is not exceeded."""


class Job:
    """One request on its way; times are seconds of the trace."""

    __slots__ = ("arrived", "done", "ended", "first", "left", "output", "prompt")

    def __init__(self, arrived: float, prompt: int, output: int) -> None:
        self.arrived, self.prompt, self.output = arrived, prompt, output
        self.left = prompt
        """Prompt tokens that are not computed yet; after a preemption those of the answer so far too."""
        self.done = 0
        """Tokens answered before the last preemption."""
        self.first = self.ended = math.inf


class Engine:
    """Requests in, tokens out."""

    def __init__(self, profile: Profile, now: float) -> None:
        self.profile, self.clock = profile, now
        self.count = 0
        """Steps; a running request ends at a known one."""
        self.running: list[tuple[int, int, Job]] = []
        """Heap of (last step, number, job)."""
        self.filling: deque[Job] = deque()
        self.waiting: deque[Job] = deque()
        self.context = 0.0
        self.reserved = 0.0
        """KV tokens of prompts that are being computed."""
        self.number = 0
        self.started: dict[int, int] = {}
        self.prefilled = self.generated = self.finished = 0.0
        self.itl_seconds = self.itl_count = 0.0

    @property
    def in_flight(self) -> int:
        """Requests here."""
        return len(self.running) + len(self.filling) + len(self.waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache in use."""
        return min(1.0, (self.context + self.reserved) / self.profile.kv_tokens)

    def add(self, job: Job, now: float) -> None:
        """A request arrives."""
        if not self.in_flight:
            self.clock = max(self.clock, now)
        self.waiting.append(job)

    def advance(self, until: float) -> None:
        """Make steps until that moment; the step under way then is made whole."""
        while self.clock < until:
            self._admit()
            if self.filling:
                self._fill()
            elif self.running:
                self._decode(until)
            else:
                self.clock = until

    def _admit(self) -> None:
        """Let requests in while there is room; one alone always finds some."""
        profile = self.profile
        room = WATERMARK * profile.kv_tokens
        while self.waiting and len(self.running) + len(self.filling) < profile.sequences:
            need = self.waiting[0].left
            alone = not self.running and not self.filling
            if self.context + self.reserved + need > room and not alone:
                return
            job = self.waiting.popleft()
            self.reserved += need
            self.filling.append(job)

    def _fill(self) -> None:
        """One step that computes prompts beside what is decoded."""
        steps, batch = self.profile.steps, len(self.running)
        budget = max(self.profile.batched_tokens - batch, 1)
        chunk, ready = 0, []
        for job in self.filling:
            part = min(job.left, budget - chunk)
            job.left -= part
            chunk += part
            if job.left:
                break
            ready.append(job)
            if chunk >= budget:
                break
        seconds = steps.step(batch + len(ready), chunk, self.context)
        self.clock += seconds
        self.prefilled += chunk
        self._decoded(1, seconds, batch)
        for job in ready:
            self.filling.popleft()
            self._begin(job)
        self._relieve()

    def _begin(self, job: Job) -> None:
        """The first token of an answer, or the next one after a preemption."""
        held = job.prompt + job.done
        self.reserved -= held
        self.generated += 1
        job.done += 1
        if math.isinf(job.first):
            job.first = self.clock
        if job.done >= job.output:
            self._end(job)
            return
        self.context += held + 1
        self.number += 1
        self.started[self.number] = self.count
        heappush(self.running, (self.count + job.output - job.done, self.number, job))

    def _decode(self, until: float) -> None:
        """As many steps as pass before something ends or `until` comes."""
        steps, batch = self.profile.steps, len(self.running)
        most = self.running[0][0] - self.count
        first = steps.step(batch, 0, self.context)
        count = max(1, min(most, steps_within(until - self.clock, first, steps.d * batch)))
        room = self.profile.kv_tokens - self.context - self.reserved
        if batch * count > room > 0:
            count = max(1, int(room // batch))
        seconds = count * first + steps.d * batch * count * (count - 1) / 2
        self.clock += seconds
        self._decoded(count, seconds, batch)
        self._relieve()

    def _decoded(self, count: int, seconds: float, batch: int) -> None:
        """Every running request got `count` tokens; some of them their last."""
        self.count += count
        self.context += batch * count
        self.generated += batch * count
        self.itl_seconds += batch * seconds
        self.itl_count += batch * count
        while self.running and self.running[0][0] <= self.count:
            _, number, job = heappop(self.running)
            del self.started[number]
            self.context -= job.prompt + job.output
            self._end(job)

    def _end(self, job: Job) -> None:
        job.ended = self.clock
        self.finished += 1

    def _relieve(self) -> None:
        """Without room for the next token the newest request gives its KV back and is computed again."""
        while self.context + self.reserved > self.profile.kv_tokens and len(self.running) > 1:
            newest = max(self.running, key=lambda entry: entry[1])
            self.running.remove(newest)
            self.running.sort()
            _, number, job = newest
            answered = job.done + self.count - self.started.pop(number)
            self.context -= job.prompt + answered
            job.done = answered
            job.left = job.prompt + answered
            self.waiting.appendleft(job)


def steps_within(seconds: float, first: float, growth: float) -> int:
    """How many steps begin within a time, each longer than the one before by `growth`."""
    if growth <= 0:
        return math.ceil(seconds / first)
    half = first - growth / 2
    return math.ceil((math.sqrt(half * half + 2 * growth * seconds) - half) / growth)
