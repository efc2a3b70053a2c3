"""Read an engine's or a router's metrics out of Prometheus text, or out of Prometheus' own answer.

In: the text of a `/metrics` page, or samples as (name, labels, value). Out: a reading, or None when the page has not
what a reading needs. Lines that do not begin with a wanted name are skipped before they are taken apart: a page has
some 700 lines and 60 matter. It never keeps a page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from llmfleet.api.autoscaler import MetricType
from llmfleet.scale.signals import Buckets, EngineReading, RouterReading, is_plausible, plausible

Sample = tuple[str, Mapping[str, str], float]

PROMPT_BY_SOURCE: Final = "vllm:prompt_tokens_by_source_total"
PROMPT: Final = "vllm:prompt_tokens_total"
CACHE_HITS: Final = "vllm:prefix_cache_hits_total"
GENERATED: Final = "vllm:generation_tokens_total"
ACCEPTED: Final = "vllm:spec_decode_num_accepted_tokens_total"
STEPS: Final = "vllm:iteration_tokens_total_count"
RUNNING: Final = "vllm:num_requests_running"
WAITING: Final = "vllm:num_requests_waiting"
KV_USAGE: Final = "vllm:kv_cache_usage_perc"
CACHE_CONFIG: Final = "vllm:cache_config_info"
FINISHED: Final = "vllm:request_success_total"
ITL_SUM: Final = "vllm:inter_token_latency_seconds_sum"
ITL_COUNT: Final = "vllm:inter_token_latency_seconds_count"
HISTOGRAMS: Final[Mapping[str, MetricType]] = {
    "vllm:time_to_first_token_seconds_bucket": MetricType.TTFT,
    "vllm:request_time_per_output_token_seconds_bucket": MetricType.TPOT,
    "vllm:e2e_request_latency_seconds_bucket": MetricType.REQUEST_LATENCY,
}
ENGINE_NAMES: Final = frozenset(
    {PROMPT_BY_SOURCE, PROMPT, CACHE_HITS, GENERATED, ACCEPTED, STEPS, RUNNING, WAITING, KV_USAGE, CACHE_CONFIG}
    | {FINISHED, ITL_SUM, ITL_COUNT}
    | set(HISTOGRAMS)
)
NEEDED: Final = (GENERATED, RUNNING, WAITING)
"""A page without these is no engine's."""
PROMPTS: Final = (PROMPT_BY_SOURCE, PROMPT)
"""Nor is one without either of these: to take prompts for none would make a busy fleet look idle."""

QUEUED: Final = "llmfleet_queue_requests"
QUEUED_BYTES: Final = "llmfleet_queue_prompt_bytes"
REFUSALS: Final = "llmfleet_router_refusals_total"
IN_FLIGHT: Final = "llmfleet_router_in_flight_requests"
ROUTER_NAMES: Final = frozenset({QUEUED, QUEUED_BYTES, REFUSALS, IN_FLIGHT})
WANT_OF_CAPACITY: Final = frozenset({"server_is_overloaded", "no_endpoint"})
"""The router's own words for a request that found no room; any other refusal is no load."""

LINE: Final = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)")
LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def read_text(text: str, wanted: frozenset[str]) -> Iterator[Sample]:
    """The wanted samples of a page."""
    for line in text.splitlines():
        end = line.find("{")
        if (line[:end] if end >= 0 else line.partition(" ")[0]) not in wanted:
            continue
        found = LINE.match(line)
        if found is None:
            continue
        try:
            value = float(found[3])
        except ValueError:
            continue
        yield found[1], dict(LABEL.findall(found[2] or "")), value


def engine_from_text(text: str, instance: str, at: float) -> EngineReading | None:
    """One engine's page as a reading."""
    return build_engine(read_text(text, ENGINE_NAMES), instance, at)


def build_engine(samples: Iterable[Sample], instance: str, at: float) -> EngineReading | None:
    """Add the samples of all engine cores of an instance up; None when they are no engine's or cannot be true."""
    sums: dict[str, float] = {}
    local: float | None = None
    kv_tokens = 0.0
    histograms: dict[MetricType, dict[float, float]] = {}
    cores: set[str] = set()
    for name, labels, value in samples:
        sums[name] = sums.get(name, 0.0) + value
        if name == PROMPT_BY_SOURCE and labels.get("source") == "local_compute":
            local = (local or 0.0) + value
        elif name == KV_USAGE:
            cores.add(labels.get("engine", ""))
        elif name == CACHE_CONFIG:
            kv_tokens += tokens_of(labels)
        elif name in HISTOGRAMS:
            edges = histograms.setdefault(HISTOGRAMS[name], {})
            edge = edge_of(labels)
            edges[edge] = edges.get(edge, 0.0) + value
    if any(name not in sums for name in NEEDED) or not any(name in sums for name in PROMPTS):
        return None
    # Before differences are taken: what is below zero by a fault must not end as a zero.
    if not plausible(*(value for name, value in sums.items() if name != CACHE_CONFIG)):
        return None
    reading = EngineReading(
        instance=instance,
        at=at,
        prefill=local if local is not None else max(sums.get(PROMPT, 0.0) - sums.get(CACHE_HITS, 0.0), 0.0),
        prompts=sums.get(PROMPT, sums.get(PROMPT_BY_SOURCE, 0.0)),
        generated=sums[GENERATED] - sums.get(ACCEPTED, 0.0),
        steps=sums.get(STEPS, 0.0),
        finished=sums.get(FINISHED, 0.0),
        itl_seconds=sums.get(ITL_SUM, 0.0),
        itl_count=sums.get(ITL_COUNT, 0.0),
        running=sums[RUNNING],
        waiting=sums[WAITING],
        kv_usage=sums.get(KV_USAGE, 0.0) / max(len(cores), 1),
        kv_tokens=kv_tokens,
        buckets={kind: ordered(edges) for kind, edges in histograms.items()},
    )
    return reading if is_plausible(reading) else None


def tokens_of(labels: Mapping[str, str]) -> float:
    """How many tokens a KV cache holds, as its info metric spells it."""
    if labels.get("kv_cache_size_tokens", "").isdecimal():
        return float(labels["kv_cache_size_tokens"])
    blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    return float(blocks) * float(size) if blocks.isdecimal() and size.isdecimal() else 0.0


def edge_of(labels: Mapping[str, str]) -> float:
    """Upper edge of a bucket; infinite when it is no number."""
    try:
        edge = float(labels.get("le", "inf"))
    except ValueError:
        return math.inf
    return math.inf if math.isnan(edge) else edge


def ordered(edges: Mapping[float, float]) -> Buckets:
    return tuple(sorted(edges.items()))


def router_from_text(text: str, router: str, models: frozenset[str], at: float) -> RouterReading | None:
    """One router's page as a reading for the models of one fleet."""
    return build_router(read_text(text, ROUTER_NAMES), router, models, at)


def build_router(samples: Iterable[Sample], router: str, models: frozenset[str], at: float) -> RouterReading | None:
    """Add up what one router says of some models; None when a figure cannot be true."""
    queued = waiting_bytes = refused = in_flight = 0.0
    for name, labels, value in samples:
        if labels.get("model") not in models:
            continue
        if name == QUEUED:
            queued += value
        elif name == QUEUED_BYTES:
            waiting_bytes += value
        elif name == REFUSALS and labels.get("reason") in WANT_OF_CAPACITY:
            refused += value
        elif name == IN_FLIGHT:
            in_flight += value
    reading = RouterReading(
        router=router, at=at, queued=queued, queued_bytes=waiting_bytes, refused=refused, in_flight=in_flight
    )
    return reading if is_plausible(reading) else None
