"""Decide which pod template an instance shall have, one instance of a fleet at a time.

In: an `Instance`, its fleet as `Peer` values, what the drain and the routers' figures say, `now`. Out: a `Choice`:
the step to take and a sentence. It never decides how pods are replaced (`restart.py`) and never looks at anything
but its arguments.

The template of the StatefulSet stays as it is until the instance's turn, because any pod that dies meanwhile comes
back from it. A template that served is *good* and kept; a template that did not is *failed*: the instance goes back
to the good one, and as long as one instance of the fleet has failed the template it is asked for, no other is
touched. The step follows from what is there, so an operator that was killed anywhere goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from llmfleet.deploy.observe import Instance


class Move(StrEnum):
    """What the template of an instance needs now."""

    SETTLED = "Settled"
    INVALID = "Invalid"
    CREATE = "Create"
    RESTORE = "Restore"
    WAIT = "Wait"
    PAUSED = "Paused"
    HALTED = "Halted"
    DRAIN = "Drain"
    SWITCH = "Switch"
    PROVING = "Proving"
    TRIAL = "Trial"
    PROVEN = "Proven"
    FAIL = "Fail"
    GO_BACK_DRAIN = "GoBackDrain"
    GO_BACK = "GoBack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The move, and why."""

    move: Move
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An instance of the same fleet, as far as turns go."""

    name: str
    role: str
    pending: bool
    """Serves its last good template and is asked for another."""
    in_flight: bool
    """Has left its last good template, or is being drained to leave it."""
    halted: bool
    """Failed the very template it is asked for."""
    ready: bool
    proven: bool
    """Has ever served."""
    updated: bool = False
    """Has served with the very template it is asked for."""
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a canary's figures say: still open (None), or whether it may go on."""

    passed: bool | None
    message: str


def choose(
    instance: Instance, fleet: Sequence[Peer], *, drained: bool, timed_out: str, verdict: Verdict | None, has_good: bool
) -> Choice:
    """Pick the move. `timed_out` says how the running start failed; `verdict` is None when no trial is wanted."""
    if instance.wanted is None:
        return Choice(move=Move.INVALID, message=instance.error)
    if instance.statefulset is None:
        return Choice(move=Move.RESTORE if has_good else Move.CREATE)
    if instance.current == instance.wanted.hash:
        return choose_current(instance, drained=drained, timed_out=timed_out, verdict=verdict, has_good=has_good)
    return choose_other(instance, fleet, drained=drained)


def choose_current(
    instance: Instance, *, drained: bool, timed_out: str, verdict: Verdict | None, has_good: bool
) -> Choice:
    """The StatefulSet has the template that is asked for: is it good? With nothing to go back to it is tried on."""
    records, wanted = instance.records, instance.current
    if records.good == wanted:
        return Choice(move=Move.SETTLED)
    if records.failed and records.failed.template == wanted and has_good:
        drain = instance.serves and not drained
        return Choice(move=Move.GO_BACK_DRAIN if drain else Move.GO_BACK, message=records.failed.message)
    if timed_out and has_good:
        return Choice(move=Move.FAIL, message=timed_out)
    if not instance.serves:
        return Choice(move=Move.PROVING)
    if verdict is None or verdict.passed:
        return Choice(move=Move.PROVEN, message=verdict.message if verdict else "")
    return Choice(move=Move.TRIAL if verdict.passed is None else Move.FAIL, message=verdict.message)


def choose_other(instance: Instance, fleet: Sequence[Peer], *, drained: bool) -> Choice:
    """The StatefulSet has another template: may it change?"""
    records, wanted = instance.records, instance.wanted
    assert wanted is not None
    if instance.current != records.good:
        return Choice(move=Move.SWITCH, message="the template changed again before it had served")
    if records.failed and records.failed.template == wanted.hash:
        return Choice(move=Move.HALTED, message=records.failed.message)
    if instance.spec and instance.spec.update.paused:
        return Choice(move=Move.PAUSED, message="spec.update.paused holds the update")
    blocked = why_not(instance.identity.name, fleet)
    if blocked:
        return Choice(move=Move.WAIT, message=blocked)
    if instance.serves and not drained:
        return Choice(move=Move.DRAIN)
    return Choice(move=Move.SWITCH)


def why_not(name: str, fleet: Sequence[Peer]) -> str:
    """An empty string when it is this instance's turn; else a sentence that names who it waits for."""
    halted = next((peer for peer in fleet if peer.halted), None)
    if halted:
        return f"{halted.name} could not start on its new template; the fleet stays on the old one"
    holder = turn(fleet)
    if holder is None:
        down = next((peer for peer in fleet if not peer.ready and peer.proven), None)
        return f"{down.name} is not ready" if down else "no instance of the fleet can be updated now"
    return "" if holder.name == name else f"{holder.name} is first"


def turn(fleet: Sequence[Peer]) -> Peer | None:
    """Whose turn it is: whoever is under way, else not-ready ones, else the next by role and name."""
    under_way = [peer for peer in fleet if peer.in_flight]
    if under_way:
        return min(under_way, key=lambda peer: peer.name)
    pending = [peer for peer in fleet if peer.pending and not peer.paused]
    down = [peer for peer in pending if not peer.ready]
    if down:
        return min(down, key=lambda peer: peer.name)
    if any(not peer.ready and peer.proven and not peer.pending for peer in fleet):
        return None
    return min(pending, key=lambda peer: order(peer, fleet), default=None)


def order(peer: Peer, fleet: Sequence[Peer]) -> tuple[float, int, str]:
    """Prefill and decode alternate: the role that is further behind goes first, so that both revisions keep pairs."""
    alike = [other for other in fleet if other.role == peer.role]
    waiting = sum(other.pending for other in alike)
    return ((len(alike) - waiting) / len(alike), -waiting, peer.name)


def startup_failed(
    instance: Instance, *, began: datetime | None, limit: timedelta, crash_limit: int, now: datetime
) -> str:
    """A sentence when the running start is over its time or crashes too often; else an empty string."""
    records = instance.records
    leader = instance.leader
    if instance.serves or (leader is not None and records.warmed and records.warmed == leader.container):
        return ""
    if records.good not in ("", instance.current) and records.streak >= crash_limit:
        return f"the group crashed {records.streak} times"
    if began is not None and now - began > limit:
        return f"the engine was not ready within {int(limit.total_seconds())} s"
    return ""
