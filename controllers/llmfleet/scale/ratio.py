"""Keep prefill and decode in proportion.

In: the decisions of both roles, both fleets as they are, the greatest ratio. Out: both decisions changed as little as
the ratio needs: decode is raised first, prefill is held or shrunk first. The ratio is of ready instances, so it must
also hold while instances come and go: see `prefill_allowed` and `decode_spare`, which plans obey at every step.
"""

from __future__ import annotations

import math
from dataclasses import replace

from llmfleet.api.autoscaler import RoleFleet
from llmfleet.api.reasons import DecisionReason as Why
from llmfleet.scale.decide import Decision
from llmfleet.scale.fleet import Fleet


def coordinate(prefill: Decision, decode: Decision, decode_rules: RoleFleet, most: int) -> tuple[Decision, Decision]:
    """Both sizes, with prefill at most `most` times decode."""
    if prefill.instances <= most * decode.instances:
        return prefill, decode
    needed = math.ceil(prefill.instances / most)
    raised = min(needed, decode_rules.max_instances)
    if raised > decode.instances:
        message = f"{prefill.instances} prefill instances need {needed} decode (at most {most} to 1); {decode.message}"
        decode = Decision(instances=raised, reason=Why.RATIO_RAISED_DECODE, message=message)
    if prefill.instances > most * decode.instances:
        held = most * decode.instances
        message = f"held at {held}: at most {most} to each of {decode.instances} decode instances; {prefill.message}"
        prefill = replace(prefill, instances=held, reason=Why.RATIO_HELD_PREFILL, message=message)
    return prefill, decode


def prefill_allowed(decode: Fleet, most: int) -> int:
    """How many prefill instances may exist now: a new one may be ready before the decode instances that are not."""
    return most * decode.ready


def decode_spare(prefill: Fleet, decode: Fleet, most: int) -> int:
    """How many ready decode instances may go now: prefill instances count until they are gone."""
    return max(0, decode.ready - math.ceil(len(prefill.instances) / most))
