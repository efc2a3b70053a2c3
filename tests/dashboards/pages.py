"""The dashboards as Grafana reads them: the JSON files of the chart, taken apart.

In: the checkout. Out: pages, their panels and targets as plain values. It changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "charts" / "llmfleet-monitoring" / "dashboards"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One target of one panel, and where it stands."""

    page: str
    panel: str
    letter: str
    expr: str
    legend: str
    instant: bool
    unit: str

    @property
    def name(self) -> str:
        """What a list of exceptions calls it."""
        return f"{self.page}: {self.panel} {self.letter}"


def pages() -> dict[str, Json]:
    """Every dashboard of the chart by its uid."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    return {page["uid"]: page for page in found}


def panels(page: Json) -> list[Json]:
    """The panels of a page without its headings."""
    return [panel for panel in page["panels"] if panel["type"] != "row"]


def variables(page: Json) -> list[Json]:
    """What stands at the top of a page."""
    return list(page["templating"]["list"])


def queries(page: Json) -> Iterator[Query]:
    """Every target of a page."""
    for panel in panels(page):
        units = units_of_columns(panel)
        for target in panel["targets"]:
            yield Query(
                page=page["uid"],
                panel=panel["title"],
                letter=target["refId"],
                expr=target["expr"],
                legend=target["legendFormat"],
                instant=target["instant"],
                unit=units.get(target["refId"], panel["fieldConfig"]["defaults"]["unit"]),
            )


def units_of_columns(panel: Json) -> dict[str, str]:
    """Of a table: the unit of each target's column, by the target's letter."""
    organize = [one["options"] for one in panel.get("transformations", ()) if one["id"] == "organize"]
    names = organize[0]["renameByName"] if organize else {}
    units = {one["matcher"]["options"]: one["properties"][0]["value"] for one in panel["fieldConfig"]["overrides"]}
    return {source.removeprefix("Value #"): units[name] for source, name in names.items()}


def every_query() -> list[Query]:
    """Every target of every page."""
    return [query for page in pages().values() for query in queries(page)]
