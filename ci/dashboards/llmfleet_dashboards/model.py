"""What a dashboard is made of, before it is JSON.

In: nothing. Out: frozen values: a Dashboard has variables and rows, a row has panels, a panel has targets. Nothing here
knows where on the grid a panel lies or how Grafana writes it; that is grafana.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """How Grafana draws a panel."""

    LINES = "timeseries"
    FIGURE = "stat"
    TABLE = "table"


class Unit(StrEnum):
    """Grafana's ids of the units in use."""

    SECONDS = "s"
    BYTES = "bytes"
    BYTES_PER_SECOND = "Bps"
    SHARE = "percentunit"
    COUNT = "short"
    REQUESTS = "reqps"
    PER_SECOND = "cps"
    OPERATIONS = "ops"
    WATTS = "watt"
    CELSIUS = "celsius"
    DOLLARS = "currencyUSD"
    SWITCH = "bool_on_off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One query and the name of its series; `instant` asks for the end of the range only."""

    expr: str
    legend: str
    instant: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """From this value on, a figure has this colour."""

    value: float
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture; `description` says what it shows and what to do about a bad value."""

    title: str
    description: str
    unit: Unit
    targets: tuple[Target, ...]
    kind: Kind = Kind.LINES
    width: int = 8
    height: int = 8
    stacked: bool = False
    levels: tuple[Level, ...] = ()
    columns: dict[str, tuple[str, Unit]] = field(default_factory=dict)
    """Of a table: the name and unit of each target's column, by the target's letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A heading and what stands under it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A drop-down at the top: a label's values (`query`), or fixed `options`, or neither: a text box."""

    name: str
    label: str
    description: str
    query: str = ""
    options: tuple[str, ...] = ()
    default: str = ""
    everything: str = ""
    """The regular expression that "All" stands for; empty: the values there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One page of Grafana. `uid` is its address and never changes."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
