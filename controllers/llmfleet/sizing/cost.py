"""What a fleet costs, from the price of a GPU hour.

In: GPUs at the peak and on average, a price. Out: `Cost`. Prices differ by contract and by day, so none is built in.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmfleet.sizing.plan import Option, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Money, in the currency of the price."""

    peak_hour: float
    mean_hour: float
    million_output: float
    """One million output tokens, prompts included in their price."""
    million_all: float
    """One million tokens, of prompts and answers alike."""


def cost_of(option: Option, work: Workload, price: float) -> Cost:
    """The hour at the peak and at the mean; tokens at the mean, as that is what is paid for."""
    sized = option.sized
    peak, mean = (sized.peak, sized.mean) if sized else (0, 0)
    hour = mean * option.cut.gpus * price
    return Cost(
        peak_hour=peak * option.cut.gpus * price,
        mean_hour=hour,
        million_output=hour / (work.mean_rate * work.output * 3600) * 1e6,
        million_all=hour / (work.mean_rate * (work.prompt + work.output) * 3600) * 1e6,
    )
