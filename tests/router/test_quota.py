"""Quotas by a clock that the test turns: what is admitted in a minute, what is given back, what a client is told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.router import quota
from llmfleet.router.errors import Refusal
from llmfleet.router.keys import ANONYMOUS, Tenant
from llmfleet.router.quota import Quotas
from llmfleet.router.reports import Asked

NOW = 1000.0


def tenant(**changes):
    return Tenant(name="a", **changes)


def refusal(quotas, who, tokens=1.0, now=NOW):
    with pytest.raises(Refusal) as refused:
        quotas.enter(who, tokens, now)
    return refused.value


def lines(refused):
    return dict(line.split(": ", 1) for line in refused.extra.decode().split("\r\n") if line)


def test_a_tenant_without_limits_costs_nothing_and_is_never_refused():
    quotas = Quotas()
    assert all(quotas.enter(ANONYMOUS, 10**9, NOW) is None for _ in range(10_000))


def test_a_minute_of_requests_may_come_at_once_and_then_one_by_one():
    quotas, who = Quotas(), tenant(rpm=6)
    for _ in range(6):
        quotas.enter(who, 1, NOW)
    refused = refusal(quotas, who)
    assert (refused.status, refused.code, refused.kind) == (429, "rate_limit_exceeded", "requests")
    assert lines(refused) == {
        "retry-after": "10",
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    refusal(quotas, who, now=NOW + 9.9)
    quotas.enter(who, 1, NOW + 10)
    refusal(quotas, who, now=NOW + 10)


def test_refused_requests_use_nothing_up():
    quotas, who = Quotas(), tenant(rpm=1, tokens_per_minute=100)
    quotas.enter(who, 1, NOW)
    for step in range(50):
        refusal(quotas, who, now=NOW + step)
    quotas.enter(who, 1, NOW + 60)


def test_tokens_are_taken_by_estimate_and_settled_by_what_was_used():
    quotas, who = Quotas(), tenant(tokens_per_minute=1000)
    first = quotas.enter(who, 900, NOW)
    assert refusal(quotas, who, 200).kind == "tokens"
    first.settle(100)
    first.settle(100)
    quotas.enter(who, 900, NOW).settle(900)
    refused = refusal(quotas, who, 60)
    assert lines(refused)["retry-after"] == "4"
    assert lines(refused)["x-ratelimit-remaining-tokens"] == "0"


def test_more_than_was_estimated_is_owed():
    quotas, who = Quotas(), tenant(tokens_per_minute=600)
    quotas.enter(who, 10, NOW).settle(1200)
    assert refusal(quotas, who, 1, NOW + 59).kind == "tokens"
    quotas.enter(who, 1, NOW + 61)


def test_a_request_larger_than_a_minute_is_taken_when_the_bucket_is_full():
    quotas, who = Quotas(), tenant(tokens_per_minute=600)
    quotas.enter(who, 5000, NOW).settle(600)
    assert refusal(quotas, who, 5000, NOW + 30).kind == "tokens"
    quotas.enter(who, 5000, NOW + 60)


def test_requests_at_once_are_counted_until_they_are_given_back():
    quotas, who = Quotas(), tenant(concurrency=2)
    one, two = quotas.enter(who, 1, NOW), quotas.enter(who, 1, NOW)
    assert refusal(quotas, who).kind == "concurrency"
    one.settle(0)
    one.settle(0)
    three = quotas.enter(who, 1, NOW)
    assert refusal(quotas, who).kind == "concurrency"
    two.settle(0)
    three.settle(0)
    assert quotas.in_flight("a") == 0


def test_a_router_has_its_part_of_every_quota_and_at_least_one_request():
    quotas, who = Quotas(), tenant(rpm=60, concurrency=3)
    quotas.fraction = 0.25
    quotas.enter(who, 1, NOW)
    assert refusal(quotas, who).kind == "concurrency"
    wide = tenant(rpm=60)
    for _ in range(14):
        quotas.enter(wide, 1, NOW)
    refused = refusal(quotas, wide)
    assert (lines(refused)["retry-after"], lines(refused)["x-ratelimit-limit-requests"]) == ("4", "60")


def test_a_change_of_the_part_neither_gives_nor_takes_what_was_used():
    quotas, who = Quotas(), tenant(rpm=100)
    for _ in range(70):
        quotas.enter(who, 1, NOW)
    quotas.fraction = 0.5
    for _ in range(30):
        quotas.enter(who, 1, NOW)
    refusal(quotas, who)
    quotas.fraction = 1.0
    refusal(quotas, who)


def test_a_new_keys_file_changes_the_limits_of_a_tenant_that_is_at_work():
    quotas = Quotas()
    lease = quotas.enter(tenant(rpm=2), 1, NOW)
    quotas.keep({})
    assert quotas.in_flight("a") == 1
    quotas.enter(tenant(rpm=200), 1, NOW)
    for _ in range(99):
        quotas.enter(tenant(rpm=200), 1, NOW)
    refusal(quotas, tenant(rpm=200))
    lease.settle(0)
    assert quotas.in_flight("a") == 100


def test_tenants_do_not_use_each_others_quota():
    quotas = Quotas()
    quotas.enter(Tenant(name="a", rpm=1), 1, NOW)
    quotas.enter(Tenant(name="b", rpm=1), 1, NOW)
    refusal(quotas, Tenant(name="a", rpm=1))
    assert quotas.refused == {("a", "requests"): 1}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, b"0ms"), (0.0201, b"21ms"), (1, b"1s"), (5.2, b"6s"), (59.5, b"1m0s"), (90, b"1m30s")],
)
def test_times_are_written_as_openai_does(seconds, text):
    assert quota.duration(seconds) == text


def test_a_request_is_estimated_by_its_bytes_and_the_most_it_may_answer():
    assert quota.estimate(400, 1, 50) == 150
    assert quota.estimate(400, 3, 50) == 250
    assert quota.estimate(0, 2, 0) == 2 * quota.ASSUMED_TOKENS


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    steps=st.lists(
        st.tuples(st.floats(0, 20), st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.25, 0.5, 1.0])),
        max_size=60,
    ),
    rpm=st.sampled_from([0, 5, 30]),
    tpm=st.sampled_from([0, 100, 1000]),
)
def test_no_minute_admits_more_than_twice_the_limit_and_nothing_is_lost(steps, rpm, tpm):
    """A full bucket may be used at once and fills again within the minute: twice is the most a window can see."""
    quotas, who, now = Quotas(), tenant(rpm=rpm, tokens_per_minute=tpm, concurrency=50), NOW
    admitted = []
    for gap, estimated, used, fraction in steps:
        now += gap
        quotas.fraction = fraction
        try:
            lease = quotas.enter(who, estimated, now)
        except Refusal as refused:
            assert 1 <= int(lines(refused)["retry-after"]) <= 60
            continue
        lease.settle(used)
        admitted.append(now)
        if rpm:
            assert sum(now - 60 < t <= now for t in admitted) <= 2 * rpm + 1
    assert quotas.in_flight("a") == 0


@pytest.mark.parametrize("later", [{"rpm": 60}, {"tokens_per_minute": 1000}], ids=["requests", "tokens"])
def test_a_limit_that_a_tenant_is_given_later_begins_with_nothing_owed(later):
    quotas = Quotas()
    for _ in range(1000):
        quotas.enter(tenant(concurrency=1), 100, NOW).settle(500)
    assert quotas.enter(tenant(concurrency=1, **later), 100, NOW) is not None


# ---- several routers ----


class Fleet:
    """Routers that hear each other four times a second."""

    def __init__(self, number):
        self.routers = [Quotas() for _ in range(number)]
        for router in self.routers:
            router.fraction = 1 / number

    def settle(self, now):
        """Hear each other until everybody knows what everybody knows."""
        for step in range(3):
            self.hear(now + step / 4)

    def hear(self, now):
        said = [router.demands(now) for router in self.routers]
        for index, router in enumerate(self.routers):
            router.divide(said[index], said[:index] + said[index + 1 :])

    def taken(self, who, seconds, rates, start=NOW):
        """Ask each router so many times a second; how many were let in by each."""
        counts = [0] * len(self.routers)
        for step in range(int(seconds * 4)):
            now = start + step / 4
            self.hear(now)
            for index, router in enumerate(self.routers):
                for _ in range(rates[index] // 4):
                    counts[index] += let_in(router, who, now)
        return counts


def let_in(quotas, who, now):
    try:
        quotas.enter(who, 1, now).settle(1)
    except Refusal:
        return False
    return True


@pytest.mark.parametrize("rates", [(40, 0, 0), (40, 40, 40), (60, 20, 4), (4, 4, 400)])
def test_routers_divide_a_quota_by_what_each_is_asked_for(rates):
    fleet, who = Fleet(3), tenant(rpm=600)
    first = sum(fleet.taken(who, 60, rates))
    second = sum(fleet.taken(who, 60, rates, start=NOW + 60))
    # A bucket holds a minute's worth at the start; after that no more than the quota, and nearly all of it.
    assert first <= 2 * 600 + 3
    assert 0.85 * 600 <= second <= 600 + 3


def test_a_tenant_that_turns_from_one_router_to_another_gets_no_more_by_it():
    fleet, who = Fleet(3), tenant(rpm=600)
    fleet.taken(who, 60, (60, 60, 60))
    got = 0
    for minute in range(1, 7):
        rates = [60 if index == minute % 3 else 0 for index in range(3)]
        got += sum(fleet.taken(who, 60, rates, start=NOW + 60 * minute))
    assert got <= 6 * 600 + 3


def test_all_parts_together_are_the_whole_and_every_router_has_some():
    fleet, who = Fleet(4), tenant(rpm=1000, concurrency=100)
    for _ in range(30):
        let_in(fleet.routers[0], who, NOW)
    fleet.settle(NOW)
    parts = [router.part("a") for router in fleet.routers]
    assert sum(parts) == pytest.approx(1.0)
    assert [router.room(who, part) for router, part in zip(fleet.routers, parts, strict=True)] == [85, 5, 5, 5]
    fleet.settle(NOW + 600)  # long forgotten: evenly again
    assert [router.part("a") for router in fleet.routers] == [0.25] * 4


@pytest.mark.parametrize("others", [[None], [None, {"a": Asked(9.0, 0)}]])
def test_a_router_that_does_not_hear_all_others_keeps_to_its_even_part(others):
    quotas = Quotas()
    quotas.fraction = 0.5
    quotas.divide({}, [{"a": Asked(9.0, 0)}])
    assert quotas.part("a") == pytest.approx(0.1)
    quotas.divide({}, others)
    assert quotas.part("a") == 0.5
    assert quotas.room(tenant(concurrency=5), 0.5) == 2


def test_a_router_that_drains_leaves_its_part_to_those_who_are_asked():
    quotas, who = Quotas(), tenant(concurrency=50)
    for _ in range(20):
        quotas.enter(who, 1, NOW)
    assert quotas.demands(NOW + 1, draining=True) == {"a": (0.0, 20)}
    other = Quotas()
    other.enter(who, 1, NOW)
    for now in (NOW + 1, NOW + 2):
        other.divide(other.demands(now), [quotas.demands(now, draining=True)])
    assert other.part("a") == pytest.approx(0.9)
    assert other.room(who, 0.9) == 30, "what is open there still counts"


@pytest.mark.parametrize(("most", "rooms"), [(1, [1, 1]), (2, [2, 1]), (10, [9, 1])])
def test_a_small_bound_on_open_requests_is_not_rounded_away(most, rooms):
    fleet, who = Fleet(2), tenant(concurrency=most)
    let_in(fleet.routers[0], who, NOW)
    fleet.settle(NOW)
    assert [router.room(who, router.part("a")) for router in fleet.routers] == rooms


def test_open_requests_count_as_demand_and_old_ones_fade():
    quotas, who = Quotas(), tenant(concurrency=5)
    leases = [quotas.enter(who, 1, NOW) for _ in range(3)]
    assert quotas.demands(NOW) == {"a": (6.0, 3)}
    assert quotas.demands(NOW + 100) == {"a": (3.0, 3)}
    for lease in leases:
        lease.settle(0)
    assert quotas.demands(NOW + 101) == {}


def test_a_part_does_not_grow_before_the_others_can_know():
    fleet, who = Fleet(2), tenant(concurrency=10)
    let_in(fleet.routers[0], who, NOW)
    fleet.hear(NOW)
    assert sum(router.part("a") for router in fleet.routers) <= 1.0
    fleet.hear(NOW + 0.25)
    assert [router.part("a") for router in fleet.routers] == pytest.approx([0.9, 0.1])


def test_a_part_that_is_still_in_use_elsewhere_is_not_given_twice():
    first, second, who = Quotas(), Quotas(), tenant(concurrency=10)
    leases = [first.enter(who, 1, NOW) for _ in range(9)]
    for step in range(200):  # it asks far more there now
        now = NOW + step / 10
        let_in(second, who, now)
        second.divide(second.demands(now), [first.demands(now)])
    open_there = [second.enter(who, 1, now)]
    assert second.part("a") > 0.7 and refusal(second, who).kind == "concurrency"
    for lease in leases[:4]:
        lease.settle(0)
    second.divide(second.demands(now), [first.demands(now + 1)])
    open_there += [second.enter(who, 1, now + 1) for _ in range(4)]
    assert refusal(second, who).kind == "concurrency"
