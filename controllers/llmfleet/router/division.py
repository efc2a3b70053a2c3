"""Divide the slots of one engine between routers: who should own how many, and who hands over to whom.

In: slots, and what each router has, wants and owns. Out: numbers of slots; all routers compute the same ones from the
same reports. It never remembers anything or reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One router in the view of one engine; `owned` includes what is on its way to it."""

    name: str
    in_flight: int
    wanted: int
    owned: int
    oldest: float
    leaving: bool


def equal_part(slots: int, names: Iterable[str], name: str) -> int:
    """Return one router's part when nobody knows anything of the others; all parts add up to the slots."""
    ordered = sorted(names)
    each, rest = divmod(slots, len(ordered))
    return each + (ordered.index(name) < rest)


def targets(slots: int, rows: Sequence[Row]) -> list[int]:
    """Divide an engine's slots by demand; the sum is `slots`."""
    demands = [row.in_flight + row.wanted for row in rows]
    total = sum(demands)
    if total >= slots:
        return _in_proportion(slots, rows, demands, total)
    staying = sorted((i for i, row in enumerate(rows) if not row.leaving), key=lambda i: rows[i].name)
    staying = staying or list(range(len(rows)))
    each, rest = divmod(slots - total, len(staying))
    parts = demands
    for rank, index in enumerate(staying):
        parts[index] += each + (rank < rest)
    return parts


def _in_proportion(slots: int, rows: Sequence[Row], demands: Sequence[int], total: int) -> list[int]:
    """Give by largest remainder, but first one to each that would get none, the longest wait first."""
    parts = [slots * demand // total for demand in demands]
    hungry = [i for i, demand in enumerate(demands) if demand and not parts[i]]
    hungry.sort(key=lambda i: (-rows[i].oldest, rows[i].name))
    others = [i for i, demand in enumerate(demands) if demand and parts[i]]
    others.sort(key=lambda i: (-(slots * demands[i] % total), rows[i].name))
    for index in (hungry + others)[: slots - sum(parts)]:
        parts[index] += 1
    return parts


def handovers(name: str, rows: Sequence[Row], parts: Sequence[int]) -> dict[str, int]:
    """Return how many slots one router hands to which: everybody computes all of it and does its own part.

    Those who wait come first. Without waiting, only who has less than half of its reserve is topped up: slots that
    wander all the time are of no use to anybody.
    """
    needs = []
    for row, part in zip(rows, parts, strict=True):
        missing = part - row.owned
        reserve = part - row.in_flight - row.wanted
        if missing > 0 and (row.wanted or row.owned - row.in_flight < reserve // 2):
            needs.append((not row.wanted, -row.oldest, -missing, row.name))
    if not needs:
        return {}
    spare = ((row.owned - max(row.in_flight, part), row.name) for row, part in zip(rows, parts, strict=True))
    # One entry per slot to hand over, in an order that everybody finds alike.
    givers = [giver for surplus, giver in sorted(spare, reverse=True) for _ in range(surplus)]
    takers = [taker for _, _, missing, taker in sorted(needs) for _ in range(-missing)]
    given: dict[str, int] = {}
    for giver, taker in zip(givers, takers, strict=False):
        if giver == name:
            given[taker] = given.get(taker, 0) + 1
    return given


def cut(excess: int, rows: Sequence[Row], name: str) -> int:
    """Return how many of its slots one router gives up when more are owned than there are: unused ones first."""
    unused = [max(0, row.owned - row.in_flight) for row in rows]
    mine = next(i for i, row in enumerate(rows) if row.name == name)
    first = _part_of(min(excess, sum(unused)), unused, rows)[mine]
    rest = [row.owned - u for row, u in zip(rows, unused, strict=True)]
    return first + _part_of(min(max(0, excess - sum(unused)), sum(rest)), rest, rows)[mine]


def _part_of(amount: int, weights: Sequence[int], rows: Sequence[Row]) -> list[int]:
    total = sum(weights)
    if not total or not amount:
        return [0] * len(weights)
    parts = [amount * weight // total for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(amount * weights[i] % total), rows[i].name))
    for index in order[: amount - sum(parts)]:
        parts[index] += 1
    return parts
