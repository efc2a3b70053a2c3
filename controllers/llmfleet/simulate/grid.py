"""What many runs come to: mean and worst of each policy.

In: cells, one for each run, as the JSON has them. Out: rows, cheapest first. It runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy over all cells."""

    policy: str
    cells: int
    slo: float
    """Mean share that met the objective; every cell counts alike."""
    worst_slo: float
    cost: float
    """Mean of GPU seconds over the clairvoyant's."""
    worst_cost: float
    actions: float


def summary(cells: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for each policy."""
    by_policy: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_policy.setdefault(cell["policy"], []).append(cell)
    return sorted((row_of(policy, found) for policy, found in by_policy.items()), key=lambda row: row.cost)


def row_of(policy: str, cells: Sequence[Mapping[str, Any]]) -> Row:
    slos = [float(cell["slo_attainment"]) for cell in cells]
    costs = [float(cell["cost_ratio"]) for cell in cells]
    return Row(
        policy=policy,
        cells=len(cells),
        slo=sum(slos) / len(slos),
        worst_slo=min(slos),
        cost=sum(costs) / len(costs),
        worst_cost=max(costs),
        actions=sum(float(cell["actions_per_day"]) for cell in cells) / len(cells),
    )
