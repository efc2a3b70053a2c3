"""Read the few numbers that decisions need out of Prometheus text.

In: the text of a `/metrics` page. Out: sums. Lines that are no samples are skipped; it never keeps a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from llmfleet.deploy.records import Figures

SAMPLE: Final = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
LOAD: Final = frozenset({"vllm:num_requests_running", "vllm:num_requests_waiting"})
REQUESTS: Final = "llmfleet_router_endpoint_picks_total"
FAILURES: Final = "llmfleet_router_endpoint_failures_total"
TTFT: Final = "llmfleet_router_endpoint_time_to_first_token_seconds"


def samples(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Name, labels and value of every sample."""
    for line in text.splitlines():
        found = SAMPLE.match(line)
        if found is None:
            continue
        try:
            yield found[1], dict(LABEL.findall(found[2] or "")), float(found[3])
        except ValueError:
            continue


def engine_load(text: str) -> float:
    """Requests that run or wait in an engine. A page without them is not an idle engine."""
    values = [value for name, _, value in samples(text) if name in LOAD]
    if not values:
        raise ValueError("no vllm:num_requests_running on the page")
    return sum(values)


def router_figures(text: str) -> dict[str, Figures]:
    """Counters of one router by instance. What the engine lost is an error; a client's own mistake is none."""
    figures: dict[str, Figures] = {}
    for name, labels, value in samples(text):
        instance = labels.get("llmcluster", "")
        if instance:
            figures[instance] = counted(figures.get(instance, Figures()), name, value)
    return figures


def counted(figures: Figures, name: str, value: float) -> Figures:
    if name == REQUESTS:
        return replace(figures, requests=figures.requests + value)
    if name == FAILURES:
        return replace(figures, errors=figures.errors + value)
    if name == f"{TTFT}_sum":
        return replace(figures, ttft_sum=figures.ttft_sum + value)
    if name == f"{TTFT}_count":
        return replace(figures, ttft_count=figures.ttft_count + value)
    return figures
