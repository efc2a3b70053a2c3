"""Asks Prometheus what a panel would show, as Grafana does.

In: a Prometheus, a query of a panel, a choice of variables, a time range. Out: a Shown, with its series and with what
is wrong with them. It changes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dashboards.pages import Json, Query, variables
from dashboards.scraping import INTERVAL, Prometheus

# What values of a unit can be; a share may be a little off where two scrapes do not meet.
BOUNDS = {"percentunit": (0.0, 1.05), "celsius": (0.0, 120.0)}
POSITIVE = (0.0, math.inf)
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The time range on top of a page, in seconds since 1970."""

    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line or figure: its name by the legend, its labels, and its points."""

    name: str
    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What one target of a panel shows."""

    query: Query
    series: tuple[Series, ...]
    problems: tuple[str, ...]


def choose(prometheus: Prometheus, page: Json, chosen: Mapping[str, str]) -> dict[str, str]:
    """The value of each variable: the chosen one, or All as Grafana writes it, or the default."""
    values: dict[str, str] = {}
    for variable in variables(page):
        name = variable["name"]
        if name in chosen:
            values[name] = chosen[name]
        elif variable["type"] == "query":
            values[name] = variable["allValue"] or "|".join(found(prometheus, variable, values))
        elif variable["type"] != "datasource":
            values[name] = variable["current"]["value"]
    return values


def found(prometheus: Prometheus, variable: Json, values: Mapping[str, str]) -> list[str]:
    """What a drop-down offers."""
    match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
    assert match, variable["query"]["query"]
    return prometheus.label_values(match[2], fill_in(match[1], values))


def fill_in(text: str, values: Mapping[str, str], seconds: float = 0) -> str:
    """Write variables as Grafana does."""
    built_in = {"__rate_interval": f"{4 * INTERVAL}s", "__range": f"{int(seconds)}s"}
    return re.sub(r"\$([a-z_]\w*)", lambda match: {**built_in, **values}[match[1]], text)


def show(prometheus: Prometheus, query: Query, values: Mapping[str, str], time: Range, step: int = INTERVAL) -> Shown:
    """Ask, and judge the answer."""
    expr = fill_in(query.expr, values, time.end - time.start)
    if query.instant:
        answer = prometheus.ask("query", query=expr, time=time.end)
    else:
        answer = prometheus.ask("query_range", query=expr, start=time.start, end=time.end, step=step)
    if answer["status"] != "success":
        return Shown(query=query, series=(), problems=(f"{answer.get('error')}: {expr}",))
    series = tuple(read_series(one, query) for one in answer["data"]["result"])
    said = [*answer.get("warnings", ()), *answer.get("infos", ())]
    return Shown(query=query, series=series, problems=(*said, *judge(series, query)))


def read_series(found: Mapping[str, Any], query: Query) -> Series:
    labels = {name: value for name, value in found["metric"].items() if name != "__name__"}
    points = found.get("values") or [found["value"]]
    name = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), query.legend).strip()
    return Series(name=name, labels=labels, points=tuple((float(at), float(text)) for at, text in points))


def judge(series: tuple[Series, ...], query: Query) -> list[str]:
    """What must not be: no data, numbers that are none, values that the unit cannot have, two lines of one name."""
    values = [value for one in series for _, value in one.points]
    if not values:
        return ["no data"]
    low, high = BOUNDS.get(query.unit, POSITIVE)
    problems = []
    if not all(math.isfinite(value) for value in values):
        problems.append("a value that is no number")
    elif min(values) < low - ROUNDING or max(values) > high + ROUNDING:
        problems.append(f"values from {min(values)} to {max(values)} are not {query.unit}")
    names = [one.name for one in series]
    if len(set(names)) < len(names) and not query.instant:
        problems.append(f"several lines are called {sorted(names)}")
    return problems
