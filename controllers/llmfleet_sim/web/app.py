"""One HTTP/1.1 connection, answering as uvicorn does: header order, keep-alive, chunked events.

In: bytes. Out: an Exchange per request, handed to a handler; the handler answers through it. A client
that goes away is noticed at once, also while its answer is being computed.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from http import HTTPStatus
from time import gmtime, strftime, time
from typing import cast

import httptools

Headers = Iterable[tuple[str, str]]
Handler = Callable[["Exchange"], None]
_EVENTS = "text/event-stream; charset=utf-8"


class Exchange:
    """One request and its answer."""

    def __init__(self, connection: "Connection", method: str, target: str) -> None:
        self.method = method
        self.target = target
        self.path = target.partition("?")[0]
        self.headers: dict[str, str] = {}
        self.body = b""
        self.keep_alive = True
        self.started = False
        self.ended = False
        self.status = 0
        self.received = 0.0
        self.on_gone: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self.extra: list[tuple[str, str]] = []
        self._connection = connection
        self._chunked = False
        self.sent_length = 0
        self.vary = True

    def respond(
        self,
        status: int,
        body: bytes = b"",
        kind: str | None = "application/json",
        *,
        headers: Headers = (),
        trailers: Headers = (),
    ) -> None:
        """Send a whole answer; `headers` go before the length, `trailers` behind the type."""
        lines = [*headers, *self.extra, ("content-length", str(len(body)))]
        if kind is not None:
            lines.append(("content-type", kind))
        lines += trailers
        self.sent_length = len(body)
        self._head(status, lines, b"" if self.method == "HEAD" else body)
        self._end()

    def stream(self, headers: Headers = ()) -> None:
        """Send the head of an event stream at once."""
        self._chunked = True
        self._head(200, [*headers, *self.extra, ("content-type", _EVENTS)])

    def event(self, data: bytes) -> None:
        """Send one event as one chunk."""
        if not self.ended:
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self) -> None:
        """End an event stream."""
        if not self.ended:
            self._connection.send(b"0\r\n\r\n")
            self._end()

    def truncate(self) -> None:
        """End an event stream without its last chunk, as an unhandled error does."""
        if not self.ended:
            self.keep_alive = False
            self._end()

    def cut(self) -> None:
        """Reset the connection in the middle."""
        self._connection.abort()

    def _head(self, status: int, lines: list[tuple[str, str]], body: bytes = b"") -> None:
        self.started, self.status = True, status
        vary = [("vary", "Origin")] if self.vary else []
        close = [] if self.keep_alive else [("connection", "close")]
        chunked = [("transfer-encoding", "chunked")] if self._chunked else []
        base = [("date", http_date()), ("server", "uvicorn")]
        text = "".join(f"{k}: {v}\r\n" for k, v in [*base, *lines, *vary, *close, *chunked])
        self._connection.send(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{text}\r\n".encode("latin-1") + body)

    def _end(self) -> None:
        self.ended = True
        self.on_end()
        self._connection.ended(self)


_date = (0, "")


def http_date() -> str:
    """Give the date header, made once a second."""
    global _date
    now = int(time())
    if _date[0] != now:
        _date = (now, strftime("%a, %d %b %Y %H:%M:%S GMT", gmtime(now)))
    return _date[1]


class Connection(asyncio.Protocol):
    """Bytes on one side, exchanges on the other; one at a time, in order."""

    def __init__(self, handler: Handler, keep_alive: float, open_connections: set["Connection"]) -> None:
        self._handler = handler
        self._keep_alive = keep_alive
        self._all = open_connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._reading: Exchange | None = None
        self._url = b""
        self._names: list[tuple[str, str]] = []
        self._parts: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    # -- asyncio -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._all.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the handler that its client has gone."""
        self._all.discard(self)
        self._stop_timer()
        current, self._current = self._current, None
        if current is not None and not current.ended:
            current.ended = True
            current.on_gone()

    def data_received(self, data: bytes) -> None:
        """Parse; what is not HTTP is answered as uvicorn does."""
        self._stop_timer()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as the plain request it also is; no route speaks another protocol
        except httptools.HttpParserError:
            self._refuse(b"Invalid HTTP request received.")

    def _refuse(self, text: bytes) -> None:
        head = (
            f"HTTP/1.1 400 Bad Request\r\ndate: {http_date()}\r\nserver: uvicorn\r\n"
            f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
        )
        self.send(head.encode() + text)
        self.close()

    # -- httptools -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start a request."""
        self._url, self._names, self._parts = b"", [], []

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        self._names.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """Know the request; its body may follow."""
        exchange = Exchange(self, self._parser.get_method().decode(), self._url.decode("latin-1"))
        exchange.headers = dict(self._names)
        exchange.keep_alive = self._parser.should_keep_alive()
        self._reading = exchange
        if exchange.headers.get("expect", "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Collect the body."""
        self._parts.append(data)

    def on_message_complete(self) -> None:
        """Hand the request over, or let it wait for the one before."""
        assert self._reading is not None
        self._reading.body = b"".join(self._parts)
        self._waiting.append(self._reading)
        if self._current is None:
            self._next()

    # -- exchanges -----------------------------------------------------------------------------

    def _next(self) -> None:
        self._current = self._waiting.popleft()
        self._current.received = asyncio.get_running_loop().time()
        self._handler(self._current)

    def ended(self, exchange: Exchange) -> None:
        """Go on after an answer: close, next request, or wait for one."""
        self._current = None
        if not exchange.keep_alive:
            self.close()
        elif self._waiting:
            self._next()
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._keep_alive, self.close)

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return self._current is not None

    def send(self, data: bytes) -> None:
        """Write, unless the client has gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close once everything is written."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, losing what is not written."""
        if self._transport is not None:
            self._transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
