"""What each policy asks for, before bounds, windows and steps.

In: a view, the memory, the fleet, its spec. Out: a `Proposal`: how many instances, one reason, one sentence with the
figures. A policy that cannot know proposes what is there. It never looks at bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llmfleet.api.autoscaler import AutoscalerSpec, MetricRule, MetricType, Per, PolicyKind
from llmfleet.api.reasons import DecisionReason as Why
from llmfleet.capacity.capacity import instances_for
from llmfleet.scale.fleet import Fleet
from llmfleet.scale.forecast import forecast
from llmfleet.scale.look import View
from llmfleet.scale.memory import Memory
from llmfleet.scale.signals import Buckets, Evidence
from llmfleet.scale.work import Rates, total

SLACK: Final = 0.1
"""A tenth of an instance is within the noise of a forecast: it is not worth another one."""
LEAD_EXTRA: Final = 45.0
"""A look, a decision and a scrape lie between demand and the instance that answers it."""
SHORTEST_LEAD: Final = 60.0
P95: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A wish with its reason."""

    instances: int
    reason: Why
    message: str
    shrinks: bool = True
    """Whether the figures behind it allow fewer instances than there are."""


def lead_of(spec: AutoscalerSpec, fleet: Fleet) -> float:
    """From a decision to a ready instance, in seconds."""
    return max(SHORTEST_LEAD, (spec.work_budget.cold_start_seconds or fleet.cold_start) + LEAD_EXTRA)


def whole(instances: float) -> int:
    """Instances one can have."""
    return max(0, math.ceil(instances - SLACK))


def propose(spec: AutoscalerSpec, rules: tuple[MetricRule, ...], fleet: Fleet, memory: Memory, view: View) -> Proposal:
    """What the policy of the spec asks for."""
    if spec.policy is PolicyKind.EXTERNAL:
        return external(spec, fleet)
    if not view.evidence.whole:
        return lower_bound(fleet, view)
    if spec.policy is PolicyKind.METRICS:
        return thresholds(rules, fleet, memory, view)
    return work_budget(spec, fleet, memory, view)


def external(spec: AutoscalerSpec, fleet: Fleet) -> Proposal:
    """What an HPA or KEDA wrote to the scale subresource."""
    if spec.instances is None:
        message = "nobody has set spec.instances, and an HPA stays off until somebody does: kubectl scale --replicas=N"
        return Proposal(instances=fleet.size, reason=Why.ON_TARGET, message=message)
    message = f"spec.instances asks for {spec.instances}"
    return Proposal(instances=spec.instances, reason=Why.EXTERNAL_TARGET, message=message)


def lower_bound(fleet: Fleet, view: View) -> Proposal:
    """With engines missing, only what is certainly there counts: it can ask for more, never for less."""
    least = whole(instances_for(view.load, view.shape, view.capacity))
    if least > fleet.size:
        message = f"{view.problem}; the load that is known needs {least} already"
        return Proposal(instances=least, reason=Why.LOWER_BOUND_ABOVE_CAPACITY, message=message, shrinks=False)
    reason = Why.PENDING_SUFFICES if view.evidence is Evidence.SETTLING else Why.SIGNALS_STALE
    return Proposal(instances=fleet.size, reason=reason, message=f"{view.problem}, holding", shrinks=False)


def work_budget(spec: AutoscalerSpec, fleet: Fleet, memory: Memory, view: View) -> Proposal:
    """Enough for the peak expected within a cold start, and for what is there now."""
    lead, expected = lead_of(spec, fleet), forecast(memory, view.now, view.capacity.rho)
    ahead = instances_for(expected.peak, view.shape, view.capacity)
    present = instances_for(view.load + view.backlog / lead, view.shape, view.capacity)
    wanted = whole(max(ahead, present))
    rho = view.capacity.rho
    figures = (
        f"offered load {expected.base / rho:.2f} instances, headroom x{expected.headroom:.2f} over {lead:.0f} s lead"
    )
    reason = Why.FORECAST_ABOVE_CAPACITY
    if present > ahead:
        reason = Why.QUEUE_ABOVE_CAPACITY
        figures = f"load now {view.load / rho:.2f} instances and {view.waiting + view.queued:.0f} requests waiting"
    if view.problem:
        figures += f" ({view.problem})"
    shrinks = view.evidence is Evidence.FULL and fleet.ready > 0
    return Proposal(instances=wanted, reason=reason, message=f"{figures} -> {wanted}", shrinks=shrinks)


def thresholds(rules: tuple[MetricRule, ...], fleet: Fleet, memory: Memory, view: View) -> Proposal:
    """Up when any metric is above its threshold, down when all are below theirs."""
    values = [(rule, value_of(rule, fleet, memory, view)) for rule in rules]
    above = [(rule, value) for rule, value in values if value is not None and value > float(rule.threshold.scale_up)]
    if above:
        rule, value = max(above, key=lambda one: one[1] / max(float(one[0].threshold.scale_up), 1e-9))
        ratio = value / max(float(rule.threshold.scale_up), 1e-9)
        wanted = max(fleet.size, fleet.ready + 1, whole(max(fleet.ready, 1) * min(ratio, 1000.0)))
        message = f"{rule.type} is {value:.4g}, above {rule.threshold.scale_up} -> {wanted}"
        return Proposal(instances=wanted, reason=Why.METRIC_ABOVE_THRESHOLD, message=message, shrinks=False)
    unknown = [str(rule.type) for rule, value in values if value is None]
    if unknown:
        message = f"no figure for {', '.join(unknown)}, holding"
        return Proposal(instances=fleet.size, reason=Why.SIGNALS_STALE, message=message, shrinks=False)
    if fleet.size and not fleet.ready:
        message = "no instance is ready, holding"
        return Proposal(instances=fleet.size, reason=Why.PENDING_SUFFICES, message=message, shrinks=False)
    known = [(rule, value) for rule, value in values if value is not None]
    shown = ", ".join(f"{rule.type} {value:.4g}" for rule, value in known)
    if view.evidence is Evidence.FULL and all(value < float(rule.threshold.scale_down) for rule, value in known):
        share = max(value / max(float(rule.threshold.scale_down), 1e-9) for rule, value in known)
        fewer = min(fleet.size - 1, math.ceil(fleet.size * share))
        message = f"all below scaleDown: {shown} -> {fewer}"
        return Proposal(instances=fewer, reason=Why.ALL_METRICS_BELOW_THRESHOLD, message=message)
    return Proposal(instances=fleet.size, reason=Why.ON_TARGET, message=f"between thresholds: {shown}")


def value_of(rule: MetricRule, fleet: Fleet, memory: Memory, view: View) -> float | None:
    """A metric's value now; None when it is not known."""
    if rule.type in (MetricType.GPU_UTILIZATION, MetricType.CUSTOM):
        value = view.external.get(rule.query or str(rule.type))
        return value if value is not None and math.isfinite(value) else None
    points = [point for point in memory.points if point.at > view.now - rule.window_seconds]
    if not points:
        return None
    recent = [point.rates for point in points]
    window = total(recent, view.now)
    if rule.type in (MetricType.TTFT, MetricType.TPOT, MetricType.REQUEST_LATENCY):
        # An engine that counts no such thing is not one that is never slow.
        buckets = dict(window.buckets).get(rule.type)
        return percentile(buckets, P95, quiet=all(point.quiet for point in points)) if buckets is not None else None
    value = GAUGES[rule.type](view, window, len(recent))
    return value / max(fleet.ready, 1) if rule.per is Per.INSTANCE and rule.type not in MEANS else value


GAUGES: Final[Mapping[MetricType, Callable[[View, Rates, int], float]]] = {
    MetricType.QUEUE_LENGTH: lambda view, window, looks: view.waiting + view.queued,
    MetricType.RUNNING_REQUESTS: lambda view, window, looks: window.running / looks,
    MetricType.REQUEST_RATE: lambda view, window, looks: window.finished / looks,
    MetricType.TOKEN_RATE: lambda view, window, looks: window.generated / looks,
    MetricType.KV_CACHE_UTILIZATION: lambda view, window, looks: view.rates.kv_usage,
}
MEANS: Final = frozenset({MetricType.KV_CACHE_UTILIZATION})


def percentile(buckets: Buckets, share: float, *, quiet: bool) -> float | None:
    """Upper estimate of a percentile, interpolated as Prometheus does; 0 when nobody asked for anything.

    A histogram counts a request when it has its answer: an empty one of a fleet that is at work says that nobody has
    got one, which is no latency of zero.
    """
    if not buckets or buckets[-1][1] <= 0:
        return 0.0 if quiet else None
    rank, low, below = share * buckets[-1][1], 0.0, 0.0
    for edge, count in buckets:
        if count >= rank:
            if math.isinf(edge):
                return low
            return low + (edge - low) * ((rank - below) / (count - below) if count > below else 1.0)
        low, below = edge, count
    return low
