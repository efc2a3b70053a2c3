"""The grid behind docs/simulate.md: our policy and its peers on the halves of traces that nothing was settled on.

`make simulate-report TRACES=DIR` runs what docs/simulate.json does not have yet, one process, a write for each finished
cell, and puts the tables and the picture into the documentation. A cell is a trace, conditions, a seed; each seed is
another slice of the second half. `--limit N` ends after N cells, `--render` runs nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "controllers"))

from llmfleet.api.autoscaler import Mode  # noqa: E402
from llmfleet.capacity.profiles import PROFILES  # noqa: E402
from llmfleet.simulate.grid import Row, row_of, summary  # noqa: E402
from llmfleet.simulate.main import load  # noqa: E402
from llmfleet.simulate.plot import frontier  # noqa: E402
from llmfleet.simulate.scene import Choice, build_scene, play  # noqa: E402

RESULTS, PAGE, PICTURES = ROOT / "docs/simulate.json", ROOT / "docs/simulate.md", ROOT / "docs/images"
BEGIN, END = "<!-- simulate-report: begin -->", "<!-- simulate-report: end -->"
HARDWARE = "llama-70b-fp8-h100-tp8"
SEEDS = range(1, 11)
OURS = "work-budget"
PEERS = ("oracle", "hysteresis", "hpa", "wva-qm", "dynamo")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trace at full rate, and where its second half begins."""

    file: str
    copies: int
    half: float
    shift: float
    """Seconds between the slices of two seeds."""
    seconds: float
    budget: float
    slo: float
    """What is to be met."""
    cost: float
    """And at how much of the clairvoyant's cost at most, with a cold start of 300 s."""
    actions: float | None = None


SOURCES = {
    "azure-code": Source(
        file="azure2024_code_d0-3_x1-30.csv.gz",
        copies=30,
        half=172800,
        shift=17280,
        seconds=10800,
        budget=0.001,
        slo=0.999,
        cost=1.10,
        actions=45,
    ),
    "azure-conv": Source(
        file="azure2024_conv_d0-3_x1-50.csv.gz",
        copies=50,
        half=172800,
        shift=17280,
        seconds=10800,
        budget=0.001,
        slo=0.999,
        cost=1.10,
        actions=45,
    ),
    "r1": Source(
        file="servegen_deepseek-r1_h0-12_x0.5.csv.gz",
        copies=2,
        half=21600,
        shift=1600,
        seconds=7200,
        budget=0.01,
        slo=0.99,
        cost=1.25,
    ),
    "m-large": Source(
        file="servegen_m-large_d0-6_x0.008.csv.gz",
        copies=125,
        half=302400,
        shift=30000,
        seconds=7200,
        budget=0.01,
        slo=0.99,
        cost=1.25,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    source: str
    seed: int
    policy: str = OURS
    cold_start: float = 300.0
    believed: float = 1.0
    mode: str = "monolithic"

    @property
    def key(self) -> str:
        return (
            f"{self.source} {self.policy} C={self.cold_start:g} believed={self.believed:g} {self.mode} seed={self.seed}"
        )


def cells() -> Iterator[Cell]:
    """Ours under all conditions, seed by seed, so that a run that ends early leaves whole tables; then the others."""
    for seed in SEEDS:
        yield from (Cell(source=name, seed=seed) for name in SOURCES)
        yield from (Cell(source=name, seed=seed, believed=factor) for name in SOURCES for factor in (0.7, 1.3))
        yield from (
            Cell(source=name, seed=seed, cold_start=at) for name in ("r1", "azure-code") for at in (45.0, 600.0)
        )
        yield Cell(source="r1", seed=seed, mode="disaggregated")
    for seed in SEEDS:
        yield from (Cell(source=name, seed=seed, policy=peer) for name in SOURCES for peer in PEERS)
        yield Cell(source="r1", seed=seed, mode="disaggregated", policy="oracle")


def run_cell(cell: Cell, traces: Path) -> dict[str, Any]:
    """Run it; the report and what it was made with."""
    source = SOURCES[cell.source]
    begin, began = source.half + (cell.seed - 1) * source.shift, time.process_time()
    trace = load(str(traces / source.file), str(source.copies), begin, source.seconds, cell.seed)
    choice = Choice(
        hardware=HARDWARE,
        mode=Mode(cell.mode),
        cold_start=cell.cold_start,
        budget=source.budget,
        seed=cell.seed,
        believed=cell.believed,
    )
    scene = build_scene(trace, choice, PROFILES[HARDWARE])
    found, _ = play(scene, cell.policy, random.Random(f"{cell.seed} starts"))
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return {**asdict(cell), **found, "begin": begin, "date": made, "cpu_seconds": round(time.process_time() - began, 1)}


def read(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write(found: dict[str, dict[str, Any]], path: Path = RESULTS) -> None:
    """All at once: a reader sees the old file or the new one."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(beside, path)


def alike(found: dict[str, dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The cells of one line of a table."""
    usual = {"policy": OURS, "cold_start": 300.0, "believed": 1.0, "mode": "monolithic"} | wanted
    return [cell for cell in found.values() if all(cell[name] == value for name, value in usual.items())]


CONDITIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("", {}),
    ("cold start 45 s", {"cold_start": 45.0}),
    ("cold start 600 s", {"cold_start": 600.0}),
    ("coefficients x 0.7", {"believed": 0.7}),
    ("coefficients x 1.3", {"believed": 1.3}),
    ("disaggregated", {"mode": "disaggregated"}),
)


def rendered(found: dict[str, dict[str, Any]]) -> str:
    """The tables of the page."""
    head = (
        "| trace | conditions | seeds | SLO % mean (worst) | x oracle mean (worst) | actions/day mean (worst) | "
        "missed over budget, median (cells at most 1.5) | goal |"
    )
    lines = [head, "|---" * 8 + "|"]
    for name, source in SOURCES.items():
        for words, wanted in CONDITIONS:
            chosen = alike(found, source=name, **wanted)
            if chosen:
                lines.append(line(name, words or "cold start 300 s", source, chosen, wanted))
    if rows := [peer_line(name, row) for name in SOURCES for row in rows_of(found, name)]:
        lines += ["", "With the peers, a cold start of 300 s, seeds that all of them have:", ""]
        lines += ["| trace | policy | seeds | SLO % mean (worst) | x oracle mean (worst) | actions/day |"]
        lines += ["|---" * 6 + "|", *rows]
    dates = sorted({cell["date"] for cell in found.values()})
    least = [cell["lower_bound_gpu_seconds"] / cell["oracle_gpu_seconds"] for cell in found.values()]
    lines += [
        "",
        f"{len(found)} runs, {dates[0]} to {dates[-1]}; `lower_bound_gpu_seconds` is {min(least):.3f} to "
        f"{max(least):.3f} of the clairvoyant's; alone on an idle instance at least "
        f"{100 * min(cell['slo_ceiling'] for cell in found.values()):.3f} % meet the objective.",
    ]
    return "\n".join(lines)


def line(name: str, words: str, source: Source, chosen: list[dict[str, Any]], wanted: dict[str, Any]) -> str:
    row = row_of(OURS, chosen)
    ratios = sorted((1 - cell["slo_attainment"]) / source.budget for cell in chosen)
    kept = sum(ratio <= 1.5 for ratio in ratios)
    calm = max(cell["actions_per_day"] for cell in chosen)
    return (
        f"| {name} | {words} | {row.cells} | {100 * row.slo:.3f} ({100 * row.worst_slo:.3f}) | {row.cost:.3f} "
        f"({row.worst_cost:.3f}) | {row.actions:.0f} ({calm:.0f}) | {ratios[len(ratios) // 2]:.2f} "
        f"({kept} of {len(ratios)}) | {verdict(source, row, wanted)} |"
    )


def verdict(source: Source, row: Row, wanted: dict[str, Any]) -> str:
    """Which goals the mean meets."""
    slo, cost = source.slo, source.cost
    if "mode" in wanted:
        slo, cost = 0.99, 1.12
    elif wanted.get("cold_start") == 600.0 and source.budget > 0.001:
        cost = 1.35
    missed = [
        words
        for words, broken in (
            (f"SLO below {100 * slo:.1f} %", row.slo < slo),
            (f"above {cost:.2f}x", row.cost > cost),
            ("too many actions", source.actions is not None and row.actions > source.actions),
        )
        if broken
    ]
    return "met" if not missed else "**missed**: " + ", ".join(missed)


def rows_of(found: dict[str, dict[str, Any]], name: str) -> list[Row]:
    """Our policy and the peers over the seeds that all of them have."""
    runs = {policy: alike(found, source=name, policy=policy) for policy in (OURS, *PEERS)}
    seeds = set.intersection(*({cell["seed"] for cell in chosen} for chosen in runs.values()))
    return summary([cell for chosen in runs.values() for cell in chosen if cell["seed"] in seeds])


def peer_line(name: str, row: Row) -> str:
    return (
        f"| {name} | `{row.policy}` | {row.cells} | {100 * row.slo:.3f} ({100 * row.worst_slo:.3f}) | "
        f"{row.cost:.3f} ({row.worst_cost:.3f}) | {row.actions:.0f} |"
    )


def page_with(page: str, table: str) -> str:
    """The page with the tables between their marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def render(found: dict[str, dict[str, Any]]) -> None:
    PAGE.write_text(page_with(PAGE.read_text(), rendered(found)))
    for name in SOURCES:
        if rows := rows_of(found, name):
            (PICTURES / f"simulate-frontier-{name}.svg").write_text(frontier(rows, html=False))


def main() -> None:
    """Run what is missing, then render."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--traces", type=Path, default=Path(os.environ.get("TRACES", "traces")))
    asked.add_argument("--limit", type=int, default=10**9)
    asked.add_argument("--render", action="store_true")
    options = asked.parse_args()
    found, ran = read(), 0
    for cell in cells():
        if options.render or ran >= options.limit:
            break
        if cell.key not in found:
            found[cell.key] = run_cell(cell, options.traces)
            write(found)
            render(found)
            ran += 1
            one = found[cell.key]
            print(
                cell.key,
                one["slo_attainment"],
                one["cost_ratio"],
                one["actions_per_day"],
                one["cpu_seconds"],
                flush=True,
            )
    render(found)


if __name__ == "__main__":
    main()
