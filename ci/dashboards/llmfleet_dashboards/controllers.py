"""The autoscaler and the operator: sizes of fleets and the reasons for them, and the health of what decides.

In: nothing. Out: a Dashboard. Pure. A route controller's own label `namespace` arrives as exported_namespace, beside
that of the pod that was scraped.
"""

from __future__ import annotations

from typing import Final

from llmfleet_dashboards.model import Dashboard, Row, Unit
from llmfleet_dashboards.panels import CONTROLLERS, FLEET, NAMESPACE, ask, figure, lines
from llmfleet_dashboards.promql import AUTOSCALERS, OPERATOR, OPERATORS, ROUTER, SCALER, gauge, or_none, rate

FLEET_ROLE: Final = "fleet, role"
PUBLISHED: Final = f'{OPERATOR}, exported_namespace=~"$namespace"'
PASSES: Final = "llmfleet_{}_reconcile_duration_seconds"


def build() -> Dashboard:
    """The page."""
    return Dashboard(
        uid="llmfleet-controllers",
        title="llmfleet / Autoscaler and operator",
        description="How large fleets are and why, what instances are doing, and whether the controllers are well.",
        variables=(NAMESPACE, FLEET, CONTROLLERS),
        rows=(_now(), _sizes(), _instances(), _routes(), _health("operator"), _health("autoscaler")),
    )


def _now() -> Row:
    return Row(
        title="Now",
        panels=(
            figure(
                "Operator leads",
                "Operators that hold their lease. 0: nothing is built, drained or restarted; requests are served on.",
                Unit.COUNT,
                ask(gauge("llmfleet_operator_leader", OPERATOR), "leaders"),
                (0, "red"),
                (1, "green"),
            ),
            figure(
                "Autoscaler leads",
                "Autoscalers that hold their lease. 0: fleets keep their size.",
                Unit.COUNT,
                ask(gauge("llmfleet_autoscaler_leader", OPERATOR), "leaders"),
                (0, "red"),
                (1, "green"),
            ),
            figure(
                "Instances wanted",
                "What the last decisions ask for, of all fleets chosen.",
                Unit.COUNT,
                ask(gauge("llmfleet_autoscaler_desired_instances", SCALER), "desired"),
            ),
            figure(
                "Instances missing",
                "Wanted and not ready. For longer than a cold start: see Instances by reason.",
                Unit.COUNT,
                ask(
                    f"sum(clamp_min(llmfleet_autoscaler_desired_instances{{{SCALER}}} - "
                    f"llmfleet_autoscaler_ready_instances{{{SCALER}}}, 0))",
                    "missing",
                ),
                (1, "orange"),
            ),
            figure(
                "Oldest signal",
                "Age of the oldest figure behind a last decision. Beyond 45 s the fleet holds its size.",
                Unit.SECONDS,
                ask(gauge("llmfleet_autoscaler_signal_age_seconds", SCALER, how="max"), "age"),
                (30, "orange"),
                (45, "red"),
            ),
            figure(
                "Failed passes",
                "Passes of both controllers that failed, per second; each is tried again, and the log says why.",
                Unit.PER_SECOND,
                ask(
                    f"sum(rate(llmfleet_operator_reconcile_failures_total{{{OPERATOR}}}[$__rate_interval]) or "
                    f"rate(llmfleet_autoscaler_reconcile_failures_total{{{OPERATOR}}}[$__rate_interval])) "
                    f"or on () 0 * sum({OPERATORS})",
                    "failed",
                ),
                (0.1, "orange"),
            ),
        ),
    )


def _sizes() -> Row:
    name = "{{fleet}} {{role}}"
    return Row(
        title="Size of fleets",
        panels=(
            lines(
                "Instances",
                "desired: by the last decision; current: exist; ready: serve. Desired above current: creation fails.",
                Unit.COUNT,
                ask(gauge("llmfleet_autoscaler_desired_instances", SCALER, FLEET_ROLE), f"{name} desired"),
                ask(gauge("llmfleet_autoscaler_current_instances", SCALER, FLEET_ROLE), f"{name} current"),
                ask(gauge("llmfleet_autoscaler_ready_instances", SCALER, FLEET_ROLE), f"{name} ready"),
            ),
            lines(
                "Offered load",
                "Work that clients ask for, in instances: what was served, what waits and what was refused.",
                Unit.COUNT,
                ask(gauge("llmfleet_autoscaler_offered_load_instances", SCALER, FLEET_ROLE), name),
            ),
            lines(
                "Headroom",
                "The peak expected within a cold start, over the load of now: 1.35 means 35 % more.",
                Unit.COUNT,
                ask(gauge("llmfleet_autoscaler_headroom_ratio", SCALER, FLEET_ROLE, how="max"), name),
            ),
            lines(
                "Decisions by reason",
                "What the autoscaler decided and the one reason for it, as in status, event and log.",
                Unit.PER_SECOND,
                ask(
                    rate("llmfleet_autoscaler_decisions_total", SCALER, "fleet, role, decision, reason"),
                    f"{name} {{{{decision}}}} {{{{reason}}}}",
                ),
                stacked=True,
            ),
            lines(
                "Age of signals",
                "Of the oldest figure behind the last decision; weak evidence never shrinks a fleet.",
                Unit.SECONDS,
                ask(gauge("llmfleet_autoscaler_signal_age_seconds", SCALER, FLEET_ROLE, how="max"), name),
            ),
            lines(
                "Looks at engines and routers",
                "Scrapes of the autoscaler by target and result. Not ok: a pod does not answer, or a "
                "NetworkPolicy is in the way.",
                Unit.PER_SECOND,
                ask(rate("llmfleet_autoscaler_scrapes_total", OPERATOR, "target, result"), "{{target}} {{result}}"),
                stacked=True,
            ),
        ),
    )


def _instances() -> Row:
    return Row(
        title="Instances",
        panels=(
            lines(
                "Instances by reason",
                "Instances by the reason of their Ready condition. Anything but Serving for long: kubectl "
                "describe llmcluster.",
                Unit.COUNT,
                ask(gauge("llmfleet_operator_instances", OPERATOR, "reason"), "{{reason}}"),
                width=12,
                stacked=True,
            ),
            lines(
                "Transitions",
                "Instances that came to be in a state. GroupRestarting again and again: a pod of the group "
                "keeps dying.",
                Unit.PER_SECOND,
                ask(rate("llmfleet_operator_transitions_total", OPERATOR, "reason"), "{{reason}}"),
                width=12,
                stacked=True,
            ),
        ),
    )


def _routes() -> Row:
    published = gauge("llmfleet_route_document_generation", PUBLISHED, "exported_namespace", how="max")
    newest = f'max by (namespace) (label_replace({published}, "namespace", "$1", "exported_namespace", "(.+)"))'
    used = gauge("llmfleet_router_document_generation", ROUTER, "namespace, pod", how="max")
    return Row(
        title="Routes",
        panels=(
            lines(
                "Endpoints published",
                "Endpoints in the newest backends document, by state. draining ones get no new requests.",
                Unit.COUNT,
                ask(
                    gauge("llmfleet_route_endpoints", PUBLISHED, "exported_namespace, configmap, state"),
                    "{{configmap}} {{state}}",
                ),
                stacked=True,
            ),
            lines(
                "Routers behind",
                "Between the newest backends document of a namespace and the one a router uses, by when they "
                "were written. "
                "Above zero for more than a few seconds: look at that router's route-sync container. With several "
                "releases in one namespace the newest document may be another one's.",
                Unit.SECONDS,
                ask(f"clamp_min({newest} - on (namespace) group_right {used}, 0) / 1000", "{{pod}}"),
            ),
            lines(
                "Documents written",
                "Backends documents by result. conflict: another writer was first; it is written again.",
                Unit.PER_SECOND,
                ask(
                    or_none(rate("llmfleet_route_publishes_total", OPERATOR, "result"), "result", OPERATORS),
                    "{{result}}",
                ),
                stacked=True,
            ),
        ),
    )


def _health(component: str) -> Row:
    """The same panels for both processes."""
    alive = {"operator": OPERATORS, "autoscaler": AUTOSCALERS}[component]
    seconds = PASSES.format(component)

    def name(what: str) -> str:
        return f"llmfleet_{component}_{what}"

    slowest = f"histogram_quantile(0.95, {rate(f'{seconds}_bucket', OPERATOR, 'le, controller')}) >= 0"
    return Row(
        title=f"Health of the {component}",
        panels=(
            lines(
                f"Duration of passes, {component}",
                "95th percentile of one pass over one object, by controller.",
                Unit.SECONDS,
                ask(slowest, "{{controller}}"),
            ),
            lines(
                f"Work, {component}",
                "Passes per second, and keys that wait for a worker. Waiting that grows: the apiserver is slow.",
                Unit.PER_SECOND,
                ask(rate(f"{seconds}_count", OPERATOR, "controller"), "{{controller}} passes"),
                ask(gauge(name("queue_depth"), OPERATOR, "controller"), "{{controller}} waiting"),
            ),
            lines(
                f"Failures, {component}",
                "Passes that failed, by error, and lists and watches that did.",
                Unit.PER_SECOND,
                ask(
                    or_none(rate(name("reconcile_failures_total"), OPERATOR, "controller, error"), "error", alive),
                    "pass {{controller}} {{error}}",
                ),
                ask(
                    or_none(rate(name("watch_failures_total"), OPERATOR, "resource, error"), "error", alive),
                    "watch {{resource}} {{error}}",
                ),
            ),
            lines(
                f"Writes, {component}",
                "Writes sent to the apiserver, by resource, verb and status. 403: a right is missing; 409 is repeated.",
                Unit.PER_SECOND,
                ask(rate(name("writes_total"), OPERATOR, "resource, verb, code"), "{{verb}} {{resource}} {{code}}"),
                width=12,
                stacked=True,
            ),
            lines(
                f"Objects held, {component}",
                "Objects in memory, by resource.",
                Unit.COUNT,
                ask(gauge(name("cached_objects"), OPERATOR, "resource"), "{{resource}}"),
                width=12,
            ),
        ),
    )
