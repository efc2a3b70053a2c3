"""Draw a page as Grafana would lay it out, from what a Prometheus answered.

In: a page and what each of its targets showed. Out: one SVG, with no script, font or address from outside. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from dashboards.asking import Range, Series, Shown
from dashboards.pages import Json, units_of_columns

COLUMN, LINE, GAP = 50, 27, 4
INK, FAINT, GRID, PAPER, PANEL = "#24292f", "#57606a", "#e4e7eb", "#f3f4f6", "#ffffff"
COLORS = ("#1f6feb", "#2da44e", "#bf8700", "#cf222e", "#8250df", "#0a7f8c", "#e16f24", "#d63384", "#57606a", "#6e7f00")
LEVELS = {"text": INK, "green": "#1a7f37", "orange": "#bc4c00", "red": "#cf222e"}
LEGEND_ROWS = 3
BINARY = ("bytes", "Bps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Where something lies, in pixels."""

    x: float
    y: float
    w: float
    h: float


def draw(page: Json, shown: Mapping[tuple[str, str], Shown], span: Range) -> str:
    """The whole page; `shown` is by panel title and letter."""
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in page["panels"])
    width, height = 24 * COLUMN, bottom * LINE + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        text(12, 27, page["title"], size=18),
    ]
    for panel in page["panels"]:
        parts += draw_panel(panel, shown, span)
    return "\n".join([*parts, "</svg>", ""])


def draw_panel(panel: Json, shown: Mapping[tuple[str, str], Shown], span: Range) -> list[str]:
    place = panel["gridPos"]
    box = Box(x=place["x"] * COLUMN, y=place["y"] * LINE + 40, w=place["w"] * COLUMN, h=place["h"] * LINE)
    if panel["type"] == "row":
        return [text(box.x + 8, box.y + 19, panel["title"], size=13, weight="bold")]
    answers = [shown[panel["title"], target["refId"]] for target in panel["targets"]]
    inner = Box(x=box.x + GAP, y=box.y + GAP, w=box.w - 2 * GAP, h=box.h - 2 * GAP)
    frame = f'<rect x="{inner.x}" y="{inner.y}" width="{inner.w}" height="{inner.h}" rx="3" fill="{PANEL}"/>'
    title = text(inner.x + 8, inner.y + 16, panel["title"], weight="bold")
    body = {"timeseries": lines, "stat": figure, "table": table}[panel["type"]]
    return [frame, title, *body(panel, answers, inner, span)]


# ---- lines ----


def lines(panel: Json, answers: Sequence[Shown], box: Box, span: Range) -> list[str]:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    series = [one for answer in answers for one in answer.series]
    layers = stack(series) if stacked else [dict(one.points) for one in series]
    highest = max((value for layer in layers for value in layer.values()), default=1.0)
    base = 1024.0 ** ((int(highest).bit_length() - 1) // 10) if unit in BINARY and highest >= 1 else 1.0
    top = nice(highest / base) * base
    area = Box(x=box.x + 58, y=box.y + 26, w=box.w - 70, h=box.h - 46 - 15 * LEGEND_ROWS)
    parts = axes(area, top, unit, span)
    for number in reversed(range(len(layers))):
        below = layers[number - 1] if stacked and number else {}
        parts += curve(layers[number], below, area, top, span, COLORS[number % len(COLORS)], filled=stacked)
    return [*parts, *legend([one.name or "value" for one in series], area, box)]


def stack(series: Sequence[Series]) -> list[dict[float, float]]:
    """Each line's points with those below it added."""
    layers: list[dict[float, float]] = []
    under: dict[float, float] = {}
    for one in series:
        under = under | {at: under.get(at, 0.0) + value for at, value in one.points}
        layers.append(dict(under))
    return layers


def nice(value: float) -> float:
    """The next round number, so that an axis ends on one."""
    if value <= 0:
        return 1.0
    power = 10.0 ** len(str(int(value))) if value >= 1 else 1.0
    while power / 10 >= value:
        power /= 10
    return next(
        power * step for step in (0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if power * step >= value
    )


def axes(area: Box, top: float, unit: str, span: Range) -> list[str]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = area.y + area.h * (1 - share)
        parts.append(f'<path d="M{area.x:.0f} {y:.1f}h{area.w:.0f}" stroke="{GRID}"/>')
        parts.append(text(area.x - 6, y + 4, write(top * share, unit), anchor="end", color=FAINT, size=10))
    for share in (0.0, 0.5, 1.0):
        seconds = (span.end - span.start) * share
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[share]
        parts.append(text(area.x + area.w * share, area.y + area.h + 13, f"{seconds:.0f} s", anchor, FAINT, 10))
    return parts


def curve(
    layer: Mapping[float, float],
    below: Mapping[float, float],
    area: Box,
    top: float,
    span: Range,
    color: str,
    *,
    filled: bool,
) -> list[str]:
    """One line, or the area between it and the one below; a scrape without a value is a gap."""

    def at(moment: float, value: float) -> str:
        x = area.x + (moment - span.start) / (span.end - span.start) * area.w
        return f"{x:.1f} {area.y + area.h * (1 - value / top):.1f}"

    parts = []
    for run in runs(sorted(layer.items())):
        path = "M" + "L".join(at(moment, value) for moment, value in run)
        if filled:
            floor = "L".join(at(moment, below.get(moment, 0.0)) for moment, _ in reversed(run))
            parts.append(f'<path d="{path}L{floor}Z" fill="{color}" fill-opacity=".3"/>')
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.3"/>')
    return parts


def runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Points without a gap between them."""
    step = min((later - sooner for (sooner, _), (later, _) in pairwise(points)), default=1.0)
    found: list[list[tuple[float, float]]] = []
    for point in points:
        if found and point[0] - found[-1][-1][0] <= 1.5 * step:
            found[-1].append(point)
        else:
            found.append([point])
    return found


def legend(names: Sequence[str], area: Box, box: Box) -> list[str]:
    """Names in columns; those that do not fit are counted."""
    longest = max((len(name) for name in names), default=1)
    per_row = max(1, min(4, int((box.w - 16) // (longest * 5.8 + 24))))
    room = per_row * LEGEND_ROWS
    shown = list(names[: room if len(names) <= room else room - 1])
    parts = []
    top, wide = area.y + area.h + 30, (box.w - 16) / per_row
    for number, name in enumerate(shown):
        x, y = box.x + 8 + number % per_row * wide, top + number // per_row * 14
        parts.append(f'<rect x="{x:.0f}" y="{y - 7:.0f}" width="10" height="3" fill="{COLORS[number % len(COLORS)]}"/>')
        parts.append(text(x + 15, y, name, size=10, color=FAINT))
    if len(shown) < len(names):
        x, y = box.x + 8 + (room - 1) % per_row * wide, top + (room - 1) // per_row * 14
        parts.append(text(x, y, f"and {len(names) - len(shown)} more", size=10, color=FAINT))
    return parts


# ---- figures and tables ----


def figure(panel: Json, answers: Sequence[Shown], box: Box, span: Range) -> list[str]:
    defaults = panel["fieldConfig"]["defaults"]
    points = [value for one in answers[0].series for _, value in one.points]
    said = write(points[-1], defaults["unit"]) if points else "no data"
    color = "text"
    for step in defaults["thresholds"]["steps"]:
        if points and (step["value"] is None or points[-1] >= step["value"]):
            color = step["color"]
    return [text(box.x + box.w / 2, box.y + box.h / 2 + 18, said, "middle", LEVELS[color], 24)]


def table(panel: Json, answers: Sequence[Shown], box: Box, span: Range) -> list[str]:
    """One line for each set of labels."""
    units = units_of_columns(panel)
    organize = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
    names = [organize["renameByName"][f"Value #{answer.query.letter}"] for answer in answers]
    rows: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for answer in answers:
        for one in answer.series:
            cells = rows.setdefault(tuple(sorted(one.labels.items())), {})
            cells[answer.query.letter] = write(one.points[-1][1], units[answer.query.letter])
    labels = sorted({label for row in rows for label, _ in row})
    written = [
        [dict(row).get(label, "") for label in labels] + list_of(cells, answers) for row, cells in sorted(rows.items())
    ]
    return grid([[*labels, *names], *written], box)


def list_of(cells: Mapping[str, str], answers: Sequence[Shown]) -> list[str]:
    return [cells.get(answer.query.letter, "") for answer in answers]


def grid(rows: Sequence[Sequence[str]], box: Box) -> list[str]:
    wide = (box.w - 16) / len(rows[0])
    parts = []
    for number, row in enumerate(rows):
        y = box.y + 40 + number * 20
        color = FAINT if number == 0 else INK
        parts += [text(box.x + 8 + column * wide, y, cell, color=color) for column, cell in enumerate(row)]
        parts.append(f'<path d="M{box.x + 8:.0f} {y + 6:.0f}h{box.w - 16:.0f}" stroke="{GRID}"/>')
    return parts


# ---- text ----


def text(
    x: float, y: float, words: str, anchor: str = "start", color: str = INK, size: int = 11, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{color}" font-size="{size}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def write(value: float, unit: str) -> str:
    """A value as Grafana writes it in that unit, roughly."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return scaled(value, ((1, "s"), (1e-3, "ms"), (1e-6, "µs")))
    if unit in BINARY:
        ladder = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1, "B"))
        return scaled(value, ladder) + ("/s" if unit == "Bps" else "")
    suffix = {"reqps": " req/s", "cps": " /s", "ops": " ops/s", "watt": " W", "celsius": " °C"}.get(unit, "")
    number = scaled(value, ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))).rstrip()
    return f"${number}" if unit == "currencyUSD" else number + suffix


def scaled(value: float, ladder: Sequence[tuple[float, str]]) -> str:
    """Three digits, with the largest step of the ladder that the value reaches."""
    if value == 0:
        return f"0 {next((name for size, name in ladder if size == 1), '')}".strip()
    size, name = next((step for step in ladder if abs(value) >= 0.9995 * step[0]), ladder[-1])
    digits = f"{value / size:.3g}"
    return f"{float(digits):g} {name}"
