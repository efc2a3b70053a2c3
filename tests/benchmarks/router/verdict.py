"""What the figures say: medians, paired ratios with their bounds, the table. Pure: rounds in, text and numbers out.

A round is {peer: {test: {figure: number}}}. A ratio is always of two figures of one round, so that a machine that was
busy for a while slows both. A goal is met when the distribution-free 95 % upper bound of the median ratio meets it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Round = Mapping[str, Mapping[str, Mapping[str, float]]]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`ours` must cost at most `limit` times what `theirs` does."""

    ours: str
    theirs: str
    test: str
    limit: float
    figure: str = "cpu_us"


GOALS = (
    Goal(ours="parity", theirs="nginx", test="unary", limit=1.3),
    Goal(ours="parity", theirs="nginx", test="fast", limit=1.2),
    Goal(ours="full", theirs="nginx", test="unary", limit=1.7),
    Goal(ours="full", theirs="vllm-router", test="unary", limit=0.45),
    Goal(ours="full", theirs="vllm-router", test="fast", limit=0.3),
    Goal(ours="full-pd", theirs="vllm-router-pd", test="pd", limit=0.45),
    Goal(ours="full", theirs="nginx", test="latency", figure="added_p50", limit=2.0),
)
STREAM_KIB = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    goal: Goal
    median: float | None
    upper: float | None
    rounds: int
    says: str  # "met", "missed", "too few rounds" or "not measured"


def upper_rank(count: int) -> int | None:
    """Return the 1-based rank of the order statistic that is above the true median with 95 % confidence."""
    below = 0.0
    for rank in range(1, count + 1):
        below += math.comb(count, rank - 1) / 2**count
        if below >= CONFIDENCE:
            return rank
    return None


def figures(rounds: Sequence[Round], peer: str, test: str, figure: str) -> list[float]:
    return [r[peer][test][figure] for r in rounds if figure in r.get(peer, {}).get(test, {})]


def ratios(rounds: Sequence[Round], goal: Goal) -> list[float]:
    """Return the ratio of each round in which both were measured."""
    found = []
    for one in rounds:
        ours = one.get(goal.ours, {}).get(goal.test, {}).get(goal.figure)
        theirs = one.get(goal.theirs, {}).get(goal.test, {}).get(goal.figure)
        if ours is not None and theirs is not None and theirs > 0:
            found.append(ours / theirs)
    return found


def judge(rounds: Sequence[Round], goal: Goal) -> Verdict:
    found = sorted(ratios(rounds, goal))
    if not found:
        return Verdict(goal=goal, median=None, upper=None, rounds=0, says="not measured")
    rank = upper_rank(len(found))
    upper = found[rank - 1] if rank else None
    says = "too few rounds" if upper is None else "met" if upper <= goal.limit else "missed"
    return Verdict(goal=goal, median=statistics.median(found), upper=upper, rounds=len(found), says=says)


def with_added(one: Round) -> dict[str, dict[str, dict[str, float]]]:
    """Add to each latency what the router added to the same round's direct one."""
    made = {peer: {test: dict(values) for test, values in tests.items()} for peer, tests in one.items()}
    direct = made.get("direct", {}).get("latency")
    for peer, tests in made.items():
        if direct and peer != "direct" and "latency" in tests:
            for quantile in ("p50", "p99"):
                tests["latency"][f"added_{quantile}"] = tests["latency"][quantile] - direct[quantile]
    return made


COLUMNS = (
    ("unary us", "unary", "cpu_us"),
    ("fast chunk us", "fast", "cpu_us"),
    ("paced chunk us", "paced", "cpu_us"),
    ("P/D flow us", "pd", "cpu_us"),
    ("at 150/s us", "latency", "cpu_us"),
    ("added p50 us", "latency", "added_p50"),
    ("added p99 us", "latency", "added_p99"),
    ("PSS MiB", "memory", "mib"),
)


def summary(rounds: Sequence[Round], peers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the median of every figure of the table."""
    made: dict[str, dict[str, float]] = {}
    for peer in peers:
        for title, test, figure in COLUMNS:
            found = figures(rounds, peer, test, figure)
            if found:
                made.setdefault(peer, {})[title] = statistics.median(found)
    return made


def table(medians: Mapping[str, Mapping[str, float]], titles: Mapping[str, str]) -> str:
    """Render the medians as a Markdown table."""
    lines = ["| router | " + " | ".join(title for title, _, _ in COLUMNS) + " |"]
    lines.append("|---|" + "---:|" * len(COLUMNS))
    for peer, values in medians.items():
        cells = [_cell(values.get(title)) for title, _, _ in COLUMNS]
        lines.append(f"| {titles[peer]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def verdict_table(verdicts: Sequence[Verdict], titles: Mapping[str, str]) -> str:
    """Render the goals and what became of them."""
    lines = [
        "| ratio of one round's figures | goal | median | 95 % upper bound | rounds | |",
        "|---|---|---|---|---|---|",
    ]
    for one in verdicts:
        goal = one.goal
        names = f"{titles[goal.ours]} / {titles[goal.theirs]}: {goal.test} {goal.figure}"
        numbers = [f"<= {goal.limit:g}", _ratio(one.median), _ratio(one.upper), str(one.rounds), one.says]
        lines.append(f"| {names} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
