"""The chart's rules as Prometheus would load them, and promtool to try them with.

In: values. Out: the rules of the rendered ConfigMap or PrometheusRule, files for promtool, and what promtool said. The
rules are always the rendered ones; nothing here reads the files they are rendered from.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from charts.rendering import ROOT, find, render

CASES = Path(__file__).parent / "cases"
RUNBOOKS = ROOT / "docs" / "runbooks"
OPERATOR_APIS = ("monitoring.coreos.com/v1",)

Rule = dict[str, Any]


@cache
def tool(name: str) -> str:
    """Path of a pinned binary."""
    found = subprocess.run([ROOT / "ci/tools/tool", name], check=True, stdout=subprocess.PIPE, text=True)
    return found.stdout.strip()


def groups(values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Groups of the rendered PrometheusRule with the default values, or with others."""
    return usual_groups() if values is None else fresh_groups(values)


@cache
def usual_groups() -> list[dict[str, Any]]:
    """Rendered once for a whole test run."""
    return fresh_groups({})


def fresh_groups(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of the rendered PrometheusRule."""
    objects = render(values=values, chart="llmfleet-monitoring", apis=OPERATOR_APIS)
    found: list[dict[str, Any]] = find(objects, "PrometheusRule", "demo-rules")["spec"]["groups"]
    return found


def rules(values: Mapping[str, Any] | None = None) -> list[Rule]:
    """Every rule of every group."""
    return [rule for group in groups(values) for rule in group["rules"]]


def alerts(values: Mapping[str, Any] | None = None) -> dict[str, Rule]:
    """Alerts by name."""
    return {rule["alert"]: rule for rule in rules(values) if "alert" in rule}


def records() -> dict[str, Rule]:
    """Recording rules by the name of what they record."""
    return {rule["record"]: rule for rule in rules() if "record" in rule}


def write_rules(folder: Path, values: Mapping[str, Any] | None = None) -> Path:
    """The rendered rules as a file Prometheus loads."""
    path = folder / "llmfleet.rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups(values)}, sort_keys=False))
    return path


def write_needed(folder: Path, rule: Rule) -> Path:
    """One alert and the recording rules it reads, as rendered: what a case is tried with, so that it takes a moment."""
    path = folder / f"{rule['alert']}.rules.yaml"
    wanted = [*needed(rule["expr"]), rule]
    path.write_text(yaml.safe_dump({"groups": [{"name": "case", "rules": wanted}]}, sort_keys=False))
    return path


def needed(expression: str) -> Iterator[Rule]:
    """The recording rules that an expression reads, those first that others of them read."""
    for name, rule in records().items():
        if re.search(rf"(?<![\w:]){re.escape(name)}(?![\w:])", expression):
            yield from needed(rule["expr"])
            yield rule


def promtool(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run promtool; what it said is in stdout and stderr."""
    command = [tool("promtool"), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def case(name: str) -> dict[str, Any]:
    """What makes an alert fire, and what does not."""
    found: dict[str, Any] = yaml.safe_load((CASES / f"{name}.yaml").read_text())
    return found


def case_file(folder: Path, name: str, side: str, other: Rule | None = None) -> Path:
    """One side of an alert's case as promtool wants it; `other` is tried in place of the alert as it is by default."""
    rule, one = other or alerts()[name], case(name)[side]
    rule_file = write_needed(folder, rule)
    path = folder / f"{name}-{side}.yaml"
    document = {
        "rule_files": [str(rule_file)],
        "evaluation_interval": one.get("interval", "1m"),
        "tests": [
            {
                "interval": one.get("interval", "1m"),
                "input_series": [{"series": key, "values": str(text)} for key, text in one["series"].items()],
                "alert_rule_test": [
                    {"eval_time": one["at"], "alertname": name, "exp_alerts": list(expected(rule, one))}
                ],
            }
        ],
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def expected(rule: Rule, one: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The alerts a case names, with what every alert of this rule says."""
    for alert in one.get("alerts", ()):
        annotations = {**rule["annotations"], "description": alert.get("description", "")}
        yield {"exp_labels": {**rule["labels"], **alert["labels"]}, "exp_annotations": annotations}
