"""The routers: what they turn away and why, who waits, which engines they hold back, and jobs in Redis.

In: nothing. Out: a Dashboard. Pure.
"""

from __future__ import annotations

from typing import Final

from llmfleet_dashboards import promql
from llmfleet_dashboards.model import Dashboard, Row, Unit
from llmfleet_dashboards.panels import FLEET, INSTANCE, MODEL, NAMESPACE, ask, figure, lines
from llmfleet_dashboards.promql import ENDPOINT, ROUTER, ROUTERS, gauge, mean, or_none, or_zero, quantile, rate, share

WHERE: Final = promql.MODEL
ONE: Final = "llmcluster, role"


def build() -> Dashboard:
    """The page."""
    return Dashboard(
        uid="llmfleet-router",
        title="llmfleet / Router and queue",
        description="What routers refuse, retry and hold back, who waits, and jobs in Redis.",
        variables=(NAMESPACE, FLEET, INSTANCE, MODEL),
        rows=(_state(), _refusals(), _queue(), _engines(), _jobs(), _redis(), _document(), _tenants()),
    )


def _state() -> Row:
    return Row(
        title="Now",
        panels=(
            figure("Routers", "Router processes that are scraped.", Unit.COUNT, ask(f"count({ROUTERS})", "routers")),
            figure(
                "Draining",
                "Routers that take leave: unready, serving what they hold. For long: see "
                "terminationGracePeriodSeconds.",
                Unit.COUNT,
                ask(gauge("llmfleet_router_draining", ROUTER), "draining"),
                (1, "orange"),
            ),
            figure(
                "Connections used",
                "Client connections over what routers allow; at 1 new ones are closed at once.",
                Unit.SHARE,
                ask(
                    share(
                        gauge("llmfleet_router_connections", ROUTER), gauge("llmfleet_router_max_connections", ROUTER)
                    ),
                    "used",
                ),
                (0.8, "orange"),
                (0.95, "red"),
            ),
            figure(
                "Models in panic",
                "Models of which so many engines look bad that routers use them all the same.",
                Unit.COUNT,
                ask(gauge("llmfleet_router_panic", WHERE), "in panic"),
                (1, "red"),
            ),
            figure(
                "Oldest routes",
                "Age of the oldest backends document in use; it changes only when instances do, so age alone is "
                "no fault.",
                Unit.SECONDS,
                ask(gauge("llmfleet_router_document_age_seconds", ROUTER, how="max"), "age"),
            ),
            figure(
                "Redis up",
                "The smallest of all routers: 0 while one of them cannot store jobs. Direct requests are served "
                "all the same.",
                Unit.COUNT,
                ask(gauge("llmfleet_queue_redis_up", ROUTER, how="min"), "up"),
                (0, "red"),
                (1, "green"),
            ),
        ),
    )


def _refusals() -> Row:
    return Row(
        title="What went wrong",
        panels=(
            lines(
                "Refusals by reason",
                "Requests the router answered with an error of its own; the reason is the error's code in the answer.",
                Unit.REQUESTS,
                ask(or_none(rate("llmfleet_router_refusals_total", WHERE, "reason"), "reason", ROUTERS), "{{reason}}"),
                stacked=True,
            ),
            lines(
                "Retries by reason",
                "Requests sent to a second engine before the client had a byte. not allowed: the retry budget "
                "was used up.",
                Unit.REQUESTS,
                ask(or_none(rate("llmfleet_router_retries_total", WHERE, "reason"), "reason", ROUTERS), "{{reason}}"),
                ask(or_zero(rate("llmfleet_router_retries_refused_total", WHERE), ROUTERS), "not allowed"),
            ),
            lines(
                "Truncated answers by reason",
                "Answers that broke after bytes had reached the client, who got an error event or a reset.",
                Unit.REQUESTS,
                ask(or_none(rate("llmfleet_router_truncated_total", WHERE, "reason"), "reason", ROUTERS), "{{reason}}"),
                stacked=True,
            ),
            lines(
                "Quota refusals",
                "Requests over a tenant's limit on requests, tokens or concurrency (status 429).",
                Unit.REQUESTS,
                ask(
                    or_none(rate("llmfleet_router_quota_refusals_total", ROUTER, "tenant, limit"), "tenant", ROUTERS),
                    "{{tenant}} {{limit}}",
                ),
                stacked=True,
            ),
            lines(
                "Connections",
                "Client connections open, and those closed because there were too many.",
                Unit.COUNT,
                ask(gauge("llmfleet_router_connections", ROUTER, "pod"), "{{pod}}"),
                ask(rate("llmfleet_router_connections_refused_total", ROUTER), "refused per second"),
            ),
            lines(
                "Quarantined bodies and lost log lines",
                "Requests refused because their body was on engines that then died; access-log lines that could "
                "not be "
                "written fast enough.",
                Unit.PER_SECOND,
                ask(rate("llmfleet_router_quarantined_total", ROUTER), "quarantined"),
                ask(rate("llmfleet_router_access_log_dropped_total", ROUTER), "log lines lost"),
            ),
        ),
    )


def _queue() -> Row:
    return Row(
        title="Queue",
        panels=(
            lines(
                "Requests waiting",
                "Requests at routers that wait for a slot or an engine: demand that no engine sees.",
                Unit.COUNT,
                ask(or_none(gauge("llmfleet_queue_requests", WHERE, "model"), "model", ROUTERS), "{{model}}"),
                stacked=True,
            ),
            lines(
                "Bodies held",
                "Bytes of the bodies of requests that wait.",
                Unit.BYTES,
                ask(or_none(gauge("llmfleet_queue_prompt_bytes", WHERE, "model"), "model", ROUTERS), "{{model}}"),
                stacked=True,
            ),
            lines(
                "Prefix affinity",
                "Requests by what was known of their prompt: hit: sent where its beginning is cached; miss: new; "
                "spread: known, but that engine had its part.",
                Unit.REQUESTS,
                ask(rate("llmfleet_router_prefixes_total", WHERE, "result"), "{{result}}"),
                stacked=True,
            ),
        ),
    )


def _engines() -> Row:
    slots = gauge("llmfleet_router_endpoint_slots", ENDPOINT, ONE, how="max")
    return Row(
        title="Engines as routers see them",
        panels=(
            lines(
                "Slots used",
                "Requests at an engine over what it may have at once. At 1 requests wait.",
                Unit.SHARE,
                ask(
                    share(gauge("llmfleet_router_endpoint_in_flight_requests", ENDPOINT, ONE), slots),
                    "{{llmcluster}} {{role}}",
                ),
            ),
            lines(
                "Requests sent",
                "Requests each engine was given. Uneven with even load: prefix affinity, a canary's weight or a limit.",
                Unit.REQUESTS,
                ask(rate("llmfleet_router_endpoint_picks_total", ENDPOINT, ONE), "{{llmcluster}} {{role}}"),
                stacked=True,
            ),
            lines(
                "Requests lost",
                "Requests an engine did not answer well, also those that a second engine answered.",
                Unit.REQUESTS,
                ask(rate("llmfleet_router_endpoint_failures_total", ENDPOINT, ONE), "{{llmcluster}} {{role}}"),
                stacked=True,
            ),
            lines(
                "Mean time to first token by engine",
                "From the whole request to this engine's first delta. One engine apart from its like: look at "
                "its node.",
                Unit.SECONDS,
                ask(
                    mean("llmfleet_router_endpoint_time_to_first_token_seconds", ENDPOINT, ONE),
                    "{{llmcluster}} {{role}}",
                ),
            ),
            lines(
                "Engines left out",
                "Engines that get no requests, by the one reason for it.",
                Unit.COUNT,
                ask(
                    or_none(
                        gauge("llmfleet_router_endpoint_out", ENDPOINT, "llmcluster, reason", how="max"),
                        "reason",
                        ROUTERS,
                    ),
                    "{{llmcluster}} {{reason}}",
                ),
                ask(rate("llmfleet_router_endpoint_ejections_total", ENDPOINT), "times left out per second"),
            ),
            lines(
                "Limit of this router",
                "Requests a router may have at an engine now, beside its slots: less where other routers use it too.",
                Unit.COUNT,
                ask(gauge("llmfleet_router_endpoint_limit", ENDPOINT, "pod, llmcluster"), "{{pod}} {{llmcluster}}"),
            ),
        ),
    )


def _jobs() -> Row:
    return Row(
        title="Jobs",
        panels=(
            lines(
                "Jobs not over",
                "Jobs in Redis that wait or run, and those that routers run now.",
                Unit.COUNT,
                ask(or_zero(gauge("llmfleet_queue_jobs", WHERE, how="max"), ROUTERS), "not over"),
                ask(or_zero(gauge("llmfleet_queue_jobs_running", WHERE), ROUTERS), "running"),
            ),
            lines(
                "Jobs stored and ended",
                "Stored ones, and ended ones by their final state. dead: every attempt was lost.",
                Unit.PER_SECOND,
                ask(or_zero(rate("llmfleet_queue_jobs_accepted_total", WHERE), ROUTERS), "stored"),
                ask(or_none(rate("llmfleet_queue_jobs_ended_total", WHERE, "state"), "state", ROUTERS), "{{state}}"),
            ),
            lines(
                "Jobs taken up, and attempts lost",
                "Taken up more often than stored: routers die, or engines do, while they run jobs.",
                Unit.PER_SECOND,
                ask(or_zero(rate("llmfleet_queue_jobs_claims_total", WHERE), ROUTERS), "taken up"),
                ask(or_zero(rate("llmfleet_queue_jobs_lost_attempts_total", WHERE), ROUTERS), "attempts lost"),
            ),
            lines(
                "Jobs refused by reason",
                "full: the model's bound; share: the tenant's part of it; conflict: the key is in use; "
                "unavailable: Redis.",
                Unit.PER_SECOND,
                ask(
                    or_none(rate("llmfleet_queue_jobs_refused_total", WHERE, "reason"), "reason", ROUTERS), "{{reason}}"
                ),
                stacked=True,
            ),
            lines(
                "Wait of jobs",
                "From the storing of a job to its start.",
                Unit.SECONDS,
                ask(quantile(0.5, "llmfleet_queue_jobs_wait_seconds", ROUTER), "p50"),
                ask(quantile(0.95, "llmfleet_queue_jobs_wait_seconds", ROUTER), "p95"),
            ),
            lines(
                "Redis as routers see it",
                "Calls it did not answer well, and times it came back. refuses: routers that must not use it, "
                "as it evicts.",
                Unit.PER_SECOND,
                ask(rate("llmfleet_queue_redis_failures_total", ROUTER), "failures"),
                ask(rate("llmfleet_queue_redis_reconnects_total", ROUTER), "came back"),
                ask(gauge("llmfleet_queue_redis_refused", ROUTER), "refuses"),
            ),
        ),
    )


def _redis() -> Row:
    used, limit = f"redis_memory_used_bytes{{{ROUTER}}}", f"redis_memory_max_bytes{{{ROUTER}}}"
    return Row(
        title="Redis by its exporter",
        panels=(
            lines(
                "Memory of Redis",
                "Used and allowed. Nothing is evicted: at the limit new jobs are refused. Needs a redis_exporter.",
                Unit.BYTES,
                ask(f"sum by (pod) ({used})", "used {{pod}}"),
                ask(f"sum by (pod) ({limit} > 0)", "allowed {{pod}}"),
            ),
            lines(
                "Commands of Redis",
                "Commands per second. Needs a redis_exporter.",
                Unit.OPERATIONS,
                ask(f"sum by (pod) (rate(redis_commands_processed_total{{{ROUTER}}}[$__rate_interval]))", "{{pod}}"),
            ),
            lines(
                "Rejected and blocked",
                "Connections over its limit, and clients that wait in a blocking call. Needs a redis_exporter.",
                Unit.COUNT,
                ask(
                    f"sum(rate(redis_rejected_connections_total{{{ROUTER}}}[$__rate_interval]))", "rejected per second"
                ),
                ask(f"sum(redis_blocked_clients{{{ROUTER}}})", "blocked"),
            ),
        ),
    )


def _document() -> Row:
    # A generation is the milliseconds since 1970 when it was written, or one more than the last.
    generation, of = "llmfleet_router_document_generation", "namespace, release"
    newest = gauge(generation, ROUTER, of, how="max")
    oldest = gauge(generation, ROUTER, of, how="min")
    return Row(
        title="Routes, keys and other routers",
        panels=(
            lines(
                "Routers apart",
                "Between the newest and the oldest backends document that routers of one release use, by when "
                "they were "
                "written. Above zero for more than a few seconds: a router stays behind, and drains wait for it.",
                Unit.SECONDS,
                ask(f"({newest} - {oldest}) / 1000", "{{release}}"),
            ),
            lines(
                "Documents and keys adopted, and refused",
                "A refused file changes nothing: the last good one stays. Above zero: read the router's log.",
                Unit.PER_SECOND,
                ask(rate("llmfleet_router_document_loads_total", ROUTER), "routes adopted"),
                ask(rate("llmfleet_router_document_errors_total", ROUTER), "routes refused"),
                ask(rate("llmfleet_router_keys_loads_total", ROUTER), "keys adopted"),
                ask(rate("llmfleet_router_keys_errors_total", ROUTER), "keys refused"),
            ),
            lines(
                "Other routers",
                "Other routers that the document lists, and those that answered lately. Apart: slots are shared "
                "by guess.",
                Unit.COUNT,
                ask(gauge("llmfleet_router_peers", ROUTER, "pod"), "listed {{pod}}"),
                ask(gauge("llmfleet_router_peers_heard", ROUTER, "pod"), "heard {{pod}}"),
            ),
        ),
    )


def _tenants() -> Row:
    return Row(
        title="Tenants",
        panels=(
            lines(
                "Prompt tokens by tenant",
                "Tokens of prompts, as engines counted them or estimated. A tenant without a name: no keys file.",
                Unit.PER_SECOND,
                ask(rate("llmfleet_router_prompt_tokens_total", WHERE, "tenant"), "{{tenant}}"),
                width=12,
                stacked=True,
            ),
            lines(
                "Answer tokens by tenant",
                "Tokens of answers, as engines counted them or, for those that broke off, estimated.",
                Unit.PER_SECOND,
                ask(rate("llmfleet_router_completion_tokens_total", WHERE, "tenant"), "{{tenant}}"),
                width=12,
                stacked=True,
            ),
        ),
    )
