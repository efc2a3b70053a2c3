"""Where requests of one model wait for a slot: bounded, fair between tenants, never longer than it is worth.

In: requests that found no slot, and the moments when slots became free. Out: the request whose turn it is, those that
waited too long, or a refusal at arrival with the seconds after which to try again. Turns are by virtual time, twice:
between classes (a class gets `CLASS_RATIO` times the turns of the next lower one while both wait, so none starves) and
inside a class between tenants by weight. A tenant that was away has no turns saved up. It never reads a clock, starts
a request or answers one.

A slot that is free while somebody waits belongs to who waits: the caller lets nobody past a room that is not empty.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from math import ceil, exp, inf
from typing import Any, Final

CLASS_RATIO: Final = 8.0
MEMORY_SECONDS: Final = 30.0  # of time with somebody waiting; what the drain rate remembers
FORGET_SECONDS: Final = 300.0  # nobody waited for so long: the fleet may be another one
EVIDENCE: Final = 4.0  # releases seen while somebody waited, before they are believed alone
PRIOR: Final = 8.0  # releases that slots divided by holding time is worth
HELD_SAMPLES: Final = 32
MIN_RETRY_AFTER: Final = 1
MAX_RETRY_AFTER: Final = 30  # SDKs do not retry at all after 120
UNKNOWN_RETRY_AFTER: Final = 2.0
_SPREAD: Final = 0.6180339887498949  # the golden ratio spreads consecutive answers most evenly


class Reason(StrEnum):
    """Why a request may not wait."""

    FULL = "queue_full"
    BYTES = "queue_bytes"
    SHARE = "queue_share"  # this tenant's part of the room is full
    TOO_LONG = "wait_too_long"  # the estimate is above what the request may wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    reason: Reason
    retry_after: int
    wait: float | None = None  # the estimate, if there is one


@dataclass(slots=True, kw_only=True, eq=False)
class Waiting:
    """One request in a room; `number` and `until` are the room's."""

    key: Any  # whatever the caller needs to start it
    enqueued_at: float
    tenant: str = ""
    weight: float = 1.0
    klass: int = 1  # 0 goes first
    size: int = 0
    share: float = 1.0  # of the room that its tenant may fill
    deadline: float = inf
    number: int = field(default=-1, init=False)
    until: float = field(default=inf, init=False)


class DrainRate:
    """How many requests per second leave the room, measured only while somebody waits.

    Before that was seen often enough, slots divided by how long a slot is held say the same: that is the rate of
    releases when every slot is taken. A stall counts: time without a release lowers the rate while it passes.
    """

    __slots__ = ("_busy", "_count", "_ended", "_held", "_mark", "_samples", "slots")

    def __init__(self) -> None:
        self._count = self._busy = 0.0
        self._mark: float | None = None
        self._ended = -inf
        self._held = 0.0
        self._samples = 0
        self.slots = 0

    def begin(self, now: float) -> None:
        """Somebody waits, from now on if nobody did before."""
        if self._mark is None:
            if now - self._ended > FORGET_SECONDS:
                self._count = self._busy = 0.0
            self._mark = now

    def end(self, now: float) -> None:
        """Nobody waits any more, or for something else than a slot."""
        if self._mark is not None:
            self._count, self._busy = self._at(now)
            self._mark, self._ended = None, now

    def left(self, now: float) -> None:
        """One request got its slot. The first one after a pause only starts the clock again."""
        if self._mark is not None:
            self._count, self._busy = self._at(now)
            self._count += 1.0
        self._mark = now

    def released(self, held: float, slots: int) -> None:
        """A slot was given back after `held` seconds; `slots` is how many there are."""
        self._samples = min(self._samples + 1, HELD_SAMPLES)
        self._held += (held - self._held) / self._samples
        self.slots = slots

    def _at(self, now: float) -> tuple[float, float]:
        passed = max(0.0, now - self._mark) if self._mark is not None else 0.0
        fade = exp(-passed / MEMORY_SECONDS)
        return self._count * fade, self._busy * fade + passed

    def per_second(self, now: float) -> float | None:
        """Return the rate, or None without evidence."""
        released, seconds = self._at(now)
        if self.slots > 0 and self._held > 0.0:
            released += PRIOR
            seconds += PRIOR * self._held / self.slots
        elif released < EVIDENCE:
            return None
        return released / seconds if seconds > 0.0 else None


class _Lane:
    """The waiting requests of one tenant in one class, first come first served."""

    __slots__ = ("finish", "line", "weight")

    def __init__(self) -> None:
        self.line: OrderedDict[int, Waiting] = OrderedDict()
        self.weight = 1.0
        self.finish = 0.0


class _Rank:
    """One class: its tenants' lanes in the order of their virtual finish times."""

    __slots__ = ("clock", "finish", "heap", "lanes", "size", "weight", "weights")

    def __init__(self, klass: int) -> None:
        self.weight = CLASS_RATIO**-klass
        self.finish = 0.0
        self.clock = 0.0
        self.lanes: dict[str, _Lane] = {}
        self.heap: list[tuple[float, int, str]] = []
        self.size = 0
        self.weights = 0.0  # of the lanes that are not empty

    def first(self) -> _Lane | None:
        """Return the lane whose turn it is, dropping those that emptied."""
        while self.heap:
            lane = self.lanes[self.heap[0][2]]
            if lane.line:
                return lane
            del self.lanes[heappop(self.heap)[2]]
        return None


class WaitingRoom:
    """The waiting requests of one model. `limit_count` and `ttl` may be changed at any time."""

    def __init__(self, limit_count: int, limit_bytes: int, ttl: float = 60.0) -> None:
        self.limit_count, self.limit_bytes, self.ttl = limit_count, limit_bytes, ttl
        self.drain = DrainRate()
        self.bytes = 0
        self._ranks: dict[int, _Rank] = {}
        self._order: list[_Rank] = []  # most urgent class first
        self._clock = 0.0
        self._live: dict[int, Waiting] = {}
        self._held: dict[str, tuple[int, int]] = {}  # requests and bytes of each tenant
        self._expiry: list[tuple[float, int]] = []
        self._overdue: list[Waiting] = []  # met by a turn before `expire` came by
        self._numbers = count()
        self._refused = 0

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Waiting]:
        return iter([*self._overdue, *self._live.values()])

    @property
    def left_by_all(self) -> bool:
        """Whether nobody is here, not even one whose time is up and who is still to be told."""
        return not self._live and not self._overdue

    # ---- arriving ----

    def enter(self, ticket: Waiting, now: float, hold: float | None = None) -> Waiting | Rejected:
        """Let a request wait, or say why not.

        With `hold` it waits for an engine to appear, that long at most: no drain rate can say when that is.
        """
        ticket.until = min(ticket.enqueued_at + (self.ttl if hold is None else hold), ticket.deadline)
        refusal = self._no_room(ticket, now) or self._too_long(ticket, now, hold)
        if refusal is not None:
            return refusal
        if hold is None:
            self.drain.begin(now)
        else:
            self.drain.end(now)
        self._put(ticket)
        return ticket

    def _no_room(self, ticket: Waiting, now: float) -> Rejected | None:
        waiting, size = self._held.get(ticket.tenant, (0, 0))
        if len(self._live) >= self.limit_count:
            return self._reject(Reason.FULL, now, len(self._live))
        if self.bytes + ticket.size > self.limit_bytes:
            return self._reject(Reason.BYTES, now, len(self._live))
        share = min(ticket.share, 1.0)
        if share < 1.0 and (
            waiting >= max(1, int(share * self.limit_count)) or size + ticket.size > share * self.limit_bytes
        ):
            return self._reject(Reason.SHARE, now, self.ahead(ticket))
        return None

    def _too_long(self, ticket: Waiting, now: float, hold: float | None) -> Rejected | None:
        if ticket.until <= now:
            return self._reject(Reason.TOO_LONG, now, self.ahead(ticket))
        if hold is not None:
            return None
        wait = self.estimate(now, self.ahead(ticket))
        if wait is None or now + wait <= ticket.until:
            return None
        return Rejected(
            reason=Reason.TOO_LONG, retry_after=self._spread(max(wait - (ticket.until - now), wait / 4)), wait=wait
        )

    def _reject(self, reason: Reason, now: float, ahead: int) -> Rejected:
        wait = self.estimate(now, ahead)
        return Rejected(reason=reason, retry_after=self._spread(wait and wait / 4), wait=wait)

    def _spread(self, seconds: float | None) -> int:
        """Whole seconds, up to a quarter more or less from one to the next, so that not all come back at once."""
        self._refused += 1
        jitter = 0.75 + 0.5 * (self._refused * _SPREAD % 1.0)
        wanted = UNKNOWN_RETRY_AFTER if seconds is None else seconds
        return min(max(ceil(min(wanted, 1e6) * jitter), MIN_RETRY_AFTER), MAX_RETRY_AFTER)

    def ahead(self, ticket: Waiting) -> int:
        """Say how many would get a slot before a request that arrived now.

        From sums alone: too high by what other tenants have not queued, too low by one turn for each of them at most.
        """
        rank = self._ranks.get(ticket.klass)
        lane = rank.lanes.get(ticket.tenant) if rank is not None else None
        before = len(lane.line) if lane is not None else 0
        weight = max(ticket.weight, 1e-9)
        others = rank.weights - (lane.weight if lane is not None and lane.line else 0.0) if rank is not None else 0.0
        inside = min(float(rank.size), (before + 1) * (others + weight) / weight - 1) if rank is not None else 0.0
        urgency = CLASS_RATIO**-ticket.klass
        beside = sum(min(r.size, (inside + 1) * r.weight / urgency) for r in self._order if r is not rank)
        return ceil(inside + beside - 1e-9)

    def estimate(self, now: float, ahead: int) -> float | None:
        """Return the seconds until a request with so many before it gets a slot, or None without evidence."""
        rate = self.drain.per_second(now)
        return (ahead + 1) / rate if rate else None

    def _put(self, ticket: Waiting) -> None:
        ticket.number = number = next(self._numbers)
        self._live[number] = ticket
        self.bytes += ticket.size
        waiting, size = self._held.get(ticket.tenant, (0, 0))
        self._held[ticket.tenant] = (waiting + 1, size + ticket.size)
        if len(self._expiry) > 2 * len(self._live) + 64:
            self._expiry = [(t.until, n) for n, t in self._live.items()]
            heapify(self._expiry)
        else:
            heappush(self._expiry, (ticket.until, number))
        self._queue(self._rank(ticket.klass), ticket)

    def _rank(self, klass: int) -> _Rank:
        rank = self._ranks.get(klass)
        if rank is None:
            rank = self._ranks[klass] = _Rank(klass)
            self._order = [self._ranks[k] for k in sorted(self._ranks)]
        return rank

    def _queue(self, rank: _Rank, ticket: Waiting) -> None:
        if not rank.size and rank.finish <= self._clock:
            rank.finish = self._clock + 1.0 / rank.weight
        rank.size += 1
        lane = rank.lanes.get(ticket.tenant)
        if lane is None:
            lane = rank.lanes[ticket.tenant] = _Lane()
            lane.finish = rank.clock + 1.0 / max(ticket.weight, 1e-9)
            heappush(rank.heap, (lane.finish, ticket.number, ticket.tenant))
        rank.weights += max(ticket.weight, 1e-9) - (lane.weight if lane.line else 0.0)
        lane.weight = max(ticket.weight, 1e-9)
        lane.line[ticket.number] = ticket

    # ---- leaving ----

    def peek(self, now: float) -> Waiting | None:
        """Return the request whose turn it is; it stays."""
        found = self._front(now)
        return found[2] if found is not None else None

    def pop(self, now: float) -> Waiting | None:
        """Take the request whose turn it is; a turn is paid for here."""
        found = self._front(now)
        if found is None:
            return None
        rank, lane, ticket = found
        self._clock = max(self._clock, rank.finish)
        rank.finish += 1.0 / rank.weight
        rank.clock = max(rank.clock, lane.finish)
        lane.finish += 1.0 / lane.weight
        heapreplace(rank.heap, (lane.finish, ticket.number, ticket.tenant))
        self.drain.left(now)
        self._take_out(ticket, now)
        return ticket

    def _front(self, now: float) -> tuple[_Rank, _Lane, Waiting] | None:
        while self._live:
            rank = min((r for r in self._order if r.size), key=lambda r: r.finish)
            lane = rank.first()
            assert lane is not None  # a rank with a size has a lane that is not empty
            ticket = next(iter(lane.line.values()))
            if ticket.until > now:
                return rank, lane, ticket
            self._take_out(ticket, now)
            self._overdue.append(ticket)
        return None

    def remove(self, ticket: Waiting, now: float) -> bool:
        """Take out a request that is no longer wanted; False if it does not wait here."""
        if ticket in self._overdue:
            self._overdue.remove(ticket)
            return True
        if self._live.get(ticket.number) is not ticket:
            return False
        self._take_out(ticket, now)
        return True

    def expire(self, now: float) -> list[Waiting]:
        """Take out everything that waited as long as it may."""
        expired, self._overdue = self._overdue, []
        while self._expiry and self._expiry[0][0] <= now:
            ticket = self._live.get(heappop(self._expiry)[1])
            if ticket is not None:
                self._take_out(ticket, now)
                expired.append(ticket)
        return expired

    def clear(self, now: float) -> list[Waiting]:
        """Take out everything, in the order of arrival."""
        tickets = self.expire(now) + list(self)
        for ticket in tickets:
            self.remove(ticket, now)
        return tickets

    def oldest(self, now: float) -> float:
        """Return for how long the request that came first has waited."""
        for ticket in self._live.values():
            return now - ticket.enqueued_at
        return 0.0

    def _take_out(self, ticket: Waiting, now: float) -> None:
        del self._live[ticket.number]
        self.bytes -= ticket.size
        waiting, size = self._held.pop(ticket.tenant)
        if waiting > 1:
            self._held[ticket.tenant] = (waiting - 1, size - ticket.size)
        rank = self._ranks[ticket.klass]
        lane = rank.lanes[ticket.tenant]
        del lane.line[ticket.number]
        rank.size -= 1
        if not lane.line:
            rank.weights = rank.weights - lane.weight if rank.size else 0.0
        if not self._live:
            self.drain.end(now)
