"""One connection of one user: it sends a request, notes when each piece of the answer comes, and says how it ended.

In: a `Target` and the bytes of a request. Out: a `Sample`. It never asks twice: what fails is told as it failed.
Written on the transport itself, because what a client spends on a token is added to what it measures.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Final, cast

import httptools

from llmfleet.bench.request import Target
from llmfleet.bench.stream import Answer, Ending, Sample

CONNECT_SECONDS: Final = 10.0
clock: Final = time.perf_counter


class Link(asyncio.Protocol):
    """The transport's side: one answer at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer = Answer()
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[tuple[Ending, str]] | None = None
        self._now = 0.0
        self._bounded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def begin(self, request: bytes) -> asyncio.Future[tuple[Ending, str]]:
        """Send a request; the future is how its answer ended."""
        assert self.transport is not None
        self.answer = Answer()
        self._parser = httptools.HttpResponseParser(self)
        self._bounded = False
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        self._now = clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(Ending.NOT_HTTP, f"{error}: {data[:80]!r}")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._bounded = self._bounded or name in (b"content-length", b"transfer-encoding")
        if name == b"content-type" and value.startswith(b"application/json"):
            self.answer.events = False

    def on_headers_complete(self) -> None:
        self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.answer.feed(body, self._now)

    def on_message_complete(self) -> None:
        self._end(Ending.WHOLE)
        if not self._parser.should_keep_alive() and self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        # An answer without a length ends with its connection.
        whole = exc is None and self.answer.status != 0 and not self._bounded
        self._end(Ending.WHOLE if whole else Ending.CLOSED, words(exc) if exc else "the connection was closed")
        self.transport = None

    def _end(self, ending: Ending, said: str = "") -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result((ending, said))

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class User:
    """One client that keeps its connection as long as the endpoint lets it."""

    def __init__(self, target: Target, *, tls: ssl.SSLContext | None, timeout: float) -> None:
        self._target, self._tls, self._timeout = target, tls, timeout
        self._link: Link | None = None

    async def ask(self, request: bytes) -> tuple[Sample, Answer]:
        """Send a request and follow its answer to the end, whichever that is."""
        begin = clock()
        link = self._link
        if link is None or not link.usable:
            try:
                link = self._link = await self._connect()
            except (OSError, TimeoutError, ssl.SSLError) as error:
                nothing = Answer()
                return nothing.sample(begin=begin, end=clock(), ending=Ending.UNREACHABLE, said=words(error)), nothing
        try:
            async with asyncio.timeout(self._timeout):
                ending, said = await link.begin(request)
        except TimeoutError:
            ending, said = Ending.TIMEOUT, f"no end after {self._timeout:g} s"
        end = clock()
        if ending is not Ending.WHOLE:
            link.close()
        return link.answer.sample(begin=begin, end=end, ending=ending, said=said), link.answer

    async def _connect(self) -> Link:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(min(CONNECT_SECONDS, self._timeout)):
            _, link = await loop.create_connection(Link, self._target.host, self._target.port, ssl=self._tls)
        return link

    def close(self) -> None:
        if self._link is not None:
            self._link.close()


def words(error: BaseException) -> str:
    """Why a connection failed; a time-out has no words of its own."""
    if isinstance(error, TimeoutError) and not error.args:
        return f"no connection within {CONNECT_SECONDS:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
