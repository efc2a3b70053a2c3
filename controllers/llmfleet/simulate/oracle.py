"""What somebody who knew the trace would have needed.

In: a trace, a capacity, cold start. Out: instance seconds of a schedule that has capacity for every ten seconds of the
trace, starting each instance early enough; and that schedule, so that it can be replayed request by request. Instances
are alike, so each level of the fleet is on by itself wherever that many are needed, and stays on over a gap that is
shorter than a restart. Work is spread over the time of an answer, as a fluid: the figure is a lower bound of what a
fleet needs that runs at its full `rho` all the time, a yardstick and not a promise; requests come one by one, and a
fleet at that load misses some of them. The replay shows how many. Beside it stands the optimum of the linear program
that it becomes when instances may be fractions and need only carry the mean of each whole minute: nothing that
carries the work costs less.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity
from llmfleet.simulate.compiler import floats, suited
from llmfleet.simulate.fleet import DRAIN
from llmfleet.simulate.kernel import moments_of
from llmfleet.simulate.kernel_fleet import spread
from llmfleet.simulate.trace import Trace

BIN: Final = 10.0
MINUTE: Final = 6
"""Bins."""


def loads(trace: Trace, capacity: Capacity, role: Role) -> list[float]:
    """Offered load in each bin: prefill where it arrives, decode evenly, at half the objective's time per token."""
    steps, pace = capacity.steps, capacity.tpot / 2
    size = int(trace.end // BIN) + 1
    prefills, decodes, lasting = [], [], []
    for prompt, output in zip(trace.prompts, trace.outputs, strict=True):
        prefills.append(steps.c * prompt if role is not Role.DECODE else 0.0)
        decodes.append(output * (steps.b + steps.d * (prompt + output / 2)) if role is not Role.PREFILL else 0.0)
        lasting.append(output * pace)
    bins, change = floats([0.0] * size), floats([0.0] * (size + 1))
    parts = floats(prefills), floats(decodes), floats(lasting)
    suited(spread, len(trace))(moments_of(trace), *parts, BIN, bins, change)
    return [float(work + rate) / BIN for work, rate in zip(bins, itertools.accumulate(change), strict=False)]


def needed(load: Sequence[float], rho: float, low: int, fill: float = 1.0) -> list[int]:
    """Instances needed in each bin, each filled to this share of what it carries."""
    return [max(low, math.ceil(each / rho / fill)) for each in load]


def oracle_seconds(need: Sequence[int], cold_start: float, low: int) -> float:
    """Instance seconds of the cheapest schedule that is never below the need."""
    restart = cold_start + DRAIN
    total = low * len(need) * BIN
    for level in range(low + 1, max(need, default=0) + 1):
        on = [place for place, wanted in enumerate(need) if wanted >= level]
        total += len(on) * BIN + restart
        total += sum(min((after - before - 1) * BIN, restart) for before, after in itertools.pairwise(on))
    return total


def least_seconds(load: Sequence[float], rho: float, cold_start: float, low: int) -> float:
    """Instance seconds of the cheapest schedule in fractions of instances that carries the mean of each minute.

    A fleet that is on for `x` and grows by `u` costs `x` and a restart for `u`: a linear program, in which each level
    is again by itself, on over gaps shorter than a restart and paying one after longer ones. To fill the short gaps of
    all levels at once is to take the highest of so many bins around each, and then the lowest of those.
    """
    means = [sum(load[at : at + MINUTE]) / MINUTE / rho for at in range(0, len(load) - MINUTE + 1, MINUTE)]
    return relaxed(means, MINUTE * BIN, cold_start + DRAIN, low)


def relaxed(need: Sequence[float], width: float, restart: float, low: float) -> float:
    """The optimum of that linear program for bins of this width."""
    bridged = int(restart // width)
    kept = [max(low, wanted) for wanted in closed(need, bridged)]
    grown = sum(max(0.0, after - before) for before, after in itertools.pairwise([low, *kept]))
    return sum(kept) * width + grown * restart


def closed(values: Sequence[float], gap: int) -> list[float]:
    """Values whose valleys of at most `gap` bins are filled to their lower rim."""
    padded = [0.0] * gap + list(values) + [0.0] * gap
    highest = extremes(padded, gap + 1)
    return [-value for value in extremes([-value for value in highest], gap + 1)]


def extremes(values: Sequence[float], width: int) -> list[float]:
    """The highest of every `width` values in a row."""
    best: deque[int] = deque()
    found = []
    for place, value in enumerate(values):
        while best and values[best[-1]] <= value:
            best.pop()
        best.append(place)
        if best[0] <= place - width:
            best.popleft()
        if place >= width - 1:
            found.append(values[best[0]])
    return found


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
