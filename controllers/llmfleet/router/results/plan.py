"""Which requests may be answered from the cache, under which name, and what is worth being kept.

In: an admitted request, what may answer it now, bytes of an answer as it went out, bytes from Redis. Out: a key, an
`Entry`, or None. Whatever is in doubt is not the same request, no answer, or no entry. It never waits, reads a clock or
speaks to Redis, and no key holds a word of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import orjson
from xxhash import xxh3_128_hexdigest

from llmfleet.router.body import ALLOWED_FIELDS
from llmfleet.router.jobs.rules import digest
from llmfleet.router.pick import Backend, Candidate, Group, ModelPool
from llmfleet.router.policy import Admitted, Route
from llmfleet.router.sse import Dialect

FORMAT: Final = b"llmfleet-result-1"  # another one for what older routers must not read
KEPT_FINISHES: Final = frozenset({"stop", "length"})
DONE: Final = b"data: [DONE]\n\n"
EVENTS: Final = b"text/event-stream"
# What makes an answer more than text that follows from the prompt: calls of tools, sounds, several sequences.
_NEVER: Final = ("audio", "functions", "modalities", "tools", "use_beam_search", "web_search_options")
# Header fields of which no answer depends, and that differ from request to request.
_IDLE_FIELDS: Final = re.compile(rb"\r\n(?:traceparent|tracestate|user-agent):[^\r]*", re.IGNORECASE)
_CONTROL: Final = re.compile(rb"\r\ncache-control:[ \t]*([^\r]*)", re.IGNORECASE)
_MAX_AGE: Final = re.compile(r"max-age=(\d{1,9})")
_HEAD: Final = re.compile(rb"HTTP/1\.1 200 ")
_FIELD: Final = rb"\r\n%b:[ \t]*([^\r]*)"
_TYPE: Final = re.compile(_FIELD % b"content-type", re.IGNORECASE)
_LENGTH: Final = re.compile(_FIELD % b"content-length", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)


class Wish(NamedTuple):
    """What a client says of caches."""

    store: bool = True  # its answer may be kept
    max_age: float = float("inf")  # seconds; an older answer is none


class Entry(NamedTuple):
    """An answer that is kept."""

    content_type: bytes
    body: bytes
    at: float = 0.0  # by the wall clock of the router that kept it

    def age(self, now: float) -> int:
        """Return whole seconds; clocks of routers may differ."""
        return max(0, int(now - self.at))


# ---- requests ----


def wish(head: bytes) -> Wish:
    """Read `Cache-Control`; words that are not known say nothing."""
    words = [word.strip().lower() for value in _CONTROL.findall(head) for word in value.decode("latin-1").split(",")]
    ages = [float(found[1]) for word in words if (found := _MAX_AGE.fullmatch(word)) is not None]
    if "no-cache" in words:
        ages.append(-1.0)
    return Wish("no-store" not in words, min(ages, default=float("inf")))


def eligible(route: Route, admitted: Admitted) -> bool:
    """Whether a request asks for one text that follows from its words alone: greedy, and nothing that may change."""
    document = admitted.document
    temperature = document.get("temperature")
    if type(temperature) not in (int, float) or temperature != 0:
        return False
    if not route.counts_choices or admitted.choices != 1 or document.get("best_of") not in (None, 1):
        return False
    if any(document.get(field) for field in _NEVER):
        return False
    return _is_text(document.get("prompt") if route.dialect is Dialect.COMPLETIONS else document.get("messages"))


def _is_text(value: object) -> bool:
    """Whether a prompt or messages are words (or token ids) and nothing else: media may be somewhere else."""
    if isinstance(value, str):
        return True
    return isinstance(value, list) and all(isinstance(item, int | str) or _is_message(item) for item in value)


def _is_message(item: object) -> bool:
    if isinstance(item, list):  # token ids of a single prompt
        return all(isinstance(token, int) for token in item)
    if not isinstance(item, dict) or item.get("tool_calls"):
        return False
    content = item.get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.keys() == {"type", "text"} for part in content)
    return isinstance(content, str)


def revision_of(pool: ModelPool) -> str | None:
    """Say which engines may answer now, whichever of them does; "" where none may, None where they differ."""
    marks = [{_mark(c.backend) for c in takers} for group in pool.groups() if (takers := list(_takers(group)))]
    if any(len(mark) > 1 for mark in marks):
        return None
    return "/".join(mark.pop() for mark in marks)


def _takers(group: Group) -> Iterator[Candidate]:
    return (candidate for candidate in group.candidates if candidate.weight and not candidate.draining)


def _mark(backend: Backend) -> str:
    return f"={backend.revision}.{backend.served}"  # of an engine without either it is still a word


def still(before: str, now: str | None, answered: Backend | None) -> bool:
    """Whether an answer is of the revision that was asked for, and the next one would be too."""
    return answered is not None and before == now and _mark(answered) in before.split("/")


def key_of(tenant: str, admitted: Admitted, route: Route, fields: bytes, revision: str) -> str | None:
    """Name a request: what an engine would read of it, for whom, and which engines. None: it cannot be named.

    The engine's header fields are in it: without a keys file an engine may check `Authorization` itself.
    """
    try:
        body = orjson.dumps(_read_by_engines(admitted.document), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
        return None
    parts = (FORMAT, tenant.encode(), admitted.model.encode(), revision.encode(), route.path)
    return digest(*parts, _IDLE_FIELDS.sub(b"", fields), body)


def _read_by_engines(document: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in document.items() if field in ALLOWED_FIELDS}


# ---- answers ----


def answer_in(raw: bytes, dialect: Dialect) -> Entry | None:
    """Read a whole answer from the bytes a client got; None for what is not whole, or not to be given again."""
    head, end, rest = raw.partition(b"\r\n\r\n")
    kind = _TYPE.search(head)
    if not end or kind is None or _HEAD.match(head) is None:
        return None
    body = _unframed(head, rest)
    if body is None:
        return None
    content_type = kind[1].strip()
    kept = _finished_stream(body) if content_type.startswith(EVENTS) else _finished(body)
    return Entry(content_type, body) if kept else None


def _unframed(head: bytes, rest: bytes) -> bytes | None:
    """Take the framing off an answer that the router wrote; None if it is not all there."""
    length = _LENGTH.search(head)
    if length is not None:
        return rest if length[1].strip() == b"%d" % len(rest) else None
    if _CHUNKED.search(head) is None:
        return None
    pieces: list[bytes] = []
    start = 0
    while (stop := rest.find(b"\r\n", start)) > start:
        size = int(rest[start:stop], 16)
        start = stop + 2
        if not size:
            return b"".join(pieces) if rest[start:] == b"\r\n" else None
        pieces.append(rest[start : start + size])
        start += size + 2
    return None


def _finished(body: bytes) -> bool:
    """Whether a unary answer is one text that ended by itself or at its bound."""
    value = _object(body)
    choices = value.get("choices")
    return not value.get("error") and isinstance(choices, list) and len(choices) == 1 and _kept(choices[0])


def _finished_stream(body: bytes) -> bool:
    """Whether a stream ends as it should, in one text that did. One with comments of ours on top is not given again."""
    if not body.endswith(DONE) or body.startswith(b":"):
        return False
    ends = [choice for event in body.split(b"\n\n") for choice in _ends(event)]
    return len(ends) == 1 and _kept(ends[0])


def _ends(event: bytes) -> Iterator[Any]:
    """Yield the choices of an event that are over; an error is one that is not kept."""
    if (b'"finish_reason":null' in event or b'"finish_reason"' not in event) and b'"error"' not in event:
        return
    value = _object(event.removeprefix(b"data: "))
    if value.get("error"):
        yield None
    choices = value.get("choices")
    if isinstance(choices, list):
        yield from (c for c in choices if not isinstance(c, dict) or c.get("finish_reason") is not None)


def _kept(choice: object) -> bool:
    return isinstance(choice, dict) and choice.get("finish_reason") in KEPT_FINISHES


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


# ---- Redis ----


def written(entry: Entry, key: str, now: float) -> bytes:
    """Write an entry for Redis: what it is, a sum over all that follows, key, time and type, the answer."""
    line = orjson.dumps({"key": key, "at": now, "type": entry.content_type.decode("latin-1")})
    told = b"%b\n%b" % (line, entry.body)
    return b"%b %b %b" % (FORMAT, xxh3_128_hexdigest(told).encode(), told)


def read(data: bytes, key: str) -> Entry | None:
    """Read an entry back; None for what is not exactly what was written under this key."""
    known, _, rest = data.partition(b" ")
    total, _, told = rest.partition(b" ")
    if known != FORMAT or total != xxh3_128_hexdigest(told).encode():
        return None
    text, _, body = told.partition(b"\n")
    line = _object(text)
    if line.get("key") != key or not isinstance(line.get("at"), float):
        return None
    return Entry(str(line.get("type")).encode("latin-1", "replace"), body, line["at"])


def age_fields(entry: Entry, now: float) -> bytes:
    """Write the header lines of an answer that was given before."""
    events = b"cache-control: no-cache\r\n" if entry.content_type.startswith(EVENTS) else b""
    return b"x-llmfleet-cache: hit\r\nage: %d\r\n%b" % (entry.age(now), events)


def may_grow(memory: Mapping[str, Any], share: float) -> bool:
    """Whether Redis has room beside its jobs: it evicts nothing, and jobs must not be refused for answers' sake."""
    most = memory.get("maxmemory") or memory.get("total_system_memory") or 0
    return not most or float(memory.get("used_memory", 0)) < share * float(most)
