"""Alertmanager's two files say the same, every alert of the chart reaches somebody, cost rules fire and keep quiet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.rendering import ROOT
from recipes.recipes import FOLDER, documents
from rules.rules import promtool

PLAIN = "alertmanager/alertmanager.yaml"
[CONFIG] = documents(FOLDER / PLAIN)
[OBJECT] = documents(FOLDER / "alertmanager/alertmanagerconfig.yaml")
RUNBOOKS = {path.stem for path in (ROOT / "docs/runbooks").glob("Llmfleet*.md")}
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def spelled(value: Any) -> Any:
    """What the operator's object says, as Alertmanager's own file spells it."""
    if isinstance(value, list):
        return [spelled(one) for one in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"name", "value", "matchType"}:
        return f'{value["name"]}{value["matchType"]}"{value["value"]}"'
    return dict(spelled_field(key, one) for key, one in value.items())


def spelled_field(key: str, value: Any) -> tuple[str, Any]:
    names = {
        "apiURL": "api_url_file",
        "routingKey": "routing_key_file",
        "sourceMatch": "source_matchers",
        "targetMatch": "target_matchers",
        "pagerDutyLinkConfigs": "links",
        "pagerdutyConfigs": "pagerduty_configs",
        "alt": "text",
    }
    if key in ("apiURL", "routingKey"):
        return names[key], f"/etc/alertmanager/secrets/{value['name']}/{value['key']}"
    snake = re.sub(r"(?<!^)([A-Z])", r"_\1", key).lower()
    return names.get(key, snake), spelled(value)


def test_the_plain_file_says_what_the_object_says_whose_schema_is_checked() -> None:
    assert spelled(OBJECT["spec"]) == CONFIG


def matches(matcher: str, labels: Mapping[str, str]) -> bool:
    """Alertmanager's own rule: a regular expression must match the whole value."""
    found = MATCHER.fullmatch(matcher)
    assert found, matcher
    value = labels.get(found[1], "")
    same = bool(re.fullmatch(found[3], value)) if "~" in found[2] else value == found[3]
    return not same if found[2].startswith("!") else same


def receiver(labels: Mapping[str, str]) -> str:
    """The first branch that matches, else the root."""
    for branch in CONFIG["route"]["routes"]:
        if all(matches(one, labels) for one in branch["matchers"]):
            return str(branch["receiver"])
    return str(CONFIG["route"]["receiver"])


def alerts() -> Iterator[tuple[str, str]]:
    """Each alert of the chart with its default severity."""
    values = yaml.safe_load((ROOT / "charts/llmfleet-monitoring/values.yaml").read_text())
    for name, alert in values["alerts"].items():
        if name in RUNBOOKS:
            yield name, alert["severity"]


@pytest.mark.parametrize(("name", "severity"), sorted(alerts()))
def test_an_alert_of_the_chart_goes_where_its_severity_says(name: str, severity: str) -> None:
    expected = {"critical": "pager", "warning": "chat", "info": "digest"}[severity]
    assert receiver({"alertname": name, "severity": severity, "namespace": "llmfleet"}) == expected


def test_the_alerts_of_the_chart_were_found() -> None:
    assert len(dict(alerts())) == len(RUNBOOKS) > 40


def test_money_goes_to_a_channel_of_its_own() -> None:
    assert receiver({"alertname": "FleetCostOverBudget", "severity": "warning"}) == "cost"


def test_every_receiver_exists_and_is_used_and_every_alert_that_is_named_is_one() -> None:
    named = {branch["receiver"] for branch in [CONFIG["route"], *CONFIG["route"]["routes"]]}
    assert named == {one["name"] for one in CONFIG["receivers"]}
    words = set(re.findall(r"Llmfleet[A-Z]\w+", (FOLDER / PLAIN).read_text()))
    assert words
    assert words <= RUNBOOKS


CASES = """
rule_files: [RULES]
evaluation_interval: 1m
tests:
  - name: twenty GPUs are 1,200 dollars a day and are told after six hours and one
    interval: 1m
    input_series: &series
      - series: kube_pod_container_resource_requests{namespace="llmfleet",pod="a",resource="nvidia_com_gpu"}
        values: GPUSx1600
      - series: kube_pod_container_resource_requests{namespace="llmfleet",pod="pending",resource="nvidia_com_gpu"}
        values: 1000x1600
      - series: kube_pod_status_scheduled{namespace="llmfleet",pod="a",condition="true"}
        values: 1x1600
      - series: kube_pod_status_scheduled{namespace="llmfleet",pod="pending",condition="true"}
        values: 0x1600
    promql_expr_test:
      - expr: namespace:fleet_gpu_cost:dollars_per_hour
        eval_time: 10m
        exp_samples: [{labels: 'namespace:fleet_gpu_cost:dollars_per_hour{namespace="llmfleet"}', value: COST}]
    alert_rule_test:
      - {eval_time: 7h, alertname: FleetCostOverBudget, exp_alerts: OVER}
      - {eval_time: 26h, alertname: FleetCostJump, exp_alerts: JUMP}
"""
OVER = """[{exp_labels: {severity: warning, namespace: llmfleet}, exp_annotations: {
  summary: The GPUs of llmfleet cost more than their budget,
  description: "llmfleet has cost 1200 dollars a day over the last six hours; the budget is 1,000. Who asks for it: sum by (tenant) (increase(llmfleet_router_completion_tokens_total[6h]))."}}]"""  # noqa: E501
JUMPED = """[{exp_labels: {severity: warning, namespace: llmfleet}, exp_annotations: {
  summary: The GPUs of llmfleet cost twice what they did yesterday,
  description: "llmfleet costs 50 dollars an hour now, more than twice as much as at this time yesterday."}}]"""


@pytest.mark.parametrize(
    ("gpus", "cost", "over", "jump"),
    [
        ("20", "50", OVER, "[]"),
        ("16", "40", "[]", "[]"),
        # Eight for a day, then twenty: the day's mean is still in budget at seven hours, the jump is told at 26.
        ("8x1439 20", "20", "[]", JUMPED),
    ],
)
def test_the_cost_rules_fire_and_keep_quiet(tmp_path: Path, gpus: str, cost: str, over: str, jump: str) -> None:
    [rule] = documents(FOLDER / "alertmanager/cost.yaml")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    text = CASES.replace("RULES", "rules.yaml").replace("GPUS", gpus).replace("COST", cost)
    (tmp_path / "case.yaml").write_text(text.replace("OVER", over, 1).replace("JUMP", jump, 1).replace("&series", ""))
    done = promtool("test", "rules", tmp_path / "case.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
