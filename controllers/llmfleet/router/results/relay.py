"""Requests that may have been answered before: looked for in Redis, for a moment, before an engine is asked.

In: an exchange that has not been started. Out: the same exchange, answered from the cache or started; and if an engine
answers it whole, its answer kept. Redis costs a request at most `resultCache.lookupSeconds`, and never an error.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from llmfleet.router.answer import OVER
from llmfleet.router.engines.relay import Requester
from llmfleet.router.jobs.relay import is_whole
from llmfleet.router.jobs.troubles import Unavailable
from llmfleet.router.pick import ModelPool
from llmfleet.router.policy import Admitted
from llmfleet.router.relay import Exchange
from llmfleet.router.results import plan
from llmfleet.router.results.client import Shelf
from llmfleet.router.results.plan import Entry, Wish

if TYPE_CHECKING:  # the router knows its cache
    from llmfleet.router.proxy import Router

log = logging.getLogger(__name__)

MARK: Final = b"x-llmfleet-cache"


class Results:
    """The result cache of one router process."""

    def __init__(self, router: Router) -> None:
        self.router, self.rules = router, router.settings.result_cache
        self.shelf = Shelf(router.settings, router.loop)
        self._revisions: dict[str, str] = {}  # of models that may sleep now, as engines were last seen
        self._storing: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to reach for Redis."""
        self.shelf.start()

    async def close(self) -> None:
        """Let go of Redis; what is being kept is lost."""
        for task in list(self._storing):
            task.cancel()
        await self.shelf.close()

    def described(self) -> dict[str, str]:
        """Say for `/fleet` why the cache is not used."""
        return {"problem": self.shelf.problem or ("Redis has no room for answers" if self.shelf.full else "")}

    def now(self) -> float:
        """Return the time by the wall clock, as other routers have it."""
        return self.router.loop.time() + self.router.wall_offset

    # ---- lookups ----

    def begin(self, exchange: Exchange, admitted: Admitted, head: bytes) -> None:
        """Answer a request from the cache if that may be, or start it."""
        if not plan.eligible(exchange.route, admitted):
            exchange.start()
            return
        wish = plan.wish(head)
        revision = self.revision(exchange.pool)
        key = None
        if wish.store and revision is not None:
            key = plan.key_of(exchange.tenant.name, admitted, exchange.route, exchange.fields, revision)
        if key is None or revision is None:
            exchange.start()
        else:
            self._ask(exchange, key, revision, wish)

    def _ask(self, exchange: Exchange, key: str, revision: str, wish: Wish) -> None:
        if wish.max_age < 0:
            self.missed(exchange, key, revision, "bypassed")
        elif self.shelf.ready:
            Lookup(self, exchange, key, revision, wish)
        else:
            self.missed(exchange, key, revision, "unavailable")

    def revision(self, pool: ModelPool) -> str | None:
        """Say of which revision an answer would be; of a model without engines, as of those it had last."""
        found = plan.revision_of(pool)
        if found:
            self._revisions[pool.name] = found
        elif found == "":
            found = self._revisions.get(pool.name)
        return found

    def missed(self, exchange: Exchange, key: str, revision: str, why: str) -> None:
        """Let an engine answer, and listen."""
        self.router.metrics.result_lookups[(exchange.pool.name, why)] += 1
        exchange.answer.note(MARK, b"miss")
        if not self.shelf.problem:
            exchange.overheard(lambda client: Listener(client, self, exchange, key, revision))
        exchange.start()

    def hit(self, exchange: Exchange, entry: Entry) -> None:
        """Give an answer again."""
        self.router.metrics.result_lookups[(exchange.pool.name, "hit")] += 1
        exchange.repeat(entry.body, entry.content_type, plan.age_fields(entry, self.now()))

    # ---- answers ----

    def heard(self, exchange: Exchange, key: str, revision: str, raw: bytes) -> None:
        """An answer is over: keep it if it is whole and its engine is of the revision that was asked for."""
        now = self.revision(exchange.pool)
        entry = None
        if is_whole(exchange) and plan.still(revision, now, exchange.engine):
            entry = plan.answer_in(raw, exchange.route.dialect)
        if entry is None:
            self._count(exchange.pool, "unfit")
            return
        task = self.router.loop.create_task(self._keep(exchange.pool, key, entry))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _keep(self, pool: ModelPool, key: str, entry: Entry) -> None:
        try:
            self._count(pool, await self.shelf.keep(key, plan.written(entry, key, self.now())))
        except Unavailable:
            self._count(pool, "failed")

    def too_long(self, exchange: Exchange) -> None:
        """An answer is longer than what is kept."""
        self._count(exchange.pool, "too_long")

    def _count(self, pool: ModelPool, what: str) -> None:
        self.router.metrics.result_stores[(pool.name, what)] += 1


class Lookup:
    """One question to Redis, and what follows from the answer or from its being late."""

    __slots__ = ("_exchange", "_key", "_results", "_revision", "_task", "_timer", "_wish")

    def __init__(self, results: Results, exchange: Exchange, key: str, revision: str, wish: Wish) -> None:
        self._results, self._exchange = results, exchange
        self._key, self._revision, self._wish = key, revision, wish
        loop, rules = results.router.loop, results.rules
        self._timer: asyncio.TimerHandle | None = loop.call_later(rules.lookup_seconds, self._late)
        self._task = loop.create_task(results.shelf.fetch(key))
        self._task.add_done_callback(self._found)

    def _late(self) -> None:
        """Redis has not answered in time: nobody waits for what it says now."""
        self._timer = None
        self._results.shelf.late()
        self._task.cancel()
        self._go("unavailable")

    def _found(self, task: asyncio.Task[bytes | None]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if self._timer is None:
            return
        self._timer.cancel()
        if failed:
            self._go("unavailable")
            return
        data = task.result()
        entry = None if data is None else plan.read(data, self._key)
        if entry is not None and entry.age(self._results.now()) <= self._wish.max_age:
            self._answer(entry)
        else:
            self._go("miss" if data is None or entry is not None else "corrupt")

    def _answer(self, entry: Entry) -> None:
        if self._exchange.answer.stage is not OVER:
            self._results.hit(self._exchange, entry)

    def _go(self, why: str) -> None:
        """Let an engine answer, unless the client has left or the process ends."""
        if self._exchange.answer.stage is not OVER:
            self._results.missed(self._exchange, self._key, self._revision, why)


class Listener:
    """Stands between an exchange and its client, and remembers what went through as long as it is not too long."""

    __slots__ = ("_client", "_exchange", "_key", "_limit", "_pieces", "_results", "_revision", "_size")

    def __init__(self, client: Requester, results: Results, exchange: Exchange, key: str, revision: str) -> None:
        self._client, self._results, self._exchange = client, results, exchange
        self._key, self._revision = key, revision
        self._limit = results.rules.max_entry_bytes
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def blocked(self) -> bool:
        """Whether the client takes no bytes at the moment."""
        return self._client.blocked

    def write(self, data: bytes) -> None:
        """Send bytes on, then remember them."""
        self._client.write(data)
        self._size += len(data)
        if self._size <= self._limit:
            self._pieces.append(data)
        else:
            self._pieces.clear()

    def reset(self) -> None:
        """The answer broke."""
        self._client.reset()

    def answered(self, keep_alive: bool) -> None:
        """The answer is over: the client first, then the cache."""
        self._client.answered(keep_alive)
        try:
            if self._size > self._limit:
                self._results.too_long(self._exchange)
            else:
                self._results.heard(self._exchange, self._key, self._revision, b"".join(self._pieces))
        except Exception:  # the client has its answer
            log.exception("an answer could not be kept")

    def patient(self) -> bool:
        """Whether the client would rather wait."""
        return self._client.patient()
