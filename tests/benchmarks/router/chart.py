"""Draw the medians as bars. Pure: rows in, one SVG out, with no script, font or address from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, LEFT, ROW, BAR = 760, 270, 22, 14
OURS, THEIRS, INK = "#1f6feb", "#8b949e", "#57606a"


def bars(title: str, unit: str, rows: Sequence[tuple[str, float, bool]]) -> str:
    """Draw one panel; a row is a name, a figure and whether it is ours. The scale is logarithmic, and says so."""
    low = 10 ** math.floor(math.log10(min(value for _, value, _ in rows)))
    high = max(value for _, value, _ in rows)
    span = math.log10(high / low) or 1.0
    height = 40 + ROW * len(rows) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<text x="8" y="20" font-size="14">{escape(title)} <tspan font-size="11">({escape(unit)}, '
        "logarithmic)</tspan></text>",
    ]
    for index, (name, value, ours) in enumerate(rows):
        top = 36 + ROW * index
        length = max(2.0, math.log10(value / low) / span * (WIDTH - LEFT - 90))
        parts.append(f'<text x="{LEFT - 8}" y="{top + 11}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{OURS if ours else THEIRS}"/>'
        )
        parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{top + 11}">{value:.3g}</text>')
    return "\n".join([*parts, "</svg>", ""])
