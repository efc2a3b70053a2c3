"""Latency and throughput against the number of users, as SVG.

In: levels and an objective. Out: text of an SVG, or of a page around it. It writes no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from llmfleet.bench.figures import Level, Spread
from llmfleet.bench.verdict import Objective
from llmfleet.simulate.plot import GAP, HEIGHT, LEFT, WIDTH, line, svg

PERCENTS: Final = ((50, "#0b6e4f"), (95, "#e09f3e"), (99, "#1d4e89"))
LIMIT: Final = "#c1121f"
RIGHT: Final = WIDTH - 30
TOP: Final = 44

Point = tuple[float, float]


def picture(title: str, levels: Sequence[Level], objective: Objective) -> str:
    """TTFT, TPOT and throughput, one below the other; a red cross where a level had errors."""
    panels = (
        times("Time to first token, ms", lambda one: one.ttft, objective.ttft, levels, objective),
        times("Time per output token, ms", lambda one: one.tpot, objective.tpot, levels, objective),
        ("Output tokens a second", [(line_of(levels, lambda one: one.output_tokens_per_second), "#5f6b6d", "")], None),
    )
    inner = f"<text x='{LEFT}' y='16' font-weight='bold'>{escape(title)}</text>"
    for place, (text, lines, limit) in enumerate(panels):
        inner += panel(TOP + place * (HEIGHT + GAP + 10), text, lines, limit, levels)
    return svg(TOP + len(panels) * (HEIGHT + GAP + 10), inner)


def page(image: str) -> str:
    """For a browser."""
    return (
        "<!doctype html><html><head><meta charset='utf-8'><title>llmfleet bench</title></head>"
        f"<body style='font-family:sans-serif'>{image}</body></html>\n"
    )


Lines = list[tuple[list[Point], str, str]]


def times(
    text: str,
    of: Callable[[Level], Spread | None],
    limit: float | None,
    levels: Sequence[Level],
    objective: Objective,
) -> tuple[str, Lines, float | None]:
    """A panel of percentiles in milliseconds; levels without a value leave a gap in no line, they are left out."""
    lines: Lines = []
    for percent, colour in PERCENTS:
        points = [(float(one.users), 1000 * found.at(percent)) for one in levels if (found := of(one)) is not None]
        lines.append((points, colour, f"p{percent}"))
    if limit is not None:
        text += f"; objective at p{objective.percentile:g}: {1000 * limit:g}"
    return text, lines, None if limit is None else 1000 * limit


def line_of(levels: Sequence[Level], of: Callable[[Level], float]) -> list[Point]:
    return [(float(one.users), of(one)) for one in levels]


def panel(top: int, text: str, lines: Lines, limit: float | None, levels: Sequence[Level]) -> str:
    """One figure over users."""
    marks = round_marks(max([limit or 0.0, *(value for points, _, _ in lines for _, value in points)]))
    most = max(one.users for one in levels)

    def x(users: float) -> float:
        return LEFT + (RIGHT - LEFT) * users / most

    def y(value: float) -> float:
        return top + HEIGHT - HEIGHT * value / marks[-1]

    drawn = f"<text x='{LEFT}' y='{top - 8}'>{escape(text)}</text>{axis(marks, y)}"
    for place, (points, colour, name) in enumerate(lines):
        drawn += line([(x(users), y(value)) for users, value in points], colour)
        drawn += "".join(dot(x(users), y(value), colour) for users, value in points)
        drawn += f"<text x='{RIGHT - 120 + 40 * place}' y='{top - 8}' fill='{colour}'>{name}</text>"
    if limit is not None:
        drawn += (
            f"<line class='objective' x1='{LEFT}' x2='{RIGHT}' y1='{y(limit):.1f}' y2='{y(limit):.1f}' "
            f"stroke='{LIMIT}' stroke-dasharray='6 4'/>"
        )
    crosses = "".join(cross(x(one.users), top + HEIGHT) for one in levels if one.errors)
    return drawn + crosses + ticks(top + HEIGHT, [one.users for one in levels], x)


def round_marks(highest: float) -> list[float]:
    """From nothing to at least `highest`, in four to eight steps that a person can count in."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(factor * power for factor in (1, 2, 2.5, 5) if factor * power <= rough * (1 + 1e-9))
    return [step * place for place in range(math.ceil(highest / step - 1e-9) + 1)]


def axis(marks: Sequence[float], y: Callable[[float], float]) -> str:
    """A line and a figure for each mark."""
    return "".join(
        f"<line x1='{LEFT}' x2='{RIGHT}' y1='{y(mark):.1f}' y2='{y(mark):.1f}' stroke='#e5e7eb'/>"
        f"<text x='{LEFT - 8}' y='{y(mark) + 4:.1f}' text-anchor='end'>{mark:,.10g}</text>"
        for mark in marks
    )


def dot(x: float, y: float, colour: str) -> str:
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='{colour}'/>"


def cross(x: float, y: float) -> str:
    return f"<path class='errors' d='M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10' stroke='{LIMIT}' stroke-width='2'/>"


def ticks(bottom: int, users: Sequence[int], x: Callable[[float], float]) -> str:
    """How many users each mark stands for."""
    marks = "".join(f"<text x='{x(one):.1f}' y='{bottom + 18}' text-anchor='middle'>{one}</text>" for one in users)
    return f"{marks}<text x='{LEFT - 8}' y='{bottom + 18}' text-anchor='end'>users</text>"
