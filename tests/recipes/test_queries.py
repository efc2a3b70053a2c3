"""PromQL in the recipes: Prometheus understands it, and every metric exists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from recipes.recipes import FOLDER, documents
from rules.names import unknown
from rules.rules import promtool

ADAPTER = "hpa/prometheus-adapter.yaml"
# What kube-state-metrics exports beside what the chart's own rules read.
KUBE = {"kube_pod_container_resource_requests", "kube_pod_status_scheduled"}


def expanded(rule: dict[str, str]) -> str:
    """The query that prometheus-adapter would send for a request with one label."""
    return rule["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="llmfleet",model="llama-3-70b"')


def queries() -> Iterator[str]:
    """Every expression of every recipe."""
    for one in documents(FOLDER / "keda/scaledobject.yaml"):
        yield from (trigger["metadata"]["query"] for trigger in one["spec"].get("triggers", []))
    [adapter] = documents(FOLDER / ADAPTER)
    for rule in adapter["rules"]["external"]:
        yield expanded(rule)
        yield rule["seriesQuery"]
    for one in documents(FOLDER / "alertmanager/cost.yaml"):
        yield from (rule["expr"] for group in one["spec"]["groups"] for rule in group["rules"])


def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    rules = [{"record": f"recipes:{number}", "expr": text} for number, text in enumerate(queries())]
    assert len(rules) >= 6
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "recipes", "rules": rules}]}))
    done = promtool("check", "rules", "--lint=none", tmp_path / "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_exists() -> None:
    recorded = {"namespace:fleet_gpu_cost:dollars_per_hour"}
    assert {text: names for text in queries() if (names := unknown(text) - KUBE - recorded)} == {}


def test_keda_and_the_adapter_ask_for_the_same_figure() -> None:
    [keda] = [
        t["metadata"]["query"]
        for o in documents(FOLDER / "keda/scaledobject.yaml")
        for t in o["spec"].get("triggers", [])
    ]
    [adapter] = documents(FOLDER / ADAPTER)
    assert expanded(adapter["rules"]["external"][0]) == keda
