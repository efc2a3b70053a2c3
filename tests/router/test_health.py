"""Engines that fail are left out, for a reason and for a while, and never so many that nobody is left."""

import asyncio
import json

import pytest
from bed import CHAT, STREAM, Bed, scenario
from engine import endless, ok, silent, status
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.router.health import Rules, Vitals, Why, deceiving, may_eject

RULES = Rules(consecutive=5, severed=3, ratio=0.5, least=20, base=10.0, longest=300.0, checks=2)
QUICK = {"checkSeconds": 0.1, "checkTimeoutSeconds": 0.2}
UNCHECKED = {"checkSeconds": 0}


def test_failures_in_a_row_count_and_an_answer_ends_the_row():
    vitals = Vitals()
    assert [vitals.failed(0.0, RULES, severed=False) for _ in range(4)] == [None] * 4
    vitals.answered()
    assert [vitals.failed(0.0, RULES, severed=False) for _ in range(5)] == [None] * 4 + [Why.CONSECUTIVE]


def test_broken_connections_in_a_row_mean_that_the_engine_is_lost():
    vitals = Vitals()
    assert [vitals.failed(0.0, RULES, severed=True) for _ in range(2)] == [None, None]
    assert vitals.failed(0.0, RULES, severed=False) is None, "it answered, though with a failure"
    assert [vitals.failed(0.0, RULES, severed=True) for _ in range(3)] == [None, Why.CONSECUTIVE, Why.SEVERED]


def test_a_bad_share_of_many_attempts_counts_and_of_few_says_nothing():
    few, many, good = Vitals(), Vitals(), Vitals()
    for vitals in (few, many, good):
        assert vitals.counted(0.0, 100, 7, RULES) is None
    assert few.counted(5.0, 119, 26, RULES) is None
    assert many.counted(5.0, 120, 17, RULES) is Why.RATIO
    assert good.counted(5.0, 120, 16, RULES) is None


def test_old_failures_are_forgotten():
    vitals = Vitals()
    for second in range(12):
        vitals.counted(float(second), 30 * (second > 0), 30 * (second > 0), Rules(
            consecutive=5, severed=3, ratio=0.5, least=31, base=10.0, longest=300.0, checks=2))  # fmt: skip
    assert vitals.counted(12.0, 60, 31, RULES) is None


def test_each_ejection_lasts_twice_as_long_up_to_the_longest_and_good_time_forgives():
    vitals, now, lasted = Vitals(), 0.0, []
    for _ in range(7):
        vitals.out(Why.CONSECUTIVE, now, RULES)
        lasted.append(vitals.until - now)
        now = vitals.until
        assert vitals.tick(now, RULES, checked=True)
        assert vitals.why is None
    assert lasted == [10, 20, 40, 80, 160, 300, 300]
    for _ in range(20):
        now += 10_000
        vitals.tick(now, RULES, checked=True)
    vitals.out(Why.CONSECUTIVE, now, RULES)
    assert vitals.until - now == 10


def test_a_lost_engine_waits_for_its_check_but_without_checks_only_for_its_time():
    vitals = Vitals()
    vitals.out(Why.SEVERED, 0.0, RULES)
    assert not vitals.tick(1e6, RULES, checked=True)
    assert vitals.lost
    assert vitals.checked(1e6, RULES, alive=True) is None and not vitals.lost
    vitals.out(Why.SEVERED, 0.0, RULES)
    assert vitals.tick(1e6, RULES, checked=False) and not vitals.lost


def test_a_check_that_is_answered_does_not_end_an_ejection_for_failures():
    vitals = Vitals()
    vitals.out(Why.CONSECUTIVE, 0.0, RULES)
    vitals.checked(1.0, RULES, alive=True)
    assert vitals.why is Why.CONSECUTIVE
    assert [vitals.checked(1.0, RULES, alive=False) for _ in range(2)] == [None, Why.CHECKS], "lost is worse"


@settings(deadline=None)
@given(st.integers(1, 50), st.floats(0, 1))
def test_never_more_than_the_share_is_ejected(total, share):
    out = 0
    while may_eject(out, total, share):
        out += 1
    assert out <= share * total and out + 1 > share * total


def test_looks_deceive_when_fewer_than_the_share_look_good():
    assert [deceiving(good, 4, 0.5) for good in range(5)] == [True, True, False, False, False]
    assert not deceiving(0, 0, 0.5)


@scenario
async def test_an_engine_that_fails_in_a_row_gets_nothing_more_for_a_while_and_then_something_again():
    rules = {"health": {"ejectionSeconds": 2, "consecutiveFailures": 3}}
    async with Bed(status(500), ok(), ok(), settings=rules) as bed:
        backend = next(b for b in bed.router.fleet.backends.values() if b.instance == "e0")
        for failures in range(1, 4):  # each failure puts it behind the others for longer
            await bed.until(lambda: not backend.vitals.doubted, "the end of the doubt")
            for _ in range(10):
                assert (await bed.ask()).status == 200
            assert len(bed.engines[0].requests) == failures
        fleet = json.loads(await bed.admin("/fleet"))
        assert [e["out"] for e in fleet["models"]["m"]["endpoints"]] == ["consecutive_failures", "", ""]
        metrics = (await bed.admin("/metrics")).decode()
        assert 'llmfleet_router_endpoint_out{llmcluster="e0",reason="consecutive_failures",role="both"} 1.0' in metrics
        assert 'llmfleet_router_endpoint_ejections_total{llmcluster="e0",role="both"} 1.0' in metrics
        bed.engines[0].behave = ok()
        await bed.until(lambda: len(bed.router.fleet.models["m"].open) == 3, "the return")
        for _ in range(9):
            await bed.ask()
        assert len(bed.engines[0].requests) > 3


@scenario
async def test_with_two_engines_one_may_be_left_out_and_the_other_never_is():
    rules = {"health": UNCHECKED | {"consecutiveFailures": 2}, "retries": {"floor": 1000}}
    async with Bed(status(500), status(500), settings=rules) as bed:
        for _ in range(10):
            assert (await bed.ask()).status == 500
        out = [b.vitals.why for b in bed.router.fleet.backends.values()]
        assert sorted(out, key=str) == [None, Why.CONSECUTIVE]
        assert not bed.router.fleet.models["m"].panic


@scenario
async def test_an_engine_that_fails_its_checks_is_left_out_and_returns_with_its_first_answer():
    async with Bed(ok(), ok(), ok(), settings={"health": QUICK}) as bed:
        bed.engines[0].health = 503
        await bed.until(lambda: len(bed.router.fleet.models["m"].open) == 2, "the ejection")
        for _ in range(6):
            await bed.ask()
        assert bed.engines[0].requests == []
        fleet = json.loads(await bed.admin("/fleet"))
        assert fleet["models"]["m"]["endpoints"][0]["out"] == "health_checks"
        bed.engines[0].health = 200
        await bed.until(lambda: len(bed.router.fleet.models["m"].open) == 3, "the return")


@pytest.mark.parametrize("health", [200, 404])
@scenario
async def test_any_answer_below_500_is_life(health):
    rules = {"health": QUICK | {"checkFailures": 1, "checkTimeoutSeconds": 30}}
    async with Bed(ok(), ok(), ok(), settings=rules) as bed:
        bed.engines[0].health = health
        await bed.until(lambda: bed.engines[0].checks > 3)
        assert len(bed.router.fleet.models["m"].open) == 3


@scenario
async def test_what_waits_for_a_frozen_engine_goes_to_another_one_when_it_is_declared_lost():
    rules = {"health": QUICK, "retries": {"floor": 0, "share": 0}}
    async with Bed(silent(), ok(), ok(), settings=rules) as bed:
        await bed.adopted(bed.publish(e1=None, e2=None))
        clients = [await bed.client() for _ in range(5)]
        for client in clients:
            await client.send(STREAM)
        await bed.until(lambda: bed.engines[0].active == 5)
        await bed.adopted(bed.publish())
        bed.engines[0].health = 0
        answers = [await client.answer() for client in clients]
        assert [(a.status, a.ended) for a in answers] == [(200, "whole")] * 5
        assert bed.counter("retries") == {"lost": 5}
        await bed.until(lambda: bed.engines[0].active == 0, "the engine being told")
        assert bed.in_flight() == 0


@scenario
async def test_an_engine_too_busy_for_its_check_that_sends_tokens_is_alive():
    async with Bed(endless(gap=0.02), ok(), ok(), settings={"health": QUICK}) as bed:
        await bed.adopted(bed.publish(e1=None, e2=None))
        client = await bed.client()
        await client.send(STREAM)
        await client.head()
        await bed.adopted(bed.publish())
        bed.engines[0].health = 0
        before = bed.engines[0].checks
        await bed.until(lambda: bed.engines[0].checks > before + 4)
        assert len(bed.router.fleet.models["m"].open) == 3
        client.writer.close()


@scenario
async def test_when_most_engines_look_bad_they_are_used_after_the_good_ones():
    async with Bed(ok(delay=0.8), ok(delay=0.8), ok(delay=0.8), settings={"health": QUICK}, slots=2) as bed:
        for engine in bed.engines[:2]:
            engine.health = 503
        pool = bed.router.fleet.models["m"]
        await bed.until(lambda: pool.panic, "the panic")
        clients = [await bed.client() for _ in range(5)]
        for client in clients:
            await client.send(CHAT)
        assert [(await client.answer()).status for client in clients] == [200] * 5
        assert [len(e.requests) for e in bed.engines] in ([1, 2, 2], [2, 1, 2])
        assert 'llmfleet_router_panic{model="m"} 1.0' in (await bed.admin("/metrics")).decode()
        for engine in bed.engines:
            engine.health = 200
        await bed.until(lambda: not pool.panic, "the end of the panic")


@scenario
async def test_a_dead_engine_is_no_longer_tried_after_a_few_refused_connections():
    async with Bed(ok(), ok(), ok(), settings={"health": UNCHECKED}) as bed:
        await bed.engines[0].stop()
        dead = next(b for b in bed.router.fleet.backends.values() if b.instance == "e0")
        while dead.vitals.why is None:
            assert (await bed.ask()).status == 200
        assert dead.vitals.why is Why.SEVERED
        assert bed.counter("retries") == {"connect": 3}


@scenario
async def test_checks_of_a_removed_engine_end():
    async with Bed(ok(), ok(), settings={"health": QUICK}) as bed:
        await bed.until(lambda: bed.engines[1].checks > 0)
        await bed.adopted(bed.publish(e1=None))
        await asyncio.sleep(0.3)
        before = bed.engines[1].checks
        await asyncio.sleep(0.5)
        assert bed.engines[1].checks == before
