"""What somebody who knew the trace would have needed.

In: a trace, a capacity, cold start. Out: instance seconds of a schedule that has capacity for every ten seconds of the
trace, starting each instance early enough; and that schedule, so that it can be replayed request by request. Instances
are alike, so each level of the fleet is on by itself wherever that many are needed, and stays on over a gap that is
shorter than a restart. Work is spread over the time of an answer, as a fluid: the figure is a lower bound of what a
fleet needs that runs at its full `rho` all the time, a yardstick and not a promise; requests come one by one, and a
fleet at that load misses some of them. The replay shows how many.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity
from llmfleet.simulate.fleet import DRAIN
from llmfleet.simulate.trace import Trace

BIN: Final = 10.0


def loads(trace: Trace, capacity: Capacity, role: Role) -> list[float]:
    """Offered load in each bin: prefill where it arrives, decode evenly, at half the objective's time per token."""
    steps, pace = capacity.steps, capacity.tpot / 2
    size = int(trace.end // BIN) + 1
    parts = [
        (
            steps.c * prompt if role is not Role.DECODE else 0.0,
            output * (steps.b + steps.d * (prompt + output / 2)) if role is not Role.PREFILL else 0.0,
            output * pace,
        )
        for prompt, output in zip(trace.prompts, trace.outputs, strict=True)
    ]
    bins, change = [0.0] * size, [0.0] * (size + 1)
    for at, place in zip(trace.at, trace.which, strict=True):
        prefill, decode, seconds = parts[place]
        first = int(at / BIN)
        last = int((at + seconds) / BIN)
        if last == first or first == size - 1:
            bins[first] += prefill + decode
            continue
        bins[first] += prefill
        last = min(last, size - 1)
        each = decode / (last - first + 1)
        change[first] += each
        change[last + 1] -= each
    return [(work + rate) / BIN for work, rate in zip(bins, itertools.accumulate(change), strict=False)]


def needed(trace: Trace, capacity: Capacity, low: int, role: Role = Role.BOTH, fill: float = 1.0) -> list[int]:
    """Instances needed in each bin, each filled to this share of what it carries."""
    if not len(trace):
        return []
    return [max(low, math.ceil(load / capacity.rho / fill)) for load in loads(trace, capacity, role)]


def oracle_seconds(need: Sequence[int], cold_start: float, low: int) -> float:
    """Instance seconds of the cheapest schedule that is never below the need."""
    restart = cold_start + DRAIN
    total = low * len(need) * BIN
    for level in range(low + 1, max(need, default=0) + 1):
        on = [place for place, wanted in enumerate(need) if wanted >= level]
        total += len(on) * BIN + restart
        total += sum(min((after - before - 1) * BIN, restart) for before, after in itertools.pairwise(on))
    return total


def ordered(need: Sequence[int], cold_start: float) -> list[int]:
    """That schedule: how many must exist in each bin, ordered a cold start (and its jitter) ahead."""
    ahead = math.ceil((cold_start * 1.2 + 15) / BIN)
    gap = math.ceil((cold_start + DRAIN) / BIN)
    found = [1] * len(need)
    for level in range(2, max(need, default=0) + 1):
        on = [place for place, wanted in enumerate(need) if wanted >= level]
        breaks = [after for before, after in itertools.pairwise(on) if after - before > gap]
        lasts = [before for before, after in itertools.pairwise(on) if after - before > gap]
        for begin, last in zip([on[0], *breaks], [*lasts, on[-1]], strict=True):
            for place in range(max(0, begin - ahead), last + 1):
                found[place] = max(found[place], level)
    return found
