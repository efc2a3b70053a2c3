"""Engine connections: one `Upstream` each, and which kept one is used next.

In: a request's bytes. Out: the answer, read and handed to whoever owns the connection at the moment. A connection is
kept only if its answer left it clean, and used again only while the engine surely still holds it open. It never chooses
an engine or judges an answer.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from llmfleet.router import http1
from llmfleet.router.pick import Backend
from llmfleet.router.response import ResponseReader


class Owner(Protocol):
    """The request that is on a connection."""

    def progress(self, upstream: Upstream) -> None:
        """More of the answer was read."""

    def lost(self, upstream: Upstream, detail: str) -> None:
        """The connection is gone in the middle of an answer."""


class Upstream(asyncio.Protocol):
    """One connection to an engine; `owner` is the request that is on it, if any."""

    __slots__ = ("_paused", "backend", "fresh", "idle_since", "owner", "reader", "transport")

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.owner: Owner | None = None
        self._paused = False
        self.fresh = True  # no answer was read on it yet
        self.idle_since = 0.0
        self.reader = ResponseReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def begin(self, owner: Owner, head: bytes, body: bytes) -> None:
        """Send a request; its answer goes to the owner."""
        self.owner = owner
        self.reader.next()
        transport = self.transport
        if len(body) < 65536:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)

    def data_received(self, data: bytes) -> None:
        owner = self.owner
        if owner is None:
            self.transport.abort()  # bytes nobody asked for: the connection cannot be trusted
            return
        reader = self.reader
        try:
            reader.feed(data)
        except http1.BadMessage as error:
            self.drop()
            owner.lost(self, f"bad answer: {error}")
            return
        owner.progress(self)

    def free(self, now: float) -> None:
        """Keep the connection for the next request, if its last answer left it clean."""
        reader = self.reader
        self.owner = None
        if not reader.complete or not reader.keep_alive or reader.surplus or not self.backend.listed:
            self.transport.abort()
            return
        self.fresh = False
        self.idle_since = now
        self.flow(True)
        self.backend.idle.append(self)

    def drop(self) -> None:
        """Close at once, so that the engine stops working on the request."""
        self.owner = None
        self.transport.abort()

    def flow(self, on: bool) -> None:
        """Read from the engine, or stop for a while; a transport that is closing refuses either."""
        if on is self._paused and not self.transport.is_closing():
            self._paused = not on
            if on:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        owner, self.owner = self.owner, None
        self.reader.close()
        if owner is not None:
            owner.lost(self, "connection closed")
        elif self in self.backend.idle:
            self.backend.idle.remove(self)


def take_idle(backend: Backend, now: float, max_idle: float) -> Upstream | None:
    """Return the most recently used kept connection; engines close idle ones after 5 s, so older ones are dropped."""
    while backend.idle:
        upstream: Upstream = backend.idle.pop()
        if now - upstream.idle_since < max_idle and not upstream.transport.is_closing():
            return upstream
        upstream.transport.abort()
    return None


CHECK: Final = b"GET /health HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n"


async def check(backend: Backend, seconds: float) -> bool:
    """Ask an engine for its health on a connection of its own; any answer but a server error is life."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(backend.host, backend.port)
            try:
                writer.write(CHECK % backend.host_field)
                line = await reader.readline()
            finally:
                writer.transport.abort()
    except (OSError, ValueError):
        return False
    return line.startswith(b"HTTP/1.") and line[9:10] in (b"2", b"3", b"4")
