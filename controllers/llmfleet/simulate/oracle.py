"""What somebody who knew the trace would have needed.

In: requests, a profile, the objective, cold start and drain. Out: instance seconds of a schedule that has capacity for
every ten seconds of the trace, starting each instance early enough. Instances are alike, so each level of the fleet
is on by itself wherever that many are needed, and stays on over a gap that is shorter than a restart. Work is spread
over the time of an answer, as a fluid: the figure is a yardstick, not a proof.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

from llmfleet.capacity.capacity import Capacity
from llmfleet.simulate.trace import Request

BIN: Final = 10.0
DRAIN: Final = 30.0


def oracle_seconds(requests: list[Request], capacity: Capacity, cold_start: float, low: int) -> float:
    """Instance seconds of the clairvoyant schedule."""
    need = needed(requests, capacity, low)
    restart = cold_start + DRAIN
    total = low * len(need) * BIN
    for level in range(low + 1, max(need, default=0) + 1):
        on = [place for place, wanted in enumerate(need) if wanted >= level]
        total += len(on) * BIN + restart
        total += sum(min((after - before - 1) * BIN, restart) for before, after in itertools.pairwise(on))
    return total


def needed(requests: list[Request], capacity: Capacity, low: int) -> list[int]:
    """Instances needed in each bin."""
    if not requests:
        return []
    bins = [0.0] * (int(requests[-1].at // BIN) + 1)
    for request in requests:
        spread(bins, request, capacity)
    return [max(low, math.ceil(work / BIN / capacity.rho)) for work in bins]


def spread(bins: list[float], request: Request, capacity: Capacity) -> None:
    """Prefill where it arrives, decode evenly over the answer at half the objective's pace."""
    steps = capacity.steps
    first = int(request.at // BIN)
    last = min(int((request.at + request.output * capacity.tpot / 2) // BIN), len(bins) - 1)
    prefill = steps.c * request.prompt
    decode = (steps.work(request.prompt, request.output) - prefill) / (last - first + 1)
    bins[first] += prefill
    for place in range(first, last + 1):
        bins[place] += decode
