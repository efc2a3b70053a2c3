"""The `Router`: what all clients, engines and requests of a process share, and what happens between them.

In: settings, adopted documents, exchanges as they wait, fail and end, ticks of a timer. Out: counts, records for the
access log, engines left out and taken back, requests started when there is a slot. It never reads a request (see
`clients/`), holds a credential or speaks to the Kubernetes API.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from llmfleet.api.document import ModelState
from llmfleet.router import errors, policy, quota
from llmfleet.router.affinity import Affinity
from llmfleet.router.errors import Code, Refusal
from llmfleet.router.health import CERTAIN, Rules, Why
from llmfleet.router.keys import ANONYMOUS, Keyring, Tenant
from llmfleet.router.limits import Settings
from llmfleet.router.pick import Backend, Fleet, ModelPool, key_of
from llmfleet.router.relay import Exchange
from llmfleet.router.request import head_pattern
from llmfleet.router.retries import Quarantine
from llmfleet.router.shares import Room
from llmfleet.router.tracing.context import FIELD_NAMES
from llmfleet.router.usage import Record
from llmfleet.router.waits import Waits, retry_after, why_rejected
from llmfleet.telemetry import RouterMetrics

if TYPE_CHECKING:  # Redis' client is only for routers with jobs, and clients know their router
    from llmfleet.router.clients.proxy import Client
    from llmfleet.router.jobs.app import Jobs
    from llmfleet.router.results.relay import Results
    from llmfleet.router.tracing.relay import Tracer
log = logging.getLogger(__name__)
FIRST_REQUEST_SECONDS: Final = 1.0  # a connection this young was made to ask something: its request may be unread yet


def affinity_of(settings: Settings) -> Affinity | None:
    """Return where prefixes are remembered, if they are."""
    rules = settings.affinity
    if not rules.enabled:
        return None
    return Affinity(
        block_bytes=rules.block_bytes,
        max_entries=rules.max_entries,
        load_factor=rules.load_factor,
        session_headers=rules.session_headers,
    )


class Router:
    """What all connections of a process share."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, settings: Settings, metrics: RouterMetrics, *, keyed: bool = False
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.metrics = metrics
        self.affinity = affinity_of(settings)
        self.fleet = Fleet(settings.health.panic_share, self.affinity)
        self.rules = _rules(settings)
        self.quarantine = Quarantine(
            after=settings.retries.quarantine_after, seconds=settings.retries.quarantine_seconds
        )
        self.waits = Waits(settings.queue, settings.disaggregation.max_waiting)
        self.reading = 0  # bytes of bodies that are being read
        self.held = 0  # bytes of bodies whose answers have not begun: they may have to be sent, or sent again
        self.loaded = False  # a valid document was adopted
        self.loaded_at = 0.0  # by the wall clock: shown to clients as the models' creation time
        self.draining = False
        self.jobs: Jobs | None = None
        self.results: Results | None = None
        self.max_connections = 1
        self.clients: set[Client] = set()
        self.keyed = keyed  # clients need a key
        self.keyring: Keyring | None = None  # the last good keys file
        self.quotas = quota.Quotas()
        self._refused: tuple[dict[str, int], dict[str, int]] = ({}, {})  # by model, one and two intervals ago
        metrics.quota_refusals = self.quotas.refused
        self.records: list[Record] | None = [] if settings.access_log.enabled else None  # for the access log
        self.wall_offset = 0.0  # from the loop's clock to the wall's
        self.tracer: Tracer | None = None
        forwarded = settings.forward_headers
        if settings.otel.endpoint:  # an engine's spans are children of ours then, not of the client's
            forwarded = tuple(name for name in forwarded if name not in FIELD_NAMES)
        self.head_pattern = head_pattern(forwarded, keyed=keyed)
        # Unique over processes and restarts; engines derive their own ids from it.
        prefix = b"req-" + secrets.token_hex(8).encode()
        self.ids = map((prefix + b"%08x").__mod__, itertools.count())

    def released(self, pool: ModelPool, backend: Backend) -> None:
        """A slot became free; requests held for one would be started here."""
        if not backend.listed and not backend.in_flight:
            self.fleet.forget_idle()
        if self.jobs is not None and self.jobs.due(pool.name):
            return
        if self.waits:
            self.waits.serve(self.loop.time())

    # ---- waiting ----

    def waiting(self, model: str) -> int:
        """Count direct requests of a model that wait for a slot."""
        return self.waits.waiting(model)

    def park(self, exchange: Exchange, now: float, *, hold: bool) -> Refusal | None:
        """Let a request wait for a slot, or say why not; with `hold` for an engine of a model that has none now."""
        queue, pool = self.settings.queue, exchange.pool
        held_for_none = hold and pool.state is ModelState.SERVING and not pool.restarting
        if queue.overflow == "reject" or held_for_none:
            return exchange.no_slot()
        seconds = queue.wake_timeout_seconds if hold else None
        rejected = self.waits.enter(exchange, now, hold=seconds, beside=self._beside(exchange))
        if rejected is None:
            return None
        refusal = errors.overloaded(Code.OVERLOADED, f"{why_rejected(rejected.reason, pool)}, try again later")
        refusal.extra = b"retry-after: %d\r\nx-llmfleet-rejected: %b\r\n" % (
            rejected.retry_after,
            rejected.reason.encode(),
        )
        return refusal

    def park_again(self, exchange: Exchange, until: float) -> None:
        """Let a request that was lost with its engine wait for another one."""
        self.waits.enter_again(exchange, self.loop.time(), until)
        self.serve()

    def park_unreached(self, exchange: Exchange, until: float) -> bool:
        """Let a request wait that no engine was reached for; False if no more may, or nobody will serve it."""
        now = self.loop.time()
        return self.serves(exchange.pool) and self.waits.enter_unreached(exchange, now, until, self._beside(exchange))

    def _beside(self, exchange: Exchange) -> int:
        """Count what bodies of requests hold that do not wait, but that of this one."""
        return self.reading + self.held - self.waits.bytes - exchange.size

    def serves(self, pool: ModelPool) -> bool:
        """Whether the document still names a model."""
        return self.fleet.models.get(pool.name) is pool

    def reached(self, pool: ModelPool) -> None:
        """There is a new connection to an engine of a model."""
        if self.waits.unreached:
            self.waits.reached(pool.name)
            self.serve()

    def unpark(self, exchange: Exchange) -> None:
        """A request waits no longer."""
        self.waits.leave(exchange, self.loop.time())

    def serve(self) -> None:
        """Start what waits and need not: slots, engines or models have changed."""
        if self.waits:
            self.waits.serve(self.loop.time())

    def adopted(self) -> None:
        """A document was adopted."""
        for waiter in [w for w in self.waits.without_engine() if not self.serves(w.pool)]:
            self.waits.leave(waiter, self.loop.time())
            waiter.expired(1)
        self.waits.reached()
        for name, pool in list(self.waits.pools.items()):
            if self.fleet.models.get(name) is not pool and pool.room is not None:
                for ticket in list(pool.room):
                    self.unpark(ticket.key)
                    ticket.key.expired(1)
        self.serve()

    def rooms(self) -> dict[str, Room]:
        """Say who waits for which engines, to the routers that share them; who was just turned away counts too."""
        rooms, now = {}, self.loop.time()
        for name, pool in self.fleet.models.items():
            beside = self.metrics.model(name).refusals[Code.OVERLOADED] - self._refused[0].get(name, 0)
            beside += self.jobs.waiting(name) if self.jobs is not None else 0
            waiting = self.waiting(name)
            if waiting or beside:
                engines = [key_of(c.backend) for group in pool.groups() for c in group.open]
                rooms[name] = Room(engines, waiting, pool.room.oldest(now) if pool.room is not None else 0.0, beside)
        return rooms

    def decided(self, more: bool) -> None:
        """The slots of this router were set anew; with more of them, requests that wait may start."""
        counts = {name: self.metrics.model(name).refusals[Code.OVERLOADED] for name in self.fleet.models}
        self._refused = (self._refused[1], counts)
        if more:
            self.serve()

    def next_id(self) -> bytes:
        """Return a new request id."""
        return next(self.ids)

    def failed(self, backend: Backend, *, severed: bool) -> None:
        """An engine lost an attempt: look whether it should be left out."""
        now = self.loop.time()
        why = backend.vitals.failed(now, self.rules, severed=severed)
        if why is not None:
            self._leave_out(backend, why, now)
        if backend.vitals.doubt(now):
            self.fleet.reopen()

    def confessed(self, backend: Backend) -> None:
        """An engine said that it will answer nothing more."""
        if not backend.vitals.dead:
            self._leave_out(backend, Why.DEAD, self.loop.time())

    def checked(self, backend: Backend, *, alive: bool) -> None:
        """A health check of an engine ended. One that is too busy for it, but sends tokens, is alive."""
        now = self.loop.time()
        alive = alive or self._heard(backend, now - self.settings.health.check_timeout_seconds)
        was_lost = backend.vitals.lost
        why = backend.vitals.checked(now, self.rules, alive=alive)
        if why is not None:
            self._leave_out(backend, why, now)
        elif was_lost and alive:
            self._take_back(backend)
        if backend.vitals.lost and not alive and not self.fleet.panics(backend):
            # From the loop: the exchanges that are freed may be the ones that are on the way here.
            self.loop.call_soon(self._free, backend)

    def _leave_out(self, backend: Backend, why: Why, now: float) -> None:
        if why not in CERTAIN and not self.fleet.may_eject(backend, self.settings.health.max_ejected_share):
            return
        backend.vitals.out(why, now, self.rules)
        self.fleet.reopen()
        fields = {"llmcluster": backend.instance, "reason": str(why), "seconds": round(backend.vitals.until - now, 1)}
        log.warning("engine left out", extra={"fields": fields})

    def _take_back(self, backend: Backend) -> None:
        self.fleet.reopen()
        log.info("engine taken back", extra={"fields": {"llmcluster": backend.instance}})
        self.waits.reached()
        self.serve()

    def exchanges(self) -> Iterator[Exchange]:
        """Go over every request on its way."""
        for client in list(self.clients):
            if isinstance(client._exchange, Exchange):
                yield client._exchange
        if self.jobs is not None:
            yield from self.jobs.exchanges()

    def _heard(self, backend: Backend, since: float) -> bool:
        return any(e.at(backend) and e.last > max(since, e.started) for e in self.exchanges())

    def _free(self, backend: Backend) -> None:
        """Let what waits for the first word of a lost engine go to another one at once."""
        for exchange in self.exchanges():
            if exchange.at(backend):
                exchange.engine_lost()

    def account(self, record: Exchange, outcome: str) -> None:
        """A request is over: count it. The exchange itself is the record."""
        stats = record.stats
        stats.in_flight -= 1
        stats.requests[(record.answer.status, outcome)] += 1
        room = record.pool.room
        if room is not None and record.attempts:
            room.drain.released(self.loop.time() - record.started - record.queued, room.drain.slots)
        tenant, used = record.tenant, None
        if record.engine is not None:  # an answer from the cache says nothing of engines
            if outcome == "complete":
                stats.duration.observe(record.last - record.started)
            used = record.answer.used(record.size, outcome in ("truncated", "aborted"))
        if used is not None:
            stats.count_tokens(tenant.name, used.prompt, used.completion)
        if record.lease is not None:
            record.lease.settle(used.prompt + used.completion if used is not None else 0)
        if self.records is not None:
            self.records.append(
                Record(
                    record.last + self.wall_offset,
                    record.request_id,
                    tenant.name,
                    record.pool.name,
                    record.route.path,
                    record.answer.status,
                    outcome,
                    record.reason,
                    record.attempts,
                    record.engine.instance if record.engine is not None else "",
                    record.queued,
                    record.ttft,
                    record.last - record.started,
                    used,
                )
            )

    def refused(
        self, request_id: bytes, tenant: Tenant, path: bytes, status: int, code: str, outcome: str = "refused"
    ) -> None:
        """A request was refused before it came to an exchange, or answered about a job."""
        if self.records is not None:
            route = path if policy.allowed_method(path) else b""  # only what is on the list is written down
            for prefix in (policy.MODEL_PREFIX, policy.REQUESTS_PREFIX):
                route = prefix if path.startswith(prefix) else route
            at = self.loop.time() + self.wall_offset
            self.records.append(
                Record(
                    request_id=request_id,
                    tenant=tenant.name,
                    model="",
                    route=route,
                    status=status,
                    outcome=outcome,
                    reason=code,
                    at=at,
                )
            )

    def tenant(self, name: str) -> Tenant | None:
        """Return a tenant by name, as far as the keys file still knows it."""
        if not self.keyed:
            return ANONYMOUS
        return self.keyring.tenants.get(name) if self.keyring is not None else None

    def pool(self, model: str) -> ModelPool:
        """Return the pool of a served model."""
        if not self.loaded:
            raise errors.overloaded(Code.NOT_READY, "the router has not read a backends document yet")
        pool = self.fleet.models.get(model)
        if pool is None:
            raise policy.unknown_model(model)
        return pool

    def state(self) -> str:
        """Say in a word or two whether requests may come."""
        if self.draining:
            return "draining"
        if self.keyed and self.keyring is None:
            return "no keys file"
        return "ready" if self.loaded else "no backends document"

    def busy(self) -> int:
        """Count connections with a request being read or answered, and jobs being run."""
        jobs = self.jobs.busy if self.jobs is not None else 0
        return jobs + sum(client.busy for client in self.clients)

    def close_idle(self) -> bool:
        """Close connections that wait for a next request; says whether some are still expected to send their first."""
        since = self.loop.time() - FIRST_REQUEST_SECONDS
        idle = [client for client in self.clients if not client.busy]
        for client in idle:
            if client.made_at < since:
                client.transport.close()
        return any(client.made_at >= since for client in idle)

    def sweep(self, now: float) -> None:
        """Enforce every timeout; called a few times a second."""
        for client in list(self.clients):
            client.check(now)
        max_idle = self.settings.timeouts.upstream_idle_seconds
        window, checked = self.settings.retries.window_seconds, self.settings.health.check_seconds > 0
        for pool in self.fleet.models.values():
            pool.budget.mark(now, window)
        if self.quarantine.suspects:
            self.quarantine.forget(now)
        if self.waits:
            self._sweep_rooms(now)
        for backend in list(self.fleet.backends.values()):
            self._look_after(backend, now, checked=checked)
            while backend.idle and now - backend.idle[0].idle_since >= max_idle:
                backend.idle.pop(0).transport.abort()

    def _sweep_rooms(self, now: float) -> None:
        for waiter in self.waits.expire(now):
            room = waiter.pool.room
            waiter.expired(retry_after(room, now) if room is not None else 1)
        self.waits.serve(now)

    def _look_after(self, backend: Backend, now: float, *, checked: bool) -> None:
        vitals = backend.vitals
        if vitals.tick(now, self.rules, checked=checked):
            self._take_back(backend)
        if vitals.doubt(now):
            self.fleet.reopen()
        why = vitals.counted(now, backend.picks, backend.failures, self.rules)
        if why is not None:
            self._leave_out(backend, why, now)


def _rules(settings: Settings) -> Rules:
    health = settings.health
    return Rules(
        consecutive=health.consecutive_failures,
        severed=health.lost_connections,
        ratio=health.failure_ratio,
        least=health.failure_ratio_requests,
        base=health.ejection_seconds,
        longest=health.max_ejection_seconds,
        checks=health.check_failures,
    )
