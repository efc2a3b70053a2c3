"""Requests of a trace, and how a thinned one is brought back to size.

In: CSV text with the columns t_s, in_tok, out_tok (others are ignored). Out: `Request`s by arrival. Thickening makes K
copies of each request, moved by a Gaussian jitter that is reflected at both ends; the same seed gives the same
requests. It reads no file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


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


class TraceError(ValueError):
    """The text is no trace; the message says which line."""


def parse_trace(lines: Iterable[str]) -> list[Request]:
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
    return sorted(found, key=lambda request: request.at)


def thicken(requests: list[Request], copies: int, jitter: float, draw: Draw) -> list[Request]:
    """`copies` requests for each, moved by a Gaussian of `jitter` seconds."""
    if copies <= 1 or not requests:
        return requests
    end = requests[-1].at
    made = [
        Request(reflected(request.at + draw.gauss(0, jitter), end), request.prompt, request.output)
        for request in requests
        for _ in range(copies)
    ]
    return sorted(made, key=lambda request: request.at)


def reflected(moment: float, end: float) -> float:
    """A moment that left the trace comes back in."""
    if end <= 0:
        return 0.0
    moment = math.fmod(abs(moment), 2 * end)
    return min(moment, 2 * end - moment)
