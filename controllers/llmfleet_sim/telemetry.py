"""Every metric of the simulated engine and how a request's life moves them; also the log set-up.

Names, help, labels, buckets and order are vLLM's (metric_table.py). Prompt and answer texts never
reach a log or a label.
"""

import gc
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit

from llmfleet_sim.metric_table import CACHE_CONFIG, CONNECTOR_METRICS, CONSUMER_METRICS, METRICS
from llmfleet_sim.metrics import Child, Family, HistogramChild, label_text, number
from llmfleet_sim.scheduler import Batch, Scheduler
from llmfleet_sim.scheduler import Sequence as Seq

_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    *(1, 2.5, 5, 7.5, 10),
    *(20, 40, 80, 160, 640, 2560),
)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_HIGHR = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60)
_NIXL_TIME = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 5)
_WAITING_REASONS = ("capacity", "deferred")
_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
_TIERS = ("device", "host", "p2p", "disk", "external_unspecified")
_REASONS = ("stop", "length", "abort", "error", "repetition")
_SLEEP = ("awake", "weights_offloaded", "discard_all")
_QUEUE_LIMITS = ("max_num_queued_reqs", "max_num_queued_tokens")
_STAGES = ("waiting_to_start", "in_progress", "completed_waiting")
_LABELS = {
    "vllm:num_requests_waiting_by_reason": ("reason", _WAITING_REASONS),
    "vllm:prompt_tokens_by_source": ("source", _SOURCES),
    "vllm:prompt_tokens_cached_by_source": ("source", _TIERS),
    "vllm:request_success": ("finished_reason", _REASONS),
    "vllm:engine_sleep_state": ("sleep_state", _SLEEP),
    "vllm:admission_rejections": ("reason", _QUEUE_LIMITS),
    "vllm:num_requests_kv_fetch_by_stage": ("stage", _STAGES),
}
_UNLOGGED = {"/metrics", "/health", "/load", "/ping", "/version", "/server_info"}


def one_two_five(limit: int) -> tuple[int, ...]:
    """Give 1, 2, 5, 10, 20, 50 ... up to the limit."""
    series = (m * 10**e for e in range(len(str(limit))) for m in (1, 2, 5))
    return tuple(v for v in series if v <= limit)


def buckets(max_model_len: int, custom: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Give every bucket set by name; `--custom-histogram-buckets` replaces some."""
    own: dict[str, Sequence[float]] = {
        "request_latency": _LATENCY,
        "time_to_first_token": _TTFT,
        "inter_token_latency": _ITL,
        "iteration_tokens": (1, 8, *(2**e for e in range(4, 15))),
        "request_tokens": one_two_five(max_model_len),
        "params_n": (1, 2, 5, 10, 20),
        "preemptions": (1, 2, 3, 4, 5, 10, 20),
        "http_highr": _HIGHR,
        "http": (0.1, 0.5, 1),
        "nixl_post": _NIXL_TIME,
        "nixl_xfer": _NIXL_TIME[1:],
        "nixl_bytes": tuple(2 ** (10 + i) for i in range(1, 25, 2)),
        "nixl_descriptors": (10, 20, 30, 50, 75, 100, 200, 400, 1e3, 2e3, 4e3, 1e4, 2e4, 5e4),
    }
    return {**own, **{k: tuple(v) for k, v in custom.items() if k in own}}


def families(table: str, bounds: Mapping[str, Sequence[float]]) -> list[Family]:
    """Read a table of metric_table.py."""
    found = []
    for line in table.strip().replace("\n    ", " ").splitlines():
        kind, name, bucket, text = line.split(" ", 3)
        text = text.replace("~ ", "  ").removesuffix("~") + (" " if text.endswith("~") else "")
        found.append(Family(name, kind, text, bounds.get(bucket, ())))
    return found


class Telemetry:
    """The metrics of one engine process."""

    def __init__(
        self,
        *,
        model: str,
        max_model_len: int,
        custom_buckets: Mapping[str, Sequence[float]],
        cache_config: Mapping[str, str],
        connector: bool,
        consumer: bool,
        started: float,
    ) -> None:
        self.started = started
        self._base = {"engine": "0", "model_name": model}
        self._scalars: dict[tuple[str, ...], Child] = {}
        self._histograms: dict[str, HistogramChild] = {}
        table = METRICS
        if consumer:
            mark = "gauge vllm:engine_sleep_state"
            table = table.replace(mark, CONSUMER_METRICS.strip() + "\n" + mark)
        if connector:
            mark = "gauge vllm:cache_config_info"
            table = table.replace(mark, CONNECTOR_METRICS.strip() + "\n" + mark)
        self._families = {f.name: f for f in families(table, buckets(max_model_len, custom_buckets))}
        self._declare(model, cache_config)

    def _declare(self, model: str, cache_config: Mapping[str, str]) -> None:
        """Make every series a fresh engine shows."""
        for family in self._families.values():
            if not family.name.startswith("vllm:") or family.name == "vllm:cache_config_info":
                continue
            label, values = _LABELS.get(family.name, ("", ("",)))
            for value in values:
                extra = {label: value} if label else {}
                if family.kind == "histogram":
                    family.histogram(self.started, **self._base, **extra)
                elif family.name == "vllm:admission_rejections":
                    family.scalar(self.started, model_name=model, **extra)
                else:
                    family.scalar(self.started, **self._base, **extra)
        self.scalar("vllm:engine_sleep_state", sleep_state="awake").set(1)
        info = dict(item.split("=", 1) for item in CACHE_CONFIG.split())
        labels = {**info, **cache_config, "engine": "0"}
        self._families["vllm:cache_config_info"].scalar(self.started, **labels).set(1)
        self._families["http_request_duration_highr_seconds"].histogram(self.started)

    def scalar(self, name: str, **labels: str) -> Child:
        """Give a counter or gauge of the engine; every token asks, so the answer is remembered."""
        key = (name, *labels.values())
        child = self._scalars.get(key)
        if child is None:
            child = self._scalars[key] = self._families[name].scalar(self.started, **self._base, **labels)
        return child

    def histogram(self, name: str) -> HistogramChild:
        """Give a histogram of the engine, remembered likewise."""
        child = self._histograms.get(name)
        if child is None:
            child = self._histograms[name] = self._families[name].histogram(self.started, **self._base)
        return child

    def rejected(self, limit: str) -> None:
        """Count a request refused by a queue limit."""
        family = self._families["vllm:admission_rejections"]
        family.scalar(self.started, model_name=self._base["model_name"], reason=limit).inc()

    def admitted(self, seq: Seq) -> None:
        """Count prefix cache look-ups when a sequence starts; as in vLLM not again after a preemption."""
        if seq.preemptions:
            return
        local = seq.cached - seq.external
        self.scalar("vllm:prefix_cache_queries").inc(len(seq.prompt))
        self.scalar("vllm:prefix_cache_hits").inc(local)
        self.scalar("vllm:prompt_tokens_cached_by_source", source="device").inc(local)
        if seq.external:
            self.scalar("vllm:external_prefix_cache_queries").inc(len(seq.prompt))
            self.scalar("vllm:external_prefix_cache_hits").inc(seq.external)
            self.scalar("vllm:prompt_tokens_cached_by_source", source="p2p").inc(seq.external)

    def pulled(self, tokens: int, seconds: float) -> None:
        """Count one KV transfer; 3,640 bytes a token are what the smallest test model has."""
        self.histogram("vllm:nixl_xfer_time_seconds").observe(seconds)
        self.histogram("vllm:nixl_post_time_seconds").observe(seconds / 10)
        self.histogram("vllm:nixl_bytes_transferred").observe(tokens * 3640)
        self.histogram("vllm:nixl_num_descriptors").observe(max(1, tokens // 16))

    def stepped(self, batch: Batch, emitted: Iterable[tuple[Seq, int, str]], now: float) -> None:
        """Count one engine step and the tokens it made."""
        tokens = 0
        for seq, _, _ in emitted:
            tokens += 1 + self._token(seq, now)
        self.histogram("vllm:iteration_tokens_total").observe(tokens)
        self.scalar("vllm:num_preemptions").inc(len(batch.preempted))

    def _token(self, seq: Seq, now: float) -> int:
        """Count one token; gives the prompt tokens that this step finished."""
        self.scalar("vllm:generation_tokens").inc()
        previous, seq.last_token = seq.last_token, now
        if seq.outputs > 1:
            self.histogram("vllm:inter_token_latency_seconds").observe(now - previous)
            return 0
        self.histogram("vllm:time_to_first_token_seconds").observe(now - seq.arrived)
        prompt, local = len(seq.prompt), seq.cached - seq.external
        self.scalar("vllm:prompt_tokens").inc(prompt)
        self.scalar("vllm:prompt_tokens_cached").inc(seq.cached)
        for source, count in zip(_SOURCES, (prompt - seq.cached, local, seq.external), strict=True):
            self.scalar("vllm:prompt_tokens_by_source", source=source).inc(count)
        return prompt

    def finished(self, seq: Seq, reason: str, now: float) -> None:
        """Count one finished sequence."""
        self.scalar("vllm:request_success", finished_reason=reason).inc()
        first, observe = seq.first_token or now, self._observe
        observe("e2e_request_latency_seconds", now - seq.arrived)
        observe("request_queue_time_seconds", seq.scheduled - seq.arrived)
        observe("request_prefill_time_seconds", first - seq.scheduled)
        observe("request_decode_time_seconds", seq.last_token - first)
        observe("request_inference_time_seconds", seq.last_token - seq.scheduled)
        observe("request_prompt_tokens", len(seq.prompt))
        observe("request_generation_tokens", seq.outputs)
        observe("request_max_num_generation_tokens", seq.outputs)
        observe("request_params_n", 1)
        observe("request_params_max_tokens", seq.max_tokens)
        observe("request_num_preemptions", seq.preemptions)
        observe("request_prefill_kv_computed_tokens", len(seq.prompt) - seq.cached)
        per_token = (seq.last_token - first) / (seq.outputs - 1) if seq.outputs > 1 else 0.0
        observe("request_time_per_output_token_seconds", per_token)

    def _observe(self, name: str, value: float) -> None:
        self.histogram("vllm:" + name).observe(max(0.0, value))

    def gauges(self, scheduler: Scheduler) -> None:
        """Refresh the gauges from the scheduler's state."""
        deferred = scheduler.deferred()
        self.scalar("vllm:num_requests_running").set(len(scheduler.running))
        self.scalar("vllm:num_requests_waiting").set(len(scheduler.waiting))
        by_reason = zip(_WAITING_REASONS, (len(scheduler.waiting) - deferred, deferred), strict=True)
        for reason, count in by_reason:
            self.scalar("vllm:num_requests_waiting_by_reason", reason=reason).set(count)
        self.scalar("vllm:kv_cache_usage_perc").set(scheduler.pool.usage)
        if "vllm:num_requests_kv_fetch_by_stage" in self._families:
            self.scalar("vllm:num_requests_kv_fetch_by_stage", stage="in_progress").set(deferred)

    def http(self, *, handler: str, method: str, status: int, sizes: tuple[int, int], seconds: float) -> None:
        """Count one answered HTTP request, as vLLM's instrumentation does."""
        if handler in _UNLOGGED:
            return
        now, family = time.time(), self._families
        where = {"handler": handler}
        family["http_requests"].scalar(now, **where, method=method, status=f"{status // 100}xx").inc()
        family["http_request_size_bytes"].histogram(now, **where).observe(sizes[0])
        family["http_response_size_bytes"].histogram(now, **where).observe(sizes[1])
        family["http_request_duration_highr_seconds"].histogram(now).observe(seconds)
        family["http_request_duration_seconds"].histogram(now, **where, method=method).observe(seconds)

    def render(self) -> bytes:
        """Write the whole scrape."""
        lines = process_lines(self.started)
        for family in self._families.values():
            lines += family.lines()
        return ("\n".join(lines) + "\n").encode()


def process_lines(started: float) -> list[str]:
    """Write the python_* and process_* families of prometheus_client."""
    lines = _collector_lines()
    info = {"implementation": "CPython", "version": ".".join(map(str, sys.version_info[:3]))}
    info |= dict(zip(("major", "minor", "patchlevel"), map(str, sys.version_info[:3]), strict=True))
    lines += _family("python_info", "gauge", "Python platform information", label_text(info), 1)
    virtual, resident = (int(v) * 4096 for v in Path("/proc/self/statm").read_text(encoding="ascii").split()[:2])
    open_files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for name, kind, text, value in (
        ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", virtual),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident),
        ("start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", started),
        ("cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", time.process_time()),
        ("open_fds", "gauge", "Number of open file descriptors.", open_files),
        ("max_fds", "gauge", "Maximum number of open file descriptors.", getrlimit(RLIMIT_NOFILE)[0]),
    ):
        lines += _family("process_" + name, kind, text, "", value)
    return lines


def _family(name: str, kind: str, text: str, labels: str, value: float) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name}{labels} {number(value)}"]


def _collector_lines() -> list[str]:
    lines = []
    for key, name, text in (
        ("collected", "objects_collected", "Objects collected during gc"),
        ("uncollectable", "objects_uncollectable", "Uncollectable objects found during GC"),
        ("collections", "collections", "Number of times this generation was collected"),
    ):
        name = f"python_gc_{name}_total"
        lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
        for generation, stats in enumerate(gc.get_stats()):
            lines.append(f'{name}{{generation="{generation}"}} {number(stats[key])}')
    return lines


def set_up_log(*, rank: int, level: str) -> logging.Logger:
    """Log like vLLM: level, time, process; never a request's text."""
    who = "APIServer" if rank == 0 else f"Worker rank={rank}"
    form = f"({who} pid={os.getpid()}) %(levelname)s %(asctime)s [%(module)s.py:%(lineno)d] %(message)s"
    logging.basicConfig(stream=sys.stdout, format=form, datefmt="%m-%d %H:%M:%S", level=level)
    return logging.getLogger("llmfleet_sim")
