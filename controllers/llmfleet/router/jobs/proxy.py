"""Jobs as clients see them: `Prefer: respond-async`, `GET` and `DELETE /v1/requests/{id}`, `GET .../result`.

In: a request that was admitted, or one about a job. Out: an answer on the client's connection. A `Call` stands on the
connection where an exchange would. A 202 or 303 goes out only after Redis has the job; a client that leaves before it
takes the job back. It never runs a job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from llmfleet.router import errors, http1
from llmfleet.router.errors import Code, Refusal
from llmfleet.router.jobs import rules
from llmfleet.router.jobs.client import Store
from llmfleet.router.jobs.entry import Admission, Request, State, Verdict, View, describe, location
from llmfleet.router.jobs.replay import replay
from llmfleet.router.jobs.rules import Redirect, Target
from llmfleet.router.jobs.troubles import Unavailable
from llmfleet.router.keys import Tenant
from llmfleet.router.limits import Queue
from llmfleet.router.sse import Dialect
from llmfleet.router.tracing.spans import Asked
from llmfleet.telemetry import JobMetrics

if TYPE_CHECKING:  # only for routers with a collector of spans
    from llmfleet.router.tracing.relay import Trace

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0  # between two looks of a client that waits, should an announcement be missed
APPLIED: Final = b"preference-applied: respond-async\r\n"
DO_NOT_REPEAT: Final = b"x-should-retry: false\r\n"  # official SDKs would send the whole request again


class Connection(Protocol):
    """What a call needs of the client's connection."""

    def write(self, data: bytes) -> None: ...

    def answered(self, keep_alive: bool) -> None: ...

    def may_stay(self) -> bool: ...

    @property
    def tenant(self) -> Tenant: ...


class Surroundings(Protocol):
    """What a call needs of the router it runs in."""

    loop: asyncio.AbstractEventLoop
    draining: bool

    def next_id(self) -> bytes: ...

    def refused(
        self, request_id: bytes, tenant: Tenant, path: bytes, status: int, code: str, outcome: str = ...
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer to be sent."""

    status: int
    body: bytes
    content_type: bytes = http1.JSON
    extra: bytes = b""
    reason: str = ""  # code of a refusal


class Call:
    """One request about jobs on one connection."""

    __slots__ = ("_connection", "_dialect", "_gone", "_method", "_path", "_router", "_task", "_tenant", "_trace")

    def __init__(
        self,
        router: Surroundings,
        connection: Connection,
        work: Callable[[Call], Awaitable[Reply]],
        path: bytes = rules.PREFIX,
        dialect: Dialect = Dialect.PLAIN,
        method: bytes = b"POST",
        trace: Trace | None = None,
    ) -> None:
        self._router, self._connection, self._dialect = router, connection, dialect
        self._method, self._path, self._tenant, self._trace = method, path, connection.tenant, trace
        self._gone = False
        self._task = router.loop.create_task(self._answer(work))

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        return self._gone

    async def _answer(self, work: Callable[[Call], Awaitable[Reply]]) -> None:
        try:
            reply = await work(self)
        except Refusal as refusal:
            reply = refused(refusal, self._dialect)
        except Unavailable as error:
            message = f"{error}; requests without Prefer are served as usual"
            reply = refused(errors.overloaded(Code.JOBS_UNAVAILABLE, message), self._dialect)
        except Exception:
            log.exception("a request about a job failed")
            message = "the router failed to answer, which is its fault"
            fault = Refusal(status=500, code=Code.UPSTREAM_FAILED, message=message, kind="server_error")
            reply = refused(fault, self._dialect)
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        if self._gone:
            return
        self._gone = True
        keep_alive = self._connection.may_stay()
        request_id = self._router.next_id()
        outcome = "refused" if reply.reason else "job"
        self._router.refused(request_id, self._tenant, self._path, reply.status, reply.reason, outcome)
        if self._trace is not None:
            self._trace.answered(Asked(self._method, self._path, self._tenant, request_id), reply.status, reply.reason)
        self._connection.write(rendered(reply, request_id, keep_alive))
        self._connection.answered(keep_alive)

    # ---- what a connection tells the request on it ----

    def cancel(self) -> None:
        """The client left. What is being stored is not interrupted: it is looked after when that is done."""
        self._gone = True

    def give_up(self) -> None:
        """The process ends."""
        message = "the router stopped before it could answer"
        self._send(refused(errors.overloaded(Code.NOT_READY, message), self._dialect))

    def check(self, now: float) -> None:
        """Every wait of a call has its own bound."""

    def pause(self) -> None:
        """An answer is one write."""

    def resume(self) -> None:
        """An answer is one write."""


class Desk:
    """Answers requests about jobs."""

    def __init__(self, router: Surroundings, store: Store, queue: Queue, metrics: JobMetrics) -> None:
        self._router, self._store, self._queue, self._metrics = router, store, queue, metrics
        self._redirect = Redirect(queue.redirect)
        self._ttls = dict(queue.classes)
        self._watchers: dict[str, set[asyncio.Event]] = {}

    # ---- storing ----

    async def store(self, call: Call, request: Request, head: bytes, share: int, *, asked: bool) -> Reply:
        """Store a request and say where its answer will be."""
        rules.refuse_size(len(request.body), self._queue.max_job_bytes)
        ttl = self._ttls.get(request.klass, self._queue.job_ttl_seconds)
        try:
            admission = await self._store.admit(request, ttl_seconds=ttl, share_limit=share)
        except Unavailable:
            self._metrics.refused[(request.model, "unavailable")] += 1
            raise
        if admission.verdict not in (Verdict.STORED, Verdict.AGAIN):
            self._metrics.refused[(request.model, str(admission.verdict))] += 1
            raise self._no_room(admission)
        if admission.verdict is Verdict.STORED:
            self._metrics.accepted[request.model] += 1
            # Nobody knows its id, unless the request was made again in the meantime.
            if call.gone and await self._store.cancel(admission.id, request.tenant, forget=True) is State.CANCELLED:
                self._metrics.ended[(request.model, str(State.CANCELLED))] += 1
        applied = APPLIED if asked else b""
        if rules.follows(head, self._redirect):
            return redirect(admission.id, 1, applied)
        return accepted(admission, request.model, applied)

    def _no_room(self, admission: Admission) -> Refusal:
        match admission.verdict:
            case Verdict.FULL:
                message = f"{admission.held} requests of this model are stored already, the most there may be"
                return errors.overloaded(Code.OVERLOADED, message)
            case Verdict.SHARE:
                message = f"{admission.held} of your requests are stored already, your share of the queue"
                return Refusal(status=429, code=Code.RATE_LIMITED, message=message, kind="rate_limit_error")
            case _:
                message = "this Idempotency-Key was used for another request: write another one"
                return Refusal(status=422, code=Code.IDEMPOTENCY, message=message)

    # ---- asking ----

    async def status(self, target: Target, tenant: str) -> Reply:
        """`GET /v1/requests/{id}`."""
        view = await self._store.look(target.id, tenant)
        if view is None:
            raise rules.missing()
        extra = b"" if rules.is_over(view) else errors.RETRY_AFTER
        return Reply(status=200, body=orjson.dumps(describe(view)), extra=extra)

    async def cancel(self, target: Target, tenant: str) -> Reply:
        """`DELETE /v1/requests/{id}`: of no effect once the job is over."""
        before = await self._store.look(target.id, tenant)
        state = await self._store.cancel(target.id, tenant)
        view = await self._store.look(target.id, tenant)
        if before is None or state is None or view is None:
            raise rules.missing()
        if not rules.is_over(before) and state is State.CANCELLED:
            self._metrics.ended[(view.model, str(state))] += 1
        return Reply(status=200, body=orjson.dumps(describe(view)))

    async def result(self, call: Call, target: Target, tenant: str, head: bytes) -> Reply:
        """`GET /v1/requests/{id}/result`: the answer, as soon as there is one within the time asked for."""
        view = await self._awaited(call, target, tenant)
        if view is None:
            raise rules.missing()
        if not rules.is_over(view):
            if not target.hop:
                extra = errors.RETRY_AFTER + b"location: %b/result\r\n" % location(view.id).encode()
                return Reply(status=202, body=orjson.dumps(describe(view)), extra=extra)
            if target.hop < rules.MAX_HOPS:
                return redirect(view.id, target.hop + 1)
            message = f"{view.id} is not done yet, ask for {location(view.id)}/result later"
            refusal = errors.lost(Code.UPSTREAM_TIMEOUT, message, status=504)
            raise Refusal(status=504, code=refusal.code, message=message, kind=refusal.kind, extra=DO_NOT_REPEAT)
        if view.result is None:
            raise rules.no_result(view)
        result = view.result
        body = replay(result.body, rules.last_event(head)) if result.events else result.body
        extra = b"cache-control: no-cache\r\n" if result.events else b""
        if result.status >= 500:
            extra += DO_NOT_REPEAT
        return Reply(status=result.status, body=body, content_type=result.content_type, extra=extra)

    async def _awaited(self, call: Call, target: Target, tenant: str) -> View | None:
        """Look until the job is over or time is up; a Redis that is away meanwhile costs only time."""
        loop = self._router.loop
        until = loop.time() + target.wait
        event = asyncio.Event()
        watchers = self._watchers.setdefault(target.id, set())
        watchers.add(event)
        try:
            while True:
                event.clear()
                try:
                    view = await self._store.look(target.id, tenant, whole=True)
                except Unavailable:
                    if loop.time() >= until or call.gone or self._router.draining:
                        raise
                else:
                    if view is None or rules.is_over(view) or call.gone or self._router.draining:
                        return view
                    if loop.time() >= until:
                        return view
                await _until(event, min(until - loop.time(), LOOK_SECONDS))
        finally:
            watchers.discard(event)
            if not watchers:
                self._watchers.pop(target.id, None)

    def heard(self, ident: str) -> None:
        """A job is over: wake who waits for it."""
        for event in self._watchers.get(ident, ()):
            event.set()


async def _until(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, or for time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def accepted(admission: Admission, model: str, applied: bytes) -> Reply:
    """Say that a request is stored."""
    body: dict[str, Any] = {
        "id": admission.id,
        "object": "request",
        "status": str(admission.state),
        "model": model,
        "created_at": admission.created_ms // 1000,
        "expires_at": admission.deadline_ms // 1000,
    }
    extra = applied + errors.RETRY_AFTER + b"location: %b\r\n" % location(admission.id).encode()
    return Reply(status=202, body=orjson.dumps(body), extra=extra)


def redirect(ident: str, hop: int, extra: bytes = b"") -> Reply:
    """Send a client that follows to where the answer will be."""
    target = rules.result_location(ident, hop)
    body = orjson.dumps({"id": ident, "object": "request", "location": target})
    return Reply(status=303, body=body, extra=extra + b"location: %b\r\n" % target.encode())


def refused(refusal: Refusal, dialect: Dialect) -> Reply:
    """Render an error."""
    status, extra, body = errors.render(refusal, dialect)
    return Reply(status=status, body=body, extra=extra, reason=str(refusal.code))


def rendered(reply: Reply, request_id: bytes, keep_alive: bool) -> bytes:
    """Write a whole answer."""
    return http1.reply(
        reply.status,
        reply.body,
        request_id=request_id,
        keep_alive=keep_alive,
        extra=reply.extra,
        content_type=reply.content_type,
    )
