"""The jobs of one router process, put together: the connection to Redis, the worker, and what clients ask.

In: a router and its settings. Out: `Jobs`, which the router asks for calls and tells about free slots; None without a
Redis. Redis' client is imported only here and below, so a router without jobs does not pay for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from llmfleet.router import keys, policy
from llmfleet.router.disagg.relay import exchange_for
from llmfleet.router.errors import Code, Refusal
from llmfleet.router.jobs import rules
from llmfleet.router.jobs.client import Store
from llmfleet.router.jobs.entry import ID_BYTES, Claim, Request, job_id
from llmfleet.router.jobs.execute import Worker
from llmfleet.router.jobs.primary.client import end
from llmfleet.router.jobs.proxy import Call, Connection, Desk
from llmfleet.router.jobs.relay import Collector
from llmfleet.router.keys import ANONYMOUS, Tenant
from llmfleet.router.policy import Route
from llmfleet.router.proxy import Router
from llmfleet.router.relay import Exchange
from llmfleet.telemetry import JobGauges, JobMetrics

log = logging.getLogger(__name__)

FAREWELL_SECONDS: Final = 2.0


class Jobs:
    """Everything about jobs that a router does."""

    def __init__(self, router: Router, pod: str) -> None:
        settings = router.settings
        self._router, self._queue = router, settings.queue
        self.metrics = JobMetrics(self._gauges)
        self._classes = rules.ranked(settings.classes)
        self.store = Store(settings.redis, settings.queue, self._classes, pod)
        self.worker = Worker(router, self.store, settings.queue, self.metrics, self._prepare)
        self.desk = Desk(router, self.store, settings.queue, self.metrics)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to reach for Redis; nothing waits for it."""
        loop = self._router.loop
        self._tasks = [
            loop.create_task(self.store.hold(self._heard, self.worker.renew)),
            loop.create_task(self.worker.work()),
        ]

    def give_up(self) -> None:
        """The process ends: hand back what is not over."""
        self.worker.give_up()

    async def close(self) -> None:
        """Tell Redis what is left to tell, then let go of it."""
        self.worker.give_up()
        await self.worker.settled(FAREWELL_SECONDS)
        await end(self._tasks)
        await self.store.close()

    def exchanges(self) -> list[Exchange]:
        """Return the jobs that are at engines."""
        return self.worker.exchanges()

    @property
    def busy(self) -> int:
        """Count jobs at engines, and answers that are not stored yet."""
        return self.worker.busy

    def due(self, model: str) -> bool:
        """Whether a slot that became free goes to a job, whatever else waits for it."""
        return self.worker.due(model)

    def waiting(self, model: str) -> int:
        """Count the jobs of a model that are ours and wait for a slot."""
        return self.worker.waiting(model)

    def described(self) -> dict[str, str]:
        """Say for `/fleet` where jobs are kept, which server that is now, and why none are taken."""
        store = self.store
        return {"redis": store.where, "primary": "" if store.problem else store.primary, "problem": store.problem}

    # ---- requests ----

    def wanted(self, head: bytes) -> bool:
        """Whether a client asks for a job."""
        return rules.wants_job(head)

    def overflows(self, model: str, size: int) -> bool:
        """Whether a request that would have to wait becomes a job instead (`queue.overflow: async`)."""
        queue = self._queue
        if queue.overflow != "async" or size > queue.max_job_bytes or self.store.problem:
            return False
        waiting = self._router.waiting(model)
        return waiting >= queue.async_threshold and (waiting > 0 or self.worker.full(model))

    def take(
        self,
        connection: Connection,
        route: Route,
        model: str,
        body: bytes,
        head: bytes,
        fields: bytes,
        tenant: Tenant,
        *,
        asked: bool,
    ) -> Call:
        """Store a request; `body` is the client's own, `asked` whether it asked for a job itself."""
        key = rules.idempotency_key(head)
        trace, stands = (None, b"") if self._router.tracer is None else self._router.tracer.begin(head)
        request = Request(
            id=job_id(secrets.token_bytes(ID_BYTES)),
            tenant=tenant.name,
            model=model,
            klass=self._classes[min(tenant.klass, len(self._classes) - 1)],
            path=route.path,
            body=body,
            fields=fields + stands,
            idempotency=rules.digest(key) if key else "",
            digest=rules.digest(route.path, body) if key else "",
        )
        limit = 0 if tenant.queue_share >= 1.0 else max(1, int(tenant.queue_share * self._queue.capacity))
        return Call(
            self._router,
            connection,
            lambda call: self.desk.store(call, request, head, limit, asked=asked),
            route.path,
            route.dialect,
            b"POST",
            trace,
        )

    def answer(self, connection: Connection, method: bytes, target: bytes, head: bytes, tenant: str = "") -> Call:
        """Answer a request under `/v1/requests/`."""
        asked = rules.target_of(target)
        if asked is None:
            raise rules.missing()
        desk, router = self.desk, self._router
        trace = None if router.tracer is None else router.tracer.begin(head)[0]
        if method == b"DELETE":
            return Call(router, connection, lambda call: desk.cancel(asked, tenant), method=method, trace=trace)
        if asked.result:
            work = partial(desk.result, target=asked, tenant=tenant, head=head)
            return Call(router, connection, work, method=method, trace=trace)
        return Call(router, connection, lambda call: desk.status(asked, tenant), method=method, trace=trace)

    # ---- running ----

    def _prepare(self, claim: Claim, collector: Collector) -> Exchange:
        """Make the exchange of a job like that of any request, under the rules of now."""
        router = self._router
        tenant = router.tenant(claim.tenant) if claim.tenant else ANONYMOUS
        if tenant is None:
            message = "the API key of this request is no longer known"
            raise Refusal(status=401, code=Code.INVALID_API_KEY, message=message)
        route = policy.ENGINE_ROUTES[claim.path]
        admitted = policy.admit(route, claim.body, router.settings, tenant.ours)
        keys.check_model(tenant, admitted.model)
        pool = router.pool(admitted.model)
        make: Callable[..., Exchange] = exchange_for(pool)
        origin = policy.Origin(route=route, tenant=tenant, fields=claim.fields)
        if router.tracer is not None:
            make, origin = router.tracer.resume(exchange_for(pool), origin)
        exchange = make(
            router,
            collector,
            origin,
            admitted,
            pool,
            router.metrics.model(pool.name),
            next(router.ids),
            True,
            router.loop.time(),
        )
        exchange.waits = False  # a job waits in Redis
        exchange.attempts = claim.attempts - 1  # those of workers before are its own: no body reaches a third engine
        return exchange

    def _heard(self, words: Sequence[str]) -> None:
        if words[0] == "end":
            self.desk.heard(words[1])
        self.worker.heard(words)

    def _gauges(self) -> JobGauges:
        store = self.store
        return JobGauges(
            running=self.worker.in_flight(),
            up=not store.problem,
            refused=store.refused,
            failures=store.failures,
            reconnects=store.reconnects,
            primary="" if store.problem else store.primary,
        )
