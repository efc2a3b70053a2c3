"""Write a Dashboard as the classic JSON that Grafana 10 and newer read.

In: a Dashboard. Out: its JSON as plain values. Pure. Panels flow from left to right in their row's order and never
overlap; ids count up from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from llmfleet_dashboards.model import Dashboard, Kind, Panel, Row, Target, Unit, Variable

COLUMNS: Final = 24
SCHEMA_VERSION: Final = 39
TAG: Final = "llmfleet"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NOT_NEGATIVE: Final = {unit for unit in Unit if unit not in (Unit.DOLLARS, Unit.CELSIUS)}

Json = dict[str, Any]


def to_json(dashboard: Dashboard) -> Json:
    """The whole page."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [_links()],
        "templating": {"list": [_source_variable(), *(_variable(one) for one in dashboard.variables)]},
        "panels": list(_panels(dashboard.rows)),
    }


def _links() -> Json:
    """A menu of the other pages that keeps time and variables."""
    return {
        "title": "llmfleet",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


# ---- variables ----


def _source_variable() -> Json:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "description": "The Prometheus that scrapes the fleet",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
    }


def _variable(variable: Variable) -> Json:
    head = {"name": variable.name, "label": variable.label, "description": variable.description, "hide": 0}
    if variable.query:
        return head | _query_variable(variable)
    if variable.options:
        return head | _custom_variable(variable)
    chosen = {"text": variable.default, "value": variable.default, "selected": True}
    return head | {"type": "textbox", "query": variable.default, "current": chosen, "options": [chosen]}


def _query_variable(variable: Variable) -> Json:
    return {
        "type": "query",
        "datasource": SOURCE,
        "definition": variable.query,
        "query": {"qryType": 1, "query": variable.query, "refId": variable.name},
        "refresh": 2,  # on a change of the time range, so that a fleet of yesterday can be chosen
        "sort": 1,
        "regex": "",
        "includeAll": True,
        "multi": True,
        "allValue": variable.everything or None,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _custom_variable(variable: Variable) -> Json:
    options = [{"text": option, "value": option, "selected": option == variable.default} for option in variable.options]
    return {
        "type": "custom",
        "query": ",".join(variable.options),
        "options": options,
        "current": next(option for option in options if option["selected"]),
        "includeAll": False,
        "multi": False,
    }


# ---- the grid ----


def _panels(rows: tuple[Row, ...]) -> Iterator[Json]:
    top, number = 0, 1
    for row in rows:
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        top, number = top + 1, number + 1
        left = tallest = 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, tallest = 0, top + tallest, 0
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            yield {"id": number, "gridPos": place} | _panel(panel)
            left, tallest, number = left + panel.width, max(tallest, panel.height), number + 1
        top += tallest


# ---- panels ----


def _panel(panel: Panel) -> Json:
    result = {
        "type": str(panel.kind),
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [_target(letter, target, panel) for letter, target in zip(LETTERS, panel.targets, strict=False)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": list(_overrides(panel))},
        "options": _options(panel),
    }
    if panel.kind is Kind.TABLE:
        result["transformations"] = _transformations(panel)
    return result


def _target(letter: str, target: Target, panel: Panel) -> Json:
    return {
        "refId": letter,
        "datasource": SOURCE,
        "expr": target.expr,
        "legendFormat": target.legend,
        "instant": target.instant,
        "range": not target.instant,
        "format": "table" if panel.kind is Kind.TABLE else "time_series",
        "editorMode": "code",
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green" if panel.levels else "text", "value": None}]
    steps += [{"color": level.color, "value": level.value} for level in panel.levels]
    defaults: Json = {"unit": str(panel.unit), "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.unit in NOT_NEGATIVE and panel.kind is Kind.LINES:
        defaults["min"] = 0
    if panel.kind is Kind.LINES:
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    if panel.kind is Kind.FIGURE:
        defaults["color"] = {"mode": "thresholds"}
        defaults["noValue"] = "no data"
    return defaults


def _overrides(panel: Panel) -> Iterator[Json]:
    for name, unit in panel.columns.values():
        yield {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "unit", "value": str(unit)}],
        }


def _options(panel: Panel) -> Json:
    if panel.kind is Kind.LINES:
        return {
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
                "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind is Kind.FIGURE:
        calc = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": calc, "colorMode": "value", "graphMode": "area", "textMode": "auto"}
    return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}


def _transformations(panel: Panel) -> list[Json]:
    """One line for each set of labels, one column for each target."""
    names = {f"Value #{letter}": name for letter, (name, _) in panel.columns.items()}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names}},
    ]
