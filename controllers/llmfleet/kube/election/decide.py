"""Who leads: one decision per look at the Lease.

In: the Lease as read, who we are, what we saw before, `now` on two clocks. Out: take it, renew it, or wait. Pure.

Another holder's clock is never compared with ours: a lease counts as abandoned only when *we* have watched the same
record, unchanged, for its whole duration on our own monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from llmfleet.kube.events import micro_time
from llmfleet.kube.refs import LEASE, Manifest, Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds; duration > renew_deadline > 1.2 * retry, or two processes could lead at once."""

    duration: float = 17.0
    renew_deadline: float = 15.0
    retry: float = 5.0


TIMING: Final = Timing()


class Move(StrEnum):
    ACQUIRE = "acquire"
    RENEW = "renew"
    WAIT = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A lease record and since when, on our monotonic clock, it has looked like this."""

    record: tuple[str, str, str]
    since: float


def observe(lease: Manifest | None, before: Observed | None, now: float) -> Observed | None:
    """Note what the lease says; the clock starts anew whenever it says something else."""
    if lease is None:
        return None
    record = record_of(lease)
    return before if before is not None and before.record == record else Observed(record=record, since=now)


def record_of(lease: Manifest) -> tuple[str, str, str]:
    spec = lease.get("spec") or {}
    return (
        str(spec.get("holderIdentity") or ""),
        str(spec.get("renewTime") or ""),
        str(spec.get("leaseTransitions") or 0),
    )


def decide(lease: Manifest | None, observed: Observed | None, me: str, now: float, timing: Timing = TIMING) -> Move:
    """Renew what is ours, take what nobody holds or what its holder let expire, else wait."""
    if lease is None or observed is None:
        return Move.ACQUIRE
    holder = observed.record[0]
    if holder == me:
        return Move.RENEW
    duration = float((lease.get("spec") or {}).get("leaseDurationSeconds") or timing.duration)
    if not holder or now - observed.since > duration:
        return Move.ACQUIRE
    return Move.WAIT


def build_lease(ref: Ref, lease: Manifest | None, me: str, now: datetime, timing: Timing = TIMING) -> dict[str, Any]:
    """The lease with us as its holder, renewed now."""
    spec: Mapping[str, Any] = (lease or {}).get("spec") or {}
    ours = spec.get("holderIdentity") == me
    transitions = int(spec.get("leaseTransitions") or 0)
    return {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.kind,
        "metadata": dict((lease or {}).get("metadata") or {"name": ref.name, "namespace": ref.namespace}),
        "spec": {
            "holderIdentity": me,
            "leaseDurationSeconds": int(timing.duration),
            "acquireTime": spec.get("acquireTime") if ours else micro_time(now),
            "renewTime": micro_time(now),
            "leaseTransitions": transitions if ours or not lease else transitions + 1,
        },
    }


def build_released(lease: Manifest, now: datetime) -> dict[str, Any]:
    """The lease with nobody as its holder, so that a successor need not wait."""
    spec = {**(lease.get("spec") or {}), "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": micro_time(now)}
    return {**lease, "spec": spec}
