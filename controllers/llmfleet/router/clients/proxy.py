"""The client side: one `Client` per connection.

In: bytes of HTTP/1.1 requests. Out: local answers, refusals, or an `Exchange` that answers from an engine. Requests are
read whole before an engine is chosen; one is served at a time, and bytes beyond it end the connection after its answer.
It never holds a credential or chooses an engine.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Final, cast

import orjson

from llmfleet.router import errors, http1, keys, policy, quota
from llmfleet.router.disagg.relay import exchange_for
from llmfleet.router.errors import Code, Refusal
from llmfleet.router.keys import ANONYMOUS, Keyring, Tenant
from llmfleet.router.policy import Origin
from llmfleet.router.relay import Exchange
from llmfleet.router.request import RequestReader
from llmfleet.router.sse import Dialect
from llmfleet.router.tracing.spans import Asked

if TYPE_CHECKING:  # Redis' client is only for routers with jobs, and the router knows its clients
    from llmfleet.router.jobs.proxy import Call
    from llmfleet.router.proxy import Router

LINGER_SECONDS: Final = 5.0  # how long a refused client may be silent, while it has not read its answer
LONGEST_LINGER_SECONDS: Final = 30.0  # how long it may go on sending; both as nginx' lingering close has them
REFUSED_AT_ONCE: Final = 32  # connections over the limit that are told so; more are only closed
_PATIENT: Final = re.compile(rb"\r\nprefer:[^\r]*\bwait\b", re.IGNORECASE)
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time


class Phase(IntEnum):
    """What a connection is doing."""

    IDLE = 0
    READING = 1  # a head
    BODY = 2
    BUSY = 3
    LINGERING = 4  # refused while it was sending: what it still sends is read and dropped
    CLOSING = 5  # the last answer is on its way out


# An enum member costs a lookup in its class each time; these are read several times per request.
IDLE: Final = Phase.IDLE
READING: Final = Phase.READING
BODY: Final = Phase.BODY
BUSY: Final = Phase.BUSY
LINGERING: Final = Phase.LINGERING
CLOSING: Final = Phase.CLOSING


class Client(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_blocked_since",
        "_deadline",
        "_exchange",
        "_ignored",
        "_keyring",
        "_last_moment",
        "_origin",
        "_origin_head",
        "_reader",
        "_reserved",
        "_router",
        "blocked",
        "made_at",
        "phase",
        "tenant",
        "transport",
    )

    def __init__(self, router: Router) -> None:
        self._router = router
        limits = router.settings.limits
        self._reader = RequestReader(
            pattern=router.head_pattern,
            max_head=limits.max_header_bytes,
            max_headers=limits.max_headers,
            max_body=limits.max_body_bytes,
        )
        self._exchange: Exchange | Call | None = None
        self.tenant = ANONYMOUS  # of the request being answered
        # Where the requests with one known head go and whom they are from, and the keyring that said so.
        self._origin: Origin | None = None
        self._origin_head: object | None = None
        self._keyring: Keyring | None = None
        self.phase = IDLE
        self.blocked = False
        self._blocked_since = 0.0
        self._reserved = 0  # of the memory for bodies
        self._ignored = 0  # bytes sent beyond the request being answered
        self._deadline = 0.0
        self._last_moment = 0.0  # of lingering: no byte of the client's moves the deadline beyond it
        self.made_at = 0.0  # while its first request has not been answered

    @property
    def busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self.phase is not IDLE

    # ---- the connection ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        router = self._router
        router.clients.add(self)
        self.made_at = router.loop.time()
        self._deadline = self.made_at + router.settings.timeouts.idle_seconds
        if len(router.clients) > router.max_connections:
            router.metrics.connections_refused += 1
            if len(router.clients) > router.max_connections + REFUSED_AT_ONCE:
                self.transport.abort()
                return
            message = "the router has as many connections as it may have"
            self._refuse(errors.overloaded(Code.OVERLOADED, message), keep_alive=False)

    def data_received(self, data: bytes) -> None:
        phase = self.phase
        if phase >= BUSY:
            self._beyond(len(data))
            return
        reader = self._reader
        try:
            reader.feed(data)
        except http1.BadMessage as error:
            self._refuse(_bad_message(error), keep_alive=False)
            return
        if reader.complete:
            self._ignored = 1 if reader.surplus else 0
            self.phase = BUSY
            if self._reserved:
                self._reserve(0)
            self._request()
        elif reader.head:
            if phase is not BODY:
                self._read_on()
            elif not self._reserve(reader.wire):
                self._no_memory()
        elif phase is IDLE and reader.started:
            self._enter(READING, self._router.settings.timeouts.header_seconds)

    def _enter(self, phase: Phase, seconds: float) -> None:
        self.phase = phase
        self._deadline = self._router.loop.time() + seconds

    def _read_on(self) -> None:
        """The head is there, the body not yet: refuse early what no body can make right."""
        reader = self._reader
        refusal = _not_allowed(reader.method, policy.path_of(reader.target))
        if refusal is not None:
            self._refuse(refusal, keep_alive=False)
            return
        route = policy.ENGINE_ROUTES.get(policy.path_of(reader.target))
        if self._router.keyed and route is not None:
            try:
                self._who()
            except Refusal as error:
                self._refuse(error, keep_alive=False, dialect=route.dialect)
                return
        if not self._reserve(max(reader.length, reader.wire)):
            self._no_memory()
            return
        self._reserve(reader.wire)  # what is announced must fit, and only what has come is held: words cost nothing
        if reader.expects_continue:
            reader.expects_continue = False
            self.write(http1.CONTINUE)
        self._enter(BODY, self._router.settings.timeouts.body_seconds)

    def _reserve(self, size: int) -> bool:
        """Hold so much of the memory for bodies, in place of what is held now; False if there is not so much left."""
        router = self._router
        others = router.reading - self._reserved
        if size and others + size + router.held > router.settings.queue.max_waiting_bytes:
            return False
        router.reading, self._reserved = others + size, size
        return True

    def _no_memory(self) -> None:
        message = "the bodies of requests hold as much memory as they may, try again soon"
        self._refuse(errors.overloaded(Code.OVERLOADED, message), keep_alive=False)

    def _beyond(self, size: int) -> None:
        """Bytes beyond the current request: it is answered, then the connection closes."""
        self._ignored += size
        if self.phase is LINGERING:
            still = min(self._router.loop.time() + LINGER_SECONDS, self._last_moment)
            self._deadline = max(self._deadline, still)
        elif self._ignored > self._router.settings.limits.max_pipelined_bytes and self.phase is BUSY:
            self.transport.abort()

    def patient(self) -> bool:
        """Whether the client said that it would rather wait."""
        return _PATIENT.search(self._reader.head) is not None

    def eof_received(self) -> None:
        """A client that closes its side has left. What waits to be sent must not keep its engine at work."""
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
            self.reset()

    def reset(self) -> None:
        """Close by RST: an answer that ends with its connection would otherwise look whole."""
        transport = self.transport
        # A closing transport without bytes to send may have given its descriptor back already.
        if not transport.is_closing() or transport.get_write_buffer_size():
            with suppress(OSError):
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()

    def give_up(self) -> None:
        """The process ends."""
        if self._exchange is not None:
            self._exchange.give_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self._router.clients.discard(self)
        self._reserve(0)
        self._reader.close()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()

    # ---- requests ----

    def _request(self) -> None:
        """A whole request was read: answer it here or hand it to an exchange."""
        reader, router = self._reader, self._router
        origin = self._origin
        if origin is None or self._origin_head is not reader.kept_as or router.keyring is not self._keyring:
            origin = self._read_origin()
            if origin is None:
                return
        route = origin.route
        self.tenant = tenant = origin.tenant
        try:
            body = reader.take_body()
            admitted = policy.admit(route, body, router.settings, tenant.ours)
            if tenant.models is not None:
                keys.check_model(tenant, admitted.model)
            pool = router.pool(admitted.model)
            now = router.loop.time()
            lease = None
            cost = 0.0
            if tenant is not ANONYMOUS:
                cost = quota.estimate(admitted.size, admitted.choices, admitted.max_tokens)
                lease = router.quotas.enter(tenant, cost, now)
            if router.jobs is not None and (
                (asked := router.jobs.wanted(reader.head)) or router.jobs.overflows(pool.name, len(body))
            ):
                if lease is not None:
                    lease.settle(cost)  # a job is charged by its estimate when it comes, and is not open meanwhile
                self._exchange = router.jobs.take(
                    self, route, pool.name, body, reader.head, reader.fields, tenant, asked=asked
                )
                return
        except Refusal as error:
            self._refuse(error, keep_alive=self.may_stay(), dialect=route.dialect)
            return
        keep_alive = reader.keep_alive and not self._ignored and not router.draining
        stats = router.metrics.model(pool.name)
        make: Callable[..., Exchange] = exchange_for(pool)
        if router.tracer is not None:
            make, origin = router.tracer.adopt(exchange_for(pool), origin, reader.head)
        self._exchange = exchange = make(router, self, origin, admitted, pool, stats, next(router.ids), keep_alive, now)
        exchange.lease = lease
        affinity = router.affinity
        if affinity is not None and route.streams and (len(pool.open) > 1 or pool.disaggregated):
            exchange.keys = affinity.keys(tenant.name, pool.name, route.dialect, admitted.document, origin.session)
        if router.results is None:
            exchange.start()
        else:
            router.results.begin(exchange, admitted, reader.head)

    def _read_origin(self) -> Origin | None:
        """Say where a request goes and from whom it is, or answer it here."""
        reader, router = self._reader, self._router
        self._origin = None
        path = policy.path_of(reader.target)
        route = policy.ENGINE_ROUTES.get(path)
        if route is None or reader.method != b"POST":
            self._answer_local(path)
            return None
        try:
            tenant = self._who()
        except Refusal as error:
            self._refuse(error, keep_alive=self.may_stay(), dialect=route.dialect)
            return None
        session = router.affinity.session(reader.head) if router.affinity is not None else None
        version_10 = reader.version == b"HTTP/1.0"
        origin = Origin(route=route, tenant=tenant, fields=reader.fields, version_10=version_10, session=session)
        if reader.kept_as is not None:
            self._keyring, self._origin_head, self._origin = router.keyring, reader.kept_as, origin
        return origin

    def _who(self) -> Tenant:
        """Return the tenant that this request is from, or refuse it."""
        router = self._router
        if not router.keyed:
            return ANONYMOUS
        if router.keyring is None:
            raise errors.overloaded(Code.NOT_READY, "the router has not read its keys yet")
        self.tenant = tenant = router.keyring.find(self._reader.credentials)
        return tenant

    def may_stay(self) -> bool:
        """Whether the connection may be used again after this answer."""
        return self._reader.keep_alive and not self._ignored and not self._router.draining

    def _answer_local(self, path: bytes) -> None:
        """Answer what needs no engine, and refuse what is not on the list."""
        router = self._router
        refusal = _not_allowed(self._reader.method, path)
        if refusal is not None:
            self._refuse(refusal, keep_alive=self.may_stay())
        elif path.startswith(policy.REQUESTS_PREFIX):
            self._answer_about_job()
        elif path == b"/healthz":
            self._answer(200, b'{"status":"ok"}')
        elif path == b"/readyz":
            state = router.state()
            body = orjson.dumps({"status": state})
            self._answer(200, body) if state == "ready" else self._answer(503, body, errors.RETRY_AFTER)
        else:
            try:
                self._answer_models(path, self._who())
            except Refusal as error:
                self._refuse(error, keep_alive=self.may_stay())

    def _answer_about_job(self) -> None:
        reader, jobs = self._reader, self._router.jobs
        try:
            if jobs is None:
                raise policy.unknown_path()
            self._exchange = jobs.answer(self, reader.method, reader.target, reader.head, self._who().name)
        except Refusal as error:
            self._refuse(error, keep_alive=self.may_stay())

    def _answer_models(self, path: bytes, tenant: Tenant) -> None:
        router = self._router
        if not router.loaded:
            raise errors.overloaded(Code.NOT_READY, "the router has not read a backends document yet")
        if path == b"/v1/models":
            names = sorted(filter(tenant.may_use, router.fleet.models))
            self._answer(200, policy.models_answer(names, int(router.loaded_at)))
            return
        name = policy.model_id(path)
        keys.check_model(tenant, name)
        if name not in router.fleet.models:
            raise policy.unknown_model(name)
        self._answer(200, policy.model_answer(name, int(router.loaded_at)))

    # ---- answers ----

    def write(self, data: bytes) -> None:
        """Send bytes. A transport that has seen a reset refuses them before it says that the connection is lost."""
        transport = self.transport
        if not transport.is_closing():
            transport.write(data)

    def answered(self, keep_alive: bool) -> None:
        """An answer is out: read the next request, or close once it is flushed."""
        self._exchange = None
        if not keep_alive or self._ignored or self.transport.is_closing():
            self._finish()
            return
        self._reader.next()
        self.tenant = ANONYMOUS
        self.phase = IDLE
        self.made_at = 0.0
        router = self._router
        self._deadline = router.loop.time() + router.settings.timeouts.idle_seconds

    def _finish(self) -> None:
        """Close; a client that is still sending is listened to for a while, as a reset could destroy the answer."""
        stall = self._router.settings.timeouts.client_stall_seconds
        if self._reader.complete and not self._ignored:
            self._enter(CLOSING, stall)
            self.transport.close()
            return
        self._enter(LINGERING, max(stall, LINGER_SECONDS) if self._unsent() else LINGER_SECONDS)
        self._last_moment = self._router.loop.time() + LONGEST_LINGER_SECONDS
        self._reserve(0)
        self._reader.next()  # nothing of what came is needed any more
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def _unsent(self) -> bool:
        return not self.transport.is_closing() and self.transport.get_write_buffer_size() > 65536

    def _answer(self, status: int, body: bytes, extra: bytes = b"") -> None:
        keep_alive = self.may_stay()
        self.write(http1.reply(status, body, request_id=next(self._router.ids), keep_alive=keep_alive, extra=extra))
        self.answered(keep_alive)

    def _refuse(self, refusal: Refusal, *, keep_alive: bool, dialect: Dialect = Dialect.PLAIN) -> None:
        router = self._router
        stats = router.metrics.model("")
        stats.refusals[refusal.code] += 1
        status, extra, body = errors.render(refusal, dialect)
        path = policy.path_of(self._reader.target)
        stats.requests[(status, "refused")] += 1
        if refusal.code is Code.METHOD_NOT_ALLOWED:
            extra += b"allow: %b\r\n" % (policy.allowed_method(path) or b"")
        with_body = self._reader.method != b"HEAD"
        request_id = next(router.ids)
        router.refused(request_id, self.tenant, path, status, refusal.code)
        if router.tracer is not None:
            asked = Asked(self._reader.method, path, self.tenant, request_id)
            router.tracer.refused(asked, self._reader.head, status, refusal.code)
        self.write(
            http1.reply(
                status,
                body,
                request_id=request_id,
                keep_alive=keep_alive,
                extra=extra,
                with_body=with_body,
            )
        )
        self.answered(keep_alive)

    # ---- flow control and time ----

    def pause_writing(self) -> None:
        self.blocked = True
        self._blocked_since = self._router.loop.time()
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self.blocked = False
        if self._exchange is not None:
            self._exchange.resume()

    def check(self, now: float) -> None:
        """Close what takes too long. A slow client is closed without a word: 408 would be retried by SDKs."""
        if self.blocked and now - self._blocked_since > self._router.settings.timeouts.client_stall_seconds:
            self.reset()
        elif self._exchange is not None:
            self._exchange.check(now)
        elif now > self._deadline:
            if self.phase is IDLE:
                self._enter(CLOSING, LINGER_SECONDS)
                self.transport.close()
            elif self.phase >= LINGERING:
                self.reset()
            else:
                self.transport.abort()


def _not_allowed(method: bytes, path: bytes) -> Refusal | None:
    """Refuse what is not on the list: paths by 404, methods by 405."""
    allowed = policy.allowed_method(path)
    if allowed is None:
        return policy.unknown_path()
    if method not in allowed.split(b", "):
        message = f"this path takes {allowed.decode()} only"
        return Refusal(status=405, code=Code.METHOD_NOT_ALLOWED, message=message)
    return None


def _bad_message(error: http1.BadMessage) -> Refusal:
    code = Code.REQUEST_TOO_LARGE if error.status in (413, 414, 431) else Code.INVALID_REQUEST
    return Refusal(status=error.status, code=code, message=str(error))
