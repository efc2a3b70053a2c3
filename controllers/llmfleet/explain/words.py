"""What each reason of a decision means for the reader, and what to do about it.

In: a reason. Out: one sentence, and one on what to do where something should be done. It decides nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from llmfleet.api.reasons import DecisionReason as Why


class Words(NamedTuple):
    """What it means; what to do, or nothing."""

    means: str
    do: str = ""


WORDS: Final[dict[str, Words]] = {
    Why.ON_TARGET: Words("the fleet has what the load asks for"),
    Why.FORECAST_ABOVE_CAPACITY: Words("the peak expected before a new instance could be ready needs this many"),
    Why.QUEUE_ABOVE_CAPACITY: Words("what is asked for right now, waiting requests included, needs this many"),
    Why.METRIC_ABOVE_THRESHOLD: Words("a metric is above its scaleUp threshold"),
    Why.ALL_METRICS_BELOW_THRESHOLD: Words("all metrics have been below their scaleDown thresholds for the window"),
    Why.SUSTAINED_SURPLUS: Words("fewer instances have been enough for the whole window"),
    Why.SCHEDULE_FLOOR: Words("an open window of the schedule asks for more than the load does"),
    Why.AT_MINIMUM: Words("the load asks for no more than minInstances"),
    Why.AT_MAXIMUM: Words(
        "the load asks for more than maxInstances allows", "raise maxInstances, or accept that requests wait"
    ),
    Why.RATIO_RAISED_DECODE: Words("decode grows because that many prefill instances need it"),
    Why.RATIO_HELD_PREFILL: Words(
        "prefill stays smaller than its load asks for, because of coordination.maxPrefillPerDecode",
        "wait for decode instances, or raise coordination.maxPrefillPerDecode",
    ),
    Why.STABILIZING: Words("a change is wanted and has not held for its window yet"),
    Why.COOLING_DOWN: Words("a change is wanted too soon after the last one"),
    Why.PENDING_SUFFICES: Words("instances that are still starting will be enough"),
    Why.SIGNALS_STALE: Words(
        "figures are missing, old or impossible, so nothing shrinks",
        "see whose figures in the message; llmfleet doctor looks for the usual causes",
    ),
    Why.LOWER_BOUND_ABOVE_CAPACITY: Words(
        "figures are incomplete, but what is known already needs more", "see whose figures are missing"
    ),
    Why.WOKEN_BY_REQUEST: Words("somebody asked for a model whose fleet was empty"),
    Why.IDLE_TO_ZERO: Words("nobody asked for the model for scaleToZero.afterSeconds"),
    Why.EXTERNAL_TARGET: Words("spec.instances was set, by an HPA, KEDA or kubectl scale"),
    Why.TEMPLATE_CHANGED: Words("instances are brought to the new template"),
    Why.STARTUP_TIMEOUT: Words(
        "an instance did not start and is replaced, or its replacement did not start either",
        "look at the instance's Ready condition: kubectl describe llmcluster NAME",
    ),
    Why.DRY_RUN: Words("spec.dryRun is true: the message says what would be done", "set spec.dryRun: false to act"),
    Why.PAUSED: Words("spec.paused is true: nothing is decided", "set spec.paused: false to go on"),
    "InvalidSpec": Words("the spec cannot be used; what was there stays", "write what the message says"),
}
NEVER_SEEN: Final = Words(
    "no autoscaler has looked at it yet",
    "check that the autoscaler runs and leads: kubectl get lease; llmfleet doctor",
)


def words_of(reason: str) -> Words:
    """The sentence for a reason; a newer autoscaler may use one that is not known here."""
    if not reason:
        return NEVER_SEEN
    return WORDS.get(reason, Words("a reason of a newer autoscaler; see its documentation"))
