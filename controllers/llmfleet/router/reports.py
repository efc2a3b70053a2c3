"""What routers say of themselves to each other, and how it is written.

In: reports, or JSON values that a peer sent. Out: the other one of the two; anything unexpected is a `ReportError`.
What follows from reports is for `shares.py` to say. It never sends anything or reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

MAX_COUNT: Final = 1 << 31
MAX_NAME: Final = 1024


class ReportError(ValueError):
    """A report that must not be used."""


class Line(NamedTuple):
    """One engine in a report."""

    in_flight: int
    wanted: int
    owned: int
    oldest: float
    given: Sequence[int]  # slots handed over so far, by peer, in the order of the report's `sees`
    got: Sequence[int]  # slots taken over so far, likewise


class Asked(NamedTuple):
    """What one tenant asks of a router, in requests: those of late and those that are open, and how many are open."""

    demand: float
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a router says of itself; counters concern the incarnations it `sees`."""

    name: str
    incarnation: str
    sequence: int = 0
    draining: bool = False
    sees: Mapping[str, str] = field(default_factory=dict)
    engines: Mapping[str, Line] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)  # by model
    tenants: Mapping[str, Asked] | None = None  # with a quota; None: it says nothing of them
    place: Mapping[str, int] = field(default_factory=dict)  # of each peer in `sees`
    at: float = 0.0  # when it was heard


def render_report(report: Report) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "name": report.name,
        "incarnation": report.incarnation,
        "sequence": report.sequence,
        "draining": report.draining,
        "sees": report.sees,
        "engines": {key: list(line) for key, line in report.engines.items()},
        "waiting": report.waiting,
        "tenants": None if report.tenants is None else {name: list(a) for name, a in report.tenants.items()},
    }


def parse_report(raw: object) -> Report:
    """Read a report; anything unexpected is an error, as a wrong count could fill an engine twice."""
    try:
        return _report(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"not a report: {error!r}") from None


def _report(raw: Any) -> Report:
    sees = dict(raw["sees"])
    tenants = raw.get("tenants")  # a router of an earlier release says nothing of them
    _texts(
        [
            raw["name"],
            raw["incarnation"],
            *sees,
            *sees.values(),
            *raw["engines"],
            *raw.get("waiting", {}),
            *(tenants or ()),
        ]
    )
    _counts([raw["sequence"], *raw.get("waiting", {}).values()])
    return Report(
        name=raw["name"],
        incarnation=raw["incarnation"],
        sequence=raw["sequence"],
        draining=raw.get("draining") is True,
        sees=sees,
        engines={key: _line(line, len(sees)) for key, line in raw["engines"].items()},
        waiting=dict(raw.get("waiting", {})),
        tenants=None if tenants is None else {name: _asked(*asked[:2]) for name, asked in tenants.items()},
    )


def _line(raw: Any, peers: int) -> Line:
    in_flight, wanted, owned, oldest, given, got = raw[:6]
    _counts((in_flight, wanted, owned, *given, *got))
    if len(given) != peers or len(got) != peers:
        raise ValueError(f"{raw!r} is no engine's line")
    return Line(in_flight, wanted, owned, _amount(oldest), given, got)


def _asked(demand: Any, in_flight: Any) -> Asked:
    _counts((in_flight,))
    return Asked(_amount(demand), in_flight)


def _amount(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < MAX_COUNT:
        raise ValueError(f"{value!r} is no amount")
    return float(value)


def _counts(values: Sequence[Any]) -> None:
    if set(map(type, values)) - {int} or min(values, default=0) < 0 or max(values, default=0) >= MAX_COUNT:
        raise ValueError(f"{values!r} are no counts")


def _texts(values: Sequence[Any]) -> None:
    if set(map(type, values)) - {str} or not all(values) or max(map(len, values)) > MAX_NAME:
        raise ValueError(f"{values!r} are no names")
