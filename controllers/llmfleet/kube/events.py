"""Events for people: how one looks, and when a repetition is worth a write.

In: what happened, who reports it, `now`. Out: the body of an events.k8s.io/v1 Event, or of the patch that turns it into
a series. It never sends anything and keeps at most `MEMORY` of what it saw.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from llmfleet.kube.plan import CreateEvent
from llmfleet.kube.refs import EVENT, Ref

SERIES_WINDOW: Final = timedelta(minutes=10)
"""The same sentence within this time is one event that goes on."""
SERIES_GAP: Final = timedelta(minutes=2)
"""A series is written at most this often."""
MEMORY: Final = 4096
MAX_NOTE: Final = 1024


@dataclass(slots=True, kw_only=True)
class Series:
    """One event and how often it was seen."""

    ref: Ref
    count: int
    last_seen: datetime
    last_written: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Continue:
    """Patch an event that exists; create it again when it is gone."""

    ref: Ref
    body: Mapping[str, Any]


class EventLog:
    """What was reported lately. Not thread-safe."""

    def __init__(self, *, controller: str, instance: str) -> None:
        self._controller, self._instance = controller, instance
        self._seen: OrderedDict[str, Series] = OrderedDict()

    def record(self, event: CreateEvent, now: datetime) -> Create | Continue | None:
        """What to write for this event; None when it was reported a moment ago."""
        identity = _identity(event)
        series = self._seen.get(identity)
        if series is None or now - series.last_seen > SERIES_WINDOW:
            return self._begin(identity, event, now)
        series.count += 1
        series.last_seen = now
        if now - series.last_written < SERIES_GAP:
            return None
        series.last_written = now
        body = {"series": {"count": series.count, "lastObservedTime": micro_time(now)}}
        return Continue(ref=series.ref, body=body)

    def begin_again(self, event: CreateEvent, now: datetime) -> Create:
        """The event that was to go on is gone."""
        return self._begin(_identity(event), event, now)

    def _begin(self, identity: str, event: CreateEvent, now: datetime) -> Create:
        body = build_event(event, self._controller, self._instance, now)
        ref = Ref(kind=EVENT, namespace=body["metadata"]["namespace"], name=body["metadata"]["name"])
        self._seen.pop(identity, None)
        self._seen[identity] = Series(ref=ref, count=1, last_seen=now, last_written=now)
        while len(self._seen) > MEMORY:
            self._seen.popitem(last=False)
        return Create(body=body)


def build_event(event: CreateEvent, controller: str, instance: str, now: datetime) -> dict[str, Any]:
    """The Event as the apiserver takes it."""
    metadata = event.regarding["metadata"]
    stamp = f"{int(now.timestamp() * 1e6):x}"
    name = f"{metadata['name'][:200]}.{_identity(event)[:8]}{stamp}"
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": name, "namespace": metadata.get("namespace") or "default"},
        "eventTime": micro_time(now),
        "reportingController": f"serving.ai/{controller}",
        "reportingInstance": instance[:128],
        "type": event.type_,
        "reason": event.reason,
        "action": event.action,
        "note": event.message[:MAX_NOTE],
        "regarding": _regarding(event.regarding),
    }


def _regarding(obj: Mapping[str, Any]) -> dict[str, str]:
    metadata = obj["metadata"]
    names = {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "namespace": metadata.get("namespace", ""),
        "name": metadata["name"],
        "uid": metadata.get("uid", ""),
        "resourceVersion": metadata.get("resourceVersion", ""),
    }
    return {key: value for key, value in names.items() if value}


def _identity(event: CreateEvent) -> str:
    metadata = event.regarding["metadata"]
    regarding = (event.regarding["kind"], metadata.get("namespace"), metadata["name"], metadata.get("uid"))
    text = repr((*regarding, event.type_, event.reason, event.action, event.message))
    return hashlib.sha256(text.encode()).hexdigest()


def micro_time(now: datetime) -> str:
    """A moment as Kubernetes' MicroTime."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
