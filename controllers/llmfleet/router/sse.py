"""Follow a stream of server-sent events far enough to know how it ended.

In: the payload of an engine's answer, in whatever pieces it arrives. Out: the same bytes, cut only at the end of
events, and what they say: the first event, the first token, an error, the terminal marker of the route. A clean end
without that marker is a truncated answer, which both official SDKs would take for success. Events are searched as
bytes and parsed only when one of them may matter. The one event it may leave out is the usage event that the router
asked for and the client did not. It never alters an event, reads a clock or waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, Final

import orjson

from llmfleet.router import usage
from llmfleet.router.usage import Usage

_SMALL: Final = 1024  # below this, single events are looked at
BAD_FINISHES: Final = frozenset({"abort", "error"})


class Dialect(StrEnum):
    """What the terminal marker of a route looks like."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    PLAIN = "plain"


class EventTooLong(Exception):
    """An event longer than the limit: it can be neither held nor cut."""


class Scanner:
    """Follows one stream. Call `feed` with payload, `flush` at its end, and look at the attributes in between."""

    __slots__ = (
        "_closing",
        "_cuts",
        "_drops_usage",
        "_expected",
        "_finished",
        "_judge",
        "_max_event",
        "_may_matter",
        "_tail",
        "_tail_size",
        "_token_size",
        "_unwanted",
        "broken",
        "error",
        "failed",
        "size",
        "started",
        "terminal",
        "token_seen",
        "usage",
    )

    def __init__(
        self, dialect: Dialect, *, expected: int = 1, max_event: int = 1 << 24, drops_usage: bool = False
    ) -> None:
        self._judge, self._may_matter = _RULES[dialect]
        self._expected = expected  # choices that must each have a finish reason
        self._finished: set[int] = set()
        self._closing = False  # every choice is finished: what follows is little, and all of it matters
        self._drops_usage = drops_usage
        self._unwanted = False  # the event just read is not for the client
        self._cuts: list[tuple[int, int]] = []  # where such events are in the block
        self._token_size = 0  # of the event that held the first token
        self._max_event = max_event
        self._tail: list[bytes] = []  # an event whose end has not come yet
        self._tail_size = 0
        self.started = False  # an event with data was seen
        self.token_seen = False  # the first delta that is not empty was seen
        self.terminal = dialect is Dialect.PLAIN  # the route's marker was seen: the answer is whole
        self.failed = False  # the engine reported a failure inside the stream
        self.broken = False  # the engine said it was done without having finished every choice
        self.error: dict[str, Any] | None = None  # the first error object
        self.usage: Usage | None = None  # what the engine counted
        self.size = 0  # bytes of whole events

    def feed(self, payload: bytes) -> bytes:
        """Return the bytes that may be forwarded now: whole events only, none after a broken end."""
        block = payload if not self._tail and payload.endswith(b"\n\n") else self._cut(payload)
        if not block or self.broken:
            return b""
        self.size += len(block)
        if not self.token_seen or self._closing or self._may_matter(block):
            return self._wanted(block)
        return block

    def tokens(self) -> int:
        """Estimate the tokens that were streamed: every event of a route is about as long as its first with a token."""
        return self.size // self._token_size if self._token_size else 0

    def _wanted(self, block: bytes) -> bytes:
        end = self._inspect(block, 0, len(block))
        if not self._cuts:
            return block[:end]
        pieces, start = [], 0
        for cut, after in self._cuts:
            pieces.append(block[start:cut])
            start = after
        self._cuts = []
        return b"".join([*pieces, block[start:end]])

    def flush(self) -> bytes:
        """Return what is left at a clean end of the answer: an event that lacks only its blank line counts."""
        rest = b"".join(self._tail)
        self._tail, self._tail_size = [], 0
        if not rest.strip() or self.broken:
            return b""
        return self._wanted(rest + (b"\n" if rest.endswith(b"\n") else b"\n\n"))

    def _cut(self, payload: bytes) -> bytes:
        """Join the held tail with the payload and hold back what follows the last whole event."""
        tail = self._tail
        # A blank line may be split over two pieces: look at the last bytes of the held ones too.
        before = b"".join(tail[-3:])[-2:] if tail else b""
        window = before + payload
        end = max(window.rfind(b"\n\n") + 2, window.rfind(b"\n\r\n") + 3)
        if end <= 2:
            tail.append(payload)
            self._tail_size += len(payload)
            if self._tail_size > self._max_event:
                raise EventTooLong
            return b""
        end -= len(before)
        block = b"".join(tail) + payload[:end]
        rest = payload[end:]
        self._tail = [rest] if rest else []
        self._tail_size = len(rest)
        if self._tail_size > self._max_event:
            raise EventTooLong
        return block

    def _inspect(self, block: bytes, start: int, end: int) -> int:
        """Read the events between two offsets; returns the offset up to which they may be forwarded.

        Once the first token is known, few events matter: halves of the block without such bytes are skipped.
        """
        while start < end:
            if self.token_seen and end - start > _SMALL:
                middle = block.find(b"\n\n", (start + end) // 2, end) + 2
                if 1 < middle < end:
                    if self._closing or self._may_matter(block[start:middle]):
                        stop = self._inspect(block, start, middle)
                        if self.broken:
                            return stop
                    start = middle
                    if not self._closing and not self._may_matter(block[start:end]):
                        return end
                    continue
            stop = _event_end(block, start, end)
            self._look(block[start:stop])
            if self.broken:
                return start
            if self._unwanted:
                self._unwanted = False
                self._cuts.append((start, stop))
            start = stop
        return end

    def _look(self, event: bytes) -> None:
        """Read one event if it may matter."""
        if self.token_seen and not self._closing and not self._may_matter(event):
            return
        data = _data(event)
        if data is None:
            return
        if data.strip() == b"[DONE]":
            self._done()
        else:
            self._read(data)
            if self.token_seen and not self._token_size:
                self._token_size = len(event)
        self.started = self.started or not self.broken

    def _read(self, data: bytes) -> None:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if not isinstance(value, dict):
            return
        error = value.get("error")
        if error or value.get("type") == "error":
            self.failed = True
            if self.error is None:
                self.error = error if isinstance(error, dict) else value
        else:
            self._judge(self, value)

    def _done(self) -> None:
        """`[DONE]` ends chat and completions; elsewhere it only follows the marker of the route."""
        if self._judge in (_chat, _completions):
            whole = self.failed or len(self._finished) >= self._expected
            self.terminal, self.broken = whole, not whole


def _event_end(block: bytes, start: int, end: int) -> int:
    """Return where the event at `start` ends; a blank line, LF or CR LF, ends one."""
    stop = block.find(b"\n\n", start, end) + 2
    other = block.find(b"\n\r\n", start, end if stop < 2 else stop) + 3
    if other > 2:
        stop = other
    return stop if stop > 1 else end


def _data(event: bytes) -> bytes | None:
    """Return the data of an event, or None for a comment."""
    body = event.strip(b"\r\n")
    if body.startswith(b"data: ") and b"\n" not in body:
        return body[6:]
    lines = [line.removesuffix(b"\r") for line in body.split(b"\n")]
    values = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    return b"\n".join(values) if values else None


# ---- what each route's events mean ----


def _finish(scanner: Scanner, choice: dict[str, Any]) -> None:
    reason = choice.get("finish_reason")
    if reason is None:
        return
    index = choice.get("index", 0)
    scanner._finished.add(index if isinstance(index, int) else 0)
    scanner.token_seen = True
    scanner._closing = len(scanner._finished) >= scanner._expected
    if reason in BAD_FINISHES:
        scanner.failed = True


def _choices(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    choices = value.get("choices")
    if isinstance(choices, list):
        yield from (choice for choice in choices if isinstance(choice, dict))


def _counted(scanner: Scanner, value: object) -> bool:
    """Take over what the engine counted so far."""
    found = usage.read(value)
    if found is None:
        return False
    scanner.usage = usage.merge(scanner.usage, found)
    return True


def _usage_event(scanner: Scanner, value: dict[str, Any]) -> None:
    if _counted(scanner, value.get("usage")):
        scanner._unwanted = scanner._drops_usage and value.get("choices") == []


def _chat(scanner: Scanner, value: dict[str, Any]) -> None:
    _usage_event(scanner, value)
    for choice in _choices(value):
        _finish(scanner, choice)
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(content for key, content in delta.items() if key != "role"):
            scanner.token_seen = True


def _completions(scanner: Scanner, value: dict[str, Any]) -> None:
    _usage_event(scanner, value)
    for choice in _choices(value):
        _finish(scanner, choice)
        if choice.get("text"):
            scanner.token_seen = True


_RESPONSE_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


def _responses(scanner: Scanner, value: dict[str, Any]) -> None:
    kind = value.get("type")
    if kind in _RESPONSE_ENDS:
        scanner.terminal = scanner.token_seen = True
        scanner.failed |= kind == "response.failed"
        response = value.get("response")
        if isinstance(response, dict):
            _counted(scanner, response.get("usage"))
    elif isinstance(kind, str) and kind.endswith(".delta") and value.get("delta"):
        scanner.token_seen = True


def _messages(scanner: Scanner, value: dict[str, Any]) -> None:
    kind = value.get("type")
    if kind == "message_stop":
        scanner.terminal = scanner.token_seen = True
    elif kind == "message_delta":
        _counted(scanner, value.get("usage"))
    elif kind == "message_start":
        message = value.get("message")
        if isinstance(message, dict):
            _counted(scanner, message.get("usage"))
    elif kind == "content_block_delta":
        delta = value.get("delta")
        if isinstance(delta, dict) and any(content for key, content in delta.items() if key != "type"):
            scanner.token_seen = True


def _plain(scanner: Scanner, value: dict[str, Any]) -> None:
    scanner.token_seen = True


# ---- which bytes may hold such an event: never a miss, sometimes a needless look ----


def _choice_bytes(block: bytes) -> bool:
    return (
        block.count(b'"finish_reason":null') != block.count(b'"finish_reason"')
        or b'"error"' in block
        or b"[DONE]" in block
    )


def _response_bytes(block: bytes) -> bool:
    return (
        b"response.completed" in block
        or b'"error"' in block
        or b"response.incomplete" in block
        or b"response.failed" in block
    )


def _message_bytes(block: bytes) -> bool:
    return b"message_stop" in block or b'"error"' in block or b"message_delta" in block


def _plain_bytes(block: bytes) -> bool:
    return b'"error"' in block


_Judge = Callable[[Scanner, dict[str, Any]], None]
_RULES: Final[dict[Dialect, tuple[_Judge, Callable[[bytes], bool]]]] = {
    Dialect.CHAT: (_chat, _choice_bytes),
    Dialect.COMPLETIONS: (_completions, _choice_bytes),
    Dialect.RESPONSES: (_responses, _response_bytes),
    Dialect.MESSAGES: (_messages, _message_bytes),
    Dialect.PLAIN: (_plain, _plain_bytes),
}
