"""Pictures as SVG: a run over time, and cost against misses of many runs.

In: ticks of runs, or points. Out: text of an SVG, or of a page around it. Nothing but the standard library; it
writes no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from llmfleet.simulate.grid import Row
from llmfleet.simulate.scenario import Tick

COLOURS: Final = (
    "#0b6e4f",
    "#c1121f",
    "#1d4e89",
    "#e09f3e",
    "#7b2d8b",
    "#5f6b6d",
    "#2a9d8f",
    "#9c6644",
    "#d6638a",
    "#000000",
    "#6a994e",
    "#f28482",
    "#3a86ff",
    "#8d99ae",
)
WIDTH: Final = 960
HEIGHT: Final = 220
LEFT: Final = 60
GAP: Final = 50
MOST_POINTS: Final = 900


def page(runs: Mapping[str, Sequence[Tick]], *, html: bool) -> str:
    """One panel for each run: load, ready and held instances, missed requests."""
    panels = [panel(text, ticks, place) for place, (text, ticks) in enumerate(runs.items())]
    height = len(panels) * (HEIGHT + GAP) + 20
    image = svg(height, "".join(panels))
    return wrapped(image) if html else image


def wrapped(image: str) -> str:
    return (
        "<!doctype html><html><head><meta charset='utf-8'><title>llmfleet simulate</title></head>"
        f"<body style='font-family:sans-serif'>{image}</body></html>\n"
    )


def frontier(rows: Sequence[Row], *, html: bool) -> str:
    """Mean cost to the right, mean misses upwards on a scale of powers of ten: better is lower and further left."""
    most = max([*(row.cost for row in rows), 2.0])
    misses = [min(1.0, max(1e-5, 1 - row.slo)) for row in rows]

    def x(cost: float) -> float:
        return LEFT + (WIDTH - LEFT - 260) * (cost - 0.8) / (most - 0.8)

    def y(missed: float) -> float:
        return 30 + 440 * -math.log10(missed) / 5

    marks = "".join(
        f"<line x1='{LEFT}' x2='{WIDTH - 240}' y1='{30 + 88 * power}' y2='{30 + 88 * power}' stroke='#e5e7eb'/>"
        f"<text x='{LEFT - 8}' y='{34 + 88 * power}' text-anchor='end'>{100 * 10**-power:g} %</text>"
        for power in range(6)
    )
    costs = "".join(
        f"<text x='{x(cost):.0f}' y='490' text-anchor='middle'>{cost:.2f}x</text>"
        for cost in (0.8 + (most - 0.8) * part / 5 for part in range(6))
    )
    dots = "".join(
        f"<circle cx='{x(row.cost):.1f}' cy='{y(missed):.1f}' r='5' fill='{colour}'/>"
        f"<circle cx='{WIDTH - 225}' cy='{36 + 20 * place}' r='5' fill='{colour}'/>"
        f"<text x='{WIDTH - 212}' y='{40 + 20 * place}'>{escape(row.policy)}</text>"
        for place, (row, missed) in enumerate(zip(rows, misses, strict=True))
        for colour in (COLOURS[place % len(COLOURS)],)
    )
    title = f"<text x='{LEFT}' y='18'>Requests that missed, against GPU seconds over the clairvoyant's (mean)</text>"
    image = svg(510, title + marks + costs + dots)
    return wrapped(image) if html else image


def svg(height: int, inner: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}' "
        f"font-family='sans-serif' font-size='12'><rect width='100%' height='100%' fill='white'/>{inner}</svg>\n"
    )


def panel(text: str, ticks: Sequence[Tick], place: int) -> str:
    """One run."""
    top, end = 20 + place * (HEIGHT + GAP), max(ticks[-1].at, 1.0)
    each = max(1, len(ticks) // MOST_POINTS)
    groups = [ticks[begin : begin + each] for begin in range(0, len(ticks), each)]
    span = ticks[1].at - ticks[0].at if len(ticks) > 1 else 15.0
    moments = [group[0].at for group in groups]
    load = [sum(tick.work for tick in group) / len(group) / span for group in groups]
    held = [max(tick.size for tick in group) for group in groups]
    ready = [min(tick.ready for tick in group) for group in groups]
    shares = [sum(tick.missed for tick in group) / max(1, sum(tick.requests for tick in group)) for group in groups]
    most = max([*held, *load, 1])

    def x(moment: float) -> float:
        return LEFT + (WIDTH - LEFT - 20) * moment / end

    def y(value: float) -> float:
        return top + HEIGHT - HEIGHT * value / most

    bars = "".join(
        f"<line x1='{x(at):.1f}' x2='{x(at):.1f}' y1='{top + HEIGHT}' y2='{top + HEIGHT - HEIGHT * share:.1f}' "
        "stroke='#c1121f' stroke-opacity='.5'/>"
        for at, share in zip(moments, shares, strict=True)
        if share > 0
    )
    missed, requests = sum(tick.missed for tick in ticks), sum(tick.requests for tick in ticks)
    legend = "load (blue), ready (green) and held (grey) instances, share missed (red)"
    title = f"{text}: {legend}; {missed} of {requests} missed"
    return (
        f"<text x='{LEFT}' y='{top - 6}'>{escape(title)}</text>{axis(top, most)}{bars}"
        + steps([(x(at), y(value)) for at, value in zip(moments, held, strict=True)], "#9aa0a6")
        + steps([(x(at), y(value)) for at, value in zip(moments, ready, strict=True)], "#0b6e4f")
        + line([(x(at), y(value)) for at, value in zip(moments, load, strict=True)], "#1d4e89")
        + hours(top + HEIGHT, end)
    )


def axis(top: int, most: float) -> str:
    marks = [most * part / 4 for part in range(5)]
    return "".join(
        f"<line x1='{LEFT}' x2='{WIDTH - 20}' y1='{top + HEIGHT - HEIGHT * part / 4:.1f}' "
        f"y2='{top + HEIGHT - HEIGHT * part / 4:.1f}' stroke='#e5e7eb'/>"
        f"<text x='{LEFT - 8}' y='{top + HEIGHT - HEIGHT * part / 4 + 4:.1f}' text-anchor='end'>{mark:.3g}</text>"
        for part, mark in enumerate(marks)
    )


def hours(bottom: int, end: float) -> str:
    return "".join(
        f"<text x='{LEFT + (WIDTH - LEFT - 20) * part / 6:.1f}' y='{bottom + 16}' text-anchor='middle'>"
        f"{end * part / 6 / 3600:.1f} h</text>"
        for part in range(7)
    )


def line(points: Sequence[tuple[float, float]], colour: str, width: float = 1.2) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{width}'/>"


def steps(points: Sequence[tuple[float, float]], colour: str) -> str:
    """A line that changes at its points only."""
    corners = list(points[:1])
    for point in points[1:]:
        if point[1] != corners[-1][1]:
            corners += [(point[0], corners[-1][1]), point]
    corners.append((points[-1][0], corners[-1][1]))
    return line(corners, colour)
