"""docs/runbooks/README.md: every alert with its defaults, from the rules and the values of the chart.

In: charts/llmfleet-monitoring/rules/alerts/<group>/<Name>.yaml and the chart's values. Out: the page as text. It
renders nothing: expressions stand in the rules and, with their values, in the rendered chart.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

CHART = "charts/llmfleet-monitoring"
HEAD = """# Runbooks

One page for each alert of the chart [llmfleet-monitoring](../../{chart}/README.md), by the alert's name: what it means,
whom it hurts, how to look, what to do. [alerts.md](../alerts.md) says how they are installed, changed and tested.
This table is written by `ci/generate` from the chart.
"""
GROUPS = {
    "slo": "Objectives",
    "router": "Routers and the queue",
    "engine": "Engines",
    "disaggregation": "Prefill and decode on different engines",
    "jobs": "Jobs",
    "operator": "Operator",
    "autoscaler": "Autoscaler",
    "gpu": "GPUs",
    "platform": "Around it",
}


def outputs(root: Path) -> dict[Path, str]:
    """The index of the runbooks."""
    values = yaml.safe_load((root / CHART / "values.yaml").read_text(encoding="utf-8"))["alerts"]
    parts = [HEAD.format(chart=CHART)]
    for folder, title in GROUPS.items():
        rules = sorted((root / CHART / "rules" / "alerts" / folder).glob("*.yaml"))
        parts.append("\n".join([f"## {title}", "", *table(rules, values), ""]))
    return {root / "docs" / "runbooks" / "README.md": "\n".join(parts)}


def table(rules: list[Path], values: dict[str, Any]) -> list[str]:
    """One row for each alert."""
    rows = ["| alert | severity | for | limit | fires when |", "|---|---|---|---|---|"]
    return rows + [row(rule, values[rule.stem]) for rule in rules]


def row(rule: Path, values: dict[str, Any]) -> str:
    """Name, defaults, and the summary that a pager shows."""
    found = re.search(r'^  summary: "(.+)\."$', rule.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{rule}: write the summary as one quoted line that ends in a full stop")
    limit = values.get("threshold", "")
    cells = [f"[{rule.stem}]({rule.stem}.md)", values["severity"], values["for"], str(limit), found[1]]
    return "| " + " | ".join(cells) + " |"
