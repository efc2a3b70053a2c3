"""Second attempts are few, free where they add no work, and never given to a body that kills engines."""

import asyncio

from bed import CHAT, STREAM, Bed, scenario
from engine import chat_event, drop, events, ok, play, status
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.router.retries import Budget, Quarantine

RESET = play(then="reset")


def spend(budget, now, *, ratio=0.1, floor=0, window=10.0):
    return budget.spend(now, ratio=ratio, floor=floor, window=window)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 50), st.integers(0, 10)), max_size=60))
def test_second_attempts_never_exceed_their_share_of_the_requests_in_the_window(steps):
    budget, now, requests, retries = Budget(), 0.0, [], []
    for passed, asked, wanted in steps:
        now += passed
        budget.mark(now, 10.0)
        budget.requests += asked
        requests += [now] * asked
        for _ in range(wanted):
            if spend(budget, now):
                retries.append(now)
                # The window reaches back to a mark, which may be one step older than ten seconds.
                recent = sum(now - t <= 13.0 for t in requests)
                assert sum(now - t < 10.0 for t in retries) <= 0.1 * recent + 1


def test_a_model_with_few_requests_has_a_few_second_attempts_all_the_same():
    budget = Budget()
    budget.requests = 1
    assert [spend(budget, 0.0, floor=3) for _ in range(5)] == [True, True, True, False, False]
    for second in range(1, 13):
        budget.mark(float(second), 10.0)
    assert spend(budget, 13.0, floor=3), "the window is over"
    assert budget.refused == 2


def test_a_body_is_kept_after_two_different_deaths_and_one_death_seen_twice_is_one():
    quarantine = Quarantine(after=2, seconds=300)
    assert not quarantine.strike(b"bad", "pod-a", 0.0)
    assert not quarantine.strike(b"bad", "pod-a", 0.5), "many copies were on the engine that died"
    assert not quarantine.strike(b"other", "pod-b", 1.0)
    assert quarantine.strike(b"bad", "pod-b", 2.0)
    assert quarantine.holds(b"bad", 3.0) and not quarantine.holds(b"other", 3.0)
    assert not quarantine.holds(b"bad", 303.0)
    quarantine.forget(303.0)
    assert not quarantine.suspects


def test_the_same_pod_killed_again_after_its_restart_counts_again():
    quarantine = Quarantine(after=2, seconds=300)
    quarantine.strike(b"bad", "pod-a", 0.0)
    assert quarantine.strike(b"bad", "pod-a", 60.0)


def test_a_body_that_was_answered_kills_nobody():
    quarantine = Quarantine(after=2, seconds=300)
    quarantine.strike(b"fine", "pod-a", 0.0)
    quarantine.passed(b"fine")
    assert not quarantine.strike(b"fine", "pod-b", 1.0)


def test_suspects_are_bounded():
    quarantine = Quarantine(after=2, seconds=300)
    for number in range(10_050):
        quarantine.strike(b"%d" % number, "pod-a", 0.0)
    assert len(quarantine.suspects) == 10_000


@scenario
async def test_a_fleet_that_only_fails_is_asked_little_more_than_once_per_request():
    rules = {"retries": {"floor": 2}, "health": {"consecutiveFailures": 0, "failureRatio": 0}}
    async with Bed(status(500), status(500), settings=rules) as bed:
        answers = [await bed.ask() for _ in range(30)]
        assert {a.status for a in answers} == {500}
        asked = sum(len(e.requests) for e in bed.engines)
        assert 32 <= asked <= 34, "two of the floor, or ten percent"
        assert bed.router.fleet.models["m"].budget.refused >= 26


@scenario
async def test_every_request_on_an_engine_that_is_lost_has_a_free_second_attempt():
    async def hang_then_die(connection, request):
        await asyncio.sleep(3600)

    rules = {"retries": {"floor": 3, "share": 0}, "health": {"checkSeconds": 0}}
    async with Bed(hang_then_die, ok(), settings=rules, slots=40) as bed:
        generation = bed.publish(e1=None)
        await bed.adopted(generation)
        clients = [await bed.client() for _ in range(30)]
        for number, client in enumerate(clients):
            await client.send(CHAT | {"seed": number})
        await bed.until(lambda: bed.engines[0].active == 30)
        await bed.adopted(bed.publish())
        await bed.engines[0].stop()
        assert [(await c.answer()).status for c in clients] == [200] * 30
        assert len(bed.engines[1].requests) == 30
        assert bed.in_flight() == 0


@scenario
async def test_a_body_that_kills_two_engines_is_not_given_to_a_third():
    async def deadly(connection, request):
        if request.json.get("user") == "killer":
            connection.reset()
        else:
            await ok()(connection, request)

    async with Bed(deadly, deadly, deadly, settings={"health": {"lostConnections": 0}}) as bed:
        killer = CHAT | {"user": "killer"}
        answers = [await bed.ask(killer) for _ in range(5)]
        assert {(a.status, a.error["code"]) for a in answers} == {(502, "request_quarantined")}
        assert sum(len(e.requests) for e in bed.engines) == 2
        assert (await bed.ask()).status == 200, "others are served"
        assert bed.in_flight() == 0
        assert "llmfleet_router_quarantined_total 5.0" in (await bed.admin("/metrics")).decode()


@scenario
async def test_a_body_whose_answer_began_is_not_suspected_when_the_engine_dies_later():
    broken = events(chat_event(), end=False, then="reset")
    async with Bed(broken, broken) as bed:
        for _ in range(4):
            assert (await bed.ask(STREAM)).status == 200
        assert not bed.router.quarantine.suspects


@scenario
async def test_a_body_that_was_answered_elsewhere_is_no_longer_suspected():
    async with Bed(drop(), ok()) as bed:
        assert (await bed.ask()).status == 200
        assert not bed.router.quarantine.suspects
