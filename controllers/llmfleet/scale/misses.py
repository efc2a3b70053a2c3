"""Which share of requests missed the objective lately.

In: a view, the objective, how many instances were ready. Out: a share between 0 and 1. Engines count times to the
first token and times per token in histograms; where they do, what requests got is what counts, and a fleet that is
overloaded on paper and meets its objective is not called too small. Where they do not, load beyond what ready
instances carry stands for it. What waits in routers has no time yet: while somebody waits there and instances have
more than they carry, everybody counts as late. It never looks at a clock.
"""

from __future__ import annotations

import math
from typing import Final

from llmfleet.api.autoscaler import MetricType, Slo
from llmfleet.scale.look import View
from llmfleet.scale.signals import Buckets

EMPTY: Final = 0.01


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
    """Share of a histogram beyond a value; None when it counted nobody.

    Between two edges the share falls geometrically, as tails do: vLLM's edges around two seconds are 1.0 and 2.5, and
    a straight line between them calls a third of those above one second late. An empty bucket above counts as a
    hundredth of the one before it, so that a full bucket around the objective is never taken for nobody.
    """
    if not buckets or buckets[-1][1] <= 0:
        return None
    total, low, above = buckets[-1][1], 0.0, 1.0
    for edge, count in buckets:
        over = max(0.0, 1 - count / total)
        if edge == objective:
            return over
        if edge > objective:
            part = 0.0 if math.isinf(edge) else (objective - low) / (edge - low)
            return above * max(over / above, EMPTY) ** part if above > 0 else 0.0
        low, above = edge, over
    return above
