"""Routers share the slots of engines: never more than there are, near to one common line, nobody forgotten."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shares_world import World

from llmfleet.router.division import Row, cut, equal_part, handovers, targets
from llmfleet.router.reports import ReportError, parse_report, render_report
from llmfleet.router.shares import INTERVAL_SECONDS, UNSEEN_SECONDS, Load, Room, Shares

ONE = {"e": 64}
FOUR = {f"e{i}": 16 for i in range(4)}


def hold(world: World, name: str, number: int, seconds: float = 1e6) -> None:
    for _ in range(number):
        world.arrive(name, seconds)


# ---- the whole, in simulated time ----


def test_one_router_has_every_slot_and_not_one_more():
    world = World(ONE, 1)
    world.poisson(rate=8.0, mean=10.0, until=100)
    world.run(100)
    assert world.over["e"] == 0 and world.wasted == 0.0


@pytest.mark.parametrize(
    ("routers", "engines"),
    [*((n, ONE) for n in range(2, 9)), (3, FOUR), (8, FOUR)],
)
def test_waits_are_near_those_of_one_common_line_and_overshoot_is_one_per_router(routers, engines):
    waits = {}
    for policy in ("pooled", "gossip", "static"):
        world = World(dict(engines), routers, policy, seed=routers)
        world.poisson(rate=0.7 * 64 / 5.0, mean=5.0, until=40)
        world.run(40)
        waits[policy] = world.p99()
        if policy == "gossip":
            assert max(world.over.values()) <= routers
            assert world.owned_over <= 0
    assert waits["gossip"] <= waits["pooled"] + 2 * INTERVAL_SECONDS
    assert waits["gossip"] <= max(0.1 * waits["static"], waits["pooled"] + INTERVAL_SECONDS)


@pytest.mark.parametrize("seed", range(4))
def test_delays_and_lost_reports_never_make_slots(seed):
    world = World({"e0": 16, "e1": 5, "e2": 1}, 5, seed=seed, delay=0.06, loss=0.15)
    world.poisson(rate=10.0, mean=2.0, until=60, weights=[5, 1, 1, 1, 0.2])
    world.run(60)
    assert world.owned_over <= 0
    assert all(over <= 5 for over in world.over.values())
    world.run(90)
    assert {key: world.owned(key) for key in world.engines} == world.engines, "slots were lost for good"


@pytest.mark.parametrize("seed", range(4))
def test_a_network_that_loses_every_other_report_disturbs_only_for_a_while(seed):
    world = World({"e0": 16, "e1": 5}, 4, seed=seed, delay=0.1, loss=0.5)
    world.poisson(rate=8.0, mean=2.0, until=60)
    world.run(60)
    assert all(over <= 2 * 4 for over in world.over.values())
    world.loss = 0.0
    world.run(75)
    assert {key: world.owned(key) for key in world.engines} == world.engines, "slots were lost for good"


def test_free_slots_reach_a_waiter_at_another_router_within_two_intervals():
    world = World(ONE, 8, delay=0.002)
    world.run(2.0)
    hold(world, "router-3", 60)
    assert len(world.fleet["router-3"].line) > 40
    world.run(2.0 + 2 * INTERVAL_SECONDS + 0.02)
    assert not world.fleet["router-3"].line and world.total("e") == 60


def test_a_slot_that_frees_at_one_router_reaches_a_waiter_at_another_within_two_intervals():
    world = World({"e": 8}, 2, delay=0.002)
    world.run(1.0)
    hold(world, "router-0", 7)
    world.at(1.0, lambda: world.arrive("router-0", 3.0))
    world.run(3.0)
    hold(world, "router-1", 3)
    world.run(3.99)
    assert world.total("e") in (8, 9) and world.fleet["router-1"].line
    before = len(world.fleet["router-1"].line)
    world.run(4.0 + 2 * INTERVAL_SECONDS + 0.02)
    assert len(world.fleet["router-1"].line) < before


def test_an_idle_engine_with_fewer_slots_than_routers_is_used_at_once():
    world = World({"e": 1}, 8)
    world.run(1.0)
    for index, router in enumerate(world.names):
        world.at(2.0 + 5 * index, lambda router=router: world.arrive(router, 1.0))
    world.run(60)
    assert [wait for _, _, wait in world.waits] == [0.0] * 8


def test_under_overload_waits_are_alike_at_a_busy_router_and_at_a_quiet_one():
    world = World(ONE, 4, seed=5)
    world.poisson(rate=1.2 * 64 / 2.0, mean=2.0, until=60, weights=[10, 2, 1, 1])
    world.run(60)
    means = [world.mean(name) for name in world.names]
    assert max(means) <= 1.7 * min(means) and min(means) > 1.0


def test_nobody_starves_beside_three_full_lines_on_one_slot():
    world = World({"e": 1}, 3, seed=2)
    for step in range(1200):
        for name in world.names:
            world.at(
                1 + step * 0.1, lambda name=name: world.arrive(name, 0.5) if len(world.fleet[name].line) < 3 else 0
            )
    world.run(120)
    served = {name: sum(n == name for n, _, _ in world.waits) for name in world.names}
    assert min(served.values()) >= 0.5 * max(served.values()) and min(served.values()) > 20


# ---- routers that come and go ----


def test_a_killed_routers_requests_count_until_they_could_have_ended_and_its_other_slots_are_adopted():
    world = World(ONE, 3, linger=30.0)
    world.run(1.0)
    for name in world.names:
        hold(world, name, 10)
    world.run(3.0)
    world.kill("router-2")
    for name in ("router-0", "router-1"):
        hold(world, name, 60)
    world.run(4.9)
    assert world.total("e") <= 64 - 10 + 2
    world.run(25.0)
    assert 64 - 10 <= world.total("e") <= 64 - 10 + 2, "all but what the dead one had"
    world.run(45.0)
    assert 64 <= world.total("e") <= 66


def test_a_pod_that_is_no_longer_listed_holds_nothing():
    world = World(ONE, 2, linger=600.0)
    world.run(1.0)
    hold(world, "router-1", 32)
    world.run(2.0)
    world.kill("router-1")
    world.fleet["router-0"].shares.peers({}, 0.0)
    hold(world, "router-0", 64)
    world.run(2.5)
    assert world.total("e") == 64


def test_a_restarted_router_counts_as_a_new_one_and_gets_its_part_again():
    world = World(ONE, 3)
    world.run(2.0)
    hold(world, "router-2", 5)
    world.run(3.0)
    world.kill("router-2")
    world.run(4.5)
    world.boot("router-2")
    world.run(12.0)
    assert world.owned_over <= 0 and world.owned("e") == 64
    hold(world, "router-2", 62)
    world.run(12.0 + 2 * INTERVAL_SECONDS + 0.03)
    assert world.total("e") == 62 and world.over["e"] <= 3


def test_a_draining_router_keeps_what_it_has_and_hands_the_rest_over():
    world = World(ONE, 2)
    world.run(1.0)
    hold(world, "router-0", 10)
    world.fleet["router-0"].draining = True
    hold(world, "router-1", 80)
    world.run(3.0)
    assert world.fleet["router-0"].busy["e"] == 10
    assert 54 <= world.fleet["router-1"].busy["e"] <= 55


def test_a_router_that_sees_nobody_keeps_to_its_equal_part():
    world = World({"e": 9}, 2, loss=1.0)
    world.run(1.0)
    hold(world, "router-0", 20)
    hold(world, "router-1", 20)
    world.run(10.0)
    assert [r.busy["e"] for r in world.fleet.values()] == [5, 4]


def test_routers_that_find_each_other_again_return_to_the_slots_there_are():
    world = World({"e": 12}, 3, seed=4)
    world.run(2.0)
    world.loss = 1.0
    world.run(6.0)
    world.loss = 0.0
    world.run(12.0)
    assert world.owned("e") == 12
    for name in world.names:
        hold(world, name, 9)
    world.run(15.0)
    assert 12 <= world.total("e") <= 15


def test_an_engine_that_leaves_the_document_and_returns_brings_no_slots_along():
    world = World({"e": 12, "f": 4}, 2, seed=4)
    world.poisson(rate=4.0, mean=2.0, until=20, weights=[5, 1])
    world.run(20.0)
    gone = world.fleet["router-1"]
    full = gone.loads
    gone.loads = lambda: {"f": full()["f"]}
    world.run(22.0)
    gone.loads = full
    world.poisson(rate=4.0, mean=2.0, until=50, start=22.0, weights=[5, 1])
    world.run(60.0)
    assert world.owned("e") <= 12 and world.over["e"] <= 2


def test_more_slots_are_adopted_and_fewer_are_given_up():
    world = World({"e": 12}, 3)
    world.run(2.0)
    world.engines["e"] = 40
    world.run(12.0)
    assert world.owned("e") == 40
    world.engines["e"] = 7
    world.run(14.0)
    assert world.owned("e") == 7


def test_a_new_router_begins_with_what_nobody_owns():
    old, new = Shares("a", "1", 60.0), Shares("b", "1", 60.0)
    old.peers({"b": False}, 0.0)
    loads = {"e": Load(10, 0)}
    assert old.tick(loads, {}, draining=False, now=0.0) == {"e": 5}
    new.peers({"a": False}, 0.0)
    new.heard(old.report(loads, {}, draining=False, now=0.0), 0.1)
    assert new.tick(loads, {}, draining=False, now=0.1)["e"] == 5 + 1, "its part, and one beside while slots are free"
    lone = Shares("c", "1", 60.0)
    lone.peers({"a": False, "b": False}, 0.0)
    for shares in (old, new):
        lone.heard(shares.report(loads, {}, draining=False, now=0.2), 0.2)
    assert lone.tick(loads, {}, draining=False, now=0.2)["e"] == 1, "nothing owned, one while slots are free"


def test_an_old_report_that_arrives_late_is_dropped():
    peer, shares = Shares("a", "1", 60.0), Shares("b", "1", 60.0)
    peer.peers({"b": False}, 0.0)
    shares.peers({"a": False}, 0.0)
    first = peer.report({}, {}, draining=False, now=0.0)
    second = peer.report({}, {}, draining=True, now=0.1)
    shares.heard(second, 0.2)
    shares.heard(first, 0.3)
    assert shares._heard["a"].draining


def test_reports_of_strangers_are_not_heard():
    shares, stranger = Shares("b", "1", 60.0), Shares("x", "1", 60.0)
    shares.peers({"a": False}, 0.0)
    shares.heard(stranger.report({}, {}, draining=False, now=0.0), 0.0)
    shares.heard(shares.report({}, {}, draining=False, now=0.0), 0.0)
    assert not shares._heard


def test_bounds_on_waiting_are_shared_too():
    shares, peer = Shares("a", "1", 60.0), Shares("b", "1", 60.0)
    assert shares.part_of(1000, "m", 0, 0.0) == 1000
    shares.peers({"b": False}, 0.0)
    assert shares.part_of(1000, "m", 0, 0.0) == 500, "nobody seen: an equal part"
    peer.peers({"a": False}, 0.0)
    rooms = {"m": Room(["e"], 600)}
    shares.heard(peer.report({"e": Load(1, 1)}, rooms, draining=False, now=0.0), 0.0)
    assert shares.part_of(1000, "m", 100, 0.0) == 100 + 300 // 2
    assert shares.part_of(1000, "m", 0, UNSEEN_SECONDS + 1) == 500


def test_who_was_turned_away_wants_a_slot_but_does_not_wait():
    shares = Shares("a", "1", 60.0)
    shares.peers({"b": False}, 0.0)
    loads, rooms = {"e": Load(4, 2)}, {"m": Room(["e"], 1, 0.5, 5)}
    shares.tick(loads, rooms, draining=False, now=0.0)
    report = shares.report(loads, rooms, draining=False, now=0.0)
    assert report.engines["e"].wanted == 6 and report.waiting == {"m": 1}


# ---- the parts ----

rows = st.lists(
    st.builds(
        Row,
        name=st.uuids().map(str),
        in_flight=st.integers(0, 40),
        wanted=st.integers(0, 40),
        owned=st.integers(0, 40),
        oldest=st.floats(0, 60),
        leaving=st.booleans(),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row.name,
)
quick = settings(derandomize=True, max_examples=120, deadline=None)


@given(rows=rows, slots=st.integers(0, 100))
@quick
def test_targets_are_all_the_slots_and_nobody_in_need_gets_none_while_there_are_enough(rows, slots):
    parts = targets(slots, rows)
    assert sum(parts) == slots and min(parts) >= 0
    needy = [part for row, part in zip(rows, parts, strict=True) if row.in_flight + row.wanted]
    if slots >= len(needy):
        assert all(needy)
    if sum(row.in_flight + row.wanted for row in rows) <= slots:
        assert all(part >= row.in_flight + row.wanted for row, part in zip(rows, parts, strict=True))


@given(rows=rows, slots=st.integers(0, 100))
@quick
def test_nobody_hands_over_what_is_in_use_or_gets_more_than_its_part(rows, slots):
    parts = targets(slots, rows)
    got = dict.fromkeys((row.name for row in rows), 0)
    for row, part in zip(rows, parts, strict=True):
        given = handovers(row.name, rows, parts)
        assert sum(given.values()) <= max(0, row.owned - max(row.in_flight, part))
        for taker, amount in given.items():
            got[taker] += amount
    assert all(not got[r.name] or r.owned + got[r.name] <= p for r, p in zip(rows, parts, strict=True))


@given(rows=rows, excess=st.integers(0, 200))
@quick
def test_together_routers_give_up_exactly_what_is_too_much(rows, excess):
    cuts = [cut(excess, rows, row.name) for row in rows]
    assert sum(cuts) == min(excess, sum(row.owned for row in rows))
    assert all(0 <= c <= row.owned for c, row in zip(cuts, rows, strict=True))


@given(slots=st.integers(1, 300), names=st.lists(st.text(min_size=1), min_size=1, max_size=9, unique=True))
@quick
def test_equal_parts_are_the_slots(slots, names):
    parts = [equal_part(slots, names, name) for name in names]
    assert sum(parts) == slots and max(parts) - min(parts) <= 1


def test_a_router_alone_has_one_slot_of_every_engine_at_least():
    shares = Shares("z", "1", 60.0)
    shares.peers({"a": False, "b": False}, 0.0)
    assert shares.tick({"e": Load(2, 0)}, {}, draining=False, now=0.0) == {"e": 1}


def test_a_report_survives_the_wire():
    world = World({"e0": 3, "e1": 5}, 3)
    world.poisson(rate=4.0, mean=2.0, until=10)
    world.run(10.0)
    router = world.fleet["router-1"]
    report = router.shares.report(router.loads(), router.rooms(), draining=True, now=10.0)
    again = parse_report(json.loads(json.dumps(render_report(report))))
    assert render_report(again) == render_report(report)
    assert again.sees and all(len(line.given) == 2 for line in again.engines.values())


GOOD = {
    "name": "a",
    "incarnation": "1",
    "sequence": 1,
    "draining": False,
    "sees": {"b": "2"},
    "engines": {"e": [1, 0, 3, 0.5, [4], [5]]},
    "waiting": {"m": 2},
}


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": 7},
        {"name": "x" * 2000},
        {"sequence": -1},
        {"sequence": True},
        {"sequence": 1 << 40},
        {"sees": ["b"]},
        {"sees": {"b": None}},
        {"engines": {"e": [1, 0, 3, 0.5, [4]]}},
        {"engines": {"e": [-1, 0, 3, 0.5, [4], [5]]}},
        {"engines": {"e": [1.0, 0, 3, 0.5, [4], [5]]}},
        {"engines": {"e": [1, 0, 3, "0", [4], [5]]}},
        {"engines": {"e": [1, 0, 3, float("nan"), [4], [5]]}},
        {"engines": {"e": [1, 0, 3, 0.5, [4, 4], [5]]}},
        {"engines": {"e": [1, 0, 3, 0.5, {"b": 4}, {"b": 5}]}},
        {"engines": {"e": [1, 0, 3, 0.5, [True], [5]]}},
        {"engines": {"e": None}},
        {"engines": 3},
        {"waiting": {"m": "2"}},
        {"waiting": None},
        {"tenants": {"a": 2}},
        {"tenants": {"a": [2]}},
        {"tenants": [["a", 2.5, 1]]},
        {"tenants": {"a": ["2", 1]}},
        {"tenants": {"a": [-0.5, 1]}},
        {"tenants": {"a": [float("inf"), 1]}},
        {"tenants": {"a": [1.0, 0.5]}},
        {"tenants": {"a": [1.0, -1]}},
        {"tenants": {"": [1.0, 1]}},
    ],
)
def test_a_report_with_anything_wrong_in_it_is_refused(change):
    assert parse_report(GOOD).engines["e"].owned == 3
    with pytest.raises(ReportError):
        parse_report(GOOD | change)


def test_a_report_says_what_tenants_ask_for_and_one_of_an_earlier_release_does_not():
    report = parse_report(GOOD | {"tenants": {"a": [2.5, 1], "b": [3, 0]}})
    assert report.tenants == {"a": (2.5, 1), "b": (3.0, 0)}
    assert parse_report(orjson.loads(orjson.dumps(render_report(report)))) == report
    assert parse_report(GOOD).tenants is None
    assert parse_report(GOOD | {"tenants": {"a": [2.5, 1, "of a later release"]}}).tenants == {"a": (2.5, 1)}


@pytest.mark.parametrize("raw", [None, [], "x", {}, {"name": "a"}])
def test_what_is_no_report_at_all_is_refused(raw):
    with pytest.raises(ReportError):
        parse_report(raw)
