"""What a person and a program read of a bench.

In: levels, an objective, what was asked. Out: a table, lines of notes, or one JSON object. It prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from llmfleet.bench.figures import Fault, Level, Spread
from llmfleet.bench.verdict import Objective, duration, kept, misses

BUSY: Final = 0.8
"""CPU share of this program from which it may be what is slow."""
PERCENTS: Final = (50, 95, 99)


def table(levels: Sequence[Level], objective: Objective) -> Table:
    """One row for each number of users."""
    found = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    heads = ("users", "requests", "errors", "req/s", "out tok/s", "TTFT p50", "p95", "p99")
    for head in (*heads, "TPOT p50", "p95", "p99", "E2E p50", "p99"):
        found.add_column(head, justify="right", no_wrap=True)
    found.add_column("verdict", overflow="fold")
    for level in levels:
        found.add_row(*cells(level), verdict_of(level, objective))
    return found


def cells(level: Level) -> list[str]:
    return [
        str(level.users),
        str(level.requests),
        str(level.errors),
        f"{level.requests_per_second:.2f}",
        f"{level.output_tokens_per_second:,.0f}",
        *(written(level.ttft, percent) for percent in PERCENTS),
        *(written(level.tpot, percent) for percent in PERCENTS),
        *(written(level.e2e, percent) for percent in (50, 99)),
    ]


def written(values: Spread | None, percent: float) -> str:
    return "-" if values is None else duration(values.at(percent))


def verdict_of(level: Level, objective: Objective) -> Text:
    if not objective.judges(level.users):
        return Text("not judged", style="dim")
    missed = misses(level, objective)
    return Text(", ".join(missed), style="red") if missed else Text("pass", style="green")


def notes(levels: Sequence[Level], objective: Objective, *, interrupted: bool) -> list[str]:
    """Every error by kind, and what a reader must know before believing the table."""
    lines = [f"{people(level.users)}: {told(fault)}" for level in levels for fault in level.faults]
    few = [people(one.users) for one in levels if 0 < one.requests < objective.least_requests()]
    if few:
        lines.append(
            f"p{objective.percentile:g} of fewer than {objective.least_requests()} requests is the slowest one: "
            f"{', '.join(few)}; measure longer"
        )
    busy = [f"{people(one.users)} ({100 * one.client_cpu:.0f} %)" for one in levels if one.client_cpu > BUSY]
    if busy:
        lines.append(f"this client was busy itself, its own speed may be what you see: {', '.join(busy)}")
    if interrupted:
        cut = levels[-1].cut if levels else 0
        lines.append(f"stopped by you: {cut} requests under way are not in it, nor levels that are not listed")
    return lines


def people(users: int) -> str:
    return f"{users} user{'s' * (users > 1)}"


def told(fault: Fault) -> str:
    name = " ".join(part for part in (str(fault.kind), fault.code) if part)
    return f"{fault.count} x {name}" + (f": {fault.said}" if fault.said else "")


def as_json(levels: Sequence[Level], objective: Objective, *, asked: dict[str, Any], interrupted: bool) -> Any:
    """Times in seconds."""
    failed = any(misses(level, objective) for level in levels)
    return {
        "asked": asked,
        "objective": {
            "ttft": objective.ttft,
            "tpot": objective.tpot,
            "percentile": objective.percentile,
            "users": sorted(objective.users) or None,
        },
        "levels": [level_json(level, objective) for level in levels],
        "interrupted": interrupted,
        "passed": not failed and not interrupted,
    }


def level_json(level: Level, objective: Objective) -> dict[str, Any]:
    return {
        "users": level.users,
        "seconds": round(level.seconds, 4),
        "requests": level.requests,
        "warmups": level.warmups,
        "cut": level.cut,
        "errors": level.errors,
        "errorsByKind": [
            {"kind": str(one.kind), "code": one.code, "count": one.count, "said": one.said} for one in level.faults
        ],
        "requestsPerSecond": round(level.requests_per_second, 4),
        "outputTokensPerSecond": round(level.output_tokens_per_second, 2),
        "promptTokens": round(level.prompt_tokens, 2),
        "outputTokens": round(level.output_tokens, 2),
        "ttft": spread_json(level.ttft),
        "tpot": spread_json(level.tpot),
        "e2e": spread_json(level.e2e),
        "withinObjective": round(kept(level, objective), 6),
        "clientCpu": round(level.client_cpu, 4),
        "judged": objective.judges(level.users),
        "misses": misses(level, objective),
    }


def spread_json(values: Spread | None) -> dict[str, float] | None:
    if values is None:
        return None
    found = {"mean": values.mean, **{f"p{percent}": values.at(percent) for percent in PERCENTS}, "max": values.at(100)}
    return {name: round(value, 6) for name, value in found.items()}
