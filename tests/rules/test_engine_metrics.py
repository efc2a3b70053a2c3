"""What rules and dashboards read of engines is what real vLLM was seen to expose, not only what the simulator does."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/llmfleet-monitoring"
RECORDED = ROOT / "tests/conformance/recorded/metrics.json"
NAME = re.compile(r"\bvllm:[a-z0-9_]+")
SERIES = re.compile(r"_(bucket|sum|count)$")


def named() -> set[str]:
    """Every engine metric in a rule or a panel."""
    files = [path for folder in ("rules", "dashboards") for path in (CHART / folder).rglob("*") if path.is_file()]
    return {name for path in files for name in NAME.findall(path.read_text())}


def test_every_engine_metric_of_a_rule_or_a_panel_is_one_that_real_vllm_exposes() -> None:
    exposed = json.loads(RECORDED.read_text())
    names = {name for name in named() if "nixl" not in name}  # those are there only with the connector, which moves KV
    unknown = {name for name in names if name not in exposed and SERIES.sub("", name) not in exposed}
    assert len(names) > 20 and unknown == set()
