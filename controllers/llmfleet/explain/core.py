"""Say why a fleet has its size, and what would change it, from what is written in the cluster.

In: one LLMClusterAutoscaler, the LLMClusters it counts, its events, `now`. Out: an `Explanation`. The thresholds it
names follow from the figures in the status by the autoscaler's own arithmetic; a test drives the real controller over
and under them. It never talks to anything and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llmfleet import names
from llmfleet.api.autoscaler import AutoscalerSpec, PolicyKind, RoleFleet, parse_autoscaler
from llmfleet.api.conditions import ConditionType, find_condition
from llmfleet.api.cron import is_open
from llmfleet.api.parse import SpecError
from llmfleet.api.reasons import Reason
from llmfleet.api.types import Role
from llmfleet.explain.words import words_of
from llmfleet.kube.refs import Manifest
from llmfleet.scale.propose import SLACK

LAST: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure behind the decision."""

    name: str
    value: str
    unit: str = ""
    age: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """One fleet: its size, why, and what would change it."""

    role: str
    current: int
    ready: int
    desired: int
    least: int
    most: int
    reason: str
    message: str
    means: str
    do: str
    figures: tuple[Figure, ...]
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceView:
    """One instance that is counted."""

    name: str
    role: str
    state: str
    """Reason of its Ready condition."""
    ready: bool
    message: str
    age: float
    """Seconds since it was created."""
    own: bool
    """Whether this autoscaler made it, and so may take it away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Something it did or could not do."""

    at: datetime | None
    reason: str
    action: str
    note: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All there is to say about one autoscaler."""

    namespace: str
    name: str
    mode: str
    policy: str
    fleets: tuple[FleetView, ...]
    instances: tuple[InstanceView, ...]
    problems: tuple[str, ...]
    past: tuple[Past, ...]
    scaled: str
    """When and how it last changed the fleet; empty: never."""


def explain(scaler: Manifest, clusters: Sequence[Manifest], events: Sequence[Manifest], now: datetime) -> Explanation:
    """Read one autoscaler as a person would, and say it in order."""
    metadata, raw, status = scaler["metadata"], scaler.get("spec") or {}, scaler.get("status") or {}
    spec, fault = read_spec(raw)
    return Explanation(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        mode=str(raw.get("mode", "")),
        policy=str(spec.policy if spec else raw.get("policy", "")),
        fleets=tuple(fleet_views(spec, raw, status, now)),
        instances=tuple(instance_view(obj, metadata, now) for obj in sorted(clusters, key=by_name)),
        problems=tuple(problems(scaler, fault)),
        past=tuple(sorted((past_of(one) for one in events), key=newest_first)[:LAST]),
        scaled=last_scale(status, now),
    )


def read_spec(raw: object) -> tuple[AutoscalerSpec | None, str]:
    try:
        return parse_autoscaler(raw), ""
    except SpecError as error:
        return None, str(error)


def fleet_views(
    spec: AutoscalerSpec | None, raw: Mapping[str, Any], status: Mapping[str, Any], now: datetime
) -> Iterator[FleetView]:
    """The fleets of the spec; one without rules when the spec cannot be read."""
    fleets = spec.fleets() if spec else {}
    if spec is None or not fleets:
        decision = status.get("decision") or {}
        ready = find_condition(status, ConditionType.READY)
        reason = str(ready.get("reason") or decision.get("reason") or "")
        yield view(Role.BOTH, None, status, reason, str(ready.get("message", "")), (), ())
        return
    refusal = refusal_of(status)
    for role, rules in sorted(fleets.items()):
        part = status if role is Role.BOTH else status.get(str(role)) or {}
        if refusal:
            # What is there stays, so that is what is wanted; decision and figures are of before.
            stays = {**part, "desiredInstances": part.get("currentInstances")}
            yield view(role, rules, stays, Reason.INVALID_SPEC, str(refusal.get("message", "")), (), ())
            continue
        decision = part.get("decision") or {}
        figures = tuple(figures_of(status, role))
        changes = tuple(changes_of(spec, role, rules, part, figures, now)) if decision else ()
        reason, message = str(decision.get("reason", "")), str(decision.get("message", ""))
        yield view(role, rules, part, reason, message, figures, changes)


def refusal_of(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """The Ready condition of one that an autoscaler refused, also for what no single spec shows: a rival."""
    ready = find_condition(status, ConditionType.READY)
    return ready if ready.get("reason") == Reason.INVALID_SPEC else {}


def view(
    role: Role,
    rules: RoleFleet | None,
    part: Mapping[str, Any],
    reason: str,
    message: str,
    figures: tuple[Figure, ...],
    changes: tuple[str, ...],
) -> FleetView:
    words = words_of(reason)
    return FleetView(
        role=str(role),
        current=int(part.get("currentInstances") or 0),
        ready=int(part.get("readyInstances") or 0),
        desired=int(part.get("desiredInstances") or 0),
        least=rules.min_instances if rules else 0,
        most=rules.max_instances if rules else 0,
        reason=reason,
        message=message,
        means=words.means,
        do=words.do,
        figures=figures,
        changes=changes,
    )


def figures_of(status: Mapping[str, Any], role: Role) -> Iterator[Figure]:
    for item in status.get("observedMetrics") or ():
        if item.get("role", str(Role.BOTH)) == str(role):
            yield Figure(
                name=str(item.get("name", "")),
                value=str(item.get("value", "")),
                unit=str(item.get("unit", "")),
                age=seconds(item.get("ageSeconds")),
            )


def seconds(said: object) -> float:
    """An age as it is written; one that is no number says nothing, and ends no explanation."""
    return float(said) if isinstance(said, (int, float)) else 0.0


def changes_of(
    spec: AutoscalerSpec,
    role: Role,
    rules: RoleFleet,
    part: Mapping[str, Any],
    figures: Sequence[Figure],
    now: datetime,
) -> Iterator[str]:
    """What would make the next decision another one."""
    desired = int(part.get("desiredInstances") or 0)
    if spec.paused:
        yield "nothing, while spec.paused is true"
        return
    if spec.policy is PolicyKind.EXTERNAL:
        yield "another spec.instances: kubectl scale llmca NAME --replicas=N, or the HPA or KEDA object that owns it"
    elif spec.policy is PolicyKind.METRICS:
        yield from by_thresholds(rules)
    else:
        yield from by_load(spec, rules, desired, figures)
    yield from by_schedule(spec, role, desired, now)
    yield from by_bounds(spec, rules, desired)
    if spec.dry_run:
        yield "spec.dryRun: false, for any of it to happen"


def by_load(spec: AutoscalerSpec, rules: RoleFleet, desired: int, figures: Sequence[Figure]) -> Iterator[str]:
    """The loads at which the work budget asks for one more and one fewer: n instances are enough for n + SLACK."""
    known = {one.name: one.value for one in figures}
    try:
        offered, headroom, current = (float(known[name]) for name in ("offeredLoad", "headroom", "loadNow"))
    except (KeyError, ValueError):
        return
    factor = max(headroom, 1.0)
    if desired < rules.max_instances:
        yield (
            f"more: offered load above {(desired + SLACK) / factor:.2f} instances (now {offered:.2f}, times headroom"
            f" {headroom:.2f}), or a load above {desired + SLACK:.2f} at this moment (now {current:.2f}); a full KV"
            " cache or full slots can ask for more earlier"
        )
    if desired > max(rules.min_instances, 1):
        window = rules.behavior.scale_down.stabilization_seconds or 0
        yield (
            f"fewer: offered load below {(desired - 1 + SLACK) / factor:.2f} instances and nothing above"
            f" {desired - 1 + SLACK:.2f}, for {window} s"
        )
    if rules.min_instances == 0 and desired <= 1 and spec.scale_to_zero.after_seconds:
        yield f"none: no request for {spec.scale_to_zero.after_seconds} s"


def by_thresholds(rules: RoleFleet) -> Iterator[str]:
    up = " or ".join(f"{rule.type} above {rule.threshold.scale_up}" for rule in rules.metrics)
    down = " and ".join(f"{rule.type} below {rule.threshold.scale_down}" for rule in rules.metrics)
    window = rules.behavior.scale_down.stabilization_seconds or 0
    yield f"more: {up}"
    yield f"fewer: {down}, for {window} s"


def by_schedule(spec: AutoscalerSpec, role: Role, desired: int, now: datetime) -> Iterator[str]:
    for window in spec.work_budget.forecast.schedule:
        if window.role not in (None, role):
            continue
        if is_open(window.start, window.end, window.time_zone, now):
            closing = f"until {window.end} ({window.time_zone})"
            yield f"schedule {window.name} is open and keeps at least {window.min_instances} {closing}"
        elif window.min_instances > desired:
            yield f"schedule {window.name} asks for {window.min_instances} from {window.start} ({window.time_zone})"


def by_bounds(spec: AutoscalerSpec, rules: RoleFleet, desired: int) -> Iterator[str]:
    if desired >= rules.max_instances:
        yield f"more than {rules.max_instances}: only a larger maxInstances"
    if desired <= rules.min_instances:
        yield f"fewer than {rules.min_instances}: only a smaller minInstances"
    if desired < rules.max_instances and spec.policy is PolicyKind.WORK_BUDGET:
        yield (
            f"less headroom for bursts: a larger workBudget.slo.errorBudget (now {spec.work_budget.slo.error_budget});"
            " more: a smaller one"
        )


def instance_view(obj: Manifest, scaler: Mapping[str, Any], now: datetime) -> InstanceView:
    metadata, status = obj["metadata"], obj.get("status") or {}
    ready = find_condition(status, ConditionType.READY)
    leaving = bool(metadata.get("deletionTimestamp"))
    created = when(metadata.get("creationTimestamp"))
    owners = {owner.get("uid") for owner in metadata.get("ownerReferences") or ()}
    return InstanceView(
        name=metadata["name"],
        role=str((obj.get("spec") or {}).get("role") or Role.BOTH),
        state="Leaving" if leaving else str(ready.get("reason") or "Pending"),
        ready=ready.get("status") == "True",
        message=str(ready.get("message", "")),
        age=(now - created).total_seconds() if created else 0.0,
        own=scaler.get("uid") in owners,
    )


def problems(scaler: Manifest, fault: str) -> Iterator[str]:
    """What a reader must know before anything else."""
    metadata, status = scaler["metadata"], scaler.get("status") or {}
    if fault:
        yield f"the spec cannot be used: {fault}"
    if metadata.get("deletionTimestamp"):
        yield "it is being deleted"
    refused, decided = bool(refusal_of(status)), (status.get("decision") or {}).get("reason")
    if refused:
        last = f"; its last decision, {decided}, is of before" if decided else ""
        yield f"it is refused ({Reason.INVALID_SPEC}): nothing is decided until that is mended{last}"
    if not decided and not fault and not refused:
        yield "it has no decision yet: no autoscaler follows it, or none has looked"
    observed, generation = status.get("observedGeneration", -1), metadata.get("generation", 0)
    if status and isinstance(observed, int) and 0 <= observed < generation:
        yield f"the status is of generation {observed}, the spec is at {generation}: the last change was not seen yet"
    for kind, bad in ((ConditionType.METRICS_AVAILABLE, "False"), (ConditionType.DEGRADED, "True")):
        found = find_condition(status, kind)
        if found.get("status") == bad:
            yield f"{kind} is {bad}: {found.get('message') or found.get('reason')}"
    owner = (metadata.get("annotations") or {}).get(names.MANAGED_BY_ANNOTATION)
    if owner and not decided and not refused:
        yield f"it belongs to {owner}: only that autoscaler acts on it"


def past_of(event: Manifest) -> Past:
    series = event.get("series") or {}
    at = (
        when(series.get("lastObservedTime"))
        or when(event.get("eventTime"))
        or when(event.get("deprecatedLastTimestamp"))
    )
    return Past(
        at=at,
        reason=str(event.get("reason", "")),
        action=str(event.get("action", "")),
        note=str(event.get("note", "")),
        count=int(series.get("count") or event.get("deprecatedCount") or 1),
    )


def newest_first(past: Past) -> float:
    return -past.at.timestamp() if past.at else 0.0


def last_scale(status: Mapping[str, Any], now: datetime) -> str:
    at = when(status.get("lastScaleTime"))
    if at is None:
        return ""
    return f"{status.get('lastScaleAction', 'scaled')} {age_text((now - at).total_seconds())} ago"


def when(text: object) -> datetime | None:
    """A time as Kubernetes writes it."""
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None


def by_name(obj: Manifest) -> str:
    return str(obj["metadata"]["name"])


def age_text(seconds: float) -> str:
    """As kubectl writes ages."""
    whole = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= 2 * size:
            return f"{whole // size}{unit}"
    return f"{whole}s"
