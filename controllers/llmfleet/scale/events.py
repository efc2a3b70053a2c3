"""What people are told about the instances that come and go.

In: an autoscaler, its fleet, the moves that were made and why. Out: events with the decision's own word as reason.
It sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmfleet.kube.plan import Action, CreateEvent
from llmfleet.kube.refs import Manifest
from llmfleet.scale.fleet import Fleet
from llmfleet.scale.plan import Moves


def build_events(scaler: Manifest, fleet: Fleet, moves: Moves, reason: str, message: str) -> Iterator[Action]:
    """One event for each thing that was done."""
    created = [name for name in moves.created if name not in moves.replaced]
    gone = [one.name for one in moves.deleted]
    if created:
        note = f"{fleet.size} -> {fleet.size + len(created)}, created {', '.join(created)}: {message}"
        yield build_event(scaler, reason, "ScaledUp", note)
    if moves.replaced:
        note = f"created {', '.join(moves.replaced)} in place of another"
        yield build_event(scaler, "StartupTimeout" if gone else "TemplateChanged", "None", note)
    elif gone:
        note = f"{fleet.size} -> {fleet.size - len(gone)}, deleted {', '.join(gone)}: {message}"
        yield build_event(scaler, reason, "ScaledDown", note)
    if moves.patched:
        note = f"patched {', '.join(moves.patched)} to the template"
        yield build_event(scaler, "TemplateChanged", "None", note)


def build_event(scaler: Manifest, reason: str, action: str, note: str) -> CreateEvent:
    return CreateEvent(regarding=scaler, type_="Normal", reason=reason, action=action, message=note)


def build_failure(scaler: Manifest, reason: str, problem: str) -> CreateEvent:
    """What the API server would not take."""
    message = f"the API server refuses it: {problem}"
    return CreateEvent(regarding=scaler, type_="Warning", reason=reason, action="ScaleFailed", message=message)
