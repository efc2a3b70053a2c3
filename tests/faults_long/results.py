"""The result file of the long fault runs, and the tables the documentation shows of it.

In: what scenarios found, as plain values. Out: the same on disk, one write per finished scenario, so that a run that
was interrupted goes on where it was; and Markdown. Of a scenario the last runs in a row that held are kept, three at
most, each with a seed of its own; after one that did not hold the row begins anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

BEGIN, END = "<!-- faults-long: begin -->", "<!-- faults-long: end -->"
ROW = 3
WIDTH = 140  # of what happened in a timeline: whole messages of others are in the result file
Found = dict[str, Any]
Runs = Sequence[Found]


def read(path: Path) -> dict[str, Runs]:
    """What earlier runs found, by scenario, the latest last; nothing when there is no file."""
    found: dict[str, Runs] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write(path: Path, found: Mapping[str, Runs]) -> None:
    """Write all at once: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    os.replace(beside, path)


def after(runs: Runs, one: Found) -> Runs:
    """The runs of a scenario when there is one more: a row that was broken begins anew."""
    return [*held(runs), one][-ROW:]


def joined(published: Mapping[str, Runs], found: Mapping[str, Runs]) -> dict[str, Runs]:
    """What was published with what a machine has found since: its runs continue the rows that were there."""
    rows = {name: list(runs) for name, runs in published.items()}
    for name, runs in found.items():
        known = [one["date"] for one in rows.get(name, ())]
        for one in runs:
            if one["date"] not in known:
                rows[name] = list(after(rows.get(name, ()), one))
    return rows


def held(runs: Runs) -> Runs:
    """Those in a row, up to the last, that held."""
    return runs if runs and runs[-1]["passed"] else []


def finished(found: Mapping[str, Runs], name: str, rounds: int = 1) -> bool:
    """Whether a scenario need not run again: it ran to its end and all held, so many times in a row."""
    return len(held(found.get(name, ()))) >= rounds


def rendered(found: Mapping[str, Runs], order: Sequence[str]) -> str:
    """The tables of all scenarios that were run, in the order in which they are listed."""
    known = [name for name in order if found.get(name)]
    rows = [row(name, found[name]) for name in known]
    head = ["| scenario | must hold | runs | measured |", "|---|---|---|---|"]
    return "\n".join(
        [*head, *rows, "", "Each incident, second by second:", "", *(incident(found[name]) for name in known)]
    )


def row(name: str, runs: Runs) -> str:
    """One line of the table; the figures of several runs stand beside each other."""
    last = runs[-1]
    verdict = "" if last["passed"] else f"**falls short**: {'; '.join(last['broken'])}. "
    measured = "; ".join(f"{key}: {beside(runs, key)}" for key, value in last["figures"].items() if figure(value))
    return f"| `{name}`: {last['title']} | {last['must_hold']} | {len(runs)} | {verdict}{measured} |"


def figure(value: Any) -> bool:
    """Whether a value belongs into a table: the words about single requests do not."""
    return not isinstance(value, list) or (bool(value) and not any(isinstance(part, str) for part in value))


def beside(runs: Runs, key: str) -> str:
    """One figure of every run, once where they all agree."""
    values = [shown(one["figures"].get(key, "none")) for one in runs]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def shown(value: Any) -> str:
    """A figure as a person reads it."""
    if isinstance(value, list):
        return " and ".join(map(shown, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(part)}" for key, part in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def incident(runs: Runs) -> str:
    """What happened when in the last run, folded away, and when the earlier ones were."""
    one = runs[-1]
    lines = [
        f"<details><summary>{one['title']} ({one['seconds']} s)</summary>",
        "",
        *map(made, reversed(runs)),
        "",
        "```",
    ]
    lines += [f"{step['second']:7.1f} s  {shorten(step['what'], WIDTH)}" for step in one["timeline"]]
    lost = [line for value in one["figures"].values() if not figure(value) for line in value]
    lines += [f"lost: {line}" for line in lost]
    return "\n".join([*lines, "```", "</details>", ""])


def made(one: Found) -> str:
    """When a run was, and on what."""
    return f"* {one['date']}, seed {one['seed']}, load of the machine {one['load']}, {one['versions']}"


def page_with(page: str, table: str) -> str:
    """Put the tables between their marks in a page."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
