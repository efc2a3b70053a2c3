"""One step of an autoscaler: what was seen becomes decisions. The controller, the simulator and the tests all call it.

In: the spec, the fleets by role, what was seen of each, memories, `now` in seconds since the epoch. Out: decisions by
role and new memories. The same inputs give the same bytes, whoever calls: a recorded day can be replayed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmfleet.api.autoscaler import AutoscalerSpec, RoleFleet, parse_template
from llmfleet.api.reasons import DecisionReason as Why
from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity, build_capacity
from llmfleet.kube.refs import Manifest
from llmfleet.scale import ratio
from llmfleet.scale.decide import Decision, decide
from llmfleet.scale.fleet import Fleet, seconds_of, shape_of
from llmfleet.scale.forecast import adapt, forecast, fresh
from llmfleet.scale.look import View, look
from llmfleet.scale.memory import Memory, about, begin, restored
from llmfleet.scale.misses import missed_share
from llmfleet.scale.propose import lead_of, propose
from llmfleet.scale.signals import Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step decided, what it saw, and what it will remember."""

    decisions: Mapping[Role, Decision]
    views: Mapping[Role, View]
    memories: Mapping[Role, Memory]
    ready_may_go: Mapping[Role, int]
    """Most ready instances of a role that may be deleted now; a role that is not in it has no such limit."""


def step(
    spec: AutoscalerSpec,
    fleets: Mapping[Role, Fleet],
    seen: Mapping[Role, Observation],
    capacities: Mapping[Role, Capacity],
    memories: Mapping[Role, Memory],
    now: float,
) -> Step:
    """Decide once for every fleet of a spec."""
    decisions: dict[Role, Decision] = {}
    views: dict[Role, View] = {}
    kept: dict[Role, Memory] = {}
    for role, rules in spec.fleets().items():
        memory = memories.get(role) or begin(now)
        decisions[role], views[role], kept[role] = step_role(
            spec, rules, fleets[role], seen[role], capacities[role], memory, now
        )
    if Role.PREFILL in decisions:
        decisions = in_proportion(spec, fleets, decisions)
    if spec.dry_run:
        decisions = {role: only_said(decision) for role, decision in decisions.items()}
    return Step(decisions=decisions, views=views, memories=kept, ready_may_go=spare(spec, fleets))


def step_role(
    spec: AutoscalerSpec,
    rules: RoleFleet,
    fleet: Fleet,
    seen: Observation,
    capacity: Capacity,
    memory: Memory,
    now: float,
) -> tuple[Decision, View, Memory]:
    """Look, learn whether there was enough, propose, decide."""
    window = max([float(rule.window_seconds) for rule in rules.metrics], default=0.0)
    memory = fresh(memory, float(spec.work_budget.slo.error_budget))
    memory, view = look(
        about(memory, table_of(capacity, rules.instance_template.spec)),
        seen,
        role=fleet.role,
        capacity=capacity,
        now=now,
        lead=lead_of(spec, fleet),
        window=window,
        keep=float(spec.work_budget.forecast.lookback_seconds),
    )
    if view.evidence.whole and fleet.ready:
        missed = missed_share(view, spec.work_budget.slo, fleet.ready)
        memory = adapt(memory, missed=missed, budget=float(spec.work_budget.slo.error_budget))
    proposal = propose(spec, rules.metrics, fleet, memory, view)
    decision, memory = decide(spec, rules, fleet, proposal, memory, view)
    return decision, view, memory


def table_of(capacity: Capacity, template: Mapping[str, Any]) -> str:
    """In short, what factors are learned about: the table, whether it is a guess, and whose engines it is for."""
    described = (capacity.steps, capacity.known, template.get("model"), shape_of(template))
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def in_proportion(
    spec: AutoscalerSpec, fleets: Mapping[Role, Fleet], decisions: Mapping[Role, Decision]
) -> dict[Role, Decision]:
    """Both decisions within the ratio, and prefill no further than decode is ready for."""
    if spec.paused:
        return dict(decisions)
    most, decode_rules = spec.coordination.max_prefill_per_decode, spec.fleets()[Role.DECODE]
    prefill, decode = ratio.coordinate(decisions[Role.PREFILL], decisions[Role.DECODE], decode_rules, most)
    decode = room_for_another_shape(spec, fleets, prefill, decode)
    have = fleets[Role.PREFILL].size
    allowed = max(have, ratio.prefill_allowed(fleets[Role.DECODE], most))
    if prefill.instances > allowed:
        ready = fleets[Role.DECODE].ready
        message = (
            f"{allowed} until more than {ready} decode instances are ready (at most {most} to 1); {prefill.message}"
        )
        prefill = replace(prefill, instances=allowed, reason=Why.RATIO_HELD_PREFILL, message=message)
    return {Role.PREFILL: prefill, Role.DECODE: decode}


def room_for_another_shape(
    spec: AutoscalerSpec, fleets: Mapping[Role, Fleet], prefill: Decision, decode: Decision
) -> Decision:
    """The last prefill instance of an old shape goes only when the new one is ready: decode has to carry both."""
    old, rules = fleets[Role.PREFILL], spec.fleets()
    surge, most = rules[Role.PREFILL].behavior.max_surge, spec.coordination.max_prefill_per_decode
    settled = not fleets[Role.DECODE].surge and not any(one.outdated for one in fleets[Role.DECODE].staying)
    needed = math.ceil((prefill.instances + 1) / most)
    lone = old.size == prefill.instances == 1 and any(one.outdated and one.ours for one in old.staying)
    if not (lone and surge and settled) or needed <= decode.instances:
        return decode
    message = f"a prefill instance of another shape needs {needed} decode (at most {most} to 1); {decode.message}"
    return Decision(instances=needed, reason=Why.RATIO_RAISED_DECODE, message=message)


def spare(spec: AutoscalerSpec, fleets: Mapping[Role, Fleet]) -> dict[Role, int]:
    """How many ready decode instances may go without breaking the ratio now."""
    if Role.DECODE not in fleets:
        return {}
    most = spec.coordination.max_prefill_per_decode
    return {Role.DECODE: ratio.decode_spare(fleets[Role.PREFILL], fleets[Role.DECODE], most)}


def room(spec: AutoscalerSpec, fleets: Mapping[Role, Fleet], decisions: Mapping[Role, Decision]) -> dict[Role, int]:
    """How many prefill instances may be made without breaking the ratio once they are ready."""
    if Role.PREFILL not in fleets:
        return {}
    decode = fleets[Role.DECODE]
    # Decode instances that will go, by decision or because another takes their place, carry nobody any more.
    lasting = min(decode.ready, decode.size, decisions[Role.DECODE].instances)
    allowed = lasting * spec.coordination.max_prefill_per_decode
    return {Role.PREFILL: max(0, allowed - len(fleets[Role.PREFILL].instances))}


def only_said(decision: Decision) -> Decision:
    """A decision that nobody will carry out."""
    return replace(decision, reason=Why.DRY_RUN, message=f"would be {decision.reason}: {decision.message}")


def acted(memory: Memory, *, grew: bool, shrank: bool, now: float) -> Memory:
    """The memory after a plan was carried out: cooldowns count from here."""
    return replace(
        memory,
        scaled_up=now if grew else memory.scaled_up,
        scaled_down=now if shrank else memory.scaled_down,
    )


def headroom(memory: Memory, view: View) -> tuple[float, float]:
    """Base and headroom of the present forecast, for people."""
    found = forecast(memory, view.now, view.capacity.rho)
    return found.base, found.headroom


def capacities(spec: AutoscalerSpec) -> dict[Role, Capacity]:
    """What an instance of each role can do, before anything was learned."""
    return {
        role: build_capacity(parse_template(rules.instance_template, "spec"), spec.work_budget)
        for role, rules in spec.fleets().items()
    }


def first_memory(scaler: Manifest, role: Role, now: float) -> Memory:
    """A new memory that knows what the status kept: when the fleet was scaled last, and what was learned before."""
    status = scaler.get("status") or {}
    kept = next((item for item in status.get("learned") or () if item.get("role") == role), None)
    memory = restored(begin(now), kept)
    at, action = seconds_of(status.get("lastScaleTime")), status.get("lastScaleAction")
    if not at:
        return memory
    return acted(memory, grew=action == "ScaleUp", shrank=action == "ScaleDown", now=min(at, now))
