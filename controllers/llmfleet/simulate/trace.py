"""Requests of a trace, and how a thinned one is brought back to size.

In: CSV text with the columns t_s, in_tok, out_tok (others are ignored). Out: a `Trace`, by arrival. Thickening makes K
copies of each request, moved by a Gaussian jitter that is reflected at both ends; each copy takes the lengths, as a
pair, of a neighbour, so that no two copies are alike and the mix of a time of day stays. The same seed gives the same
requests. It reads no file.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmfleet.simulate.compiler import fast, floats, integers, suited


class Draw(Protocol):
    """Whoever draws lots; `random.Random` with a seed does."""

    def gauss(self, mu: float, sigma: float) -> float: ...

    def random(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Request:
    """When somebody asked, and for how much."""

    at: float
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests by arrival. Lengths are kept once however often they are used: traces have millions of requests."""

    at: Sequence[float]
    which: Sequence[int]
    """The place of each request's lengths."""
    prompts: Sequence[int]
    outputs: Sequence[int]

    def __len__(self) -> int:
        return len(self.at)

    def __iter__(self) -> Iterator[Request]:
        prompts, outputs = self.prompts, self.outputs
        return (Request(at, prompts[place], outputs[place]) for at, place in zip(self.at, self.which, strict=True))

    @property
    def end(self) -> float:
        """When the last request comes."""
        return self.at[-1] if len(self.at) else 0.0


class TraceError(ValueError):
    """The text is no trace; the message says which line."""


def trace_of(requests: Iterable[Request]) -> Trace:
    """A trace of these requests."""
    found = sorted(requests, key=lambda request: request.at)
    return Trace(
        array("d", (one.at for one in found)),
        range(len(found)),
        [one.prompt for one in found],
        [one.output for one in found],
    )


def parse_trace(lines: Iterable[str]) -> Trace:
    """Read a trace; a prompt or an answer has at least one token."""
    rows = csv.reader(lines)
    head = next(rows, [])
    try:
        at, prompt, output = (head.index(name) for name in ("t_s", "in_tok", "out_tok"))
    except ValueError:
        raise TraceError("line 1 must name the columns t_s, in_tok and out_tok") from None
    found = []
    for number, row in enumerate(rows, 2):
        try:
            moment = float(row[at])
            found.append(Request(moment, max(int(row[prompt]), 1), max(int(row[output]), 1)))
        except (ValueError, IndexError):
            raise TraceError(f"line {number}: {','.join(row)!r} is no request") from None
        if not math.isfinite(moment) or moment < 0:
            raise TraceError(f"line {number}: {moment} is no moment of a trace")
    return trace_of(found)


def cut(trace: Trace, begin: float, seconds: float) -> Trace:
    """A slice of the trace, which begins at zero."""
    kept = [Request(one.at - begin, one.prompt, one.output) for one in trace if begin <= one.at <= begin + seconds]
    return trace_of(kept)


def thicken(trace: Trace, copies: int, jitter: float, draw: Draw) -> Trace:
    """`copies` requests for each, moved by a Gaussian of `jitter` seconds."""
    if copies <= 1 or not len(trace):
        return trace
    end, size = trace.end, len(trace)
    count = copies * size
    # A moment and a place in one float that is exact: floats are sorted several times faster than pairs.
    ticks = 2.0 ** math.floor(math.log2(2.0**52 / size / max(end, 1.0)))
    lots = floats([draw.random() for _ in range(count + count % 2)])
    keys = floats([0.0] * count)
    suited(scatter, count)(floats(trace.at), lots, jitter, end, ticks, keys)
    keys.sort()
    at, places = floats([0.0] * count), integers([0] * count)
    suited(gather, count)(keys, size, ticks, integers(trace.which), at, places)
    return Trace(array("d", at), array("q", places), trace.prompts, trace.outputs)


@fast
def scatter(moments: Any, lots: Any, jitter: float, end: float, ticks: float, keys: Any) -> None:
    """A moved moment and a place for each copy; lots become Gaussians in pairs, as `random.gauss` makes them."""
    size, kept = len(moments), 0.0
    for n in range(len(keys)):
        if n % 2 == 0:
            angle, length = lots[n] * 2.0 * math.pi, math.sqrt(-2.0 * math.log(1.0 - lots[n + 1]))
            moved, kept = math.cos(angle) * length, math.sin(angle) * length
        else:
            moved = kept
        copy, place = n // size, n % size
        moment = reflected(moments[place] + (0.0 + moved * jitter), end)
        keys[n] = math.floor(moment * ticks) * float(size) + (place + copy) % size


@fast
def gather(keys: Any, size: int, ticks: float, which: Any, at: Any, places: Any) -> None:
    """Moments and places of lengths, from sorted keys."""
    for n in range(len(keys)):
        places[n] = which[int(keys[n] % size)]
        at[n] = keys[n] // size / ticks


@fast
def reflected(moment: float, end: float) -> float:
    """A moment that left the trace comes back in."""
    if 0 <= moment <= end:
        return moment
    if end <= 0:
        return 0.0
    moment = abs(moment) % (2 * end)
    return min(moment, 2 * end - moment)
