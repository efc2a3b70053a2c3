"""One pass over one instance, as a pure function: facts in, everything to write and to ask out.

In: `Facts` and `now`. Out: an `Outcome`: a plan for the API server (objects, then pods, then events and status, so
that a crash between two writes leaves less done, never something undone), questions for engines and routers, when to
look again. It never waits, and asks nothing itself: an answer that is not there yet is a fact too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from llmfleet import names
from llmfleet.api.conditions import ConditionType, find_condition, timestamp
from llmfleet.api.reasons import Reason
from llmfleet.api.types import EMPTY, Lifecycle
from llmfleet.deploy import restart
from llmfleet.deploy.canary import judge_trial, trial_weight
from llmfleet.deploy.children import Children, plan_children
from llmfleet.deploy.drain import Drained, DrainFacts, judge
from llmfleet.deploy.objects.identity import TEMPLATE_ANNOTATION, is_ours
from llmfleet.deploy.objects.revision import TEMPLATE_KEY, build_revision
from llmfleet.deploy.objects.statefulset import build_statefulset
from llmfleet.deploy.observe import Instance
from llmfleet.deploy.records import (
    RECORDS_ANNOTATION,
    Cause,
    Failure,
    Figures,
    Incident,
    Records,
    Trial,
    render_records,
)
from llmfleet.deploy.status import Situation, State, derive_state, derive_status
from llmfleet.deploy.update import Choice, Move, Peer, Verdict, choose, startup_failed
from llmfleet.kube.diff import is_subset, plan_apply
from llmfleet.kube.plan import Action, Apply, ApplyStatus, CreateEvent, Delete, Plan
from llmfleet.kube.refs import POD, Manifest, Ref, ref_of

SOON: Final = timedelta(seconds=1)
COUNTS: Final = frozenset({"replicas", "readyReplicas", "updatedReplicas", "ready"})
COUNTS_GATHERED: Final = timedelta(seconds=2)
NO_LIFECYCLE: Final = Lifecycle()
CRASHES_BEFORE_HALT: Final = 3
DRAINING_MOVES: Final = frozenset({Move.DRAIN, Move.GO_BACK_DRAIN})
TROUBLES: Final = frozenset(
    {
        Reason.UPDATE_HALTED,
        Reason.CANARY_FAILED,
        Reason.GROUP_RESTARTING,
        Reason.STARTUP_TIMEOUT,
        Reason.INVALID_SPEC,
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_PULL_FAILED,
        Reason.MODEL_LOAD_FAILED,
        Reason.CRASH_LOOP,
    }
)
SWITCHING_MOVES: Final = frozenset({Move.SWITCH, Move.GO_BACK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """The ControllerRevision that holds the last good template."""

    manifest: Manifest

    @property
    def template(self) -> Mapping[str, Any]:
        template: Mapping[str, Any] = (self.manifest.get("data") or {}).get(TEMPLATE_KEY) or {}
        return template

    @property
    def hash(self) -> str:
        return str((self.template.get("metadata") or {}).get("annotations", {}).get(TEMPLATE_ANNOTATION, ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything one pass may look at."""

    cluster: Manifest
    instance: Instance
    children: Children
    fleet: Sequence[Peer] = ()
    drain: DrainFacts | None = None
    """What is known about traffic, should it have to go; None when nobody asked yet."""
    good: Good | None = None
    superseded: Manifest | None = None
    """The ControllerRevision of the good template before, when it is still there."""
    dead_nodes: frozenset[str] = frozenset()
    rivals: frozenset[tuple[datetime, str]] = frozenset()
    """Age of the other half-placed groups."""
    warmed: str = ""
    """Container of rank 0 that answered the warm-up request since the last pass."""
    figures: tuple[Figures, Figures] | None = None
    """Router counters of this instance and of the rest of its fleet."""
    unrouted: str = ""
    """Why no router of the namespace serves it; empty when one does, or when there is none."""
    namespace_gone: bool = False
    reported: datetime | None = None
    """When the status was written last; None when that is long ago."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a pass asks for."""

    plan: Plan
    state: State | None
    again: timedelta | None = None
    draining: bool = False
    warm_up: bool = False
    """Rank 0 is to be sent the warm-up request."""


def decide(facts: Facts, now: datetime) -> Outcome:
    """Deletion, or life."""
    if facts.instance.deleting is not None:
        return decide_deletion(facts, now)
    return decide_life(facts, now)


def decide_deletion(facts: Facts, now: datetime) -> Outcome:
    """Keep the finalizer until traffic has gone; everything else goes with the owner."""
    if names.DRAIN_FINALIZER not in (facts.cluster["metadata"].get("finalizers") or ()):
        return Outcome(plan=(), state=None)
    drained = (
        None
        if facts.namespace_gone or not facts.instance.ranks
        else traffic(facts, facts.instance.deleting or now, now)
    )
    if drained is None or drained.done:
        message = drained.message if drained else "no pods are left"
        event = tell(facts, "Normal", Reason.DRAINING, "DrainFinished", f"drained: {message}")
        return Outcome(plan=(*event, *claim(facts, finalizer=False, draining=None, weight=None)), state=None)
    situation = Situation(instance=facts.instance, choice=Choice(move=Move.SETTLED), drained=drained)
    state = derive_state(situation)
    return Outcome(plan=report(facts, situation, state, now), state=state, again=SOON, draining=True)


def traffic(facts: Facts, since: datetime, now: datetime) -> Drained:
    """How far the traffic has gone; without answers yet, it has not."""
    instance = facts.instance
    lifecycle = instance.spec.lifecycle if instance.spec else NO_LIFECYCLE
    limit = timedelta(seconds=lifecycle.drain_timeout_seconds)
    leader = instance.leader
    alive = leader is not None and not leader.exited and (leader.ready or instance.records.loaded == leader.container)
    known = facts.drain or DrainFacts(since=since, timeout=limit, serving=True, idle_looks=0, published=())
    verdict = judge(replace(known, since=since, timeout=limit, serving=alive and known.serving), now)
    if facts.drain is None and not verdict.done:
        return replace(verdict, message="asking routers and the engine who still sends and what still runs")
    return verdict


def decide_life(facts: Facts, now: datetime) -> Outcome:
    """Claim, build, update, restart, report."""
    instance = facts.instance
    lifecycle = instance.spec.lifecycle if instance.spec else NO_LIFECYCLE
    step = restart.next_step(instance, lifecycle, now)
    records = replace(learn(facts, step.records), superseded="")
    instance = replace(instance, records=records)
    timed_out = start_failure(instance, lifecycle, now)
    drained = traffic(facts, instance.draining or now, now)
    verdict = judge_canary(instance, facts, now)
    choice = choose(
        instance,
        facts.fleet,
        drained=instance.draining is not None and drained.done,
        timed_out=timed_out,
        verdict=verdict,
        has_good=facts.good is not None,
    )
    records = settle(instance, records, choice, facts, now)
    instance = replace(instance, records=records)
    if choice.move in (Move.PROVING, Move.SETTLED) and timed_out and (timeout := restart.time_out(instance, now)):
        instance = replace(instance, records=timeout)
    draining = (instance.draining or now) if choice.move in DRAINING_MOVES else None
    situation = Situation(
        instance=instance,
        choice=choice,
        drained=drained if draining else None,
        timed_out=timed_out,
        unrouted=facts.unrouted,
    )
    state = derive_state(situation)
    removals = removals_of(facts, instance, step, choice, lifecycle, now)
    if any(removal.rank.scheduled and restart.half_placed(instance) for removal in removals):
        instance = replace(instance, records=replace(instance.records, backed_off=now))
    plan = (
        *claim(facts, finalizer=True, draining=draining, weight=weight_of(instance, choice)),
        *plan_children(facts.children, instance, facts.cluster),
        *plan_revision(facts, instance, choice),
        *drop_revision(facts),
        *plan_statefulset(facts, instance, choice),
        *(
            Delete(ref=pod_ref(instance, removal.rank.name), uid=removal.rank.uid, grace_seconds=removal.grace)
            for removal in removals
        ),
        *report(facts, situation, state, now),
    )
    return Outcome(
        plan=plan,
        state=state,
        again=look_again(facts, instance, choice, step, lifecycle, now),
        draining=draining is not None,
        warm_up=instance.whole and not instance.warmed,
    )


def learn(facts: Facts, records: Records) -> Records:
    """The warm-up was answered by the container that runs now."""
    leader = facts.instance.leader
    if leader and facts.warmed and facts.warmed == leader.container and records.warmed != facts.warmed:
        return replace(records, warmed=facts.warmed)
    return records


def start_failure(instance: Instance, lifecycle: Lifecycle, now: datetime) -> str:
    """A sentence when the running start failed. An update that finds no place fails like one that finds no model."""
    if instance.records.incident is not None:
        return ""
    limit = timedelta(seconds=lifecycle.startup_timeout_seconds)
    began = restart.startup_began(instance)
    updating = instance.records.good not in ("", instance.current)
    if began is None and updating and instance.complete and any(rank.unschedulable for rank in instance.ranks.values()):
        began = max(rank.created for rank in instance.ranks.values())
    return startup_failed(instance, began=began, limit=limit, crash_limit=CRASHES_BEFORE_HALT, now=now)


def judge_canary(instance: Instance, facts: Facts, now: datetime) -> Verdict | None:
    """None when this template needs no trial here."""
    if instance.spec is None or not instance.spec.update.canary.enabled or not instance.records.good:
        return None
    alike = [peer for peer in facts.fleet if peer.role == instance.spec.role and peer.name != instance.identity.name]
    if any(peer.updated for peer in alike) or not any(peer.pending for peer in alike):
        return None
    return judge_trial(instance.spec.update.canary, trial_of(instance), facts.figures, now)


def trial_of(instance: Instance) -> Trial | None:
    trial = instance.records.trial
    return trial if trial and trial.template == instance.current else None


def settle(instance: Instance, records: Records, choice: Choice, facts: Facts, now: datetime) -> Records:
    """What the choice adds to the memory."""
    if choice.move is Move.PROVEN:
        return replace(records, good=instance.current, superseded=records.good, failed=None, trial=None)
    if choice.move is Move.TRIAL and trial_of(instance) is None and facts.figures is not None:
        canary, rest = facts.figures
        return replace(records, trial=Trial(template=instance.current, since=now, canary=canary, rest=rest))
    if choice.move is Move.FAIL:
        reason = Reason.CANARY_FAILED if instance.serves else Reason.UPDATE_HALTED
        failure = Failure(template=instance.current, reason=str(reason), message=choice.message)
        return replace(records, failed=failure, trial=None)
    if choice.move in SWITCHING_MOVES:
        incident = Incident(cause=Cause.UPDATE, since=now, message="the template changes")
        return replace(records, members=EMPTY, incident=incident, streak=0, loaded="", warmed="", trial=None)
    return records


def weight_of(instance: Instance, choice: Choice) -> int | None:
    if choice.move is Move.TRIAL and instance.spec is not None:
        return trial_weight(instance.spec)
    return None


def removals_of(
    facts: Facts, instance: Instance, step: restart.Step, choice: Choice, lifecycle: Lifecycle, now: datetime
) -> list[restart.Removal]:
    """Pods to delete now. While the template is being changed the next pass decides, when the change is visible."""
    forced = restart.lost_on_dead_nodes(instance, facts.dead_nodes, now)
    uids = {removal.rank.uid for removal in forced}
    yielded = () if step.removals else restart.give_way(instance, facts.rivals, lifecycle, now)
    usual = () if choice.move in SWITCHING_MOVES else (*step.removals, *yielded)
    return [*forced, *(removal for removal in usual if removal.rank.uid not in uids)]


def pod_ref(instance: Instance, name: str) -> Ref:
    return Ref(kind=POD, namespace=instance.identity.namespace, name=name)


def claim(facts: Facts, *, finalizer: bool, draining: datetime | None, weight: int | None) -> Plan:
    """Our part of the LLMCluster's metadata. Never its spec."""
    identity = facts.instance.identity
    annotations = {names.MANAGED_BY_ANNOTATION: identity.manager}
    if draining is not None:
        annotations[names.DRAINING_ANNOTATION] = timestamp(draining)
    if weight is not None:
        annotations[names.CANARY_WEIGHT_ANNOTATION] = str(weight)
    metadata: dict[str, Any] = {"name": identity.name, "namespace": identity.namespace, "annotations": annotations}
    if finalizer:
        metadata["finalizers"] = [names.DRAIN_FINALIZER]
    desired = {"apiVersion": names.API_VERSION, "kind": names.CLUSTER_KIND, "metadata": metadata}
    return plan_apply(desired, facts.cluster, names.OPERATOR_MANAGER)


def plan_revision(facts: Facts, instance: Instance, choice: Choice) -> Plan:
    """Keep the template that proved good before anything depends on it."""
    if choice.move is Move.PROVEN and instance.wanted is not None:
        return (Apply(obj=kept_as(instance, instance.current, instance.wanted.manifest)),)
    if choice.move is Move.SWITCH and instance.records.good and facts.good is None and instance.statefulset is not None:
        return (Apply(obj=kept_as(instance, instance.records.good, instance.statefulset["spec"]["template"])),)
    return ()


def kept_as(instance: Instance, template_hash: str, template: Mapping[str, Any]) -> Manifest:
    return build_revision(instance.identity, template_hash, template, generation=instance.generation)


def drop_revision(facts: Facts) -> Plan:
    """The good template before goes when the StatefulSet has another one, and before it forgets the old one."""
    old = facts.superseded
    return (Delete(ref=ref_of(old), uid=old["metadata"]["uid"]),) if old else ()


def plan_statefulset(facts: Facts, instance: Instance, choice: Choice) -> Plan:
    """The StatefulSet with the template and the memory it shall have, in one write."""
    live = instance.statefulset
    if live is not None and (not is_ours(live, instance.identity.manager) or live["metadata"].get("deletionTimestamp")):
        return ()
    chosen = template_for(facts, instance, choice)
    if chosen is None:
        return ()
    template, template_hash = chosen
    desired = build_statefulset(
        instance.identity,
        replicas=instance.size,
        template=template,
        template_hash=template_hash,
        annotations={RECORDS_ANNOTATION: render_records(instance.records)},
        queue=instance.spec.scheduling.queue_name if instance.spec else "",
    )
    return tuple(bound_to(live, action) for action in plan_apply(desired, live, names.OPERATOR_MANAGER))


def bound_to(live: Manifest | None, action: Action) -> Action:
    """Only if nobody wrote since it was read: the memory in it counts restarts."""
    if live is None or not isinstance(action, Apply):
        return action
    metadata = {**action.obj["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}
    return replace(action, obj={**action.obj, "metadata": metadata})


def template_for(facts: Facts, instance: Instance, choice: Choice) -> tuple[Mapping[str, Any], str] | None:
    """The template the StatefulSet shall have after this pass."""
    wanted = instance.wanted
    if choice.move in (Move.GO_BACK, Move.RESTORE):
        return (facts.good.template, facts.good.hash) if facts.good else None
    if wanted and (choice.move in (Move.CREATE, Move.SWITCH) or instance.current == wanted.hash):
        return wanted.manifest, wanted.hash
    if facts.good and facts.good.hash == instance.current:
        return facts.good.template, facts.good.hash
    live = instance.statefulset
    return (live["spec"]["template"], instance.current) if live is not None else None


def report(facts: Facts, situation: Situation, state: State, now: datetime) -> tuple[Action, ...]:
    """An event when the reason changed, and the status when anything in it did."""
    status = derive_status(situation, state, now=now)
    return (*announce(facts, state), *plan_status(facts, status, now))


def announce(facts: Facts, state: State) -> Iterator[CreateEvent]:
    before = find_condition(facts.instance.status, ConditionType.READY)
    if before.get("reason") != str(state.reason):
        kind = "Warning" if state.stalled or state.reason in TROUBLES else "Normal"
        yield from tell(facts, kind, state.reason, "StatusChanged", state.message)


def tell(facts: Facts, kind: str, reason: Reason, action: str, message: str) -> tuple[CreateEvent, ...]:
    event = CreateEvent(
        regarding=facts.cluster,
        type_="Warning" if kind == "Warning" else "Normal",
        reason=str(reason),
        action=action,
        message=message,
    )
    return (event,)


def plan_status(facts: Facts, status: Mapping[str, Any], now: datetime) -> tuple[ApplyStatus, ...]:
    """Write what changed; counts of pods alone, which move with every pod of a start, are gathered for a moment."""
    live = facts.instance.status
    if is_subset(status, live) and set(live) - set(status) <= {"lastRestartTime"}:
        return ()
    recent = facts.reported is not None and timedelta(0) <= now - facts.reported < COUNTS_GATHERED
    if recent and is_subset(without_counts(status), live):
        return ()
    return (ApplyStatus(ref=ref_of(facts.cluster), status=status),)


def without_counts(status: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in status.items() if name not in COUNTS}


def look_again(
    facts: Facts, instance: Instance, choice: Choice, step: restart.Step, lifecycle: Lifecycle, now: datetime
) -> timedelta | None:
    """The earliest time at which a clock alone could change the outcome."""
    if choice.move in DRAINING_MOVES or choice.move is Move.TRIAL or (instance.whole and not instance.warmed):
        return SOON
    moments = [step.again]
    began = restart.startup_began(instance)
    if began is not None and not instance.serves:
        moments.append(began + timedelta(seconds=lifecycle.startup_timeout_seconds) + SOON)
    if facts.reported is not None:
        moments.append(facts.reported + COUNTS_GATHERED)
    if restart.half_placed(instance):
        moments.append(now + timedelta(seconds=5))
    due = [moment for moment in moments if moment is not None and moment > now]
    return min(due) - now if due else None
