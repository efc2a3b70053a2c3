"""Every alert of the rendered chart fires when it should and keeps quiet when it should, by promtool's own account."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.rendering import CHARTS, find, refusal, render
from llmfleet.telemetry import SECONDS
from rules.rules import (
    CASES,
    OPERATOR_APIS,
    RUNBOOKS,
    alerts,
    case,
    case_file,
    groups,
    promtool,
    records,
    rules,
    write_rules,
)

pytestmark = pytest.mark.helm
CHART = CHARTS / "llmfleet-monitoring"
FILES = {path.stem: path for path in CHART.glob("rules/alerts/*/*.yaml")}
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
LIMITED = {name for name, one in VALUES["alerts"].items() if "threshold" in one}
# Alerts about too little of something.
BELOW = {"LlmfleetCertificateExpiresSoon"}
# Names that people ask for, with the figures they gave.
ASKED = {
    "LlmfleetHighQueueDepth": (50, "warning"),
    "LlmfleetTTFTBreach": (3, "critical"),
    "LlmfleetTPOTBreach": (0.2, "critical"),
    "LlmfleetHighGPUUtil": (95, "info"),
    "LlmfleetScaleOscillation": (1, "warning"),
}


@cache
def with_thresholds(factor: float) -> dict[str, Any]:
    """Values that make every alert fire at once, or never."""
    return {"alerts": {name: {"threshold": factor * (VALUES["alerts"][name]["threshold"] + 1)} for name in LIMITED}}


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_alert_fires_on_its_trouble_and_is_quiet_beside_it(name: str, tmp_path: Path) -> None:
    files = [case_file(tmp_path, name, side) for side in ("fires", "quiet")]
    done = promtool("test", "rules", *files)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_case_asks_for_an_alert_on_one_side_only(name: str) -> None:
    assert case(name)["fires"]["alerts"]
    assert "alerts" not in case(name)["quiet"]
    assert case(name)["quiet"]["series"], "quiet for want of any series proves nothing"


@pytest.mark.parametrize("name", sorted(LIMITED))
def test_a_case_is_decided_by_the_threshold(name: str, tmp_path: Path) -> None:
    lower, higher = (alerts(with_thresholds(factor))[name] for factor in (0, 1e6))
    if name in BELOW:
        lower, higher = higher, lower
    if lower["expr"] != alerts()[name]["expr"]:
        assert promtool("test", "rules", case_file(tmp_path, name, "quiet", lower)).returncode == 1
    assert promtool("test", "rules", case_file(tmp_path, name, "fires", higher)).returncode == 1


def test_a_case_that_expects_too_much_fails(tmp_path: Path) -> None:
    path = case_file(tmp_path, "LlmfleetRouterPanic", "quiet")
    document = yaml.safe_load(path.read_text())
    document["tests"][0]["alert_rule_test"][0]["exp_alerts"] = [{"exp_labels": {"model": "tiny"}}]
    path.write_text(yaml.safe_dump(document))
    assert promtool("test", "rules", path).returncode == 1


def test_alerts_files_cases_values_and_runbooks_are_the_same_names() -> None:
    names = set(FILES)
    assert len(names) >= 25
    assert names == set(alerts())
    assert names == {path.stem for path in CASES.glob("*.yaml")}
    assert names == {path.stem for path in RUNBOOKS.glob("Llmfleet*.md")}
    assert names == set(VALUES["alerts"])


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_alert_says_what_it_is_whom_it_concerns_and_where_to_read_on(name: str) -> None:
    rule = alerts()[name]
    assert re.fullmatch(r"Llmfleet[A-Z][A-Za-z]+", name)
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    notes = rule["annotations"]
    assert notes["summary"].endswith(".")
    assert notes["summary"] in (RUNBOOKS / f"{name}.md").read_text().splitlines()
    assert notes["runbook"] == f"docs/runbooks/{name}.md"
    named = set(re.findall(r"\$labels\.(\w+)", notes["description"]))
    fired = case(name)["fires"]["alerts"]
    assert all(named <= set(alert["labels"]) for alert in fired), (
        "a label that the alert does not have is printed empty"
    )


@pytest.mark.parametrize("name", sorted(ASKED))
def test_the_alerts_people_ask_for_have_the_figures_they_gave(name: str) -> None:
    threshold, severity = ASKED[name]
    assert (VALUES["alerts"][name]["threshold"], VALUES["alerts"][name]["severity"]) == (threshold, severity)
    assert alerts()[name]["expr"].endswith(f"> {threshold}")


def test_promtool_has_nothing_to_say_about_the_rules(tmp_path: Path) -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", write_rules(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


def test_every_recording_rule_is_read_by_an_alert() -> None:
    expressions = [rule["expr"] for rule in rules()]
    unread = {name for name in records() if not any(name in expression for expression in expressions)}
    assert unread == set()


def test_a_config_map_holds_the_same_rules_for_a_prometheus_without_an_operator() -> None:
    values = {"rules": {"kind": "ConfigMap"}, "podMonitor": {"enabled": False}}
    found = find(render(values=values, chart="llmfleet-monitoring"), "ConfigMap", "demo-rules")
    assert yaml.safe_load(found["data"]["llmfleet.rules.yaml"]) == {"groups": groups()}


def test_thresholds_windows_durations_and_severities_are_values(tmp_path: Path) -> None:
    def other(key: str, value: Any) -> Any:
        changed = {"threshold": 0.125, "for": "77m", "severity": "info", "window": "33m", "secrets": "nothing"}
        return changed.get(key, value)

    changed = {name: {key: other(key, value) for key, value in one.items()} for name, one in VALUES["alerts"].items()}
    usual, found = alerts(), alerts({"alerts": changed})
    for name, one in VALUES["alerts"].items():
        assert (found[name]["for"], found[name]["labels"]["severity"]) == ("77m", "info")
        texts = {"threshold": "0.125", "window": "33m", "secrets": "nothing"}
        assert all(text in found[name]["expr"] for key, text in texts.items() if key in one), name
        assert (usual[name]["expr"] == found[name]["expr"]) == (not set(texts) & set(one)), name
    path = write_rules(tmp_path, {"alerts": changed})
    assert promtool("check", "rules", path).returncode == 0


def test_an_alert_that_is_not_wanted_is_left_out() -> None:
    found = alerts({"alerts": {"LlmfleetHighGPUUtil": {"enabled": False}}})
    assert set(alerts()) - set(found) == {"LlmfleetHighGPUUtil"}
    assert alerts({"alerts": {name: {"enabled": False} for name in VALUES["alerts"]}}) == {}
    assert set(alerts()) - set(alerts({"alerts": {"LlmfleetHighGPUUtil": None}})) == {"LlmfleetHighGPUUtil"}


def test_no_rules_are_rendered_when_none_are_wanted() -> None:
    objects = render(values={"rules": {"enabled": False}}, chart="llmfleet-monitoring", apis=OPERATOR_APIS)
    assert {o["kind"] for o in objects} & {"PrometheusRule"} == set()


@pytest.mark.parametrize(
    ("monitor", "rules", "rendered"),
    [
        ("skipIfMissing", "", set()),
        ("alwaysRender", "", {"PodMonitor", "PrometheusRule"}),
        ("skipIfMissing", "alwaysRender", {"PrometheusRule"}),
    ],
)
def test_rules_follow_the_monitors_where_the_cluster_knows_neither(
    monitor: str, rules: str, rendered: set[str]
) -> None:
    values = {"podMonitor": {"renderMode": monitor}, "rules": {"renderMode": rules} if rules else {}}
    objects = render(values=values, chart="llmfleet-monitoring")
    assert {o["kind"] for o in objects} - {"ConfigMap"} == rendered


def test_objectives_are_values() -> None:
    slo = {"availability": {"objective": 0.99}, "timeToFirstToken": {"objective": 0.9, "thresholdSeconds": 1}}
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules({"slo": slo})}
    assert "14.4 * (1 - 0.99)" in found["LlmfleetErrorBudgetFastBurn"]
    assert "6 * (1 - 0.9)" in found["LlmfleetTTFTBudgetFastBurn"]
    assert 'le="1.0"' in found["namespace_model:llmfleet_router_slow_first_tokens:ratio_rate1h"]


BURNS = [name for name in FILES if "Budget" in name and "Burn" in name]


@pytest.mark.parametrize("objective", [0.01, 0.5, 0.9, 0.93, 0.95, 0.999])
def test_every_burn_that_an_alert_waits_for_is_above_its_budget_and_can_be_reached(objective: float) -> None:
    slo = {"availability": {"objective": objective}, "timeToFirstToken": {"objective": objective}}
    found = alerts({"slo": slo})
    assert len(BURNS) == 4
    for name in BURNS:
        limits = re.findall(r":ratio_rate\w+ > ([\d.]+ \* \(1 - [\d.]+\)|1 - [\d.]+|[\d.]+)", found[name]["expr"])
        assert len(limits) == 4
        shares = [eval(limit, {}) for limit in limits]
        assert all(1 - objective - 1e-9 <= share < 1 for share in shares), (name, limits)


def test_every_first_token_too_late_is_an_alert_for_an_objective_of_nine_tenths_too(tmp_path: Path) -> None:
    name = "LlmfleetTTFTBudgetFastBurn"
    rule = alerts({"slo": {"timeToFirstToken": {"objective": 0.9}}})[name]
    assert "> 0.82\n" in rule["expr"]
    for side in ("fires", "quiet"):
        done = promtool("test", "rules", case_file(tmp_path, name, side, rule))
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_time_to_first_token_can_only_be_an_edge_of_the_routers_buckets() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    slo = schema["properties"]["slo"]["properties"]["timeToFirstToken"]["properties"]
    assert slo["thresholdSeconds"]["enum"] == list(SECONDS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slo": {"timeToFirstToken": {"thresholdSeconds": 3}}}, "value must be one of"),
        ({"slo": {"availability": {"objective": 1}}}, "exclusiveMaximum"),
        ({"slo": {"availability": {"objective": 99.9}}}, "exclusiveMaximum"),
        ({"alerts": {"LlmfleetHighQueueDepth": {"threshold": -1}}}, "minimum"),
        ({"alerts": {"LlmfleetHighQueueDepth": {"threshold": "50"}}}, "got string, want number"),
        ({"alerts": {"LlmfleetHighQueueDepth": {"for": "two minutes"}}}, "does not match pattern"),
        ({"alerts": {"LlmfleetHighQueueDepth": {"severity": "page"}}}, "value must be one of"),
        ({"alerts": {"LlmfleetHighQueuDepth": {"threshold": 1}}}, "additional properties"),
        ({"rules": {"kind": "Rules"}}, "value must be one of"),
        ({"rules": {"runbookBase": "docs"}}, "does not match pattern"),
        ({"podMonitor": {"enabled": False}}, "the cluster has no PrometheusRule kind"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    assert message in refusal(values, "", chart="llmfleet-monitoring")


def test_alerts_carry_the_labels_and_links_that_a_user_adds() -> None:
    base = "https://runbooks.example.com/llm/"
    found = alerts({"rules": {"alertLabels": {"team": "inference"}, "runbookBase": base}})
    assert all(rule["labels"]["team"] == "inference" for rule in found.values())
    assert {rule["annotations"]["runbook_url"] for rule in found.values()} == {
        f"https://runbooks.example.com/llm/{name}.md" for name in FILES
    }
