"""One `Exchange` per request: from the choice of an engine to the last byte of its answer.

In: an admitted request and a client to answer. Out: the engine's answer, relayed as it comes; or, before its first
byte was forwarded, a second engine; or, after, an error event or a reset. The head of an answer is held until it can be
judged, the last chunk until the route's terminal marker was seen. It never parses a request or accepts a connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
from enum import IntEnum
from typing import Any, Final, Protocol, cast

import orjson

from llmfleet.router import errors, http1
from llmfleet.router.client import Upstream, take_idle
from llmfleet.router.errors import Code, Refusal
from llmfleet.router.limits import Settings
from llmfleet.router.pick import Backend, ModelPool, pick
from llmfleet.router.policy import Admitted, Route
from llmfleet.router.sse import EventTooLong, Scanner
from llmfleet.telemetry import ModelStats

log = logging.getLogger(__name__)

RETRYABLE: Final = frozenset({500, 503})  # a draining or failing engine; never 429
MAX_ATTEMPTS: Final = 2
CHUNKED: Final = b"\r\ntransfer-encoding: chunked"
# A unary 200 that is in truth a request the engine gave up; quotes inside an answer's text are escaped.
_ABORTED: Final = re.compile(rb'"finish_reason":\s*"(?:abort|error)"')


class Stage(IntEnum):
    """How far an answer is."""

    WAITING = 0  # no head yet
    EVENTS = 1  # a stream without its first event: held
    UNARY = 2  # a unary answer: held while it fits
    STREAMING = 3  # events are being forwarded
    PASSING = 4  # a unary answer too large to hold is being forwarded
    OVER = 5


# An enum member costs a lookup in its class each time; these are read several times per event.
WAITING: Final = Stage.WAITING
EVENTS: Final = Stage.EVENTS
UNARY: Final = Stage.UNARY
STREAMING: Final = Stage.STREAMING
PASSING: Final = Stage.PASSING
OVER: Final = Stage.OVER


class Services(Protocol):
    """What an exchange needs of the router it runs in."""

    loop: asyncio.AbstractEventLoop
    settings: Settings
    draining: bool

    def released(self, pool: ModelPool, backend: Backend) -> None:
        """A slot became free."""


class Requester(Protocol):
    """The client side of an exchange."""

    blocked: bool  # it does not take bytes at the moment

    def write(self, data: bytes) -> None:
        """Send bytes, or drop them if the connection is already closing."""

    def reset(self) -> None:
        """Break the connection so that the client cannot take what it has for the whole."""

    def answered(self, keep_alive: bool) -> None:
        """The answer is over; read the next request or close."""


class Exchange:
    """One request on its way: holds at most one slot, on at most one engine, at any time."""

    __slots__ = (
        "_attempts",
        "_backend",
        "_body",
        "_choices",
        "_chunked",
        "_client",
        "_connecting",
        "_fields",
        "_held",
        "_held_size",
        "_keep_alive",
        "_last",
        "_pool",
        "_request_id",
        "_route",
        "_router",
        "_scanner",
        "_stage",
        "_started",
        "_stats",
        "_status",
        "_streams",
        "_ttft_seen",
        "_upstream",
        "_version_10",
    )

    def __init__(
        self,
        router: Services,
        client: Requester,
        route: Route,
        admitted: Admitted,
        pool: ModelPool,
        stats: ModelStats,
        request_id: bytes,
        fields: bytes,
        keep_alive: bool,
        version_10: bool,
        now: float,
    ) -> None:
        self._router, self._client = router, client
        self._route, self._pool, self._stats = route, pool, stats
        self._body, self._choices = admitted.body, admitted.choices
        self._streams = admitted.streams
        self._request_id, self._fields = request_id, fields
        self._keep_alive, self._version_10 = keep_alive, version_10
        self._started = self._last = now
        self._attempts = 0
        self._stage = WAITING
        self._backend: Backend | None = None
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._scanner: Scanner | None = None
        self._held: list[bytes] = []
        self._held_size = 0
        self._chunked = False
        self._status = 0
        self._ttft_seen = False
        stats.in_flight += 1

    # ---- towards an engine ----

    def start(self) -> None:
        """Send the request to an engine, or refuse it when no slot is free."""
        backend = pick(self._pool)
        if backend is None:
            # A waiting request would be parked here and started again from `Services.released`.
            self._refuse(self._no_slot())
        else:
            self._send(backend)

    def _no_slot(self) -> Refusal:
        if self._pool.open:
            return errors.overloaded(Code.OVERLOADED, "every engine of this model is busy, try again soon")
        message = f"no engine of this model takes requests now (model state: {self._pool.state})"
        return errors.overloaded(Code.NO_ENDPOINT, message)

    def _send(self, backend: Backend, *, fresh: bool = False) -> None:
        self._attempts += 1
        backend.in_flight += 1  # before anything else can pick: a burst must not see stale loads
        self._backend = backend
        router = self._router
        if not fresh and backend.idle:
            upstream = take_idle(backend, router.loop.time(), router.settings.timeouts.upstream_idle_seconds)
            if upstream is not None:
                self._attach(upstream)
                return
        self._connecting = router.loop.create_task(self._connect(backend))

    async def _connect(self, backend: Backend) -> None:
        loop = self._router.loop
        try:
            async with asyncio.timeout(self._router.settings.timeouts.connect_seconds):
                _, upstream = await loop.create_connection(lambda: Upstream(backend), backend.host, backend.port)
        except (OSError, ValueError) as error:  # a host that is no name at all is a ValueError
            self._connecting = None
            self._failed("connect", str(error) or "timed out")
            return
        self._connecting = None
        if upstream.transport.is_closing():
            self._failed("reset", "connection closed")
        else:
            self._attach(upstream)

    def _attach(self, upstream: Upstream) -> None:
        self._upstream = upstream
        body = self._body
        request_id = self._request_id if self._attempts == 1 else self._request_id + b"-r"
        head = http1.request_head(self._route.path, upstream.backend.host_field, self._fields, request_id, len(body))
        upstream.begin(self, head, body)
        if self._client.blocked:
            upstream.flow(False)

    def _release(self, *, failed: bool = False) -> None:
        """Give the slot back; safe to call twice. A lost attempt counts against its engine, also one retried."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.in_flight -= 1
            backend.failures += failed
            self._router.released(self._pool, backend)

    def _detach(self, *, failed: bool = False) -> None:
        """Part from the engine: keep the connection if the answer is over, else close it so that the work stops."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            if upstream.reader.complete:
                upstream.free(self._last)
            else:
                upstream.drop()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._release(failed=failed)

    def _retry(self, reason: str, *, same_engine: bool = False) -> bool:
        """Send the request to another engine if it may be; never once a byte of an answer was forwarded."""
        if self._attempts >= MAX_ATTEMPTS or self._stage > UNARY:
            return False
        failed = self._backend
        other = pick(self._pool, avoid=failed)
        if other is None and same_engine and failed is not None and failed.listed:
            other = failed
        if other is None:
            return False
        # A kept connection that had gone stale is nobody's failure: the same engine is asked again.
        self._detach(failed=other is not failed)
        self._stats.retries[reason] += 1
        self._reset()
        # Kept connections of a second engine may be as stale as the first one's was.
        self._send(other, fresh=True)
        return True

    def _reset(self) -> None:
        self._stage = WAITING
        self._scanner = None
        self._held.clear()
        self._held_size = 0

    def _failed(self, reason: str, detail: str, *, same_engine: bool = False) -> None:
        """An attempt failed before anything was forwarded."""
        instance = self._backend.instance if self._backend is not None else ""
        fields = {"requestId": self._request_id.decode(), "llmcluster": instance, "reason": reason, "detail": detail}
        if self._retry(reason, same_engine=same_engine):
            log.info("retrying on another engine", extra={"fields": fields})
            return
        log.warning("engine lost", extra={"fields": fields})
        self._detach(failed=True)
        self._refuse(errors.lost(Code.UPSTREAM_LOST, "the engine was lost before it answered"), outcome="failed")

    # ---- from the engine ----

    def progress(self, upstream: Upstream) -> None:
        """More of the answer was read."""
        self._last = self._router.loop.time()
        reader = upstream.reader
        stage = self._stage
        if stage is STREAMING:
            self._stream(reader)
            return
        if stage is WAITING:
            if not reader.head:
                return
            stage = self._judge_head(reader)
        if stage is UNARY:
            self._hold_unary(reader)
        elif stage is EVENTS:
            self._hold_events(reader)
        elif stage is PASSING:
            self._pass(reader)

    def lost(self, upstream: Upstream, detail: str) -> None:
        """The engine connection is gone in the middle of an answer."""
        self._upstream = None
        scanner = self._scanner
        if self._stage is STREAMING and scanner is not None:
            self._release(failed=scanner.failed or not scanner.terminal)
            if scanner.terminal or scanner.error is not None:
                self._end_stream(whole=scanner.terminal)
            else:
                self._break_stream("lost", Code.UPSTREAM_LOST, "the engine was lost in the middle of the answer")
        elif self._stage is PASSING:
            self._release(failed=True)
            self._reset_client("lost")
        elif self._stage is not OVER:
            stale = not upstream.fresh and self._stage is WAITING
            self._failed("reset", detail, same_engine=stale)

    def _judge_head(self, reader: http1.ResponseReader) -> Stage:
        """Decide by the head whether this is a stream, a unary answer, or a reason to ask another engine."""
        self._status = status = reader.status
        if status in RETRYABLE and self._retry("status"):
            return WAITING
        if status == 200 and reader.events:
            self._stage = EVENTS
            limit = self._router.settings.limits.max_event_bytes
            self._scanner = Scanner(self._route.dialect, expected=self._choices, max_event=limit)
        elif (status == 200 and self._streams) or 200 < status < 400:
            # SDKs read a stream that is none, an empty answer and a redirect as an answer without a word.
            self._failed("not_an_answer", f"status {status}, a stream was asked for: {self._streams}")
        else:
            self._stage = UNARY
        return self._stage

    # ---- streams ----

    def _scan(self, reader: http1.ResponseReader, scanner: Scanner) -> bytes | None:
        """Return the bytes to forward, or None if the stream had to be given up."""
        payload = reader.take_body()
        try:
            ready = scanner.feed(payload) if payload else b""
            return ready + scanner.flush() if reader.complete else ready
        except EventTooLong:
            return None

    def _hold_events(self, reader: http1.ResponseReader) -> None:
        """Hold a stream's head until its first event: an error there still gets another engine or a real status."""
        scanner = cast(Scanner, self._scanner)
        ready = self._scan(reader, scanner)
        if ready is None:
            self._failed("event_too_long", "an event is longer than the limit")
            return
        if ready:
            self._held.append(ready)
            self._held_size += len(ready)
        if not scanner.started:
            if reader.complete or scanner.broken:
                self._failed("truncated", "the stream ended before its first event")
            elif self._held_size > self._router.settings.limits.max_event_bytes:
                self._failed("event_too_long", "more than an event's limit came before the first event")
            return
        if scanner.error is not None:
            self._first_event_is_error(scanner.error)
            return
        self._open_stream(reader)
        self._forward(b"".join(self._held), scanner, reader)

    def _first_event_is_error(self, error: dict[str, Any]) -> None:
        status = errors.engine_status(error)
        if status in RETRYABLE and self._retry("error_event"):
            return
        self._detach(failed=status >= 500)
        self._answer_whole(status, orjson.dumps({"error": error}), outcome="failed")

    def _open_stream(self, reader: http1.ResponseReader) -> None:
        self._stage = STREAMING
        self._body = b""
        self._chunked = not self._version_10
        self._keep_alive = self._keep_alive and self._chunked and not self._router.draining
        framing = CHUNKED if self._chunked else b""
        self._client.write(http1.answer_head(reader, self._request_id, framing, self._keep_alive))

    def _first_token(self, seconds: float) -> None:
        self._ttft_seen = True
        self._stats.ttft.observe(seconds)
        if self._backend is not None:
            self._backend.ttft_count += 1
            self._backend.ttft_sum += seconds

    def _stream(self, reader: http1.ResponseReader) -> None:
        scanner = cast(Scanner, self._scanner)
        ready = self._scan(reader, scanner)
        if ready is None:
            self._break_stream("event_too_long", Code.UPSTREAM_FAILED, "the engine sent an event that is too long")
            return
        self._forward(ready, scanner, reader)

    def _forward(self, ready: bytes, scanner: Scanner, reader: http1.ResponseReader) -> None:
        if ready:
            self._client.write(http1.chunk(ready) if self._chunked else ready)
        if scanner.token_seen and not self._ttft_seen:
            self._first_token(self._last - self._started)
        if scanner.broken:
            self._break_stream("unfinished", Code.UPSTREAM_LOST, "the engine ended the answer before it was finished")
        elif reader.complete:
            self._detach(failed=scanner.failed)
            if scanner.terminal or scanner.error is not None:
                self._end_stream(whole=True)
            else:
                self._break_stream("no_terminal", Code.UPSTREAM_LOST, "the engine ended the answer early")

    def _end_stream(self, *, whole: bool) -> None:
        """The answer is over and the client can tell how: forward the last chunk that was withheld."""
        scanner = cast(Scanner, self._scanner)
        self._detach(failed=scanner.failed)
        if self._chunked and whole:
            self._client.write(http1.LAST_CHUNK)
        self._over("failed" if scanner.failed else "complete", keep_alive=self._keep_alive and whole)

    def _break_stream(self, reason: str, code: Code, message: str) -> None:
        """Tell a client that has events of a broken answer: an error event, and no terminating chunk."""
        self._detach(failed=True)
        self._stats.truncated[reason] += 1
        fields = {"requestId": self._request_id.decode(), "model": self._pool.name, "reason": reason}
        log.warning("answer truncated", extra={"fields": fields})
        event = errors.event(errors.lost(code, message), self._route.dialect)
        self._client.write(http1.chunk(event) if self._chunked else event)
        self._over("truncated", keep_alive=False)

    # ---- unary answers ----

    def _hold_unary(self, reader: http1.ResponseReader) -> None:
        """Hold a unary answer while it fits: a cut one can then still be asked for again."""
        piece = reader.take_body()
        if reader.complete:
            self._finish_unary(reader, b"".join([*self._held, piece]) if self._held else piece)
        elif piece:
            self._held.append(piece)
            self._held_size += len(piece)
            if self._held_size > self._router.settings.limits.max_held_answer_bytes:
                self._open_unary(reader)

    def _finish_unary(self, reader: http1.ResponseReader, body: bytes) -> None:
        """Forward a whole answer, unless it is one that the engine gave up."""
        status = self._status
        if status == 200 and self._route.counts_choices and _ABORTED.search(body) is not None:
            if not self._retry("aborted"):
                self._detach(failed=True)
                self._refuse(errors.lost(Code.UPSTREAM_FAILED, "the engine gave the request up"), outcome="failed")
            return
        keep_alive = self._keep_alive and not self._router.draining
        framing = None if reader.sized else b"\r\ncontent-length: %d" % len(body)
        answer = http1.answer_head(reader, self._request_id, framing, keep_alive) + body
        self._detach(failed=status >= 500)
        self._client.write(answer)
        self._over("complete" if status < 500 else "failed", keep_alive=keep_alive)

    def _open_unary(self, reader: http1.ResponseReader) -> None:
        """Start forwarding an answer that is too large to hold."""
        self._stage = PASSING
        self._body = b""
        sized = reader.sized
        self._chunked = not sized and not self._version_10
        self._keep_alive = self._keep_alive and (sized or self._chunked) and not self._router.draining
        framing = None if sized else CHUNKED if self._chunked else b""
        head = http1.answer_head(reader, self._request_id, framing, self._keep_alive)
        body = b"".join(self._held)
        self._held.clear()
        self._client.write(head + (http1.chunk(body) if self._chunked else body))

    def _pass(self, reader: http1.ResponseReader) -> None:
        piece = reader.take_body()
        if piece:
            self._client.write(http1.chunk(piece) if self._chunked else piece)
        if reader.complete:
            self._detach(failed=self._status >= 500)
            if self._chunked:
                self._client.write(http1.LAST_CHUNK)
            self._over("complete" if self._status < 500 else "failed", keep_alive=self._keep_alive)

    # ---- ends ----

    def _refuse(self, refusal: Refusal, outcome: str = "refused") -> None:
        """Answer with an error of the router's own; nothing was forwarded."""
        self._stats.refusals[refusal.code] += 1
        status, extra, body = errors.render(refusal, self._route.dialect)
        self._answer_whole(status, body, outcome=outcome, extra=extra)

    def _answer_whole(self, status: int, body: bytes, *, outcome: str, extra: bytes = b"") -> None:
        self._status = status
        self._keep_alive = self._keep_alive and not self._router.draining
        answer = http1.reply(status, body, request_id=self._request_id, keep_alive=self._keep_alive, extra=extra)
        self._client.write(answer)
        self._over(outcome, keep_alive=self._keep_alive)

    def _reset_client(self, reason: str) -> None:
        """A unary answer broke after bytes of it were forwarded: only a reset says so."""
        self._detach(failed=True)
        self._stats.truncated[reason] += 1
        self._over("truncated", keep_alive=False, answered=False)
        self._client.reset()

    def cancel(self) -> None:
        """The client left: free the slot and stop the engine's work at once."""
        if self._stage is not OVER:
            self._status = 499
            self._detach()
            self._over("aborted", keep_alive=False, answered=False)

    def _over(self, outcome: str, *, keep_alive: bool, answered: bool = True) -> None:
        self._stage = OVER
        stats = self._stats
        stats.in_flight -= 1
        stats.requests[(self._status, outcome)] += 1
        if outcome == "complete":
            stats.duration.observe(self._last - self._started)
        self._body = b""
        self._held.clear()
        if answered:
            self._client.answered(keep_alive)

    # ---- flow control and time ----

    def pause(self) -> None:
        """The client does not keep up: stop reading from the engine."""
        if self._upstream is not None:
            self._upstream.flow(False)

    def resume(self) -> None:
        """The client takes bytes again."""
        self._last = self._router.loop.time()
        if self._upstream is not None:
            self._upstream.flow(True)

    def check(self, now: float) -> None:
        """Give up on an engine that is silent for too long; called a few times a second."""
        timeouts = self._router.settings.timeouts
        if self._stage <= UNARY:
            if now - self._started > timeouts.first_event_seconds:
                self._detach(failed=True)
                message = "the engine did not answer in time"
                self._refuse(errors.lost(Code.UPSTREAM_TIMEOUT, message, status=504), outcome="failed")
        elif now - self._last > timeouts.stall_seconds and not self._client.blocked:
            self._stalled()

    def _stalled(self) -> None:
        self._cut_off("stalled", Code.UPSTREAM_TIMEOUT, "the engine stopped in the middle of the answer")

    def give_up(self) -> None:
        """The process ends: tell the client in whatever way its answer still allows."""
        message = "the router stopped before the answer was whole"
        if self._stage <= UNARY:
            self._detach()
            self._refuse(errors.overloaded(Code.NOT_READY, message), outcome="failed")
        elif self._stage is not OVER:
            self._cut_off("shutdown", Code.NOT_READY, message)

    def _cut_off(self, reason: str, code: Code, message: str) -> None:
        """End an answer of which bytes were forwarded."""
        if self._stage is PASSING:
            self._reset_client(reason)
        elif self._scanner is not None and self._scanner.terminal:
            self._end_stream(whole=True)
        else:
            self._break_stream(reason, code, message)
