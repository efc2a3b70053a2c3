"""Read the answers of one engine connection, on llhttp in its strict mode, and turn their heads into a client's.

In: bytes as they come off a connection. Out: one answer (status, head, body pieces). What llhttp doubts is a
`BadMessage`. A head with a length that was read before is not read again. It never waits, reads a clock or owns a
socket.
"""

from __future__ import annotations

import re
from typing import Final, cast

import httptools

from llmfleet.router.http1 import BadMessage, Surplus

# llhttp has accepted the head before any of these reads it, so a field is exactly CR LF name colon value.
_CONNECTION: Final = re.compile(rb"\r\nconnection:([^\r]*)", re.IGNORECASE)
_HOP_NAMES: Final = rb"connection|keep-alive|proxy-[a-z-]+|te|trailer|transfer-encoding|upgrade|x-request-id"
_HOP: Final = re.compile(rb"\r\n(?:" + _HOP_NAMES + rb"):[^\r]*", re.IGNORECASE)
# One pass over an answer's head finds all that matters in it.
_TRAITS: Final = re.compile(
    rb"\r\n(?:(content-length):|(content-type:[ \t]*text/event-stream)|(?:" + _HOP_NAMES + rb"):)", re.IGNORECASE
)
_LENGTH_FIELD: Final = re.compile(rb"\r\ncontent-length:[^\r]*", re.IGNORECASE)
_ANSWER_LENGTH: Final = b"\r\ncontent-length: "  # as uvicorn writes it
_MAX_DIGITS: Final = 15
_MAX_KNOWN: Final = 256
_MAX_KNOWN_HEAD: Final = 1024

# Heads of answers by all but the digits of their length: whether they are of a stream, and with hop-by-hop fields.
_ANSWERS: Final[dict[bytes, tuple[bool, bool]]] = {}


def _answer_text(data: bytes) -> tuple[bytes, int, int] | None:
    """Return a head without the digits of its length, the length, and where the body begins; None for one without."""
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return None
    start = data.find(_ANSWER_LENGTH, 0, end)
    if start < 0:
        return None
    start += len(_ANSWER_LENGTH)
    stop = data.find(b"\r", start)
    digits = data[start:stop]
    if len(digits) > _MAX_DIGITS or not digits.isdigit():
        return None
    return data[:start] + data[stop:end], int(digits), end


class ResponseReader:
    """Reads one answer after another from one engine connection; interim (1xx) answers are dropped."""

    __slots__ = (
        "_left",
        "_max_head",
        "_parser",
        "_raw",
        "body",
        "complete",
        "events",
        "head",
        "headed",
        "hops",
        "keep_alive",
        "on_body",
        "sized",
        "status",
        "surplus",
    )

    def __init__(self, *, max_head: int = 1 << 17) -> None:
        self._max_head = max_head
        self.body: list[bytes] = []
        self.on_body = self.body.append
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self.status = 0
        self.sized = False  # the head announces a content length
        self.events = False  # it announces server-sent events
        self.hops = False  # it has fields that must not be passed on
        self.keep_alive = False
        self.next()

    def next(self) -> None:
        """Forget the answer that was read."""
        self._raw = self.head = b""
        self.headed = self.complete = self.surplus = False
        self._left = -1
        self.body.clear()

    def close(self) -> None:
        """Break the reference cycle with the parser."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Read more; `head` is set once the final head is whole, `body` holds the new pieces."""
        parser = self._parser
        if parser is None:
            raise BadMessage("the connection is closed")
        if self._left >= 0:
            self._more(data)
            return
        first = not self.head and not self._raw
        if first and self._again(data):
            return
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:
                raise BadMessage(f"malformed answer: {error}", 502) from None
            self.surplus = True
        if not self.head:
            self._raw = self._raw + data if self._raw else data
            if self.headed:
                self._take_head()
                if first:
                    self._remember(data)
            elif len(self._raw) > self._max_head:
                raise BadMessage("the answer's head is too long", 502)

    def _remember(self, data: bytes) -> None:
        """Keep what this head says: heads of answers are few, and mostly the same but for their length."""
        head = self.head
        if self.status != 200 or not data.startswith(head) or not head.startswith(b"HTTP/1.1 "):
            return
        if len(head) > _MAX_KNOWN_HEAD or _CONNECTION.search(head) is not None:
            return
        found = _answer_text(data)
        if found is None or not self.sized:
            return
        if len(_ANSWERS) >= _MAX_KNOWN:
            _ANSWERS.clear()
        _ANSWERS[found[0]] = (self.events, self.hops)

    def _again(self, data: bytes) -> bool:
        """Read an answer that begins with a known head: llhttp would find the same in it."""
        found = _answer_text(data)
        if found is None:
            return False
        text, length, end = found
        traits = _ANSWERS.get(text)
        if traits is None:
            return False
        body = data[end:]
        if len(body) < length:
            self._left = length - len(body)
            if body:
                self.body.append(body)
        elif len(body) > length:
            return False
        else:
            self.complete = self.keep_alive = True
            if body:
                self.body.append(body)
        self.head = data[: end - 2]
        self.status, self.headed = 200, True
        self.sized = True
        self.events, self.hops = traits
        return True

    def _more(self, data: bytes) -> None:
        """Read more of an answer of a known length."""
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            self.body.append(data)
            return
        self.complete = self.keep_alive = True
        self._left = -1
        self.body.append(data[:left])
        if data[left:].strip(b"\r\n"):
            self.surplus = True

    def take_body(self) -> bytes:
        """Hand over the body bytes read since the last call."""
        body = self.body
        if len(body) == 1:
            return body.pop()
        data = b"".join(body)
        body.clear()
        return data

    def _take_head(self) -> None:
        raw = self._raw
        while raw.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1")):
            raw = raw[raw.find(b"\r\n\r\n") + 4 :]
        self.head = head = raw[: raw.find(b"\r\n\r\n") + 2]
        self._raw = b""
        self.sized = self.events = self.hops = False
        for length, stream in _TRAITS.findall(head):
            if length:
                self.sized = True
            elif stream:
                self.events = True
            else:
                self.hops = True

    # ---- called by the parser ----
    def on_message_begin(self) -> None:
        if self.complete:
            self.surplus = True
            raise Surplus

    def on_headers_complete(self) -> None:
        self.status = status = cast(httptools.HttpResponseParser, self._parser).get_status_code()
        self.headed = status >= 200

    def on_message_complete(self) -> None:
        if self.headed:
            self.complete = True
            self.keep_alive = cast(httptools.HttpResponseParser, self._parser).should_keep_alive()


def answer_head(reader: ResponseReader, request_id: bytes, framing: bytes | None, keep_alive: bool) -> bytes:
    """Turn an engine's head into the client's: without hop-by-hop fields, with our id and our framing.

    `framing` None keeps the engine's content-length; anything else, even empty, replaces it.
    """
    head = reader.head
    if reader.hops:
        named = _CONNECTION.search(head)
        if named is not None:
            head = _without_named(head, named[1])
        head = _HOP.sub(b"", head)
    if framing is not None and reader.sized:
        head = _LENGTH_FIELD.sub(b"", head)
    start = head.find(b"\r\n")
    return b"HTTP/1.1%b\r\nx-request-id: %b%b%b%b\r\n" % (
        head[8:start],
        request_id,
        b"" if keep_alive else b"\r\nconnection: close",
        framing or b"",
        head[start:],
    )


def _without_named(head: bytes, names: bytes) -> bytes:
    """Drop the fields that the Connection header names as hop-by-hop."""
    for name in names.split(b","):
        token = name.strip()
        if token and token.lower() not in (b"close", b"keep-alive"):
            head = re.sub(rb"\r\n" + re.escape(token) + rb":[^\r]*", b"", head, flags=re.IGNORECASE)
    return head
