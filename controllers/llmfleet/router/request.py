"""Read the requests of one client connection, on llhttp in its strict mode.

In: bytes as they come off a connection. Out: one request (method, target, head, body). Framing is never guessed: what
llhttp or the rules here doubt is `BadMessage`. A head that is the last one's but for its length is not read again. It
never waits, reads a clock or owns a socket.
"""

from __future__ import annotations

import re
from typing import Final, cast

import httptools

from llmfleet.router.http1 import BadMessage, Surplus

MAX_PIECES: Final = 64  # of a body before they are joined

# llhttp has accepted the head before any of these reads it, so a field is exactly CR LF name colon value.
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)
# Names told apart by their length alone.
_HOST: Final = len("host")
_CONTENT_LENGTH: Final = len("content-length")
_TRANSFER_ENCODING: Final = len("transfer-encoding")
_AUTHORIZATION: Final = len("authorization")
_API_KEY: Final = len("x-api-key")
_CREDENTIALS: Final = ("authorization", "x-api-key")
_HOST_BYTES: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~%!$&'()*+,;=:[]"
# A head that was read once need not be read again: see `_Known`.
_LENGTH_NAMES: Final = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
_MAX_DIGITS: Final = 15
_MAX_MISSES: Final = 4  # of a client whose heads differ each time, before they are no longer compared


class _Known:
    """A request's head that llhttp and the rules here have accepted: all of it but the digits of its length.

    Nothing but these digits can differ in a head with the same text, and they only say how long the body is.
    """

    __slots__ = ("after", "hash", "parts", "start", "text")

    def __init__(self, text: bytes, start: int, parts: tuple[bytes, bytes, bytes, bytes, tuple[bytes, ...]]) -> None:
        self.text, self.start, self.parts = text, start, parts
        self.after = len(text) - start
        self.hash = hash(text)


def _known(reader: RequestReader) -> _Known | None:
    """Take the digits of its length out of a head, if it is one that can be known again."""
    head = reader.head
    for name in _LENGTH_NAMES:
        start = head.find(name) + len(name)
        if start >= len(name):
            stop = head.find(b"\r", start)
            digits = head[start:stop]
            if len(digits) <= _MAX_DIGITS and digits.isdigit() and int(digits) == reader.length:
                parts = (reader.method, reader.target, reader.version, reader.fields, reader.credentials)
                return _Known(head[:start] + head[stop:] + b"\r\n", start, parts)
    return None


class RequestReader:
    """Reads one request after another from one client connection."""

    __slots__ = (
        "_expects",
        "_known",
        "_left",
        "_max_body",
        "_max_head",
        "_max_headers",
        "_misses",
        "_parser",
        "_pattern",
        "_raw",
        "_whole",
        "body",
        "complete",
        "credentials",
        "expects_continue",
        "fields",
        "head",
        "keep_alive",
        "kept_as",
        "length",
        "method",
        "on_body",
        "repeats",
        "surplus",
        "target",
        "version",
        "wire",
    )

    def __init__(self, *, pattern: re.Pattern[bytes], max_head: int, max_headers: int, max_body: int) -> None:
        self._pattern = pattern
        self._max_head, self._max_headers, self._max_body = max_head, max_headers, max_body
        self._known: _Known | None = None  # the last request's head
        self._misses = 0
        # What this request's head is known by, if it is: what was found out from one such head holds for every other.
        self.kept_as: object | None = None
        self._start()

    def _start(self) -> None:
        # A fresh parser when one is needed again: after an upgrade request llhttp reads nothing more.
        self.body: list[bytes] = []
        self._whole = bytearray()  # what came before the pieces in `body`
        self.on_body = self.body.append  # called by the parser without a Python frame
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self.version = b""
        self.keep_alive = self.surplus = False
        self.next()

    def next(self) -> None:
        """Forget the request that was read; the next one starts with the next byte."""
        self._raw = self.head = self.fields = self.method = self.target = self.version = b""
        self.credentials: tuple[bytes, ...] = ()  # as of an Authorization field, if the pattern looks for them
        self.length = self._left = -1
        self.wire = 0
        self.complete = self.surplus = self.expects_continue = self.repeats = self._expects = False
        self.kept_as = None
        self.body.clear()
        if self._whole:  # of a request that was answered without its body
            self._whole = bytearray()

    def close(self) -> None:
        """Break the reference cycle with the parser."""
        self._parser = self._known = None
        self._left = -1

    @property
    def started(self) -> bool:
        """Whether a byte of a request has arrived."""
        return bool(self._raw) or bool(self.head)

    def take_body(self) -> bytes:
        """Hand over the whole body."""
        body = self.body
        if self._whole:
            self._fold()
            data = bytes(self._whole)
            self._whole = bytearray()
            return data
        if len(body) == 1:
            return body.pop()
        data = b"".join(body)
        body.clear()
        return data

    def feed(self, data: bytes) -> None:
        """Read more; afterwards `complete` says whether the request is whole, `head` whether its head is."""
        in_head = not self.head
        if in_head:
            if self._known is not None and not self._raw and self._again(self._known, data):
                return
            self._raw = self._raw + data if self._raw else data.lstrip(b"\r\n")
        elif self._left >= 0:
            self._more(data)
            return
        self.wire += len(data)
        parser = self._parser
        if parser is None:
            raise BadMessage("the connection is closed")
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._without_upgrade()
        except httptools.HttpParserError as error:
            self._doubt(error)
        if in_head:
            self._take_head()
            if self.complete and self._misses < _MAX_MISSES:
                self._remember()
        if self.head:
            if self.length < 0:
                self._check_growth()
            elif len(self.body) > MAX_PIECES:
                self._fold()

    def _remember(self) -> None:
        """Keep a head that the next request of this connection may have again, but for its length."""
        self._misses += 1
        self._known = None
        plain = self.length >= 0 and self.keep_alive and not self.surplus and self.version == b"HTTP/1.1"
        if plain and not self._expects:
            self._known = self.kept_as = _known(self)

    def _again(self, known: _Known, data: bytes) -> bool:
        """Read a request whose head is the last one's but for its length: llhttp would find the same in it.

        Hashes are compared first, so that no time taken tells how much of a guessed credential is right.
        """
        start = known.start
        stop = data.find(b"\r", start, start + _MAX_DIGITS + 1)
        digits = data[start:stop]
        end = stop + known.after
        if stop < 0 or end > len(data) or end > self._max_head or not digits.isdigit():
            return False
        text = data[:start] + data[stop:end]
        if hash(text) != known.hash or text != known.text:
            return False
        length = int(digits)
        if length > self._max_body or len(data) > end + length:
            return False
        self.head = data[: end - 2]
        self.length = length
        self.method, self.target, self.version, self.fields, self.credentials = known.parts
        self.keep_alive = self.repeats = True
        self.kept_as = known
        self._misses = 0
        self.wire = len(data) - end
        if self.wire == length:
            self.complete = True
            if length:
                self.body.append(data[end:])
        else:
            self._left = length - self.wire
            if self.wire:
                self.body.append(data[end:])
        return True

    def _more(self, data: bytes) -> None:
        """Read more of a body whose head was read without llhttp; what follows it is not part of the request."""
        self.wire += len(data)
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            self.body.append(data)
            if len(self.body) > MAX_PIECES:
                self._fold()
            return
        self.complete, self._left = True, -1
        self.body.append(data[:left])
        if data[left:].strip(b"\r\n"):
            self.surplus = True

    def _doubt(self, error: httptools.HttpParserError) -> None:
        """What follows a whole request is not part of it; anything else that llhttp refuses is not a request."""
        if not self.complete:
            raise BadMessage(f"malformed request: {error}") from None
        self.surplus = True

    def _without_upgrade(self) -> None:
        """Read the request again as if it had not asked to upgrade: llhttp would take its body for another protocol."""
        head, end, rest = self._raw.partition(b"\r\n\r\n")
        if not end or head.startswith(b"CONNECT "):
            raise BadMessage("malformed request")
        plain = _UPGRADE.sub(b"", head)
        if plain == head:
            raise BadMessage("malformed request")
        data = plain + end + rest
        self._start()
        self._raw, self.wire = data, len(data)
        try:
            cast(httptools.HttpRequestParser, self._parser).feed_data(data)
        except httptools.HttpParserError as error:
            self._doubt(error)

    def _too_long(self) -> BadMessage:
        line = self._raw.find(b"\r\n")
        if line < 0 or line > self._max_head // 2:
            return BadMessage("the request line is too long", 414)
        return BadMessage(f"the request head is longer than {self._max_head} bytes", 431)

    def _take_head(self) -> None:
        """Read the head once it is whole; llhttp has accepted every byte of it."""
        raw = self._raw
        end = raw.find(b"\r\n\r\n")
        if end < 0 or end > self._max_head:
            if len(raw) > self._max_head:
                raise self._too_long()
            return
        self.head = head = raw[: end + 2]
        self._raw = b""
        self.wire -= end + 4
        if head.count(b"\r\n") > self._max_headers + 1:
            raise BadMessage(f"more than {self._max_headers} header fields", 431)
        line = head[: head.find(b"\r\n")].split(b" ")
        if len(line) != 3:
            raise BadMessage("malformed request line")
        self.method, self.target, self.version = line
        self._take_fields(head)

    def _take_fields(self, head: bytes) -> None:
        hosts = 0
        fields = b""
        for allowed, name, value in self._pattern.findall(head):
            if allowed:
                fields += b"\r\n" + allowed
                continue
            kind = len(name)
            if kind == _HOST:
                hosts += 1
                if value.strip(b" \t").translate(None, _HOST_BYTES):
                    raise BadMessage("the Host header is not a host")
            elif kind == _CONTENT_LENGTH:
                # Leading zeros are legal, in any number.
                self.length = int(value.lstrip(b"0")[:20] or b"0")
                if self.length > self._max_body:
                    raise self._too_large()
            elif kind == _TRANSFER_ENCODING:
                if value.strip().lower() != b"chunked" or self.version == b"HTTP/1.0":
                    raise BadMessage("the only transfer coding taken is chunked, in HTTP/1.1")
            elif kind == _AUTHORIZATION:
                self.credentials += (value,)
            elif kind == _API_KEY:
                self.credentials += (b"Bearer " + value,)
            elif self.version != b"HTTP/1.0":
                self._expect(value)
        self.fields = fields
        if hosts != 1 and (hosts or self.version != b"HTTP/1.0"):
            raise BadMessage("exactly one Host header is needed")
        if self.target[:1] != b"/":
            raise BadMessage("the request target is not a path")

    def _expect(self, value: bytes) -> None:
        if value.strip().lower() != b"100-continue":
            raise BadMessage("the only expectation met is 100-continue", 417)
        self.expects_continue, self._expects = not self.complete, True

    def _check_growth(self) -> None:
        """Bound a body without an announced length, and what its framing may cost beside it."""
        self._fold()
        size = len(self._whole)
        if size > self._max_body:
            raise self._too_large()
        # What follows a whole request is on the wire too, but not part of its framing.
        if not self.surplus and self.wire > 8 * size + self._max_head:
            raise BadMessage("the chunks carry more framing than content")

    def _fold(self) -> None:
        """Join the pieces: thousands of small ones would cost many times their bytes."""
        body = self.body
        if body:
            self._whole += body[0] if len(body) == 1 else b"".join(body)
            body.clear()

    def _too_large(self) -> BadMessage:
        return BadMessage(f"the body is larger than {self._max_body} bytes", 413)

    # ---- called by the parser ----
    def on_message_begin(self) -> None:
        if self.complete:
            self.surplus = True
            raise Surplus

    def on_message_complete(self) -> None:
        self.complete = True
        # Only here: the flags are cleared as soon as the parser has left the message.
        self.keep_alive = cast(httptools.HttpRequestParser, self._parser).should_keep_alive()


def head_pattern(names: tuple[str, ...], *, keyed: bool = False) -> re.Pattern[bytes]:
    """Build the pattern that reads a request's head in one pass: fields to forward, or those that frame it.

    `keyed`: credentials are the router's to check; no engine gets them.
    """
    if keyed:
        names = tuple(name for name in names if name not in _CREDENTIALS)
    allowed = b"|".join(re.escape(name.encode()) for name in names) or rb"(?!)"
    ours = b"host|content-length|transfer-encoding|expect" + (b"|authorization|x-api-key" if keyed else b"")
    framing = rb"(" + ours + rb"):[ \t]*([^\r]*)"
    # The line end stands before the alternatives: a fixed first byte lets the search skip from line to line.
    return re.compile(rb"\r\n(?:((?:" + allowed + rb"):[^\r]*)|" + framing + rb")", re.IGNORECASE)
