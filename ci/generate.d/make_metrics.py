"""docs/reference/metrics.md: type, unit and labels of every metric, from the code that exports them.

In: the page, whose rows hold what a person wrote about each metric, and the metrics of telemetry.py. Out: the page with
these columns renewed. It never writes or drops a sentence; that every metric has a row is held by a test.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path("docs/reference/metrics.md")
HEAD = "| metric | type | unit | labels | meaning |\n|---|---|---|---|---|"
ROW = re.compile(r"^\| `(llmfleet_\w+)` \|.*\| ([^|]+) \|$", re.MULTILINE)
UNITS = ("seconds", "bytes", "ratio", "tokens")


def outputs(root: Path) -> dict[Path, str]:
    """The page with its generated columns."""
    known = {name: (kind, labels) for name, kind, labels in metrics(telemetry(root))}
    text = (root / PAGE).read_text(encoding="utf-8")
    text = re.sub(r"^\| metric \|.*\n\|[-|]+\|$", HEAD, text, flags=re.MULTILINE)
    return {root / PAGE: ROW.sub(lambda row: line(row[1], row[2], *known.get(row[1], ("?", ()))), text)}


def telemetry(root: Path) -> ModuleType:
    """The module that defines every metric."""
    if str(root / "controllers") not in sys.path:
        sys.path.insert(0, str(root / "controllers"))
    from llmfleet import telemetry as module

    return module


def metrics(module: ModuleType) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name as Prometheus stores it, type and labels of every metric."""
    gauges = module.RouterGauges(
        connections=0, max_connections=0, draining=False, generation=0, document_age_seconds=0, endpoints=()
    )
    jobs = module.JobGauges(running={}, up=True, refused=False, failures=0, reconnects=0)
    for source in (module.RouterMetrics(lambda: gauges), module.JobMetrics(lambda: jobs)):
        for family in source.collect():
            yield stored(family.name, family.type), family.type, family._labelnames
    for registry in (module.OperatorMetrics().registry, module.AutoscalerMetrics().registry):
        for collector in registry._collector_to_names:
            [family] = collector.describe()
            yield stored(family.name, family.type), family.type, collector._labelnames


def stored(name: str, kind: str) -> str:
    """A counter ends in _total."""
    return name + ("_total" if kind == "counter" else "")


def line(name: str, meaning: str, kind: str, labels: Any) -> str:
    """One row."""
    words = name.removesuffix("_total").split("_")
    unit = words[-1] if words[-1] in UNITS else ""
    return f"| `{name}` | {kind} | {unit} | {', '.join(labels)} | {meaning} |"
