"""Decide, while instances drain, which of them nobody will ever finish.

In: the instances that are still there, what was noted when each was deleted, `now` in seconds. Out: those whose
finalizer must be taken off by us, each with the reason; and one line for people. Pure.

An operator that lives writes to an instance soon after its deletion: its status says Draining, or the finalizer goes.
When none of them shows such a sign within `SILENCE`, no operator is there. When there was a sign, each instance gets
its own drain deadline and some time on top; the time limit of the whole command ends every wait.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmfleet import names
from llmfleet.kube.plan import MergePatch
from llmfleet.kube.refs import Manifest, ref_of, uid_of

SILENCE: Final = 30.0
AFTER_DRAIN: Final = 60.0
DEFAULT_DRAIN: Final = 300.0
OUR_FINALIZERS: Final = "serving.ai/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """One object as it was right after we asked for its deletion."""

    version: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The time limits of one run."""

    began: float
    timeout: float
    alive: bool = False
    """An operator has shown a sign of life."""

    @property
    def silence(self) -> float:
        return min(SILENCE, self.timeout / 2)


def shows_life(left: Sequence[Manifest], deleted: Mapping[str, Deleted], stripped: Collection[str] = ()) -> bool:
    """True when something was finished or changed since we deleted it, other than what we took the finalizer off."""
    deleted = {uid: seen for uid, seen in deleted.items() if uid not in stripped}
    present = {uid_of(obj) for obj in left}
    if any(uid not in present for uid in deleted):
        return True
    # An object that was read before its deletion says nothing about what happened since.
    read_after = (obj for obj in left if uid_of(obj) in deleted and obj["metadata"].get("deletionTimestamp"))
    return any(obj["metadata"].get("resourceVersion") != deleted[uid_of(obj)].version for obj in read_after)


def overdue(
    left: Sequence[Manifest], deleted: Mapping[str, Deleted], wait: Wait, now: float
) -> list[tuple[Manifest, str]]:
    """What to take the finalizer off, and why."""
    found = [(obj, reason_to_strip(obj, deleted.get(uid_of(obj)), wait, now)) for obj in left]
    return [(obj, reason) for obj, reason in found if reason]


def reason_to_strip(obj: Manifest, deleted: Deleted | None, wait: Wait, now: float) -> str:
    """Empty while there is still hope."""
    if deleted is None or not our_finalizers(obj):
        return ""
    if now - wait.began >= wait.timeout:
        return f"the time limit of {wait.timeout:.0f} s is over"
    waited = now - deleted.at
    if not wait.alive:
        return "no operator answers" if waited >= wait.silence else ""
    limit = drain_seconds(obj) + AFTER_DRAIN
    return f"its drain deadline passed {waited - drain_seconds(obj):.0f} s ago" if waited >= limit else ""


def drain_seconds(obj: Manifest) -> float:
    lifecycle = (obj.get("spec") or {}).get("lifecycle") or {}
    return float(lifecycle.get("drainTimeoutSeconds") or DEFAULT_DRAIN)


def our_finalizers(obj: Manifest) -> list[str]:
    return [name for name in obj["metadata"].get("finalizers") or () if name.startswith(OUR_FINALIZERS)]


def is_held_by(obj: Manifest, operator: str) -> bool:
    """The operator `<namespace>/<release>` manages it, by its own mark."""
    return (obj["metadata"].get("annotations") or {}).get(names.MANAGED_BY_ANNOTATION) == operator


def plan_strip(obj: Manifest) -> MergePatch:
    """Take our finalizers off and leave everybody else's, if nobody wrote meanwhile."""
    others = [name for name in obj["metadata"].get("finalizers") or () if not name.startswith(OUR_FINALIZERS)]
    metadata: dict[str, Any] = {"finalizers": others or None}
    return MergePatch(
        ref=ref_of(obj), body={"metadata": metadata}, resource_version=obj["metadata"].get("resourceVersion")
    )


def describe(left: Sequence[Manifest]) -> str:
    """One line: what is still there and what each says of itself."""
    return "; ".join(f"{obj['metadata']['name']} ({state_of(obj)})" for obj in left)


def state_of(obj: Manifest) -> str:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    ready: Mapping[str, Any] = next((item for item in conditions if item.get("type") == "Ready"), {})
    return ": ".join(str(text) for text in (ready.get("reason"), ready.get("message")) if text) or "no status"


def belongs(obj: Manifest, release: str, owners: frozenset[str]) -> bool:
    """Of this release by label, or made by one of its autoscalers."""
    metadata = obj["metadata"]
    by_label = (metadata.get("labels") or {}).get(names.APP_INSTANCE_LABEL) == release
    return by_label or any(owner.get("uid") in owners for owner in metadata.get("ownerReferences") or ())
