"""Prefill and decode on engines of their own: which requests are split, what a hand-off costs, whether both sides fit.

In: nothing. Out: a Dashboard. Pure.
"""

from __future__ import annotations

from typing import Final

from llmfleet_dashboards import promql
from llmfleet_dashboards.model import Dashboard, Row, Unit
from llmfleet_dashboards.panels import CONTROLLERS, FLEET, INSTANCE, MODEL, NAMESPACE, ask, lines
from llmfleet_dashboards.promql import ENDPOINT, ENGINE, SCALER, gauge, mean, quantile, rate, share

WHERE: Final = promql.MODEL
WAYS: Final = "llmfleet_router_disaggregated_requests_total"
PHASES: Final = "llmfleet_router_disaggregated_phase_seconds"
SPLIT: Final = f'{ENGINE}, role=~"prefill|decode"'


def build() -> Dashboard:
    """The page."""
    return Dashboard(
        uid="llmfleet-disaggregation",
        title="llmfleet / Disaggregation",
        description="Fleets whose prompts are computed on other engines than their answers.",
        variables=(NAMESPACE, FLEET, INSTANCE, MODEL, CONTROLLERS),
        rows=(_ways(), _handoffs(), _sides(), _transfers()),
    )


def _ways() -> Row:
    split = f'sum(rate({WAYS}{{{WHERE}, way="split"}}[$__rate_interval]))'
    return Row(
        title="Ways of requests",
        panels=(
            lines(
                "Requests by way",
                "split: prompt here, answer there; bypass: too short to be worth it; alone: cannot be split; "
                "fallback: no "
                "prefill engine was to be had.",
                Unit.REQUESTS,
                ask(rate(WAYS, WHERE, "way"), "{{way}}"),
                stacked=True,
            ),
            lines(
                "Share that is split",
                "Low with long prompts: see fallback, and the prefill engines.",
                Unit.SHARE,
                ask(share(split, rate(WAYS, WHERE)), "split"),
            ),
            lines(
                "Mean time to first token, in parts",
                "queue: for a slot; prefill: the prompt; transfer: its keys and values to the decode engine; "
                "decode_first_token: the rest. The parts add up.",
                Unit.SECONDS,
                ask(mean(PHASES, WHERE, "phase"), "{{phase}}"),
                stacked=True,
            ),
            lines(
                "Each part at p95",
                "The parts' own 95th percentiles; unlike means they do not add up.",
                Unit.SECONDS,
                ask(quantile(0.95, PHASES, WHERE, "phase"), "{{phase}}"),
                width=24,
            ),
        ),
    )


def _handoffs() -> Row:
    return Row(
        title="Hand-offs",
        panels=(
            lines(
                "Hand-offs by fate",
                "used; failed: the decode engine did not answer with it; abandoned: the client left; expired: "
                "nobody read "
                "it before its lease ended.",
                Unit.REQUESTS,
                ask(rate("llmfleet_router_handoffs_total", ENDPOINT, "fate"), "{{fate}}"),
                stacked=True,
            ),
            lines(
                "Hand-offs outstanding",
                "Prompts whose blocks a prefill engine may still hold. They fill its KV cache until they are read.",
                Unit.COUNT,
                ask(gauge("llmfleet_router_outstanding_handoffs", ENDPOINT, "llmcluster"), "{{llmcluster}}"),
                stacked=True,
            ),
            lines(
                "Prefill engines set aside",
                "Times a prefill engine got no more prompts for a while, after failures in a row.",
                Unit.PER_SECOND,
                ask(rate("llmfleet_router_prefill_breaker_opened_total", ENDPOINT, "llmcluster"), "{{llmcluster}}"),
            ),
        ),
    )


def _sides() -> Row:
    return Row(
        title="Two sides of a fleet",
        panels=(
            lines(
                "Running by role",
                "Requests in the batches of prefill and decode engines.",
                Unit.COUNT,
                ask(gauge("vllm:num_requests_running", SPLIT, "fleet, role"), "{{fleet}} {{role}}"),
            ),
            lines(
                "Queue depth by role",
                "Requests that wait inside engines. On one side only: that side has too few instances.",
                Unit.COUNT,
                ask(gauge("vllm:num_requests_waiting", SPLIT, "fleet, role"), "{{fleet}} {{role}}"),
            ),
            lines(
                "KV cache by role",
                "Mean usage. Prefill full while decode is not: hand-offs are not read fast enough.",
                Unit.SHARE,
                ask(gauge("vllm:kv_cache_usage_perc", SPLIT, "fleet, role", how="avg"), "{{fleet}} {{role}}"),
            ),
            lines(
                "Slots used by role",
                "Requests over slots, as routers see it.",
                Unit.SHARE,
                ask(
                    share(
                        gauge(
                            "llmfleet_router_endpoint_in_flight_requests", f'{ENDPOINT}, role=~"prefill|decode"', "role"
                        ),
                        gauge("llmfleet_router_endpoint_slots", f'{ENDPOINT}, role=~"prefill|decode"', "role"),
                    ),
                    "{{role}}",
                ),
            ),
            lines(
                "Instances by role",
                "Instances that are ready, and how many the autoscaler wants; it keeps both roles in proportion.",
                Unit.COUNT,
                ask(
                    gauge("llmfleet_autoscaler_ready_instances", f'{SCALER}, role=~"prefill|decode"', "fleet, role"),
                    "{{fleet}} {{role}} ready",
                ),
                ask(
                    gauge("llmfleet_autoscaler_desired_instances", f'{SCALER}, role=~"prefill|decode"', "fleet, role"),
                    "{{fleet}} {{role}} desired",
                ),
                width=16,
            ),
        ),
    )


def _transfers() -> Row:
    return Row(
        title="KV transfer",
        panels=(
            lines(
                "Where prompt tokens come from",
                "local_compute: computed there; local_cache_hit: from its prefix cache; external_kv_transfer: "
                "handed over. "
                "On decode engines only the last should grow.",
                Unit.PER_SECOND,
                ask(rate("vllm:prompt_tokens_by_source_total", SPLIT, "role, source"), "{{role}} {{source}}"),
                stacked=True,
                width=12,
            ),
            lines(
                "Transfer time",
                "Reading the blocks of one prompt from its prefill engine, as the decode engine measures it.",
                Unit.SECONDS,
                ask(quantile(0.5, "vllm:nixl_xfer_time_seconds", SPLIT), "p50"),
                ask(quantile(0.95, "vllm:nixl_xfer_time_seconds", SPLIT), "p95"),
                width=12,
            ),
            lines(
                "Bytes moved",
                "Bytes of keys and values that decode engines read.",
                Unit.BYTES_PER_SECOND,
                ask(rate("vllm:nixl_bytes_transferred_sum", SPLIT, "fleet"), "{{fleet}}"),
                width=12,
            ),
            lines(
                "Failed and expired transfers",
                "failed: the read or its handshake; expired: the prefill engine let go before anybody read.",
                Unit.PER_SECOND,
                ask(rate("vllm:nixl_num_failed_transfers_total", SPLIT), "failed"),
                ask(rate("vllm:nixl_num_kv_expired_reqs_total", SPLIT), "expired"),
                width=12,
            ),
        ),
    )
