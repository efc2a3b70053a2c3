"""Waiting: bounded, fair between tenants and classes, refused at arrival rather than expired."""

from __future__ import annotations

from collections import Counter
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmfleet.router.queue import CLASS_RATIO, MAX_RETRY_AFTER, DrainRate, Reason, Rejected, Waiting, WaitingRoom


def room_of(limit: int = 1000, size: int = 1 << 28, ttl: float = 60.0) -> WaitingRoom:
    return WaitingRoom(limit, size, ttl)


def put(room: WaitingRoom, tenant: str = "", now: float = 0.0, **changes) -> Waiting | Rejected:
    ticket = Waiting(**({"key": tenant, "tenant": tenant, "enqueued_at": now} | changes))
    return room.enter(ticket, now)


def fill(room: WaitingRoom, tenant: str, number: int, **changes) -> list[Waiting]:
    tickets = [put(room, tenant, **changes) for _ in range(number)]
    assert all(isinstance(t, Waiting) for t in tickets)
    return tickets


def turns(room: WaitingRoom, number: int, now: float = 1.0) -> str:
    return "".join(room.pop(now).tenant for _ in range(number))


def drain_at(room: WaitingRoom, rate: float, seconds: float = 60.0) -> float:
    """Show the room a steady rate of releases; returns the time after it. Empty before, empty after."""
    assert len(room) == 0
    put(room, now=0.0, deadline=inf)
    now = 0.0
    for step in range(1, int(rate * seconds) + 1):
        now = step / rate
        put(room, now=now)
        room.pop(now)
    room.clear(now)
    return now


# ---- order ----


def test_one_tenant_is_first_come_first_served():
    room = room_of()
    tickets = fill(room, "a", 5)
    assert [room.pop(1.0) for _ in range(5)] == tickets
    assert room.pop(1.0) is None and len(room) == 0 and room.bytes == 0


def test_two_tenants_take_turns_however_many_each_has_waiting():
    room = room_of()
    fill(room, "a", 50)
    fill(room, "b", 5)
    assert Counter(turns(room, 10)) == {"a": 5, "b": 5}
    assert turns(room, 45) == "a" * 45


def test_turns_follow_the_weights():
    room = room_of()
    fill(room, "a", 100, weight=3)
    fill(room, "b", 100, weight=1)
    assert Counter(turns(room, 40)) == {"a": 30, "b": 10}


def test_a_tenant_that_was_away_has_no_turns_saved_up():
    room = room_of()
    fill(room, "a", 500)
    fill(room, "b", 1)
    turns(room, 400)  # b has nothing waiting for most of them
    fill(room, "b", 50)
    assert Counter(turns(room, 20)) == {"a": 10, "b": 10}


def test_a_tenant_that_leaves_and_comes_back_does_not_lose_its_place_in_turns():
    room = room_of()
    fill(room, "a", 10)
    for _ in range(100):
        room.remove(fill(room, "b", 1)[0], 0.0)
    fill(room, "b", 1)
    assert "b" in turns(room, 2)


def test_the_urgent_class_goes_first_and_the_others_do_not_starve():
    room = room_of(10_000)
    fill(room, "slow", 100, klass=2)
    fill(room, "quick", 2000, klass=0)
    assert room.pop(1.0).tenant == "quick"
    served = Counter(room.pop(1.0).tenant for _ in range(1000))
    assert 0 < served["slow"] <= 1000 / CLASS_RATIO**2 + 1


def test_an_urgent_request_goes_before_ordinary_ones_that_came_before_it():
    room = room_of()
    fill(room, "ordinary", 100, klass=1)
    turns(room, 20)
    fill(room, "urgent", 1, klass=0)
    assert room.pop(1.0).tenant == "urgent"


def test_peek_says_who_pop_takes():
    room = room_of()
    fill(room, "a", 3)
    fill(room, "b", 3, klass=0)
    for _ in range(6):
        assert room.peek(1.0) is room.pop(1.0)
    assert room.peek(1.0) is None


# ---- bounds ----


def test_the_room_is_bounded_by_count_and_by_bytes():
    room = room_of(3, 100)
    fill(room, "a", 2, size=40)
    assert put(room, size=21).reason is Reason.BYTES
    fill(room, "a", 1, size=20)
    assert put(room).reason is Reason.FULL
    assert (len(room), room.bytes) == (3, 100)
    room.pop(0.0)
    assert isinstance(put(room, size=40), Waiting)


def test_a_room_of_no_places_lets_nobody_in():
    assert put(room_of(0)).reason is Reason.FULL


def test_a_tenant_fills_only_its_share():
    room = room_of(100, 1000)
    fill(room, "a", 25, share=0.25)
    assert put(room, "a", share=0.25).reason is Reason.SHARE
    fill(room, "b", 1, share=0.25, size=250)
    assert put(room, "b", share=0.25, size=1).reason is Reason.SHARE
    fill(room, "c", 70)


def test_a_small_share_is_one_place_at_least():
    room = room_of(10)
    fill(room, "a", 1, share=0.01)
    assert put(room, "a", share=0.01).reason is Reason.SHARE


def test_a_limit_lowered_below_what_waits_lets_nobody_in_and_throws_nobody_out():
    room = room_of(10)
    fill(room, "a", 8)
    room.limit_count = 4
    assert put(room).reason is Reason.FULL
    assert len(room) == 8


# ---- leaving ----


def test_a_request_that_is_taken_out_is_out_at_once():
    room = room_of(2)
    first, second = fill(room, "a", 2, size=7)
    assert room.remove(first, 0.0) and not room.remove(first, 0.0)
    assert (len(room), room.bytes) == (1, 7)
    fill(room, "b", 1)
    assert room.pop(0.0) is second
    assert not room.remove(second, 0.0)


def test_ten_thousand_clients_that_leave_leave_nothing_behind():
    room = room_of(20_000)
    fill(room, "a", 1)
    for ticket in fill(room, "a", 10_000, deadline=1e9):
        fill(room, "b", 1)
        room.pop(0.0)
        room.remove(ticket, 0.0)
    room.clear(0.0)
    assert len(room) == 0 and room.bytes == 0
    assert not room._live and not room._held
    fill(room, "a", 1)
    assert len(room._expiry) <= 64 + 1 and all(len(rank.heap) <= 2 for rank in room._order)


def test_what_waited_as_long_as_it_may_comes_out_once_and_gets_no_turn():
    room = room_of(ttl=60)
    old = fill(room, "a", 2)
    soon = put(room, "b", now=30.0, deadline=40.0)
    assert room.expire(39.9) == []
    assert room.expire(40.0) == [soon]
    late = put(room, "c", now=50.0)
    assert room.pop(60.0) is late
    assert room.expire(60.0) == old and room.expire(61.0) == []
    assert len(room) == 0


def test_clearing_the_room_returns_everybody():
    room = room_of()
    tickets = fill(room, "a", 3) + fill(room, "b", 2, klass=0)
    assert room.clear(1.0) == tickets and len(room) == 0 and room.bytes == 0


def test_the_oldest_wait_is_known():
    room = room_of()
    assert room.oldest(5.0) == 0.0
    put(room, now=1.0)
    put(room, now=2.0)
    assert room.oldest(5.0) == 4.0


# ---- estimates ----


def test_without_evidence_everybody_is_let_in():
    room = room_of()
    fill(room, "a", 500)
    assert room.estimate(0.0, 500) is None


def test_the_rate_is_what_was_seen_while_somebody_waited():
    room = room_of()
    now = drain_at(room, rate=10.0)
    assert room.drain.per_second(now) == pytest.approx(10.0, rel=0.05)
    # Nobody waits for four minutes: nothing is learned from that.
    assert room.drain.per_second(now + 240) == pytest.approx(10.0, rel=0.05)


def test_a_wait_beyond_the_ttl_is_refused_at_arrival():
    room = room_of(ttl=20)
    now = drain_at(room, rate=5.0)
    admitted = 0
    while isinstance(refusal := put(room, now=now), Waiting):
        admitted += 1
    assert refusal.reason is Reason.TOO_LONG and refusal.wait > 20
    assert admitted == pytest.approx(100, abs=6)


def test_a_deadline_nearer_than_the_ttl_is_what_counts():
    room = room_of(ttl=60)
    now = drain_at(room, rate=2.0)
    fill(room, "a", 40, now=now)
    assert put(room, "a", now=now, deadline=now + 10).reason is Reason.TOO_LONG
    assert isinstance(put(room, "a", now=now, deadline=now + 30), Waiting)


def test_a_deadline_that_has_passed_is_refused():
    room = room_of()
    assert put(room, now=10.0, deadline=10.0).reason is Reason.TOO_LONG
    assert len(room) == 0


def test_a_light_tenant_is_let_in_beside_one_that_waits_for_too_long():
    room = room_of(ttl=20)
    now = drain_at(room, rate=5.0)
    while isinstance(put(room, "heavy", now=now), Waiting):
        pass
    assert isinstance(put(room, "light", now=now), Waiting)
    assert put(room, "heavy", now=now).reason is Reason.TOO_LONG


def test_an_urgent_class_is_let_in_where_an_ordinary_one_would_wait_too_long():
    room = room_of(ttl=20)
    now = drain_at(room, rate=5.0)
    while isinstance(put(room, "batch", now=now, klass=2), Waiting):
        pass
    assert isinstance(put(room, "chat", now=now, klass=0), Waiting)


def test_a_stall_lowers_the_rate_while_it_lasts():
    room = room_of()
    now = drain_at(room, rate=10.0)
    put(room, now=now)
    assert room.drain.per_second(now + 1) == pytest.approx(10.0, rel=0.1)
    assert room.drain.per_second(now + 60) < 1.5


def test_holding_times_are_evidence_before_anybody_waited():
    room = room_of(ttl=30)
    for _ in range(20):
        room.drain.released(held=8.0, slots=16)
    assert room.drain.per_second(0.0) == pytest.approx(2.0)
    admitted = 0
    while isinstance(put(room), Waiting):
        admitted += 1
    assert admitted == pytest.approx(60, abs=2)


def test_more_slots_count_at_once():
    rate = DrainRate()
    rate.released(held=2.0, slots=4)
    rate.released(held=2.0, slots=40)
    assert rate.per_second(0.0) == pytest.approx(20.0)


def test_evidence_from_long_ago_is_forgotten():
    room = room_of()
    now = drain_at(room, rate=1.0)
    put(room, now=now + 301)
    assert room.drain.per_second(now + 301) is None


def test_those_who_wait_for_an_engine_are_measured_by_no_rate():
    room = room_of(ttl=10)
    now = drain_at(room, rate=1.0)
    for _ in range(100):
        ticket = Waiting(key=None, enqueued_at=now)
        assert room.enter(ticket, now, hold=600.0) is ticket
    assert room.expire(now + 599) == []
    assert room.drain.per_second(now + 599) == pytest.approx(1.0, rel=0.1), "waking was taken for a stall"
    room.pop(now + 599)
    room.pop(now + 599.5)
    assert room.drain.per_second(now + 599.5) == pytest.approx(1.0, rel=0.2)
    assert len(room.expire(now + 600)) == 98


def test_retry_after_follows_the_rate_within_what_sdks_honour():
    room = room_of(100)
    now = drain_at(room, rate=10.0)
    fill(room, "a", 100, now=now)
    answers = [put(room, now=now).retry_after for _ in range(50)]
    assert set(answers) == {2, 3, 4}, "a quarter of ten seconds, spread"
    slow = room_of(100)
    then = drain_at(slow, rate=0.5)
    fill(slow, "a", 20, now=then)
    slow.limit_count = 20
    assert 7 <= put(slow, now=then).retry_after <= 14
    assert put(room_of(0)).retry_after >= 1


@given(rate=st.floats(0.01, 1000), size=st.integers(0, 300), ttl=st.floats(0.5, 600), deadline=st.floats(0.1, 600))
@settings(derandomize=True, max_examples=50, deadline=None)
def test_what_is_let_in_fits_its_time_and_what_is_refused_does_not(rate, size, ttl, deadline):
    room = room_of(1000, ttl=ttl)
    for _ in range(20):
        room.drain.released(held=1.0, slots=1)
    room.drain._held = 1.0 / rate
    for number in range(size):
        outcome = put(room, deadline=deadline)
        fits = (number + 1) / rate <= min(ttl, deadline)
        assert isinstance(outcome, Waiting) == fits or abs((number + 1) / rate - min(ttl, deadline)) < 1e-6
        if isinstance(outcome, Rejected):
            assert 1 <= outcome.retry_after <= MAX_RETRY_AFTER
            return


TENANTS = st.sampled_from(["a", "b", "c", "d"])


@given(
    waiting=st.lists(st.tuples(TENANTS, st.integers(0, 2)), max_size=60),
    weights=st.tuples(*[st.integers(1, 9)] * 4),
    tenant=TENANTS,
    klass=st.integers(0, 2),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_the_estimated_place_is_the_real_one_or_behind_it_by_a_turn_of_each(waiting, weights, tenant, klass):
    weight = dict(zip("abcd", weights, strict=True))
    room = room_of()
    for name, rank in waiting:
        fill(room, name, 1, klass=rank, weight=weight[name])
    mine = Waiting(key="mine", enqueued_at=0.0, tenant=tenant, klass=klass, weight=weight[tenant])
    ahead = room.ahead(mine)
    assert 0 <= ahead <= len(room) + 1
    room.enter(mine, 0.0)
    real = 0
    while room.pop(1.0) is not mine:
        real += 1
    others = len({(n, k) for n, k in waiting} - {(tenant, klass)})
    assert real <= ahead + others


@given(
    load=st.lists(st.tuples(TENANTS, st.integers(1, 40)), min_size=2, max_size=8),
    weights=st.tuples(*[st.integers(1, 9)] * 4),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_while_two_tenants_wait_neither_is_a_turn_ahead_of_its_share(load, weights):
    weight = dict(zip("abcd", weights, strict=True))
    room = room_of()
    left: Counter = Counter()
    for name, number in load:
        fill(room, name, number, weight=weight[name])
        left[name] += number
    served: Counter = Counter()
    while len(left) > 1 and min(left.values()) > 0:
        name = room.pop(1.0).tenant
        served[name] += 1
        left[name] -= 1
        shares = [served[n] / weight[n] for n in left]
        assert max(shares) - min(shares) <= 1 / min(weight[n] for n in left) + 1e-9


class Room(RuleBasedStateMachine):
    """Any order of entering, leaving and time passing keeps the sums right and loses nobody."""

    @initialize(limit=st.integers(1, 12), size=st.integers(1, 200))
    def open(self, limit, size):
        self.room, self.now = WaitingRoom(limit, size, 10.0), 0.0
        self.model: list[Waiting] = []

    @rule(tenant=TENANTS, klass=st.integers(0, 2), size=st.integers(0, 40), patience=st.floats(0.1, 20))
    def enter(self, tenant, klass, size, patience):
        ticket = Waiting(
            key=None, tenant=tenant, klass=klass, size=size, enqueued_at=self.now, deadline=self.now + patience
        )
        if self.room.enter(ticket, self.now) is ticket:
            self.model.append(ticket)

    @rule()
    def pop(self):
        ticket = self.room.pop(self.now)
        fresh = [t for t in self.model if t.until > self.now]
        assert (ticket is None) == (not fresh), "a free slot waits beside a request"
        if ticket is not None:
            assert ticket in fresh
            earlier = [t for t in fresh if (t.tenant, t.klass) == (ticket.tenant, ticket.klass)]
            assert earlier[0] is ticket
            self.model.remove(ticket)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def leave(self, data):
        ticket = data.draw(st.sampled_from(self.model))
        if self.room.remove(ticket, self.now):
            self.model.remove(ticket)

    @rule(seconds=st.floats(0.0, 6.0))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def expire(self):
        expired = self.room.expire(self.now)
        assert set(map(id, expired)) == {id(t) for t in self.model if t.until <= self.now}
        self.model = [t for t in self.model if t.until > self.now]

    @invariant()
    def sums(self):
        if not hasattr(self, "room"):
            return
        assert len(self.room) <= self.room.limit_count and self.room.bytes <= self.room.limit_bytes
        inside = list(self.room)
        assert self.room.bytes == sum(t.size for t in inside if t not in self.room._overdue)
        assert {id(t) for t in inside} == {id(t) for t in self.model}
        for rank in self.room._order:
            assert rank.size == sum(len(lane.line) for lane in rank.lanes.values())
            waiting = [lane.weight for lane in rank.lanes.values() if lane.line]
            assert rank.weights == pytest.approx(sum(waiting))


TestRoom = Room.TestCase
TestRoom.settings = settings(derandomize=True, max_examples=30, stateful_step_count=40, deadline=None)
