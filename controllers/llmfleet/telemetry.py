"""Every metric of every role, and the log set-up. One headed section per role.

In: what happened. Out: Prometheus families and log lines. Names are `llmfleet_<component>_<what>_<unit>`; every label
set is bounded, and no label or line carries a prompt, a key or a client's own text.
"""

from __future__ import annotations

import json
import logging
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Counter_
from prometheus_client import Gauge as Gauge_
from prometheus_client import Histogram as Histogram_
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from llmfleet.names import VERSION

# ======================================================================================================================
# Logs
# ======================================================================================================================


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message and the fields given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logs(level: str = "info") -> None:
    """Send every log line to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


# ======================================================================================================================
# Router
# ======================================================================================================================

# The hot path adds to plain integers and lists; families are built when somebody scrapes.
SECONDS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)
MAX_MODEL_LABELS: Final = 1000
MAX_TENANT_LABELS: Final = 1000  # of one model
OTHER_MODELS: Final = "other"
OTHERS: Final = "other"


class Histogram:
    """Counts per bucket and a sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts as the exposition format wants them."""
        edges = [*(repr(edge) for edge in SECONDS), "+Inf"]
        seen, result = 0, []
        for edge, count in zip(edges, self.counts, strict=True):
            seen += count
            result.append((edge, float(seen)))
        return result


class ModelStats:
    """What happened to one model's requests in this process."""

    __slots__ = (
        "duration",
        "in_flight",
        "phases",
        "refusals",
        "requests",
        "retries",
        "tokens",
        "truncated",
        "ttft",
        "ways",
    )

    def __init__(self) -> None:
        self.requests: Counter[tuple[int, str]] = Counter()  # by status and outcome
        self.retries: Counter[str] = Counter()
        self.truncated: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.tokens: dict[str, list[int]] = {}  # of prompts and of answers, by tenant
        self.in_flight = 0
        self.ttft = Histogram()
        self.duration = Histogram()
        self.ways: Counter[str] = Counter()  # of a disaggregated model's requests
        self.phases: dict[str, Histogram] = {}

    def count_tokens(self, tenant: str, prompt: int, completion: int) -> None:
        counts = self.tokens.get(tenant)
        if counts is None:
            name = tenant if len(self.tokens) < MAX_TENANT_LABELS else OTHERS
            counts = self.tokens.setdefault(name, [0, 0])
        counts[0] += prompt
        counts[1] += completion

    def phase(self, name: str, seconds: float) -> None:
        """Time one part of the time to first token of a split request."""
        if name not in self.phases:
            self.phases[name] = Histogram()
        self.phases[name].observe(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointGauges:
    llmcluster: str
    role: str
    in_flight: int
    slots: int
    picks: int
    failures: int = 0
    ttft_count: int = 0
    ttft_sum: float = 0.0
    limit: int = 0
    out: str = ""
    ejections: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterGauges:
    """The router's state at the moment of a scrape."""

    connections: int
    max_connections: int
    draining: bool
    generation: int
    document_age_seconds: float
    endpoints: tuple[EndpointGauges, ...]
    handoffs: tuple[HandoffGauges, ...] = ()
    peers: int = 0
    peers_heard: int = 0
    prefixes: tuple[tuple[str, str, int], ...] = ()  # model, result, how often
    quarantined: int = 0
    queues: tuple[tuple[str, int, int], ...] = ()  # model, requests that wait, bytes of their bodies
    panic: tuple[tuple[str, bool, int], ...] = ()  # model, whether, second attempts that the budget refused


class RouterMetrics:
    """Every metric of a router process; register it with a prometheus_client registry."""

    def __init__(self, gauges: Callable[[], RouterGauges]) -> None:
        self._gauges = gauges
        self._models: dict[str, ModelStats] = {}
        self.document_errors = 0
        self.document_loads = 0
        self.keys_loads = 0
        self.keys_errors = 0
        self.access_log_dropped = 0
        self.quota_refusals: dict[tuple[str, str], int] = {}  # by tenant and limit
        self.connections_refused = 0
        self.spans: Counter[str] = Counter()  # by what became of them
        self.result_lookups: Counter[tuple[str, str]] = Counter()  # by model and what was found
        self.result_stores: Counter[tuple[str, str]] = Counter()  # by model and what became of the answer

    def model(self, name: str) -> ModelStats:
        """Return the counters of a served model; "" is for requests that never reached one."""
        stats = self._models.get(name)
        if stats is None:
            if len(self._models) >= MAX_MODEL_LABELS:
                name = OTHER_MODELS
            stats = self._models.setdefault(name, ModelStats())
        return stats

    def collect(self) -> Iterator[Metric]:
        state = self._gauges()
        yield from self._counters()
        yield from self._histograms()
        yield from self._tenants()
        yield from self._results()
        yield from _endpoint_families(state.endpoints)
        yield from _split_families(self._models.items(), state.handoffs)
        yield from self._process(state)

    def _counters(self) -> Iterator[Metric]:
        models = self._models.items()
        requests = CounterMetricFamily(
            "llmfleet_router_requests",
            "Requests by status and outcome: complete, failed, truncated, aborted (the client left), refused.",
            labels=["model", "code", "outcome"],
        )
        for name, stats in models:
            for (code, outcome), count in stats.requests.items():
                requests.add_metric([name, str(code), outcome], count)
        yield requests
        yield _by_reason(
            "llmfleet_router_retries",
            "Requests sent to a second engine before any byte was forwarded.",
            ((name, stats.retries) for name, stats in models),
        )
        yield _by_reason(
            "llmfleet_router_truncated",
            "Answers that broke after bytes were forwarded: ended by an error event or a reset.",
            ((name, stats.truncated) for name, stats in models),
        )
        yield _by_reason(
            "llmfleet_router_refusals",
            "Requests the router refused itself, by error code.",
            ((name, stats.refusals) for name, stats in models),
        )

    def _histograms(self) -> Iterator[Metric]:
        ttft = HistogramMetricFamily(
            "llmfleet_router_time_to_first_token_seconds",
            "From the whole request to the first delta of a stream that is not empty.",
            labels=["model"],
        )
        duration = HistogramMetricFamily(
            "llmfleet_router_request_duration_seconds",
            "From the whole request to the end of a complete answer.",
            labels=["model"],
        )
        for name, stats in self._models.items():
            if name:
                ttft.add_metric([name], stats.ttft.buckets(), stats.ttft.total)
                duration.add_metric([name], stats.duration.buckets(), stats.duration.total)
        yield ttft
        yield duration

    def _tenants(self) -> Iterator[Metric]:
        labels = ["model", "tenant"]
        prompt = CounterMetricFamily(
            "llmfleet_router_prompt_tokens", "Tokens of prompts, as engines counted them or estimated.", labels=labels
        )
        completion = CounterMetricFamily(
            "llmfleet_router_completion_tokens",
            "Tokens of answers, as engines counted them or, for those that broke off, estimated.",
            labels=labels,
        )
        for model, stats in self._models.items():
            for tenant, counts in list(stats.tokens.items()):
                prompt.add_metric([model, tenant], counts[0])
                completion.add_metric([model, tenant], counts[1])
        quota = CounterMetricFamily(
            "llmfleet_router_quota_refusals",
            "Requests over a tenant's limit: requests, tokens, concurrency.",
            labels=["tenant", "limit"],
        )
        for (tenant, limit), count in self.quota_refusals.items():
            quota.add_metric([tenant, limit], count)
        yield from (prompt, completion, quota)
        yield CounterMetricFamily("llmfleet_router_keys_loads", "Keys files adopted.", self.keys_loads)
        yield CounterMetricFamily(
            "llmfleet_router_keys_errors", "Keys files refused; the last good one stayed.", self.keys_errors
        )
        yield CounterMetricFamily(
            "llmfleet_router_access_log_dropped",
            "Access-log lines lost, as they could not be written fast enough.",
            self.access_log_dropped,
        )

    def _results(self) -> Iterator[Metric]:
        labels = ["model", "result"]
        lookups = CounterMetricFamily(
            "llmfleet_router_result_lookups",
            "Requests that the result cache may answer: hit, miss, bypassed (as asked), corrupt, unavailable.",
            labels=labels,
        )
        stores = CounterMetricFamily(
            "llmfleet_router_result_stores",
            "Answers to such requests: stored, unfit (not whole, or of another kind), too_long, full, busy, failed.",
            labels=labels,
        )
        yield _labelled(lookups, list(self.result_lookups.items()))
        yield _labelled(stores, list(self.result_stores.items()))

    def _process(self, state: RouterGauges) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily(
            "llmfleet_router_in_flight_requests", "Requests at an engine now.", labels=["model"]
        )
        waiting = {name: count for name, count, _ in state.queues}
        for name, stats in self._models.items():
            if name:
                in_flight.add_metric([name], stats.in_flight - waiting.get(name, 0))
        yield in_flight
        yield GaugeMetricFamily("llmfleet_router_connections", "Client connections open.", state.connections)
        yield GaugeMetricFamily("llmfleet_router_max_connections", "Client connections allowed.", state.max_connections)
        yield from _judgement(state)
        yield from _queues(state)
        yield CounterMetricFamily(
            "llmfleet_router_connections_refused", "Client connections over the limit.", self.connections_refused
        )
        yield GaugeMetricFamily("llmfleet_router_draining", "1 while the router takes leave.", int(state.draining))
        yield GaugeMetricFamily(
            "llmfleet_router_document_generation", "Generation of the backends document in use.", state.generation
        )
        yield GaugeMetricFamily(
            "llmfleet_router_document_age_seconds",
            "Since the backends document in use was adopted; -1 before the first.",
            state.document_age_seconds,
        )
        prefixes = CounterMetricFamily(
            "llmfleet_router_prefixes",
            "Requests by what was known of their prompt: hit, miss, spread (known, but that engine had its part).",
            labels=["model", "result"],
        )
        for model, result, count in state.prefixes:
            prefixes.add_metric([model, result], count)
        yield prefixes
        yield GaugeMetricFamily("llmfleet_router_peers", "Other routers that the document lists.", state.peers)
        yield GaugeMetricFamily("llmfleet_router_peers_heard", "Those that answered lately.", state.peers_heard)
        yield CounterMetricFamily("llmfleet_router_document_loads", "Backends documents adopted.", self.document_loads)
        yield CounterMetricFamily(
            "llmfleet_router_document_errors",
            "Backends documents refused; the last good one stayed.",
            self.document_errors,
        )
        yield _labelled(
            CounterMetricFamily(
                "llmfleet_router_spans",
                "Spans by result: sent, dropped (the queue was full), failed, rejected (by the collector).",
                labels=["result"],
            ),
            (((result,), count) for result, count in list(self.spans.items())),
        )
        info = GaugeMetricFamily("llmfleet_router_build_info", "1, with the version.", labels=["version"])
        info.add_metric([VERSION], 1)
        yield info


def _judgement(state: RouterGauges) -> Iterator[Metric]:
    """What the router holds against engines, models and bodies."""
    panic = GaugeMetricFamily(
        "llmfleet_router_panic", "1 while so many engines look bad that they are used all the same.", labels=["model"]
    )
    refused = CounterMetricFamily(
        "llmfleet_router_retries_refused", "Second attempts that the budget did not allow.", labels=["model"]
    )
    for model, panics, count in state.panic:
        panic.add_metric([model], int(panics))
        refused.add_metric([model], count)
    yield panic
    yield refused
    yield CounterMetricFamily(
        "llmfleet_router_quarantined", "Requests refused because their body was on lost engines.", state.quarantined
    )


def _queues(state: RouterGauges) -> Iterator[Metric]:
    """What waits for a slot: the demand that no engine sees, also of models without one."""
    requests = GaugeMetricFamily(
        "llmfleet_queue_requests", "Requests of this router that wait for a slot or an engine.", labels=["model"]
    )
    size = GaugeMetricFamily(
        "llmfleet_queue_prompt_bytes", "Bytes of the bodies of requests that wait.", labels=["model"]
    )
    for model, count, held in state.queues:
        requests.add_metric([model], count)
        size.add_metric([model], held)
    yield requests
    yield size


def _by_reason(name: str, text: str, counters: Iterable[tuple[str, Counter[str]]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["model", "reason"])
    for model, counter in counters:
        for reason, count in counter.items():
            family.add_metric([model, reason], count)
    return family


def _endpoint_families(endpoints: tuple[EndpointGauges, ...]) -> Iterator[Metric]:
    labels = ["llmcluster", "role"]
    in_flight = GaugeMetricFamily(
        "llmfleet_router_endpoint_in_flight_requests", "Requests at this engine.", labels=labels
    )
    slots = GaugeMetricFamily("llmfleet_router_endpoint_slots", "Requests this engine may have at once.", labels=labels)
    limit = GaugeMetricFamily(
        "llmfleet_router_endpoint_limit", "Requests this router may have at this engine now.", labels=labels
    )
    picks = CounterMetricFamily("llmfleet_router_endpoint_picks", "Requests sent to this engine.", labels=labels)
    failures = CounterMetricFamily(
        "llmfleet_router_endpoint_failures",
        "Requests this engine lost: no answer, a status from 500, a broken answer; also those retried elsewhere.",
        labels=labels,
    )
    ttft = SummaryMetricFamily(
        "llmfleet_router_endpoint_time_to_first_token_seconds",
        "From the whole request to this engine's first delta that is not empty.",
        labels=labels,
    )
    out = GaugeMetricFamily(
        "llmfleet_router_endpoint_out",
        "1 while this engine is left out, by the one reason for it.",
        labels=[*labels, "reason"],
    )
    ejections = CounterMetricFamily(
        "llmfleet_router_endpoint_ejections", "Times this engine was left out.", labels=labels
    )
    # Two pods of one instance can be known at once while one is leaving: their figures are added up.
    grouped: dict[tuple[str, str], list[EndpointGauges]] = {}
    for endpoint in endpoints:
        grouped.setdefault((endpoint.llmcluster, endpoint.role), []).append(endpoint)
    for key, pods in grouped.items():
        in_flight.add_metric(key, sum(pod.in_flight for pod in pods))
        slots.add_metric(key, sum(pod.slots for pod in pods))
        limit.add_metric(key, sum(pod.limit for pod in pods))
        picks.add_metric(key, sum(pod.picks for pod in pods))
        failures.add_metric(key, sum(pod.failures for pod in pods))
        ejections.add_metric(key, sum(pod.ejections for pod in pods))
        for reason in sorted({pod.out for pod in pods if pod.out}):
            out.add_metric([*key, reason], 1)
        ttft.add_metric(key, sum(pod.ttft_count for pod in pods), sum(pod.ttft_sum for pod in pods))
    yield from (in_flight, slots, limit, picks, failures, out, ejections, ttft)


# ======================================================================================================================
# Disaggregated models of the router
# ======================================================================================================================


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffGauges:
    """What one prefill engine owes at the moment of a scrape."""

    llmcluster: str
    outstanding: int
    fates: Mapping[str, int]
    breaker_opened: int


def _split_families(models: Iterable[tuple[str, ModelStats]], handoffs: Iterable[HandoffGauges]) -> Iterator[Metric]:
    models = list(models)
    yield _labelled(
        CounterMetricFamily(
            "llmfleet_router_disaggregated_requests",
            "Requests of disaggregated models by way: split, bypass, alone, fallback; a second attempt counts again.",
            labels=["model", "way"],
        ),
        (((name, way), count) for name, stats in models for way, count in stats.ways.items()),
    )
    phases = HistogramMetricFamily(
        "llmfleet_router_disaggregated_phase_seconds",
        "Parts of the time to first token of split streams: queue, prefill, transfer, decode_first_token.",
        labels=["model", "phase"],
    )
    for name, stats in models:
        for phase, histogram in stats.phases.items():
            phases.add_metric([name, phase], histogram.buckets(), histogram.total)
    yield phases
    yield from _handoff_families(handoffs)


def _handoff_families(handoffs: Iterable[HandoffGauges]) -> Iterator[Metric]:
    outstanding: Counter[tuple[str, ...]] = Counter()
    fates: Counter[tuple[str, ...]] = Counter()
    opened: Counter[tuple[str, ...]] = Counter()
    for engine in handoffs:  # two pods of one instance are added up
        outstanding[(engine.llmcluster,)] += engine.outstanding
        opened[(engine.llmcluster,)] += engine.breaker_opened
        for fate, count in engine.fates.items():
            fates[(engine.llmcluster, fate)] += count
    text = "Hand-offs whose blocks this prefill engine may still hold: not read yet, or never, until their lease ends."
    gauge = GaugeMetricFamily("llmfleet_router_outstanding_handoffs", text, labels=["llmcluster"])
    yield _labelled(gauge, outstanding.items())
    text = "Hand-offs of this prefill engine by fate: used, failed, abandoned (the client left), expired."
    yield _labelled(CounterMetricFamily("llmfleet_router_handoffs", text, labels=["llmcluster", "fate"]), fates.items())
    text = "Times this prefill engine was set aside after failures in a row."
    family = CounterMetricFamily("llmfleet_router_prefill_breaker_opened", text, labels=["llmcluster"])
    yield _labelled(family, opened.items())


# ======================================================================================================================
# Jobs of the router
# ======================================================================================================================


class JobGauges(NamedTuple):
    """The jobs' state at the moment of a scrape."""

    running: dict[str, int]
    up: bool
    refused: bool
    failures: int
    reconnects: int
    primary: str = ""  # its address, while there is one


class JobMetrics:
    """Every metric about jobs in a router process; register it beside the router's own."""

    def __init__(self, gauges: Callable[[], JobGauges]) -> None:
        self._gauges = gauges
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()  # by model and reason
        self.claims: Counter[str] = Counter()
        self.lost_attempts: Counter[str] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()  # by model and final state
        self.waited = Histogram()
        self.held: dict[str, int] = {}  # as Redis said last

    def collect(self) -> Iterator[Metric]:
        state = self._gauges()
        yield _labelled(
            GaugeMetricFamily("llmfleet_queue_jobs", "Jobs that are not over, in Redis.", labels=["model"]),
            (((model,), count) for model, count in self.held.items()),
        )
        yield _labelled(
            GaugeMetricFamily("llmfleet_queue_jobs_running", "Jobs that this router is running.", labels=["model"]),
            (((model,), count) for model, count in state.running.items()),
        )
        yield _labelled(
            CounterMetricFamily("llmfleet_queue_jobs_accepted", "Jobs stored.", labels=["model"]),
            (((model,), count) for model, count in self.accepted.items()),
        )
        yield _labelled(
            CounterMetricFamily(
                "llmfleet_queue_jobs_refused",
                "Jobs not stored: full, share, conflict, unavailable.",
                labels=["model", "reason"],
            ),
            self.refused.items(),
        )
        yield _labelled(
            CounterMetricFamily("llmfleet_queue_jobs_claims", "Jobs taken up, again ones too.", labels=["model"]),
            (((model,), count) for model, count in self.claims.items()),
        )
        yield _labelled(
            CounterMetricFamily(
                "llmfleet_queue_jobs_lost_attempts", "Attempts that brought no whole answer.", labels=["model"]
            ),
            (((model,), count) for model, count in self.lost_attempts.items()),
        )
        yield _labelled(
            CounterMetricFamily(
                "llmfleet_queue_jobs_ended",
                "Jobs ended by this router: complete, failed, expired, cancelled, dead.",
                labels=["model", "state"],
            ),
            self.ended.items(),
        )
        waited = HistogramMetricFamily(
            "llmfleet_queue_jobs_wait_seconds", "From the storing of a job to its start.", labels=[]
        )
        waited.add_metric([], self.waited.buckets(), self.waited.total)
        yield waited
        yield from _redis_families(state)


def _redis_families(state: JobGauges) -> Iterator[Metric]:
    yield GaugeMetricFamily("llmfleet_queue_redis_up", "1 while jobs can be stored.", int(state.up))
    yield GaugeMetricFamily(
        "llmfleet_queue_redis_refused", "1 while Redis answers and must not be used, as it evicts.", int(state.refused)
    )
    yield _labelled(
        GaugeMetricFamily("llmfleet_queue_redis_primary", "1 for the server that keeps jobs now.", labels=["address"]),
        [((state.primary,), 1)] if state.primary else [],
    )
    yield CounterMetricFamily("llmfleet_queue_redis_failures", "Calls that Redis did not answer well.", state.failures)
    yield CounterMetricFamily("llmfleet_queue_redis_reconnects", "Times Redis came back.", state.reconnects)


def _labelled(family: Any, samples: Iterable[tuple[tuple[str, ...], int]]) -> Metric:
    for labels, value in samples:
        family.add_metric(list(labels), value)
    return cast(Metric, family)


# ======================================================================================================================
# Operator and route controller
# ======================================================================================================================

# Declared in a registry of their own and only when asked for, so that a router process does not export them.


class ControllerMetrics:
    """What every process with controllers exports, under its component's name."""

    def __init__(self, component: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._component = component
        self.leader = self._gauge("leader", "1 while this process holds the lease.")
        self.writes = self._counter(
            "writes", "Writes sent to the apiserver, by resource, verb and HTTP code.", "resource", "verb", "code"
        )
        self.watch_failures = self._counter(
            "watch_failures", "Lists and watches that failed, by resource and error.", "resource", "error"
        )
        self.objects = self._gauge("cached_objects", "Objects held in memory.", "resource")
        self.queue = self._gauge("queue_depth", "Keys that wait for a worker.", "controller")
        self.passes = Histogram_(
            f"llmfleet_{component}_reconcile_duration_seconds",
            "Duration of one pass over one object.",
            ["controller"],
            registry=self.registry,
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self.failures = self._counter("reconcile_failures", "Passes that failed, by error.", "controller", "error")
        info = self._gauge("build_info", "1, with the version.", "version")
        info.labels(VERSION).set(1)

    def _counter(self, name: str, text: str, *labels: str) -> Counter_:
        return Counter_(f"llmfleet_{self._component}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge_:
        return Gauge_(f"llmfleet_{self._component}_{name}", text, labels, registry=self.registry)


class OperatorMetrics(ControllerMetrics):
    """Every metric of an operator process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__("operator", registry)
        self.publishes = Counter_(
            "llmfleet_route_publishes",
            "Backends documents written, by result: published, conflict, failed.",
            ["result"],
            registry=self.registry,
        )
        self.endpoints = Gauge_(
            "llmfleet_route_endpoints",
            "Endpoints in the newest backends document, by state.",
            ["namespace", "configmap", "state"],
            registry=self.registry,
        )
        self.generation = Gauge_(
            "llmfleet_route_document_generation",
            "Generation of the newest backends document.",
            ["namespace", "configmap"],
            registry=self.registry,
        )
        # deploy/: the words are those of the Ready condition.
        self.instances = self._gauge("instances", "Instances, by the reason of their Ready condition.", "reason")
        self.transitions = self._counter("transitions", "Times an instance came to be in a state.", "reason")


# ======================================================================================================================
# Autoscaler
# ======================================================================================================================


class AutoscalerMetrics(ControllerMetrics):
    """Every metric of an autoscaler process. `fleet` is namespace/name of the LLMClusterAutoscaler."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__("autoscaler", registry)
        fleet = ("fleet", "role")
        self.decisions = self._counter(
            "decisions", "Decisions by what they do (grow, shrink, hold) and why.", *fleet, "decision", "reason"
        )
        self.desired = self._gauge("desired_instances", "Instances the last decision asks for.", *fleet)
        self.current = self._gauge("current_instances", "Instances that exist.", *fleet)
        self.ready = self._gauge("ready_instances", "Instances that are ready.", *fleet)
        self.load = self._gauge("offered_load_instances", "Offered load over what one instance carries.", *fleet)
        self.headroom = self._gauge("headroom_ratio", "Peak expected within a cold start, over the load now.", *fleet)
        self.age = self._gauge("signal_age_seconds", "Age of the oldest figure behind the last decision.", *fleet)
        self.scrapes = self._counter("scrapes", "Looks at engines, routers and Prometheus.", "target", "result")

    def forget(self, fleet: str) -> None:
        """A fleet is gone: its series go too."""
        for family in (self.decisions, self.desired, self.current, self.ready, self.load, self.headroom, self.age):
            for labels in [labels for labels in [*family._metrics] if labels[0] == fleet]:
                family.remove(*labels)
