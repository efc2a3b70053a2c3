"""The result file of the long fault runs, and the tables the documentation shows of it.

In: what scenarios found, as plain values. Out: the same on disk, one write per finished scenario, so that a run that
was interrupted goes on where it was; and Markdown. Two runs of one scenario are not merged: the later one stands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- faults-long: begin -->", "<!-- faults-long: end -->"
Found = dict[str, Any]


def read(path: Path) -> dict[str, Found]:
    """What earlier runs found, by scenario; nothing when there is no file."""
    found: dict[str, Found] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write(path: Path, found: Mapping[str, Found]) -> None:
    """Write all at once: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    os.replace(beside, path)


def finished(found: Mapping[str, Found], name: str) -> bool:
    """Whether a scenario need not run again: it ran to its end and all held."""
    return bool(found.get(name, {}).get("passed"))


def rendered(found: Mapping[str, Found], order: Sequence[str]) -> str:
    """The tables of all scenarios that were run, in the order in which they are listed."""
    known = [name for name in order if name in found]
    rows = [row(name, found[name]) for name in known]
    head = ["| scenario | must hold | measured |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", "Each incident, second by second:", "", *map(incident, map(found.get, known))])


def row(name: str, one: Found) -> str:
    """One line of the table."""
    measured = "; ".join(
        f"{key}: {shown(value)}" for key, value in one["figures"].items() if not isinstance(value, list)
    )
    verdict = "" if one["passed"] else f"**falls short**: {'; '.join(one['broken'])}. "
    return f"| `{name}`: {one['title']} | {one['must_hold']} | {verdict}{measured} |"


def shown(value: Any) -> str:
    """A figure as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(part)}" for key, part in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def incident(one: Found | None) -> str:
    """What happened when, folded away."""
    assert one
    made = f"{one['date']}, seed {one['seed']}, load of the machine {one['load']}, {one['versions']}"
    lines = [f"<details><summary>{one['title']} ({one['seconds']} s)</summary>", "", made, "", "```"]
    lines += [f"{step['second']:7.1f} s  {step['what']}" for step in one["timeline"]]
    lost = [line for value in one["figures"].values() if isinstance(value, list) for line in value]
    lines += [f"lost: {line}" for line in lost]
    return "\n".join([*lines, "```", "</details>", ""])


def page_with(page: str, table: str) -> str:
    """Put the tables between their marks in a page."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
