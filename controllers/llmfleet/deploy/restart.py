"""Decide when a whole group must be recreated, and which pod goes next.

In: an `Instance` and `now`. Out: a `Step`: the records to keep, the pods to delete (with their UID), when to look
again. It never touches the number of pods, and never deletes a fresh rank that waits at the start gate.

A tensor-parallel rank cannot rejoin its group: a new rank that meets the old leader hangs, and a leader does not
notice a dead follower until the next request. So one lost rank costs the group, once:

1. An *incident* is opened: the pods that belong to the broken group are written down by UID (`doomed`).
2. After the backoff rank 0 is deleted; only when that UID is gone, the other doomed pods are.
3. When no doomed pod is left the incident is closed and counted. The new ranks meet at the start gate.

Which ranks started together (`members`) is written down once all of them are past the gate. A rank that is gone, was
replaced, ended (with whatever exit code) or restarted in place is lost. A single pod needs no gate: its kubelet
restarts it, and the incident only counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from llmfleet.api.reasons import Reason
from llmfleet.api.types import EMPTY, Lifecycle
from llmfleet.deploy.observe import Instance, Rank, members_of
from llmfleet.deploy.records import Cause, Incident, Records

# A broken group finishes no request, so its drain would use up any grace in vain; the kubelet leaves two seconds after
# SIGTERM whatever it is. Not 0: the pod would be gone before its processes are.
CRASH_GRACE: Final = 1
UPDATE_GRACE: Final = 30
TORN_AFTER: Final = timedelta(seconds=30)
LOST_NODE_AFTER: Final = timedelta(seconds=60)
BACKOFF_LIMIT: Final = timedelta(seconds=300)
MOST_WORDS: Final = 400
CALM: Final = timedelta(minutes=10)
CRASH_LOOP_STREAK: Final = 3
GIVEN_UP_STREAK: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One pod to delete."""

    rank: Rank
    grace: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What recreating the group asks for in this pass."""

    records: Records
    removals: tuple[Removal, ...] = ()
    again: datetime | None = None


def next_step(instance: Instance, lifecycle: Lifecycle, now: datetime) -> Step:
    """Open, carry on or close the incident, or write down who belongs to the group."""
    records = replace(instance.records, torn_since=torn_since(instance, now))
    instance = replace_records(instance, records)
    if records.incident is None:
        incident = detect(instance, now)
        if incident is None:
            again = records.torn_since + TORN_AFTER if records.torn_since else None
            return Step(records=remember(instance, now), again=again)
        records = replace(records, incident=incident)
    return carry_on(replace_records(instance, records), lifecycle, now)


def replace_records(instance: Instance, records: Records) -> Instance:
    return replace(instance, records=records)


def detect(instance: Instance, now: datetime) -> Incident | None:
    """The first reason, if any, why these pods cannot go on as one group."""
    if any(is_outdated(instance, rank) for rank in instance.ranks.values()):
        return Incident(cause=Cause.UPDATE, since=now, message="pods run another template than their group shall")
    message = next(losses(instance), None) or torn(instance, now)
    if message is None:
        return None
    return Incident(
        cause=Cause.LOST_RANK,
        since=now,
        message=message,
        served=has_loaded(instance),
        doomed=broken_group(instance, now),
    )


def is_outdated(instance: Instance, rank: Rank) -> bool:
    """A pod of another template than the StatefulSet's: it can only meet its like."""
    return bool(instance.current) and rank.template != instance.current


def losses(instance: Instance) -> Iterator[str]:
    """Sentences about ranks that were in the group and are not any more, or that crashed before it was written down."""
    for index, identity in instance.records.members.items():
        rank = instance.ranks.get(int(index))
        if rank is None:
            yield f"rank {index} is gone"
        elif rank.identity != identity or rank.exited:
            yield how_lost(rank, identity)
    if instance.size > 1:
        crashed = (rank for rank in instance.ranks.values() if rank.restarts or rank.exited)
        yield from (how_lost(rank, rank.identity) for rank in crashed)


def how_lost(rank: Rank, identity: str) -> str:
    if not identity.startswith(f"{rank.uid}/"):
        return f"rank {rank.index} was replaced by another pod"
    return f"rank {rank.index} ended{how_ended(rank)}"


def how_ended(rank: Rank) -> str:
    """Exit code, reason and last words of a container."""
    if rank.exit is None:
        return ""
    reason = f" ({rank.exit.reason})" if rank.exit.reason not in ("", "Error", "Completed") else ""
    words = last_words(rank.exit.message)
    return f" with exit code {rank.exit.code}{reason}" + (f": {words}" if words else "")


def last_words(message: str) -> str:
    """The last lines of what a container left, on one line; the kubelet takes them from its log."""
    lines = [" ".join(line.split()) for line in message.splitlines()]
    words = " | ".join(line for line in lines if line)
    return words if len(words) <= MOST_WORDS else f"...{words[-MOST_WORDS:]}"


def torn(instance: Instance, now: datetime) -> str | None:
    """A follower is long past the gate and a living rank is not: they are of different generations."""
    since = instance.records.torn_since
    if since is None or now - since < TORN_AFTER:
        return None
    return "some ranks are past the start gate and others are not"


def torn_since(instance: Instance, now: datetime) -> datetime | None:
    """Since when we have seen a follower past the gate and another rank before it; None while that is not so.

    It is so for a moment at each start, so it counts when it lasts. How long is taken by our own clock: by a kubelet's
    that is half a minute behind, every start would look as if it had lasted that long.
    """
    ranks = [rank for rank in instance.ranks.values() if rank.deleting is None]
    passed = any(rank.started and rank.ready for rank in ranks if rank.index > 0)
    if instance.size == 1 or instance.records.incident or not passed or all(rank.started for rank in ranks):
        return None
    return min(instance.records.torn_since or now, now)


def all_started(instance: Instance) -> bool:
    return instance.complete and all(rank.started for rank in instance.ranks.values())


def broken_group(instance: Instance, now: datetime) -> tuple[str, ...]:
    """Everybody who cannot join a new group: old members, restarted ranks, and whoever started with one of those."""
    if instance.size == 1:
        return ()
    members = {identity.rpartition("/")[0] for identity in instance.records.members.values()}
    strangers = [rank for rank in instance.ranks.values() if rank.uid not in members]
    infected = torn(instance, now) is not None or any(rank.restarts or rank.exited for rank in strangers)
    doomed = (
        rank
        for rank in instance.ranks.values()
        if rank.uid in members or rank.restarts or rank.exited or (infected and rank.started)
    )
    return tuple(rank.uid for rank in doomed)


def has_loaded(instance: Instance) -> bool:
    """Whether the group that is lost had become ready."""
    return bool(instance.records.loaded)


def carry_on(instance: Instance, lifecycle: Lifecycle, now: datetime) -> Step:
    """Delete what is due, rank 0 alone first, or close the incident when nothing is left."""
    records, incident = instance.records, instance.records.incident
    assert incident is not None
    doomed = [rank for rank in instance.ranks.values() if is_doomed(instance, incident, rank)]
    if not doomed:
        return close(instance, incident, now)
    due = not_before(records, incident, lifecycle, now)
    if due is not None and now < due:
        return Step(records=records, again=due)
    grace = UPDATE_GRACE if incident.cause is Cause.UPDATE else CRASH_GRACE
    turn = [rank for rank in doomed if rank.index == 0] or doomed
    return Step(records=records, removals=tuple(remove(turn, grace, now)))


def is_doomed(instance: Instance, incident: Incident, rank: Rank) -> bool:
    if incident.cause is Cause.UPDATE:
        return is_outdated(instance, rank)
    return rank.uid in incident.doomed


def remove(ranks: list[Rank], grace: int, now: datetime) -> Iterator[Removal]:
    """A pod that is leaving anyway is hurried only when it would stay much longer."""
    for rank in ranks:
        if rank.deleting is None or rank.deleting > now + timedelta(seconds=grace + 5):
            yield Removal(rank=rank, grace=grace)


def close(instance: Instance, incident: Incident, now: datetime) -> Step:
    """The old group is gone. An update is no restart; anything else counts once."""
    fresh = replace(instance.records, incident=None, members=EMPTY, loaded="", warmed="", torn_since=None)
    if incident.cause is Cause.UPDATE:
        return Step(records=fresh)
    count = recounted(instance)
    fresh = replace(fresh, last_reason=str(reason_of(incident)), last_message=incident.message)
    return Step(records=replace(fresh, restarts=fresh.restarts + count, streak=fresh.streak + 1, last_restart=now))


def reason_of(incident: Incident) -> Reason:
    """What an incident is called: by what the group could not do."""
    if incident.cause is Cause.STARTUP_TIMEOUT:
        return Reason.STARTUP_TIMEOUT
    return Reason.GROUP_RESTARTING if incident.served else Reason.MODEL_LOAD_FAILED


def recounted(instance: Instance) -> int:
    """A single pod may have restarted in place more than once since it was last seen."""
    known = instance.records.members.get("0", "")
    rank = instance.ranks.get(0)
    uid, _, restarts = known.rpartition("/")
    if instance.size > 1 or rank is None or rank.uid != uid:
        return 1
    return max(1, rank.restarts - int(restarts))


def not_before(records: Records, incident: Incident, lifecycle: Lifecycle, now: datetime) -> datetime | None:
    """The first restart is at once; each further one waits twice as long, until the group was calm for a while."""
    if incident.cause is Cause.UPDATE or records.last_restart is None or records.streak == 0:
        return None
    if records.last_restart > now:
        return None  # written by a clock that was ahead: nobody waits for that hour
    doubled: int = 2 ** min(records.streak - 1, 16)
    wait = timedelta(seconds=lifecycle.restart_backoff_seconds * doubled)
    return records.last_restart + min(wait, BACKOFF_LIMIT)


def remember(instance: Instance, now: datetime) -> Records:
    """Write down who started together, who became ready, and that the group has been calm."""
    records = instance.records
    if all_started(instance) and (instance.size > 1 or not any(r.exited for r in instance.ranks.values())):
        records = replace(records, members=members_of(instance.ranks.values()))
    leader = instance.leader
    if instance.all_ready and leader and leader.container and records.loaded != leader.container:
        seconds = load_seconds(instance)
        records = replace(records, loaded=leader.container, load_seconds=seconds, last_reason="", last_message="")
    calm = instance.serves and leader and leader.ready_since and now - leader.ready_since >= CALM
    return replace(records, streak=0) if records.streak and calm else records


def load_seconds(instance: Instance) -> float | None:
    """From the start of the last container to rank 0 being ready."""
    starts = [rank.running_since for rank in instance.ranks.values() if rank.running_since]
    leader = instance.leader
    if not starts or leader is None or leader.ready_since is None:
        return None
    return max(0.0, (leader.ready_since - max(starts)).total_seconds())


def time_out(instance: Instance, now: datetime) -> Records | None:
    """Open an incident for a group that was not ready in time; ranks still at the gate would gain nothing from it."""
    started = tuple(rank.uid for rank in instance.ranks.values() if rank.started)
    if not started or instance.records.incident is not None:
        return None
    incident = Incident(
        cause=Cause.STARTUP_TIMEOUT,
        since=now,
        message="the engine was not ready before the startup timeout",
        doomed=started,
    )
    return replace(instance.records, incident=incident)


def startup_began(instance: Instance) -> datetime | None:
    """When the last rank was scheduled and its preload was done, or its container restarted; None before that."""
    if not instance.complete:
        return None
    moments: list[datetime] = []
    for rank in instance.ranks.values():
        if rank.scheduled is None or rank.prepared is None:
            return None
        moments += [rank.scheduled, rank.prepared]
        if rank.restarts and rank.running_since:
            moments.append(rank.running_since)
    return max(moments, default=None)


def lost_on_dead_nodes(instance: Instance, dead: frozenset[str], now: datetime) -> tuple[Removal, ...]:
    """Pods a dead node will never report as ended: past their grace by a minute, on a node gone or not ready."""
    return tuple(Removal(rank=rank, grace=0) for rank in overdue(instance, now) if rank.node in dead)


def overdue(instance: Instance, now: datetime) -> list[Rank]:
    """Ranks whose grace period ended a minute ago and that are still there."""
    ranks = instance.ranks.values()
    return [rank for rank in ranks if rank.deleting and rank.node and now > rank.deleting + LOST_NODE_AFTER]


def half_placed(instance: Instance) -> bool:
    """Some ranks hold devices while others find none, and nothing has started yet."""
    ranks = [rank for rank in instance.ranks.values() if rank.deleting is None]
    stuck = any(rank.unschedulable for rank in ranks)
    return stuck and any(rank.scheduled for rank in ranks) and not any(rank.started for rank in ranks)


def age_order(instance: Instance) -> tuple[datetime, str]:
    """Older groups first; the name decides between groups of one second."""
    return instance.created, f"{instance.identity.namespace}/{instance.identity.name}"


def give_way(
    instance: Instance, rivals: frozenset[tuple[datetime, str]], lifecycle: Lifecycle, now: datetime
) -> tuple[Removal, ...]:
    """The youngest of several half-placed groups lets its devices go; the oldest waiting pod gets them first."""
    if not half_placed(instance) or not rivals or age_order(instance) < max(rivals):
        return ()
    wait = timedelta(seconds=max(lifecycle.restart_backoff_seconds, 1) * 3)
    last = instance.records.backed_off or max(rank.created for rank in instance.ranks.values())
    if now - last < wait:
        return ()
    placed = [rank for rank in instance.ranks.values() if rank.scheduled and rank.deleting is None]
    return tuple(Removal(rank=rank, grace=CRASH_GRACE) for rank in placed)
