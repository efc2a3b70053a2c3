"""Where a request stands in a trace, as W3C's Trace Context writes it into header fields.

In: the head of a request, or the fields stored with a job. Out: a `Context`, or None for whatever is not one exactly:
such a request begins a trace of its own. A doubtful `tracestate` is dropped alone. It never raises and never waits.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

FIELD_NAMES: Final = frozenset({"traceparent", "tracestate"})
MAX_STATE_BYTES: Final = 512
MAX_MEMBERS: Final = 32
SAMPLED: Final = 1
_LOW: Final = (1 << 64) - 1

_FIELDS: Final = re.compile(rb"\r\ntrace(parent|state):[ \t]*([^\r]*)", re.IGNORECASE)
# Version ff is none; versions after 00 may say more after a dash.
_PARENT: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[^\r]*)?")
_KEY: Final = rb"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_MEMBER: Final = re.compile(_KEY + rb"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")


class Context(NamedTuple):
    """A span somewhere else, of which ours are children."""

    trace_id: bytes  # 32 hexadecimal digits
    span_id: bytes  # 16 of them
    sampled: bool
    state: bytes = b""  # of other tracing systems, passed on as it came


def read(head: bytes) -> Context | None:
    """Read the context of a request from its head, or from fields written as a head has them."""
    parents: list[bytes] = []
    states: list[bytes] = []
    for kind, value in _FIELDS.findall(head):
        (parents if kind.lower() == b"parent" else states).append(value.rstrip(b" \t"))
    if len(parents) != 1:
        return None
    found = _PARENT.fullmatch(parents[0])
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None
    trace_id, span_id = found[2], found[3]
    if not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return Context(trace_id, span_id, bool(int(found[4], 16) & SAMPLED), state_of(states))


def state_of(values: list[bytes]) -> bytes:
    """Join what several fields say; all of it or nothing."""
    whole = b",".join(values)
    members = [member.strip(b" \t") for member in whole.split(b",") if member.strip(b" \t")]
    if len(whole) > MAX_STATE_BYTES or len(members) > MAX_MEMBERS:
        return b""
    if len({member.partition(b"=")[0] for member in members}) != len(members):
        return b""
    return b",".join(members) if all(map(_MEMBER.fullmatch, members)) else b""


def written(context: Context) -> bytes:
    """Write the header fields that make a request a child of this span."""
    parent = b"\r\ntraceparent: 00-%b-%b-%02x" % (context.trace_id, context.span_id, context.sampled)
    return parent + b"\r\ntracestate: " + context.state if context.state else parent


def without(fields: bytes) -> bytes:
    """Take the context out of header fields."""
    return _FIELDS.sub(b"", fields)


def chosen(trace_id: bytes, ratio: float) -> bool:
    """Whether a trace that begins here is recorded: all who decide by the same ratio decide alike."""
    return int(trace_id, 16) & _LOW < round(ratio * (_LOW + 1))
