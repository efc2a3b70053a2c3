"""Say in one word and one sentence how an instance is, and spell it as kstatus-clean conditions.

In: an `Instance` as the pass leaves it, the update's `Choice`, the drain's verdict. Out: a `State` and the status as
JSON. It never decides anything, and its sentences hold no clock, so that nothing changes while nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llmfleet.api.conditions import Condition, ConditionType, build_conditions, timestamp
from llmfleet.api.reasons import Reason
from llmfleet.deploy.drain import Drained
from llmfleet.deploy.objects.identity import ENGINE_ANNOTATION
from llmfleet.deploy.objects.services import url
from llmfleet.deploy.observe import IDLE_WAITS, PULL_PROBLEMS, Instance, Rank
from llmfleet.deploy.records import Cause
from llmfleet.deploy.restart import CRASH_LOOP_STREAK, GIVEN_UP_STREAK, how_ended, reason_of
from llmfleet.deploy.update import Choice, Move

TIMEOUTS_BEFORE_STALLED: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How an instance is."""

    ready: bool
    reason: Reason
    message: str
    reconciling: bool = True
    degraded: bool = False
    stalled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything the state follows from."""

    instance: Instance
    choice: Choice
    drained: Drained | None
    timed_out: str = ""
    unrouted: str = ""


def derive_state(situation: Situation) -> State:
    """The first rule that applies."""
    instance, choice = situation.instance, situation.choice
    if instance.deleting or situation.drained is not None:
        message = situation.drained.message if situation.drained else "the instance is being deleted"
        return State(ready=False, reason=Reason.DRAINING, message=message)
    if choice.move in (Move.SWITCH, Move.GO_BACK, Move.RESTORE):
        return State(ready=False, reason=Reason.UPDATING, message="the group is being recreated from its new template")
    return derive_serving(situation) if instance.serves else derive_not_serving(situation)


def derive_serving(situation: Situation) -> State:
    """Traffic flows; the reason says what else is going on."""
    instance, choice = situation.instance, situation.choice
    failed = instance.records.failed
    if choice.move is Move.INVALID:
        return State(
            ready=True,
            reason=Reason.INVALID_SPEC,
            message=choice.message,
            reconciling=False,
            degraded=True,
            stalled=True,
        )
    if choice.move is Move.HALTED:
        reason = Reason(failed.reason) if failed else Reason.UPDATE_HALTED
        return State(ready=True, reason=reason, message=choice.message, reconciling=False, degraded=True, stalled=True)
    waiting = {
        Move.WAIT: Reason.WAITING_FOR_TURN,
        Move.PAUSED: Reason.UPDATE_PAUSED,
        Move.TRIAL: Reason.CANARY_ANALYSIS,
    }.get(choice.move)
    if waiting is not None:
        return State(
            ready=True, reason=waiting, message=choice.message, reconciling=waiting is not Reason.UPDATE_PAUSED
        )
    message = "; ".join(filter(None, ("all ranks are ready", situation.unrouted)))
    return State(ready=True, reason=Reason.SERVING, message=message, reconciling=False)


def derive_not_serving(situation: Situation) -> State:
    """No traffic: the most specific thing that is known about why."""
    instance = situation.instance
    if instance.wanted is None and instance.statefulset is None:
        return State(
            ready=False, reason=Reason.INVALID_SPEC, message=situation.choice.message, reconciling=False, stalled=True
        )
    reason, message = explain(situation)
    given_up = instance.records.streak >= GIVEN_UP_STREAK or timed_out_for_good(situation)
    halted = situation.choice.move is Move.HALTED
    return State(
        ready=False,
        reason=reason,
        message=message,
        reconciling=not given_up,
        degraded=halted or bool(instance.records.streak) or instance.records.incident is not None,
        stalled=given_up or halted,
    )


def timed_out_for_good(situation: Situation) -> bool:
    """A restart could not help, or did not."""
    if not situation.timed_out or situation.instance.records.good not in ("", situation.instance.current):
        return False
    started = any(rank.started for rank in situation.instance.ranks.values())
    return not started or situation.instance.records.streak >= TIMEOUTS_BEFORE_STALLED


Rule = Callable[[Situation], tuple[Reason, str] | None]


def explain(situation: Situation) -> tuple[Reason, str]:
    """Reason and sentence of an instance that takes no traffic."""
    for rule in RULES:
        found = rule(situation)
        if found is not None:
            return found
    return Reason.STARTING, "waiting for all ranks to be ready"


def explain_unschedulable(situation: Situation) -> tuple[Reason, str] | None:
    return first(situation, lambda rank: rank.unschedulable, Reason.UNSCHEDULABLE)


def explain_pull(situation: Situation) -> tuple[Reason, str] | None:
    def problem(rank: Rank) -> str:
        return f"{rank.waiting}: {rank.waiting_message}" if rank.waiting in PULL_PROBLEMS else ""

    return first(situation, problem, Reason.IMAGE_PULL_FAILED)


def explain_crash(situation: Situation) -> tuple[Reason, str] | None:
    """A group that keeps crashing, or that never came to serve."""
    incident, records = situation.instance.records.incident, situation.instance.records
    if incident is not None and incident.cause is Cause.UPDATE:
        return None
    crashed = next((rank for rank in situation.instance.ranks.values() if rank.exited), None)
    if incident is not None:
        reason, message = reason_of(incident), incident.message
    elif crashed is not None:
        reason = Reason.GROUP_RESTARTING if records.loaded else Reason.MODEL_LOAD_FAILED
        message = f"rank {crashed.index} ended{how_ended(crashed)}"
    elif records.last_reason:
        reason, message = Reason(records.last_reason), records.last_message
    else:
        return None
    looping = records.streak >= CRASH_LOOP_STREAK and reason is not Reason.STARTUP_TIMEOUT
    return (Reason.CRASH_LOOP if looping else reason), message


def explain_time_out(situation: Situation) -> tuple[Reason, str] | None:
    return (Reason.STARTUP_TIMEOUT, situation.timed_out) if situation.timed_out else None


def explain_update(situation: Situation) -> tuple[Reason, str] | None:
    instance = situation.instance
    if situation.choice.move is Move.HALTED:
        return Reason.UPDATE_HALTED, situation.choice.message
    incident = instance.records.incident
    if (incident is not None and incident.cause is Cause.UPDATE) or instance.records.good not in ("", instance.current):
        return Reason.UPDATING, "the group is starting from its new template"
    return None


def explain_eviction(situation: Situation) -> tuple[Reason, str] | None:
    def leaving(rank: Rank) -> str:
        return f"rank {rank.index} is being removed" if rank.deleting else ""

    return first(situation, leaving, Reason.DRAINING)


def explain_waiting(situation: Situation) -> tuple[Reason, str] | None:
    """A container that the kubelet cannot start, for another reason than its image."""

    def problem(rank: Rank) -> str:
        known = rank.waiting in IDLE_WAITS or rank.waiting in PULL_PROBLEMS or rank.waiting == "CrashLoopBackOff"
        return "" if known else f"rank {rank.index}: {rank.waiting}: {rank.waiting_message}"

    return first(situation, problem, Reason.STARTING)


def explain_warm_up(situation: Situation) -> tuple[Reason, str] | None:
    if situation.instance.whole:
        return Reason.WARMING_UP, "the warm-up request has not been answered yet"
    return None


RULES: Final[tuple[Rule, ...]] = (
    explain_unschedulable,
    explain_pull,
    explain_crash,
    explain_time_out,
    explain_update,
    explain_eviction,
    explain_waiting,
    explain_warm_up,
)


def first(situation: Situation, problem: Callable[[Rank], str], reason: Reason) -> tuple[Reason, str] | None:
    """The first rank that has the problem."""
    for rank in situation.instance.ranks.values():
        if message := problem(rank):
            return reason, message
    return None


def derive_status(situation: Situation, state: State, *, now: datetime) -> dict[str, Any]:
    """The whole status; a field without a value is left out."""
    instance = situation.instance
    records = instance.records
    status: dict[str, Any] = {
        "observedGeneration": instance.generation,
        "replicas": len(instance.ranks),
        "readyReplicas": sum(rank.ready and not rank.exited for rank in instance.ranks.values()),
        "updatedReplicas": instance.updated,
        "shape": shape(instance),
        "url": url(instance.identity),
        "engineRevision": engine_revision(instance),
        "restarts": records.restarts,
        "lastRestartTime": timestamp(records.last_restart) if records.last_restart else None,
        "modelLoadSeconds": records.load_seconds,
        "conditions": build_conditions(
            conditions(state), instance.status.get("conditions") or (), generation=instance.generation, now=now
        ),
    }
    status["ready"] = f"{status['readyReplicas']}/{instance.size}"
    return {name: value for name, value in status.items() if value not in (None, "")}


def conditions(state: State) -> list[Condition]:
    facts = {
        ConditionType.READY: state.ready,
        ConditionType.RECONCILING: state.reconciling,
        ConditionType.PROGRESSING: state.reconciling,
        ConditionType.DEGRADED: state.degraded,
        ConditionType.STALLED: state.stalled,
    }
    return [
        Condition(
            type=kind, true=true, reason=str(state.reason), message=state.message if true or kind == "Ready" else ""
        )
        for kind, true in facts.items()
    ]


def shape(instance: Instance) -> str:
    """The shape in a word: pods x devices, parallel sizes."""
    spec = instance.spec
    if spec is None:
        return str(instance.status.get("shape") or "")
    pipeline = f" pp{spec.pipeline_parallel_size}" if spec.pipeline_parallel_size > 1 else ""
    return f"{spec.replicas}x{spec.gpus_per_pod} tp{spec.tensor_parallel_size}{pipeline}"


def engine_revision(instance: Instance) -> str:
    """Of the template that the pods run, not of one that waits for its turn; of the first one from the start."""
    if instance.statefulset is None:
        return instance.wanted.engine_revision if instance.wanted else ""
    template: Mapping[str, Any] = ((instance.statefulset or {}).get("spec") or {}).get("template") or {}
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    return str(annotations.get(ENGINE_ANNOTATION, ""))
