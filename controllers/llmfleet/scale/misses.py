"""Which share of requests missed the objective lately.

In: a view, the objective, how many instances were ready. Out: a share between 0 and 1. Engines count times to the
first token and times per token in histograms; where they do, what requests got is what counts, and a fleet that is
overloaded on paper and meets its objective is not called too small. Where they do not, load beyond what ready
instances carry stands for it. What waits in routers has no time yet: while somebody waits there and instances have
more than they carry, everybody counts as late. It never looks at a clock.
"""

from __future__ import annotations

import math

from llmfleet.api.autoscaler import MetricType, Slo
from llmfleet.scale.look import View
from llmfleet.scale.signals import Buckets


def missed_share(view: View, slo: Slo, ready: int) -> float:
    """Share of the requests of this look that missed."""
    over = view.load > ready * view.capacity.rho
    buckets = dict(view.rates.buckets)
    late = beyond(buckets.get(MetricType.TTFT, ()), float(slo.ttft_seconds))
    if late is None or (over and view.queued > 0):
        return float(over)
    slow = beyond(buckets.get(MetricType.TPOT, ()), float(slo.tpot_seconds))
    return min(1.0, late + (slow or 0.0))


def beyond(buckets: Buckets, objective: float) -> float | None:
    """Share of a histogram beyond a value, interpolated as Prometheus does; None when it counted nobody."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    total, low, below = buckets[-1][1], 0.0, 0.0
    for edge, count in buckets:
        if edge >= objective:
            part = 0.0 if math.isinf(edge) else (objective - low) / (edge - low)
            return max(0.0, 1 - (below + part * (count - below)) / total)
        low, below = edge, count
    return 0.0
