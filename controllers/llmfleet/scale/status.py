"""What the status of an autoscaler says.

In: the spec, fleets, a step, what was written before. Out: the whole status. The reason is the decision's own word; in
disaggregated mode the fleet's decision is the one that moved, decode before prefill. It never decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmfleet.api.autoscaler import AutoscalerSpec, Mode, PolicyKind, selector_text
from llmfleet.api.conditions import Condition, ConditionType, build_conditions, timestamp
from llmfleet.api.reasons import DecisionReason as Why
from llmfleet.api.types import Role
from llmfleet.scale.clock import moment
from llmfleet.scale.decide import Decision
from llmfleet.scale.fleet import Fleet
from llmfleet.scale.memory import saved
from llmfleet.scale.replay import Step, headroom
from llmfleet.scale.signals import Evidence

MESSAGE_LIMIT: Final = 8192
DRIFTS: Final = frozenset({"observedMetrics", "decision", "conditions", "learned"})
STILL: Final = frozenset({Why.ON_TARGET, Why.AT_MINIMUM, Why.PENDING_SUFFICES, Why.STABILIZING, Why.COOLING_DOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a status is made from."""

    generation: int
    before: Mapping[str, Any]
    now: float
    scaled: str = ""
    """ScaleUp or ScaleDown when this pass did so."""


def derive_status(spec: AutoscalerSpec, fleets: Mapping[Role, Fleet], step: Step, facts: Facts) -> dict[str, Any]:
    """The status after a step."""
    decision = leading(step.decisions)
    status: dict[str, Any] = {
        "observedGeneration": facts.generation,
        "currentInstances": sum(len(fleet.instances) for fleet in fleets.values()),
        "readyInstances": sum(fleet.ready for fleet in fleets.values()),
        "desiredInstances": sum(one.instances for one in step.decisions.values()),
        "selector": selector_text(spec.selector),
        "observedMetrics": list(observed(step)),
        "decision": shown(decision),
        "learned": [{"role": str(role), **saved(step.memories[role])} for role in sorted(step.memories)],
        "conditions": conditions(spec, fleets, step, facts),
    }
    if spec.mode is Mode.DISAGGREGATED:
        status |= {str(role): role_status(fleets[role], step.decisions[role]) for role in step.decisions}
    return status | last_scale(facts)


def refused_status(error: str, facts: Facts) -> dict[str, Any]:
    """The status of a spec that cannot be used: what was known stays, and the condition says what to write."""
    kept = {key: value for key, value in facts.before.items() if key not in ("conditions", "observedGeneration")}
    wanted = [
        Condition(type=ConditionType.READY, true=False, reason="InvalidSpec", message=error),
        Condition(type=ConditionType.SCALING_ACTIVE, true=False, reason="InvalidSpec", message=error),
        Condition(type=ConditionType.DEGRADED, true=True, reason="InvalidSpec", message=error),
    ]
    found = build_conditions(
        wanted, facts.before.get("conditions") or (), generation=facts.generation, now=moment(facts.now)
    )
    return {**kept, "observedGeneration": facts.generation, "conditions": found}


def leading(decisions: Mapping[Role, Decision]) -> Decision:
    """The decision people should read first: one that moves or is in trouble before one that rests."""
    found = [decisions[role] for role in sorted(decisions)]
    return next((one for one in found if one.reason not in STILL), found[0])


def shown(decision: Decision) -> dict[str, str]:
    return {"reason": str(decision.reason), "message": decision.message[:MESSAGE_LIMIT]}


def role_status(fleet: Fleet, decision: Decision) -> dict[str, Any]:
    return {
        "currentInstances": len(fleet.instances),
        "readyInstances": fleet.ready,
        "desiredInstances": decision.instances,
        "decision": shown(decision),
    }


def observed(step: Step) -> Iterator[dict[str, Any]]:
    """The figures behind a decision."""
    for role in sorted(step.views):
        view = step.views[role]
        base, factor = headroom(step.memories[role], view)
        figures = (
            ("offeredLoad", f"{base / view.capacity.rho:.2f}", "instances"),
            ("loadNow", f"{view.load / view.capacity.rho:.2f}", "instances"),
            ("headroom", f"{factor:.2f}", "ratio"),
            ("waitingRequests", f"{view.waiting + view.queued:.0f}", "requests"),
        )
        for name, value, unit in figures:
            item: dict[str, Any] = {
                "name": name,
                "value": value,
                "unit": unit,
                "ageSeconds": round(max(view.age, 0), 1),
            }
            if role is not Role.BOTH:
                item["role"] = str(role)
            yield item


def conditions(spec: AutoscalerSpec, fleets: Mapping[Role, Fleet], step: Step, facts: Facts) -> list[dict[str, Any]]:
    """Ready, MetricsAvailable, ScalingActive, Degraded."""
    decision = leading(step.decisions)
    wanted = [
        ready_condition(spec, fleets, decision),
        metrics_condition(spec, step, decision),
        active_condition(spec, decision),
        degraded_condition(fleets, decision),
    ]
    before = facts.before.get("conditions") or ()
    return build_conditions(wanted, before, generation=facts.generation, now=moment(facts.now))


def ready_condition(spec: AutoscalerSpec, fleets: Mapping[Role, Fleet], decision: Decision) -> Condition:
    rules = spec.fleets()
    enough = all(fleets[role].ready >= rules[role].min_instances for role in rules)
    parts = [f"{fleets[role].ready} of at least {rules[role].min_instances} ready" for role in sorted(rules)]
    return Condition(type=ConditionType.READY, true=enough, reason=str(decision.reason), message=", ".join(parts))


def metrics_condition(spec: AutoscalerSpec, step: Step, decision: Decision) -> Condition:
    problems = [view.problem for view in step.views.values() if view.evidence not in (Evidence.FULL, Evidence.SETTLING)]
    good = not problems or spec.policy is PolicyKind.EXTERNAL
    message = "" if good else "; ".join(problems)
    return Condition(type=ConditionType.METRICS_AVAILABLE, true=good, reason=str(decision.reason), message=message)


def active_condition(spec: AutoscalerSpec, decision: Decision) -> Condition:
    # An HPA takes a scale of none for zero, and at zero it stays off: it would never set the first number.
    unset = spec.policy is PolicyKind.EXTERNAL and spec.instances is None
    passive = spec.paused or spec.dry_run or unset
    return Condition(
        type=ConditionType.SCALING_ACTIVE, true=not passive, reason=str(decision.reason), message=decision.message
    )


def degraded_condition(fleets: Mapping[Role, Fleet], decision: Decision) -> Condition:
    """Instances that did not start even when they were replaced."""
    stuck = [one.name for fleet in fleets.values() for one in fleet.staying if one.failed and one.replaces]
    if not stuck:
        return Condition(type=ConditionType.DEGRADED, true=False, reason=str(decision.reason))
    message = f"did not start, not even replaced once: {', '.join(stuck)}; see their Ready conditions"
    return Condition(type=ConditionType.DEGRADED, true=True, reason=str(Why.STARTUP_TIMEOUT), message=message)


def last_scale(facts: Facts) -> dict[str, Any]:
    if facts.scaled:
        return {"lastScaleTime": timestamp(moment(facts.now)), "lastScaleAction": facts.scaled}
    return {key: facts.before[key] for key in ("lastScaleTime", "lastScaleAction") if facts.before.get(key)}


def essence(status: Mapping[str, Any]) -> dict[str, Any]:
    """A status without what drifts: figures, messages, times."""
    kept = {key: value for key, value in status.items() if key not in DRIFTS}
    kept["reason"] = (status.get("decision") or {}).get("reason")
    kept["conditions"] = [(item["type"], item["status"], item["reason"]) for item in status.get("conditions") or ()]
    for role in ("prefill", "decode"):
        if kept.get(role):
            kept[role] = {**kept[role], "decision": (kept[role].get("decision") or {}).get("reason")}
    return kept
