"""Every metric that rules, cases and documents name is one that running code exports, with the labels it has there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from llmfleet.api.reasons import DecisionReason, Reason
from llmfleet.router.disagg.ledger import Fate
from llmfleet.router.disagg.plan import Way
from llmfleet.router.errors import Code
from llmfleet.telemetry import SECONDS
from rules.exposed import (
    GOLDEN,
    OperatorMetrics,
    controller_text,
    golden,
    inventory,
    router_text,
    running_router_text,
    texts,
)
from rules.exposed import AutoscalerMetrics as Autoscaler
from rules.names import EXTERNAL, exported, matchers, metrics, target_labels, unknown
from rules.rules import CASES, promtool, records, rules

pytestmark = pytest.mark.helm
SERIES = sorted(
    {
        series
        for path in CASES.glob("*.yaml")
        for side in yaml.safe_load(path.read_text()).values()
        for series in side["series"]
    }
)
EDGES = {*map(repr, SECONDS), "+Inf"}
# Words that a label may have, where code has a list of them.
VOCABULARY = {
    ("llmfleet_operator_instances", "reason"): set(Reason),
    ("llmfleet_operator_transitions_total", "reason"): set(Reason),
    ("llmfleet_autoscaler_decisions_total", "reason"): set(DecisionReason),
    ("llmfleet_autoscaler_decisions_total", "decision"): {"grow", "shrink", "hold"},
    ("llmfleet_router_refusals_total", "reason"): set(Code),
    ("llmfleet_router_handoffs_total", "fate"): set(Fate),
    ("llmfleet_router_disaggregated_requests_total", "way"): set(Way),
    ("llmfleet_queue_jobs_ended_total", "state"): {"complete", "failed", "expired", "cancelled", "dead"},
    ("llmfleet_route_publishes_total", "result"): {"published", "conflict", "failed"},
    ("llmfleet_route_endpoints", "state"): {"ready", "draining"},
}


def test_components_export_what_the_golden_list_says(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = sorted(line for component, text in texts(tmp_path).items() for line in inventory(component, text))
    if request.config.getoption("--golden", default=False):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text("\n".join(found) + "\n")
    assert found == GOLDEN.read_text().splitlines(), "look at the difference; --golden accepts it"


def test_a_running_router_exports_no_metric_or_label_that_the_list_has_not() -> None:
    listed = {name: labels for component, _, name, labels in golden() if component == "router"}
    shown = inventory("router", running_router_text())
    assert len(shown) > 30
    for line in shown:
        _, _, name, *labels = line.split(" ")
        assert name in listed
        assert set(labels[0].split(",") if labels else ()) <= listed[name], name


@pytest.mark.parametrize(
    "text",
    [
        router_text,
        running_router_text,
        lambda: controller_text(OperatorMetrics()),
        lambda: controller_text(Autoscaler()),
    ],
    ids=["router", "running router", "operator", "autoscaler"],
)
def test_promtool_has_nothing_to_say_about_a_page(text) -> None:  # type: ignore[no-untyped-def]
    done = promtool("check", "metrics", stdin=text())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_promtool_would_say_something_about_a_bad_page() -> None:
    assert promtool("check", "metrics", stdin="# TYPE requests counter\nrequests 1\n").returncode != 0


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_every_metric_of_a_rule_exists(rule: dict[str, str]) -> None:
    assert metrics(rule["expr"])
    assert unknown(rule["expr"]) == set()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_a_rule_selects_by_labels_and_words_that_the_metric_has(rule: dict[str, str]) -> None:
    for name, label, value in matchers(rule["expr"]):
        if name in exported():
            assert label in exported()[name] | target_labels(name), (name, label)
        if words := VOCABULARY.get((name, label)):
            assert set(value.split("|")) <= {str(word) for word in words}, (name, value)


@pytest.mark.parametrize("series", SERIES)
def test_a_series_of_a_case_looks_as_it_would_after_a_scrape(series: str) -> None:
    name = series.partition("{")[0]
    labels = {label for _, label, _ in matchers(series)}
    assert name in exported() or name in EXTERNAL
    if name in exported():
        assert exported()[name] <= labels, name
        assert labels - {"exported_namespace"} <= exported()[name] | target_labels(name), name
    for metric, label, value in matchers(series):
        assert label != "le" or metric.startswith("vllm:") or value in EDGES
        if words := VOCABULARY.get((metric, label)):
            assert value in {str(word) for word in words}


def test_every_exporter_that_is_named_is_needed() -> None:
    pages = "\n".join(path.read_text() for path in (Path(__file__).parents[2] / "docs").rglob("*.md"))
    text = pages + "\n".join(rule["expr"] for rule in rules())
    assert {name for name in EXTERNAL if not re.search(rf"\b{name}\b", text)} == set()


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ('sum by (model) (rate(a_total{model!="",code=~"5.."}[5m])) > 0.1', {"a_total"}),
        ("a / on (x) group_left (y) (b > 0) unless c offset 15m", {"a", "b", "c"}),
        ('label_replace(vllm:x, "pod", "$1", "exported_pod", "(.+)") or time() - d', {"vllm:x", "d"}),
        ("1 - namespace:y:ratio_rate5m * 1e3", {"namespace:y:ratio_rate5m"}),
        ("histogram_quantile(0.95, sum by (le) (rate(z_bucket[10m])))", {"z_bucket"}),
    ],
)
def test_names_are_found_in_an_expression(expression: str, found: set[str]) -> None:
    assert metrics(expression) == found


def test_a_metric_that_nobody_exports_is_found() -> None:
    assert unknown("rate(llmfleet_router_request_total[5m]) > 0") == {"llmfleet_router_request_total"}
    assert unknown("vllm:gpu_cache_usage_perc > 0.9") == {"vllm:gpu_cache_usage_perc"}
    assert unknown(" + ".join(records())) == set()
