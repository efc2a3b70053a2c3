"""How many instances a fleet should have, and the one reason for it.

In: a proposal, the fleet, bounds and behavior, the memory, `now`. Out: a `Decision`. Each step takes a draft and
returns one: floors, then windows, then steps, then bounds, which always hold. What is decided is a level: asking twice
changes nothing. It never writes, waits or looks at a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from llmfleet.api.autoscaler import AutoscalerSpec, PolicyKind, RoleFleet, Window
from llmfleet.api.cron import is_open
from llmfleet.api.reasons import DecisionReason as Why
from llmfleet.api.types import Role
from llmfleet.scale.clock import moment
from llmfleet.scale.fleet import Fleet
from llmfleet.scale.look import View
from llmfleet.scale.memory import Memory, Wish
from llmfleet.scale.propose import Proposal
from llmfleet.scale.signals import Evidence

WISHES_KEPT: Final = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The size of a fleet, one word why, and one sentence with the figures."""

    instances: int
    reason: Why
    message: str


def decide(
    spec: AutoscalerSpec, rules: RoleFleet, fleet: Fleet, proposal: Proposal, memory: Memory, view: View
) -> tuple[Decision, Memory]:
    """From a wish to a size."""
    if spec.paused:
        return Decision(instances=fleet.size, reason=Why.PAUSED, message="spec.paused is true, holding"), memory
    proposal = with_schedule(proposal, spec.work_budget.forecast.schedule, fleet.role, view.now)
    proposal = around_zero(proposal, spec, rules, fleet, memory, view)
    memory = replace(memory, wishes=remembered(memory.wishes, proposal, rules, fleet, view.now))
    if proposal.instances > fleet.size:
        draft = grow(proposal, rules, fleet, memory, view.now)
    elif proposal.instances < fleet.size:
        draft = shrink(spec, proposal, rules, fleet, memory, view.now)
    else:
        draft = stay(proposal, fleet)
    return bounded(draft, rules, fleet, proposal), memory


def remembered(
    wishes: tuple[Wish, ...], proposal: Proposal, rules: RoleFleet, fleet: Fleet, now: float
) -> tuple[Wish, ...]:
    """The wishes of the longer of the two windows; one that may not shrink asked for no less than there was."""
    up, down = rules.behavior.scale_up, rules.behavior.scale_down
    window = max(up.stabilization_seconds or 0, down.stabilization_seconds or 0)
    kept = tuple(wish for wish in wishes if wish.at > now - min(window, WISHES_KEPT) - 1)
    least = 0 if proposal.shrinks else fleet.size
    return (*kept, Wish(at=now, instances=max(proposal.instances, least)))


def with_schedule(proposal: Proposal, schedule: Iterable[Window], role: Role, now: float) -> Proposal:
    """A known peak is a floor, never an estimate."""
    floors = [
        (window.min_instances, window.name)
        for window in schedule
        if window.role in (None, role) and is_open(window.start, window.end, window.time_zone, moment(now))
    ]
    floor, name = max(floors, default=(0, ""))
    if floor <= proposal.instances:
        return proposal
    message = f"schedule {name} asks for at least {floor}; otherwise: {proposal.message}"
    return replace(proposal, instances=floor, reason=Why.SCHEDULE_FLOOR, message=message)


def around_zero(
    proposal: Proposal, spec: AutoscalerSpec, rules: RoleFleet, fleet: Fleet, memory: Memory, view: View
) -> Proposal:
    """The last instance goes only after nobody asked for long; the first comes back for one request."""
    if rules.min_instances > 0 or spec.policy is PolicyKind.EXTERNAL or proposal.reason is Why.SCHEDULE_FLOOR:
        return proposal
    after = spec.scale_to_zero.after_seconds
    if fleet.size == 0:
        if view.demand:
            return replace(
                proposal, instances=max(1, proposal.instances), reason=Why.WOKEN_BY_REQUEST, message="a request waits"
            )
        return replace(proposal, instances=0, reason=Why.AT_MINIMUM, message="asleep: nobody asks for the model")
    idle = view.now - max(memory.busy, memory.since)
    # Routers know of silence also while no engine is ready.
    silence = proposal.shrinks or (fleet.ready == 0 and view.evidence is Evidence.FULL)
    if after and silence and idle >= after:
        message = f"nobody asked for the model for {idle:.0f} s (scaleToZero.afterSeconds {after})"
        return replace(proposal, instances=0, reason=Why.IDLE_TO_ZERO, message=message, shrinks=True)
    if proposal.instances < 1:
        return replace(proposal, instances=1)
    return proposal


def grow(proposal: Proposal, rules: RoleFleet, fleet: Fleet, memory: Memory, now: float) -> Decision:
    """Up by what held for the whole window, after the cooldown, by at most a step."""
    limits = rules.behavior.scale_up
    if proposal.reason is Why.EXTERNAL_TARGET:
        return Decision(instances=proposal.instances, reason=proposal.reason, message=proposal.message)
    if proposal.reason is Why.WOKEN_BY_REQUEST:
        # A held request does not live as long as a window or a cooldown.
        instances = min(proposal.instances, limits.step or 1)
        return Decision(instances=instances, reason=proposal.reason, message=proposal.message)
    window = limits.stabilization_seconds or 0
    wanted = proposal.instances
    if window:
        held = [wish.instances for wish in memory.wishes if wish.at > now - window - 1]
        wanted = min(held) if now - memory.since >= window else fleet.size
        if wanted <= fleet.size:
            message = f"{proposal.message}; must hold for {window} s"
            return Decision(instances=fleet.size, reason=Why.STABILIZING, message=message)
    if now - memory.scaled_up < (limits.cooldown_seconds or 0):
        message = (
            f"{proposal.message}; scaled up {now - memory.scaled_up:.0f} s ago, cooldown {limits.cooldown_seconds} s"
        )
        return Decision(instances=fleet.size, reason=Why.COOLING_DOWN, message=message)
    instances = min(wanted, fleet.size + (limits.step or 1))
    return Decision(instances=instances, reason=proposal.reason, message=proposal.message)


def shrink(
    spec: AutoscalerSpec, proposal: Proposal, rules: RoleFleet, fleet: Fleet, memory: Memory, now: float
) -> Decision:
    """Down to the most that any look of the window asked for, after the cooldown, by at most a step."""
    limits = rules.behavior.scale_down
    if not proposal.shrinks:
        message = f"{proposal.message}; not enough is known to shrink, holding {fleet.size}"
        return Decision(instances=fleet.size, reason=Why.SIGNALS_STALE, message=message)
    if proposal.reason in (Why.EXTERNAL_TARGET, Why.IDLE_TO_ZERO):
        return Decision(instances=proposal.instances, reason=proposal.reason, message=proposal.message)
    window = limits.stabilization_seconds or 0
    wanted = max((wish.instances for wish in memory.wishes if wish.at > now - window - 1), default=proposal.instances)
    if now - memory.since < window or wanted >= fleet.size:
        message = f"{proposal.message}; surplus must last {window} s"
        return Decision(instances=fleet.size, reason=Why.STABILIZING, message=message)
    last = max(memory.scaled_down, memory.scaled_up)
    if now - last < (limits.cooldown_seconds or 0):
        message = f"{proposal.message}; scaled {now - last:.0f} s ago, cooldown {limits.cooldown_seconds} s"
        return Decision(instances=fleet.size, reason=Why.COOLING_DOWN, message=message)
    reason = proposal.reason if spec.policy is PolicyKind.METRICS else Why.SUSTAINED_SURPLUS
    if proposal.reason is Why.SCHEDULE_FLOOR:
        reason = Why.SUSTAINED_SURPLUS
    instances = max(wanted, fleet.size - (limits.step or 1))
    return Decision(instances=instances, reason=reason, message=f"{proposal.message} for {window} s")


def stay(proposal: Proposal, fleet: Fleet) -> Decision:
    """The fleet has what is asked for, or will have when its new instances are ready."""
    kept = (Why.FORECAST_ABOVE_CAPACITY, Why.QUEUE_ABOVE_CAPACITY, Why.METRIC_ABOVE_THRESHOLD, Why.WOKEN_BY_REQUEST)
    reason = proposal.reason
    if reason in kept:
        reason = Why.PENDING_SUFFICES if fleet.ready < fleet.size else Why.ON_TARGET
    return Decision(instances=fleet.size, reason=reason, message=proposal.message)


def bounded(decision: Decision, rules: RoleFleet, fleet: Fleet, proposal: Proposal) -> Decision:
    """Bounds last, so that nothing before has to know them. They hold at once: no window, no step."""
    low, high = rules.min_instances, rules.max_instances
    within = min(max(decision.instances, low), high)
    message = f"{decision.message}; bounds {low}..{high}"
    if fleet.size <= low and (within > decision.instances or proposal.instances < low):
        return Decision(instances=within, reason=Why.AT_MINIMUM, message=message)
    if within < decision.instances or (within == high and proposal.instances > high):
        return Decision(instances=within, reason=Why.AT_MAXIMUM, message=message)
    return replace(decision, instances=within, message=message)
