"""An `Attempt`: a request at an engine, with the slot and the connection that it holds there.

In: a chosen engine and a request's bytes. Out: calls of what a subclass makes of the answer, of its loss, or of there
being no connection. It holds at most one slot at any time and never chooses an engine or judges an answer.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol

from mypy_extensions import mypyc_attr

from llmfleet.router import http1
from llmfleet.router.client import Upstream, take_idle
from llmfleet.router.errors import Confession, Refusal
from llmfleet.router.limits import Settings
from llmfleet.router.pick import Backend, ModelPool
from llmfleet.router.retries import Quarantine

if TYPE_CHECKING:
    from llmfleet.router.relay import Exchange

GONE: Final = frozenset({"connect", "lost", *Confession})  # nothing comes of it there: another attempt adds no work
SEVERED: Final = frozenset({"connect", "reset", "lost"})  # what says that an engine may be gone


class Services(Protocol):
    """What an exchange needs of the router it runs in."""

    loop: asyncio.AbstractEventLoop
    settings: Settings
    draining: bool
    quarantine: Quarantine
    held: int  # bytes of bodies whose answers have not begun

    def released(self, pool: ModelPool, backend: Backend) -> None:
        """A slot became free."""

    def failed(self, backend: Backend, *, severed: bool) -> None:
        """An engine lost an attempt; `severed` means that its connection broke or never was."""

    def confessed(self, backend: Backend) -> None:
        """An engine said that it will answer nothing more."""

    def account(self, record: Exchange, outcome: str) -> None:
        """A request is over."""

    def park(self, exchange: Exchange, now: float, *, hold: bool) -> Refusal | None:
        """Let a request wait for a slot, or say why not; with `hold` for an engine."""

    def park_again(self, exchange: Exchange, until: float) -> None:
        """Let a request that was lost with its engine wait for another one."""

    def park_unreached(self, exchange: Exchange, until: float) -> bool:
        """Let a request wait that no engine was reached for, if it may."""

    def serves(self, pool: ModelPool) -> bool:
        """Whether the document still names a model."""

    def reached(self, pool: ModelPool) -> None:
        """There is a new connection to an engine of a model."""

    def unpark(self, exchange: Exchange) -> None:
        """A request waits no longer."""

    def serve(self) -> None:
        """Start what waits and need not."""


class Requester(Protocol):
    """The client side of an exchange."""

    @property
    def blocked(self) -> bool:
        """Whether it takes no bytes at the moment."""

    def write(self, data: bytes) -> None:
        """Send bytes, or drop them if the connection is already closing."""

    def reset(self) -> None:
        """Break the connection so that the client cannot take what it has for the whole."""

    def answered(self, keep_alive: bool) -> None:
        """The answer is over; read the next request or close."""

    def patient(self) -> bool:
        """Whether the client said that it would rather wait (`Prefer: wait`)."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Attempt(ABC):
    """A request at an engine: holds at most one slot, on at most one engine, at any time.

    What it sends may be changed between attempts. Subclasses say what becomes of what comes back.
    """

    __slots__ = (
        "_backend",
        "_connecting",
        "_path",
        "_paused",
        "_upstream",
        "attempts",
        "body",
        "fields",
        "last",
        "pool",
        "request_id",
        "router",
    )

    def __init__(
        self, router: Services, pool: ModelPool, path: bytes, fields: bytes, request_id: bytes, body: bytes
    ) -> None:
        self.router, self.pool, self._path = router, pool, path
        self.fields, self.request_id, self.body = fields, request_id, body
        self.attempts = 0
        self.last = 0.0  # when something last came from the engine
        self._paused = False
        self._backend: Backend | None = None
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None

    # ---- what a subclass makes of it ----

    @abstractmethod
    def progress(self, upstream: Upstream) -> None:
        """More of the answer was read."""

    @abstractmethod
    def lost(self, upstream: Upstream, detail: str) -> None:
        """The engine connection is gone in the middle of an answer."""

    @abstractmethod
    def unreachable(self, reason: str, detail: str) -> None:
        """There is no connection to the engine."""

    # ---- the slot and the connection ----

    def send(self, backend: Backend, *, fresh: bool = False) -> None:
        """Take a slot and send the request; `fresh` means not on a kept connection."""
        self.attempts += 1
        backend.in_flight += 1  # before anything else can pick: a burst must not see stale loads
        self._backend = backend
        router = self.router
        if not fresh and backend.idle:
            upstream = take_idle(backend, router.loop.time(), router.settings.timeouts.upstream_idle_seconds)
            if upstream is not None:
                self._attach(upstream)
                return
        self._connecting = router.loop.create_task(self._connect(backend))

    async def _connect(self, backend: Backend) -> None:
        loop = self.router.loop
        try:
            async with asyncio.timeout(self.router.settings.timeouts.connect_seconds):
                _, upstream = await loop.create_connection(lambda: Upstream(backend), backend.host, backend.port)
        except (OSError, ValueError) as error:  # a host that is no name at all is a ValueError
            self._connecting = None
            self.unreachable("connect", str(error) or "timed out")
            return
        self._connecting = None
        if upstream.transport.is_closing():
            self.unreachable("reset", "connection closed")
        else:
            self._attach(upstream)
            self.router.reached(self.pool)

    def _attach(self, upstream: Upstream) -> None:
        self._upstream = upstream
        body = self.body
        request_id = self.request_id if self.attempts == 1 else self.request_id + b"-r"
        head = http1.request_head(self._path, upstream.backend.host_field, self.fields, request_id, len(body))
        upstream.begin(self, head, body)
        if self._paused:
            upstream.flow(False)

    def at(self, backend: Backend) -> bool:
        """Whether the request is at this engine now."""
        return self._backend is backend

    def blame(self, reason: str = "") -> None:
        """Count a lost attempt against its engine, also one that is retried."""
        if self._backend is not None:
            self._backend.failures += 1
            self.router.failed(self._backend, severed=reason in SEVERED)

    def release(self) -> None:
        """Give the slot back; safe to call twice."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.in_flight -= 1
            self.router.released(self.pool, backend)

    def detach(self, *, failed: bool = False) -> None:
        """Part from the engine: keep the connection if the answer is over, else close it so that the work stops."""
        if failed:
            self.blame()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            if upstream.reader.complete:
                upstream.free(self.last)
            else:
                upstream.drop()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self.release()

    def pause(self) -> None:
        """The client does not keep up: stop reading from the engine."""
        self._paused = True
        if self._upstream is not None:
            self._upstream.flow(False)

    def resume(self) -> None:
        """The client takes bytes again."""
        self._paused = False
        self.last = self.router.loop.time()
        if self._upstream is not None:
            self._upstream.flow(True)
