"""Say an explanation: as text, or as one JSON object.

In: an `Explanation`, `now`. Out: lines, or a mapping. It adds nothing that the explanation does not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from llmfleet.explain.core import Explanation, FleetView, InstanceView, Past, age_text


def text(found: Explanation, now: datetime) -> Iterator[str]:
    """What a person reads from the top: trouble, size and why, what would change it, instances, the past."""
    scaled = f", {found.scaled}" if found.scaled else ""
    yield f"{found.namespace}/{found.name}  {found.mode}, policy {found.policy}{scaled}"
    yield from (f"  ! {problem}" for problem in found.problems)
    for fleet in found.fleets:
        yield ""
        yield from fleet_text(fleet)
    yield ""
    yield from instances_text(found.instances)
    yield ""
    yield from past_text(found.past, now)


def fleet_text(fleet: FleetView) -> Iterator[str]:
    name = "fleet" if fleet.role == "both" else fleet.role
    yield (
        f"{name}: {fleet.current} instances, {fleet.ready} ready, {fleet.desired} wanted"
        f" (bounds {fleet.least} to {fleet.most})"
    )
    yield f"  why     {fleet.reason or 'unknown'}: {fleet.means}"
    if fleet.message:
        yield f"          {fleet.message}"
    if fleet.do:
        yield f"  do      {fleet.do}"
    if fleet.figures:
        shown = ", ".join(f"{one.name} {one.value} {one.unit}".rstrip() for one in fleet.figures)
        yield f"  figures {shown} ({max(one.age for one in fleet.figures):.0f} s old)"
    for number, change in enumerate(fleet.changes):
        yield f"  {'changes' if not number else '       '} {change}"


def instances_text(instances: Sequence[InstanceView]) -> Iterator[str]:
    if not instances:
        yield "instances: none"
        return
    yield "instances:"
    width = max(len(one.name) for one in instances)
    for one in instances:
        made = "" if one.own else "  (not made by it: counted, never taken away)"
        message = f"  {one.message}" if one.message and not one.ready else ""
        yield f"  {one.name:<{width}}  {one.role:<7}  {one.state:<16}  {age_text(one.age):>5}{made}{message}"


def past_text(past: Sequence[Past], now: datetime) -> Iterator[str]:
    """The API server keeps events for an hour unless it is told otherwise."""
    if not past:
        yield "decisions: no events kept (the API server forgets them, after an hour by default)"
        return
    yield "decisions, newest first:"
    for one in past:
        age = age_text((now - one.at).total_seconds()) if one.at else "?"
        times = f" ({one.count} times)" if one.count > 1 else ""
        yield f"  {age:>5} ago  {one.action or '-':<11}  {one.reason}: {one.note}{times}"


def as_json(found: Explanation) -> dict[str, Any]:
    """The same as an object; times as RFC 3339."""
    return {key: plain(value) for key, value in asdict(found).items()}


def plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value
