"""Spans, and how OTLP writes them in JSON.

In: spans that are over. Out: the body of one request to a collector. Ids are hexadecimal and 64-bit numbers are
strings, as OTLP's JSON wants them; a bound keeps every text short. It never reads a clock or sends anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any, Final, NamedTuple

import orjson

from llmfleet.router import policy
from llmfleet.router.keys import Tenant

MAX_TEXT: Final = 256
METHODS: Final = frozenset({b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT"})
FAILED: Final = 2  # of a span's status
_SAMPLED: Final = 0x001
_KNOWS_PARENT: Final = 0x100  # whether it is of another process is said too
_REMOTE_PARENT: Final = 0x200

Value = str | int | float | bool


class Kind(IntEnum):
    """On which side of a call a span is."""

    SERVER = 2
    CLIENT = 3
    CONSUMER = 5


class Asked(NamedTuple):
    """A request that the router answers itself, as a span tells it."""

    method: bytes
    path: bytes
    tenant: Tenant
    request_id: bytes

    @property
    def route(self) -> str:
        """Return the path as far as it is one of ours: nothing that a client made up."""
        for prefix in (policy.MODEL_PREFIX, policy.REQUESTS_PREFIX):
            if self.path.startswith(prefix):
                return prefix.decode()
        return self.path.decode() if policy.allowed_method(self.path) is not None else ""

    @property
    def verb(self) -> str:
        """Return the method, if it is a known one."""
        return self.method.decode() if self.method in METHODS else "HTTP"


class Event(NamedTuple):
    """A moment in a span."""

    name: str
    at: int


class Span(NamedTuple):
    """A span that is over; moments in nanoseconds of the wall clock."""

    name: str
    kind: Kind
    trace_id: bytes
    span_id: bytes
    parent_id: bytes  # empty: it is the first of its trace
    started: int
    ended: int
    attributes: Mapping[str, Value]
    failed: bool = False
    state: bytes = b""
    remote: bool = False  # its parent is not ours
    events: tuple[Event, ...] = ()


def encode(
    spans: Iterable[Span],
    resource: Mapping[str, Value],
    version: str,
    *,
    pause: Callable[[], None] = lambda: None,
    every: int = MAX_TEXT,
) -> bytes:
    """Write spans as an ExportTraceServiceRequest; `pause` is called now and then, for others to have their turn."""
    written = []
    for number, span in enumerate(spans, 1):
        written.append(_span(span))
        if number % every == 0:
            pause()
    scope = {"scope": {"name": "llmfleet.router", "version": version}, "spans": written}
    whole = {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}]}
    return orjson.dumps(whole)


def _span(span: Span) -> dict[str, Any]:
    document: dict[str, Any] = {
        "traceId": span.trace_id.decode(),
        "spanId": span.span_id.decode(),
        "flags": _SAMPLED | _KNOWS_PARENT | (_REMOTE_PARENT if span.remote else 0),
        "name": span.name,
        "kind": int(span.kind),
        "startTimeUnixNano": str(span.started),
        "endTimeUnixNano": str(max(span.started, span.ended)),
        "attributes": _attributes(span.attributes),
        "status": {"code": FAILED} if span.failed else {},
    }
    if span.parent_id:
        document["parentSpanId"] = span.parent_id.decode()
    if span.state:
        document["traceState"] = span.state.decode()
    if span.events:
        document["events"] = [{"timeUnixNano": str(event.at), "name": event.name} for event in span.events]
    return document


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items() if value != ""]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": value[:MAX_TEXT]}
