"""The waiting rooms of all models of a process: who may wait for a slot, and who starts when there is one.

In: requests that found no slot, and the moments at which there may be one. Out: the same requests, started in the
order their rooms say; or a refusal. All rooms together hold so many bytes of bodies at most. A request that could start
never waits: whoever frees a slot calls `serve`, and nobody passes a room that is not empty. It never reads a clock or
answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from llmfleet.router.keys import Tenant
from llmfleet.router.limits import Queue
from llmfleet.router.pick import Backend, ModelPool
from llmfleet.router.queue import MAX_RETRY_AFTER, MIN_RETRY_AFTER, Reason, Rejected, Waiting, WaitingRoom

FALLBACK_RETRY_AFTER: Final = 2
FIRST_PAUSE_SECONDS: Final = 0.25  # after a try that reached no engine, then twice as long each time
LONGEST_PAUSE_SECONDS: Final = 2.0
TRY_SECONDS: Final = 1.0  # until another one tries beside one that has not failed yet


class Waiter(Protocol):
    """A request that waits."""

    pool: ModelPool
    size: int
    tenant: Tenant
    ticket: Waiting | None
    tries: bool  # whether an engine can be reached, for all who wait for that

    def choose(self) -> Backend | None:
        """Return an engine with a free slot for it."""

    def go(self, backend: Backend, now: float) -> None:
        """It has waited long enough."""

    def expired(self, retry_after: int) -> None:
        """It has waited as long as it may."""


class Unreached:
    """The requests of one model that no engine was reached for: one at a time tries whether one can be now."""

    __slots__ = ("before", "by_tenant", "open", "pause", "waiters")

    def __init__(self) -> None:
        self.waiters: dict[Waiter, None] = {}  # in the order of their arrival
        self.by_tenant: Counter[str] = Counter()
        self.pause = 0.0  # seconds from the last try that failed to the next one
        self.before = 0.0  # nobody tries before
        self.open = False  # an engine was reached: they all may start

    def add(self, waiter: Waiter, now: float) -> None:
        """Nothing was reached for one more; a try that failed makes the others wait longer."""
        self.waiters[waiter] = None
        self.by_tenant[waiter.tenant.name] += 1
        if self.open or now >= self.before or waiter.tries:
            self.open = False
            self.pause = min(self.pause * 2 or FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            self.before = now + self.pause
        waiter.tries = False

    def remove(self, waiter: Waiter) -> None:
        """One waits no longer."""
        del self.waiters[waiter]
        self.by_tenant[waiter.tenant.name] -= 1

    def turn(self, now: float) -> Waiter | None:
        """Return who may try, if anybody may."""
        return next(iter(self.waiters), None) if self.open or now >= self.before else None


class Waits:
    """Every room that somebody waits in."""

    __slots__ = ("_queue", "_serving", "_split_capacity", "again", "bytes", "part", "pools", "unreached")

    def __init__(self, queue: Queue, split_capacity: int) -> None:
        self._queue = queue
        self._split_capacity = split_capacity  # of a model whose requests are split over two engines
        self._serving = False
        self.pools: dict[str, ModelPool] = {}  # those with somebody waiting
        # Those whose engine was lost: they want another one, come first, and hold nobody up who does not mind which.
        self.again: list[Waiter] = []
        self.unreached: dict[str, Unreached] = {}  # by model
        self.bytes = 0
        # What of a bound on a model's waiting requests is this router's: of bound, model, and how many wait here.
        self.part: Callable[[int, str, int], int] = lambda bound, model, waiting: bound

    def enter(self, waiter: Waiter, now: float, *, hold: float | None, beside: int) -> Rejected | None:
        """Let a request wait; `beside` is what bodies of other requests hold of the same memory."""
        pool, tenant = waiter.pool, waiter.tenant
        room = pool.room
        if room is None:
            room = pool.room = WaitingRoom(self._capacity(pool), self._queue.max_waiting_bytes, self._queue.ttl_seconds)
            room.drain.slots = pool.slots()
        if self.bytes + beside + waiter.size > self._queue.max_waiting_bytes:
            return Rejected(reason=Reason.BYTES, retry_after=retry_after(room, now))
        ticket = Waiting(
            key=waiter,
            enqueued_at=now,
            tenant=tenant.name,
            weight=tenant.weight,
            klass=tenant.klass,
            size=waiter.size,
            share=tenant.queue_share,
        )
        result = room.enter(ticket, now, hold)
        if isinstance(result, Rejected):
            return result
        waiter.ticket = ticket
        self.bytes += ticket.size
        self.pools[pool.name] = pool
        return None

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self.pools or self.again or self.unreached)

    def enter_unreached(self, waiter: Waiter, now: float, until: float, beside: int) -> bool:
        """Let a request wait that no engine was reached for, within the bounds of those who wait for a slot."""
        pool, tenant = waiter.pool, waiter.tenant
        held = self.unreached.get(pool.name) or Unreached()
        capacity = self._capacity(pool)
        full = self.waiting(pool.name) >= capacity or held.by_tenant[tenant.name] >= max(
            1, capacity * tenant.queue_share
        )
        if full or self.bytes + beside + waiter.size > self._queue.max_waiting_bytes:
            return False
        self.unreached[pool.name] = held
        held.add(waiter, now)
        waiter.ticket = ticket = Waiting(key=waiter, enqueued_at=now, size=waiter.size)
        ticket.until = until
        self.bytes += ticket.size
        return True

    def reached(self, model: str | None = None) -> None:
        """An engine of a model was reached; without a model: anything may have changed, all may try."""
        for name, held in self.unreached.items():
            if name == model:
                held.open, held.pause = True, 0.0
            elif model is None:
                held.before = held.pause = 0.0

    def without_engine(self) -> list[Waiter]:
        """List those who had an engine picked for them, and lost it or never reached it."""
        return [*self.again, *(waiter for held in self.unreached.values() for waiter in held.waiters)]

    def enter_again(self, waiter: Waiter, now: float, until: float) -> None:
        """Let a request wait whose engine was lost; it had a slot, so there are no more of these than slots."""
        waiter.ticket = ticket = Waiting(key=waiter, enqueued_at=now, size=waiter.size)
        ticket.until = until
        self.again.append(waiter)
        self.bytes += ticket.size

    def leave(self, waiter: Waiter, now: float) -> None:
        """A request is no longer wanted."""
        ticket, room = waiter.ticket, waiter.pool.room
        held = self.unreached.get(waiter.pool.name)
        waiter.ticket = None
        if held is not None and waiter in held.waiters:
            held.remove(waiter)
            self.bytes -= waiter.size
        elif waiter in self.again:
            self.again.remove(waiter)
            self.bytes -= waiter.size
        elif ticket is not None and room is not None and room.remove(ticket, now):
            self._gone(ticket, waiter.pool)

    def serve(self, now: float) -> None:
        """Start every request that has a slot and its turn. A start that fails may free a slot again: no recursion."""
        if self._serving:
            return
        self._serving = True
        try:
            started = True
            while started:
                started = self._next_again(now) or self._next_unreached(now)
                for pool in list(self.pools.values()):
                    started |= self._next(pool, now)
        finally:
            self._serving = False

    def _next_again(self, now: float) -> bool:
        for waiter in self.again:
            backend = waiter.choose()
            if backend is not None:
                self.leave(waiter, now)
                waiter.go(backend, now)
                return True
        return False

    def _next_unreached(self, now: float) -> bool:
        for held in list(self.unreached.values()):
            waiter = held.turn(now)
            backend = waiter.choose() if waiter is not None else None
            if waiter is not None and backend is not None:
                if not held.open:
                    waiter.tries = True
                    held.before = now + TRY_SECONDS
                self.leave(waiter, now)
                waiter.go(backend, now)
                return True
        return False

    def _next(self, pool: ModelPool, now: float) -> bool:
        """Start the request of one model whose turn it is; models that share an engine take turns."""
        room = pool.room
        ticket = room.peek(now) if room is not None else None
        if room is None or ticket is None:
            return False
        waiter: Waiter = ticket.key
        backend = waiter.choose()
        if backend is None:
            return False
        room.pop(now)
        self._gone(ticket, pool)
        waiter.ticket = None
        waiter.go(backend, now)
        return True

    def expire(self, now: float) -> list[Waiter]:
        """Take out who waited as long as they may, and those whose model is gone."""
        expired = [w for w in self.without_engine() if w.ticket is not None and w.ticket.until <= now]
        for waiter in expired:
            self.leave(waiter, now)
        for name in [n for n, model in self.unreached.items() if not model.waiters and now >= model.before]:
            del self.unreached[name]
        for pool in list(self.pools.values()):
            room = pool.room
            if room is None:
                continue
            room.limit_count = self._capacity(pool)
            room.drain.slots = pool.slots()
            for ticket in room.expire(now):
                self._gone(ticket, pool)
                ticket.key.ticket = None
                expired.append(ticket.key)
        return expired

    def waiting(self, model: str) -> int:
        """Count those who wait for a slot of a model."""
        pool = self.pools.get(model)
        count = len(pool.room) if pool is not None and pool.room is not None else 0
        if model in self.unreached:
            count += len(self.unreached[model].waiters)
        return count + sum(waiter.pool.name == model for waiter in self.again)

    def _capacity(self, pool: ModelPool) -> int:
        capacity = self._queue.capacity
        if pool.disaggregated:
            capacity = min(capacity, self._split_capacity)
        return self.part(capacity, pool.name, len(pool.room) if pool.room is not None else 0)

    def _gone(self, ticket: Waiting, pool: ModelPool) -> None:
        self.bytes -= ticket.size
        if pool.room is None or pool.room.left_by_all:
            self.pools.pop(pool.name, None)


def retry_after(room: WaitingRoom, now: float) -> int:
    """Say when it may be worth trying again."""
    wait = room.estimate(now, len(room))
    seconds = FALLBACK_RETRY_AFTER if wait is None else int(wait / 4) + 1
    return min(max(seconds, MIN_RETRY_AFTER), MAX_RETRY_AFTER)


MESSAGES: Final = {
    Reason.FULL: "as many requests of this model wait as may",
    Reason.BYTES: "the requests that wait hold as much memory as they may",
    Reason.SHARE: "as many of your requests wait as may",
    Reason.TOO_LONG: "this request would wait longer than it may",
}
SATURATED: Final = "decode capacity saturated"


def why_rejected(reason: Reason, pool: ModelPool) -> str:
    """Say why a request may not wait."""
    return SATURATED if reason is Reason.FULL and pool.disaggregated else MESSAGES[reason]
