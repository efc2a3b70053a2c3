"""What an LLMClusterAutoscaler asks for, as frozen data, and its parser.

In: the `spec` mapping as the API server stores it. Out: an `AutoscalerSpec`, or `SpecError` naming the field's full
path and what to write. The CRD refuses the same mistakes at admission; they are checked again because an object may
be older than its CRD. A template's spec is checked as an instance's would be and kept as it was written, so that what
an instance gets is what the template says and nothing that was filled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, Final

from llmfleet.api.cron import CronError, parse_cron, parse_zone
from llmfleet.api.parse import SpecError, check, parse_value
from llmfleet.api.types import EMPTY, Open, Role, Spec


class Mode(StrEnum):
    """Whether every instance does all the work, or prefill and decode instances share it."""

    MONOLITHIC = "monolithic"
    DISAGGREGATED = "disaggregated"


class PolicyKind(StrEnum):
    """What the size of the fleet follows."""

    WORK_BUDGET = "WorkBudget"
    METRICS = "Metrics"
    EXTERNAL = "External"


class Victim(StrEnum):
    """Which ready instance goes first."""

    LEAST_UTILIZED = "LeastUtilized"
    NEWEST = "Newest"
    OLDEST = "Oldest"


class SourceType(StrEnum):
    """Where figures come from."""

    DIRECT = "Direct"
    PROMETHEUS = "Prometheus"


class MetricType(StrEnum):
    """What policy Metrics can look at."""

    QUEUE_LENGTH = "QueueLength"
    TTFT = "TTFT"
    TPOT = "TPOT"
    REQUEST_LATENCY = "RequestLatency"
    REQUEST_RATE = "RequestRate"
    TOKEN_RATE = "TokenRate"
    RUNNING_REQUESTS = "RunningRequests"
    KV_CACHE_UTILIZATION = "KVCacheUtilization"
    GPU_UTILIZATION = "GPUUtilization"
    CUSTOM = "Custom"


class Per(StrEnum):
    """Whether a threshold is for the whole fleet or for one instance."""

    FLEET = "Fleet"
    INSTANCE = "Instance"


FROM_PROMETHEUS: Final = frozenset({MetricType.GPU_UTILIZATION, MetricType.CUSTOM})


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSelector:
    match_labels: Open


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleTargetRef:
    label_selector: LabelSelector


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceTemplate:
    name_prefix: str
    labels: Open = field(default_factory=lambda: EMPTY)
    annotations: Open = field(default_factory=lambda: EMPTY)
    spec: Open


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRules:
    stabilization_seconds: int | None = None
    cooldown_seconds: int | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    scale_up: ScaleRules = ScaleRules()
    scale_down: ScaleRules = ScaleRules()
    max_surge: int | None = None


DEFAULT_BEHAVIOR: Final = Behavior(
    scale_up=ScaleRules(stabilization_seconds=0, cooldown_seconds=0, step=4),
    scale_down=ScaleRules(stabilization_seconds=600, cooldown_seconds=60, step=1),
    max_surge=1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    scale_up: Decimal
    scale_down: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRule:
    type: MetricType
    per: Per = Per.FLEET
    threshold: Threshold
    window_seconds: int = 60
    query: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFleet:
    """One fleet: its bounds, what its instances are made from, and rules of its own."""

    min_instances: int
    max_instances: int
    instance_template: InstanceTemplate
    metrics: tuple[MetricRule, ...] = ()
    behavior: Behavior = Behavior()


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordination:
    max_prefill_per_decode: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    ttft_seconds: Decimal = Decimal("2")
    tpot_seconds: Decimal = Decimal("0.05")
    error_budget: Decimal = Decimal("0.001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Seconds as written; empty means: from the profile."""

    a: str = ""
    b: str = ""
    c: str = ""
    d: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacitySpec:
    profile: str = "auto"
    coefficients: Coefficients = Coefficients()
    kv_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A floor that holds between two cron moments."""

    name: str
    start: str
    end: str
    time_zone: str = "UTC"
    min_instances: int
    role: Role | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastSpec:
    lookback_seconds: int = 86400
    schedule: tuple[Window, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkBudget:
    slo: Slo = Slo()
    capacity: CapacitySpec = CapacitySpec()
    cold_start_seconds: int = 0
    forecast: ForecastSpec = ForecastSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRef:
    name: str = ""
    key: str = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSource:
    address: str = ""
    bearer_token_secret_ref: TokenRef = TokenRef()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    type: SourceType = SourceType.DIRECT
    prometheus: PrometheusSource = PrometheusSource()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleToZero:
    after_seconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalerSpec:
    """The whole spec of one autoscaler."""

    mode: Mode
    scale_target_ref: ScaleTargetRef
    paused: bool = False
    dry_run: bool = False
    policy: PolicyKind = PolicyKind.WORK_BUDGET
    instances: int | None = None
    min_instances: int | None = None
    max_instances: int | None = None
    instance_template: InstanceTemplate | None = None
    prefill: RoleFleet | None = None
    decode: RoleFleet | None = None
    coordination: Coordination = Coordination()
    metrics: tuple[MetricRule, ...] = ()
    work_budget: WorkBudget = WorkBudget()
    source: Source = Source()
    behavior: Behavior = Behavior()
    victim: Victim = Victim.LEAST_UTILIZED
    scale_to_zero: ScaleToZero = ScaleToZero()

    @property
    def selector(self) -> Open:
        """Labels of the instances that are counted."""
        return self.scale_target_ref.label_selector.match_labels

    def fleets(self) -> dict[Role, RoleFleet]:
        """The fleets this autoscaler sizes, by role, each with its whole behavior."""
        if self.mode is Mode.DISAGGREGATED and self.prefill and self.decode:
            return {Role.PREFILL: self._whole(self.prefill), Role.DECODE: self._whole(self.decode)}
        if self.instance_template is None or self.min_instances is None or self.max_instances is None:
            return {}
        alone = RoleFleet(
            min_instances=self.min_instances,
            max_instances=self.max_instances,
            instance_template=self.instance_template,
            metrics=self.metrics,
        )
        return {Role.BOTH: self._whole(alone)}

    def _whole(self, fleet: RoleFleet) -> RoleFleet:
        """The fleet with what it leaves unset taken from the spec's behavior, then from the defaults."""
        behavior = filled(filled(fleet.behavior, self.behavior), DEFAULT_BEHAVIOR)
        return replace(fleet, behavior=behavior)


def filled(own: Behavior, other: Behavior) -> Behavior:
    """A behavior with its unset fields taken from another."""
    return Behavior(
        scale_up=filled_rules(own.scale_up, other.scale_up),
        scale_down=filled_rules(own.scale_down, other.scale_down),
        max_surge=own.max_surge if own.max_surge is not None else other.max_surge,
    )


def filled_rules(own: ScaleRules, other: ScaleRules) -> ScaleRules:
    def first(left: int | None, right: int | None) -> int | None:
        return left if left is not None else right

    return ScaleRules(
        stabilization_seconds=first(own.stabilization_seconds, other.stabilization_seconds),
        cooldown_seconds=first(own.cooldown_seconds, other.cooldown_seconds),
        step=first(own.step, other.step),
    )


def parse_autoscaler(raw: object) -> AutoscalerSpec:
    """Read a whole spec and check the rules that span fields."""
    spec: AutoscalerSpec = parse_value(AutoscalerSpec, raw, "spec")
    check_mode(spec)
    for path, role, fleet in blocks(spec):
        check_fleet(spec, path, role, fleet)
    check_policy(spec)
    check_budget(spec.work_budget)
    check_zero(spec)
    if spec.coordination.max_prefill_per_decode < 1:
        raise SpecError("spec.coordination.maxPrefillPerDecode", "must be at least 1")
    return spec


def blocks(spec: AutoscalerSpec) -> Iterator[tuple[str, Role, RoleFleet]]:
    """Each fleet with the path it stands at."""
    for role, fleet in spec.fleets().items():
        yield ("spec" if role is Role.BOTH else f"spec.{role}"), role, fleet


def check_mode(spec: AutoscalerSpec) -> None:
    """A mode has its own fields and none of the other's."""
    own: dict[str, object] = {
        "minInstances": spec.min_instances,
        "maxInstances": spec.max_instances,
        "instanceTemplate": spec.instance_template,
    }
    roles: dict[str, object] = {"prefill": spec.prefill, "decode": spec.decode}
    alone = spec.mode is Mode.MONOLITHIC
    wanted, others = (own, roles) if alone else (roles, {**own, "metrics": spec.metrics or None})
    for name, value in wanted.items():
        if value is None:
            raise SpecError(f"spec.{name}", f"is required in mode {spec.mode}")
    for name, value in others.items():
        if value is not None:
            raise SpecError(f"spec.{name}", f"does not belong to mode {spec.mode}: remove it")


def check_fleet(spec: AutoscalerSpec, path: str, role: Role, fleet: RoleFleet) -> None:
    """Bounds, template and labels of one fleet."""
    if fleet.min_instances < 0 or fleet.max_instances < 1:
        raise SpecError(f"{path}.minInstances", "minInstances must be at least 0 and maxInstances at least 1")
    if fleet.min_instances > fleet.max_instances:
        raise SpecError(f"{path}.minInstances", f"{fleet.min_instances} is above maxInstances {fleet.max_instances}")
    template = fleet.instance_template
    asked = parse_template(template, f"{path}.instanceTemplate.spec")
    if asked.role is not role:
        raise SpecError(f"{path}.instanceTemplate.spec.role", f"must be {role}, not {asked.role}")
    if not spec.selector or not spec.selector.items() <= template.labels.items():
        raise SpecError(
            f"{path}.instanceTemplate.labels",
            "must hold every label of spec.scaleTargetRef.labelSelector.matchLabels (at least one): "
            "new instances would not be counted and be created without end",
        )
    for index, rule in enumerate(fleet.metrics):
        check_metric(spec, f"{path}.metrics[{index}]", rule)


def parse_template(template: InstanceTemplate, path: str) -> Spec:
    """The spec an instance of this template would have, checked as its own."""
    try:
        asked: Spec = parse_value(Spec, template.spec, "spec")
        check(asked)
    except SpecError as error:
        raise SpecError(path + error.path.removeprefix("spec"), error.problem) from None
    return asked


def check_metric(spec: AutoscalerSpec, path: str, rule: MetricRule) -> None:
    if rule.threshold.scale_up <= rule.threshold.scale_down:
        raise SpecError(f"{path}.threshold", "scaleUp must be above scaleDown, otherwise the fleet would flap")
    if rule.type is MetricType.CUSTOM and not rule.query:
        raise SpecError(f"{path}.query", "write the PromQL expression whose value is compared with the threshold")
    if rule.type in FROM_PROMETHEUS and spec.source.type is SourceType.DIRECT:
        raise SpecError(f"{path}.type", f"{rule.type} comes from Prometheus only: set spec.source.type: Prometheus")


def check_policy(spec: AutoscalerSpec) -> None:
    if spec.policy is PolicyKind.EXTERNAL and spec.mode is not Mode.MONOLITHIC:
        raise SpecError("spec.policy", "External works only with mode monolithic: use WorkBudget or Metrics")
    if spec.policy is PolicyKind.METRICS:
        for path, _, fleet in blocks(spec):
            if not fleet.metrics:
                raise SpecError(f"{path}.metrics", "policy Metrics needs at least one item")
    if spec.source.type is SourceType.PROMETHEUS and not spec.source.prometheus.address:
        raise SpecError("spec.source.prometheus.address", "write its URL, such as http://prometheus.monitoring:9090")


def check_budget(budget: WorkBudget) -> None:
    slo = budget.slo
    if not 0 < slo.error_budget < 1:
        raise SpecError("spec.workBudget.slo.errorBudget", f"{slo.error_budget} is not above 0 and below 1")
    for name, value in (("ttftSeconds", slo.ttft_seconds), ("tpotSeconds", slo.tpot_seconds)):
        if value <= 0:
            raise SpecError(f"spec.workBudget.slo.{name}", f"{value} is not above 0")
    for name in ("a", "b", "c", "d"):
        check_coefficient(f"spec.workBudget.capacity.coefficients.{name}", getattr(budget.capacity.coefficients, name))
    for index, window in enumerate(budget.forecast.schedule):
        check_window(f"spec.workBudget.forecast.schedule[{index}]", window)


def check_coefficient(path: str, text: str) -> None:
    try:
        good = not text or (Decimal(text).is_finite() and Decimal(text) >= 0)
    except InvalidOperation:
        good = False
    if not good:
        raise SpecError(path, f'must be seconds as a decimal string such as "0.0000298", not {text!r}')


def check_window(path: str, window: Window) -> None:
    for name, text in (("start", window.start), ("end", window.end)):
        try:
            parse_cron(text)
        except CronError as error:
            raise SpecError(f"{path}.{name}", str(error)) from None
    try:
        parse_zone(window.time_zone)
    except CronError as error:
        raise SpecError(f"{path}.timeZone", str(error)) from None


def check_zero(spec: AutoscalerSpec) -> None:
    if spec.scale_to_zero.after_seconds and any(fleet.min_instances for _, _, fleet in blocks(spec)):
        raise SpecError("spec.scaleToZero.afterSeconds", "above 0 it needs minInstances: 0")


def selector_text(labels: Mapping[str, Any]) -> str:
    """A label selector as one string, for the scale subresource and for matching."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
