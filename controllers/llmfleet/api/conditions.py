"""Conditions as `kubectl`, Helm's `--wait`, Flux and Argo CD read them.

In: what is true now, and the conditions that were written before. Out: the new list. A condition keeps its
transition time while its status stays the same, so that writing the same state again changes nothing. It never
decides what is true.

kstatus reads Reconciling=True as "in progress", Stalled=True as "failed" and neither as "current"; Ready alone is
not enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

MESSAGE_LIMIT: Final = 1024


class ConditionType(StrEnum):
    """What a condition is about."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    STALLED = "Stalled"
    METRICS_AVAILABLE = "MetricsAvailable"
    SCALING_ACTIVE = "ScalingActive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One thing that is true or false, and why."""

    type: ConditionType
    true: bool
    reason: str
    message: str = ""


def build_conditions(
    wanted: Sequence[Condition], before: Iterable[Mapping[str, Any]], *, generation: int, now: datetime
) -> list[dict[str, Any]]:
    """The conditions as JSON, each with the time of its last change of status."""
    known = {item.get("type"): item for item in before}
    return [build_condition(item, known.get(str(item.type)), generation=generation, now=now) for item in wanted]


def build_condition(
    condition: Condition, before: Mapping[str, Any] | None, *, generation: int, now: datetime
) -> dict[str, Any]:
    status = "True" if condition.true else "False"
    changed = before is None or before.get("status") != status
    since = timestamp(now) if before is None or changed else before.get("lastTransitionTime", timestamp(now))
    return {
        "type": str(condition.type),
        "status": status,
        "reason": condition.reason,
        "message": condition.message[:MESSAGE_LIMIT],
        "observedGeneration": generation,
        "lastTransitionTime": since,
    }


def find_condition(status: Mapping[str, Any], kind: ConditionType) -> Mapping[str, Any]:
    """The named condition of a status; empty when it has none."""
    return next((item for item in status.get("conditions") or () if item.get("type") == kind), {})


def is_true(status: Mapping[str, Any], kind: ConditionType) -> bool:
    return find_condition(status, kind).get("status") == "True"


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with seconds, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
