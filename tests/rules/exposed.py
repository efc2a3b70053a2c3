"""What the components really export, asked of their running code.

In: nothing. Out: the text of each component's `/metrics`, and from it one line for each metric: component, type, name,
labels. A router and two simulated engines run as they do in a pod; controllers hand out the registry that they serve.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llmfleet.api.reasons import DecisionReason, Reason
from llmfleet.telemetry import (
    AutoscalerMetrics,
    ControllerMetrics,
    EndpointGauges,
    HandoffGauges,
    JobGauges,
    JobMetrics,
    OperatorMetrics,
    RouterGauges,
    RouterMetrics,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "router"))

GOLDEN = Path(__file__).parent / "golden" / "metrics.txt"
# The client library's own, the same in every process.
GENERAL = ("process_", "python_")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


def router_gauges() -> RouterGauges:
    """A state with every part in it."""
    endpoint = EndpointGauges(llmcluster="demo-tiny-0", role="both", in_flight=1, slots=8, picks=3, out="health_checks")
    handoff = HandoffGauges(llmcluster="demo-tiny-p-0", outstanding=1, fates={"used": 1}, breaker_opened=1)
    return RouterGauges(
        connections=1,
        max_connections=10,
        draining=False,
        generation=7,
        document_age_seconds=1.0,
        endpoints=(endpoint,),
        handoffs=(handoff,),
        prefixes=(("tiny", "hit", 1),),
        queues=(("tiny", 1, 100),),
        panic=(("tiny", False, 0),),
    )


def router_text() -> str:
    """A router to whose every counter something happened."""
    registry, metrics = CollectorRegistry(), RouterMetrics(router_gauges)
    stats = metrics.model("tiny")
    stats.requests[(200, "complete")] = 1
    for counter in (stats.retries, stats.truncated, stats.refusals, stats.ways):
        counter["why"] = 1
    stats.count_tokens("tenant", 1, 2)
    stats.phase("queue", 0.1)
    metrics.quota_refusals[("tenant", "requests")] = 1
    metrics.spans["sent"] = 1
    metrics.result_lookups[("tiny", "hit")] = 1
    metrics.result_stores[("tiny", "stored")] = 1
    jobs = JobMetrics(
        lambda: JobGauges(
            running={"tiny": 1}, up=True, refused=False, failures=0, reconnects=0, primary="10.0.0.1:6379"
        )
    )
    jobs.held["tiny"] = 2
    jobs.accepted, jobs.claims, jobs.lost_attempts = Counter(tiny=1), Counter(tiny=1), Counter(tiny=1)
    jobs.refused[("tiny", "full")] = 1
    jobs.ended[("tiny", "complete")] = 1
    registry.register(metrics)
    registry.register(jobs)
    return generate_latest(registry).decode()


def controller_text(metrics: ControllerMetrics) -> str:
    """A controller of whose every labelled metric there is one series."""
    words = {"reason": str(Reason.SERVING), "fleet": "team-a/demo-tiny"}
    if isinstance(metrics, AutoscalerMetrics):
        words["reason"] = str(DecisionReason.ON_TARGET)
    for family in list(metrics.registry._collector_to_names):
        names: tuple[str, ...] = getattr(family, "_labelnames", ())
        if names:
            family.labels(*(words.get(name, name) for name in names))  # type: ignore[attr-defined]
    return generate_latest(metrics.registry).decode()


def running_router_text() -> str:
    """The admin page of a router process that served one request and refused another."""
    from bed import CHAT, STREAM, Bed

    async def page() -> bytes:
        async with Bed() as bed:
            await bed.ask(STREAM)
            await bed.ask(CHAT | {"model": "nope"})
            return bytes(await bed.admin("/metrics"))

    return uvloop.run(page()).decode()


def engine_text(folder: Path) -> str:
    """Pages of two simulated engines of a disaggregated model, after one request each."""
    from sim.engine import SMALL, start

    pages = []
    for role in ("kv_producer", "kv_consumer"):
        given = {"kv_connector": "NixlConnector", "kv_role": role}
        with start(folder, *SMALL, "--sim-step-a", "1", "--kv-transfer-config", json.dumps(given)) as engine:
            engine.until_up()
            engine.complete()
            pages.append(engine.get("/metrics").body.decode())
    return "\n".join(pages)


def texts(folder: Path) -> dict[str, str]:
    """Every component's page."""
    return {
        "router": router_text(),
        "operator": controller_text(OperatorMetrics()),
        "autoscaler": controller_text(AutoscalerMetrics()),
        "engine": engine_text(folder),
    }


def inventory(component: str, text: str) -> set[str]:
    """One line for each metric of a page: component, type, name, labels (but `le`, which every bucket has)."""
    found: dict[tuple[str, str], set[str]] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith(GENERAL) or family.name.endswith("_created"):
            continue
        labels = found.setdefault((family.type, family.name), set())
        labels |= set(chain.from_iterable(sample.labels for sample in family.samples)) - {"le"}
    return {
        " ".join((component, kind, name, ",".join(sorted(labels)))).rstrip() for (kind, name), labels in found.items()
    }


def golden() -> Iterator[tuple[str, str, str, set[str]]]:
    """Component, type, name and labels of every metric in the golden list."""
    for line in GOLDEN.read_text().splitlines():
        component, kind, name, *labels = line.split(" ")
        yield component, kind, name, set(labels[0].split(",")) if labels else set()


def sample_names(kind: str, name: str) -> Iterable[str]:
    """Names of a metric's samples, as PromQL asks for them."""
    return (name + suffix for suffix in SUFFIXES.get(kind, ("",)))


def known() -> dict[str, set[str]]:
    """Labels of every sample name that a component exports."""
    found: dict[str, Any] = {}
    for _, kind, name, labels in golden():
        for sample in sample_names(kind, name):
            found[sample] = labels | ({"le"} if sample.endswith("_bucket") and kind == "histogram" else set())
    return found
