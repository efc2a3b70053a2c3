"""Engines that say that they are dead or leave: nobody is sent there, and who was there is answered by others."""

import asyncio
import json

import pytest
from bed import CHAT, STREAM, Bed, scenario
from engine import DONE, Behaviour, chat_event, events, json_answer, ok, status
from test_pick import take

from llmfleet.api.document import Document, Endpoint, Model
from llmfleet.router.errors import CONFESSIONS, Confession, confession, error_in
from llmfleet.router.health import Rules, Vitals, Why
from llmfleet.router.pick import Fleet
from llmfleet_sim.errors import ENGINE_DEAD, SHUTTING_DOWN

RULES = Rules(consecutive=5, severed=3, ratio=0.5, least=20, base=10.0, longest=300.0, checks=3)
WORDS = {Confession.DEAD: ENGINE_DEAD, Confession.LEAVING: SHUTTING_DOWN}
UNPAID = {"retries": {"floor": 0, "share": 0}}


def error(message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}}


def says(message: str, *, late: bool = False) -> Behaviour:
    """Answer 500 with these words, the body in a packet of its own if `late`."""

    async def behave(connection, request):
        answer = json_answer(500, error(message))
        head, _, body = answer.partition(b"\r\n\r\n")
        await connection.send(head + b"\r\n\r\n" if late else answer)
        if late:
            await asyncio.sleep(0.05)
            await connection.send(body)

    return behave


def in_a_stream(message: str, *before: bytes) -> Behaviour:
    return events(*before, b"data: " + json.dumps(error(message)).encode() + b"\n\n", DONE)


def out(bed):
    return [b.vitals.why for b in sorted(bed.router.fleet.backends.values(), key=lambda b: b.instance)]


# ---- what is read ----


def test_the_words_are_those_of_the_engine():
    assert {message: CONFESSIONS[message] for message in WORDS.values()} == {m: c for c, m in WORDS.items()}


@pytest.mark.parametrize("body", [b"", b"no", b"[]", b'{"error": "x"}', b'{"error": {"message": 7}}', b'{"error": {}}'])
def test_other_failures_say_nothing_of_the_engine(body):
    assert confession(error_in(body)) is None


def test_words_of_a_client_inside_an_error_are_no_confession():
    assert confession({"message": f"no such thing: {ENGINE_DEAD}"}) is None
    assert confession({"message": ENGINE_DEAD[:-1]}) is None


# ---- health ----


def test_a_dead_engine_is_not_called_lost_however_its_connections_and_checks_end():
    vitals = Vitals()
    vitals.out(Why.DEAD, 0.0, RULES)
    assert all(vitals.failed(1.0, RULES, severed=True) is None for _ in range(9))
    assert all(vitals.checked(1.0, RULES, alive=False) is None for _ in range(9))
    assert vitals.dead and not vitals.lost


def test_a_dead_engine_is_out_for_its_time_although_it_passes_its_checks():
    vitals = Vitals()
    vitals.out(Why.DEAD, 0.0, RULES)
    vitals.checked(1.0, RULES, alive=True)
    assert vitals.dead and not vitals.tick(9.9, RULES, checked=True)
    assert vitals.tick(10.0, RULES, checked=True) and vitals.why is None


def test_a_dead_engine_that_fails_its_checks_stays_out_until_it_passes_one():
    vitals = Vitals()
    vitals.out(Why.DEAD, 0.0, RULES)
    for _ in range(3):
        vitals.checked(1.0, RULES, alive=False)
    assert not vitals.tick(1000.0, RULES, checked=True)
    vitals.checked(1000.0, RULES, alive=True)
    assert vitals.tick(1000.5, RULES, checked=True)


def test_doubt_lasts_twice_as_long_with_each_failure_and_ends_with_an_answer():
    vitals = Vitals()
    assert not vitals.doubt(0.0)
    vitals.failed(0.0, RULES, severed=False)
    assert vitals.doubt(0.0) and vitals.doubted and not vitals.doubt(0.2)
    assert vitals.doubt(0.25) and not vitals.doubted
    vitals.failed(1.0, RULES, severed=False)
    assert vitals.doubt(1.4) and vitals.doubted
    vitals.answered()
    assert vitals.doubt(1.4) and not vitals.doubted
    for _ in range(40):
        vitals.failed(2.0, RULES, severed=False)
    vitals.doubt(2.0 + RULES.longest - 1)
    assert vitals.doubted
    vitals.doubt(2.0 + RULES.longest)
    assert not vitals.doubted


# ---- requests ----


@pytest.mark.parametrize("late", [False, True], ids=["in one packet", "its body later"])
@pytest.mark.parametrize("what", list(Confession))
@scenario
async def test_an_engine_that_says_it_is_dead_is_left_out_at_once_and_the_request_costs_no_budget(what, late):
    async with Bed(says(WORDS[what], late=late), ok(), ok(), settings=UNPAID) as bed:
        for _ in range(12):
            assert (await bed.ask()).status == 200
        assert len(bed.engines[0].requests) == 1
        assert out(bed) == [Why.DEAD, None, None]
        assert bed.counter("retries") == {what: 1}


@scenario
async def test_a_stream_whose_first_event_says_it_goes_to_another_engine():
    async with Bed(in_a_stream(ENGINE_DEAD), ok(), settings=UNPAID) as bed:
        answers = [await bed.ask(STREAM) for _ in range(4)]
        assert [(a.status, a.ended) for a in answers] == [(200, "whole")] * 4
        assert len(bed.engines[0].requests) == 1 and out(bed) == [Why.DEAD, None]


@scenario
async def test_a_stream_that_had_begun_tells_its_client_and_the_router():
    async with Bed(in_a_stream(ENGINE_DEAD, chat_event()), ok()) as bed:
        await bed.adopted(bed.publish(e1=None))
        answer = await bed.ask(STREAM)
        assert answer.status == 200 and ENGINE_DEAD.encode() in answer.body
        assert bed.counter("requests") == {(200, "failed"): 1}
        assert out(bed)[0] is Why.DEAD


@scenario
async def test_plain_failures_leave_nobody_out_at_once():
    async with Bed(status(500), ok(), ok()) as bed:
        assert [(await bed.ask()).status for _ in range(3)] == [200] * 3
        assert out(bed) == [None] * 3
        assert set(bed.counter("retries")) == {"status"}


@scenario
async def test_a_failure_whose_body_never_comes_is_judged_by_its_status():
    async def stuck(connection, request):
        await connection.send(b"HTTP/1.1 500 X\r\ncontent-length: 100\r\ncontent-type: application/json\r\n\r\n{")
        await asyncio.sleep(3600)

    async with Bed(stuck, ok()) as bed:
        await bed.adopted(bed.publish(e1=None))
        task = asyncio.create_task(bed.ask())
        await bed.until(lambda: bed.engines[0].active == 1)
        await bed.adopted(bed.publish())
        assert (await task).status == 200
        assert bed.counter("retries") == {"status": 1}


@scenario
async def test_a_failure_that_is_cut_is_a_broken_connection():
    async def cut(connection, request):
        await connection.send(b"HTTP/1.1 500 X\r\ncontent-length: 100\r\ncontent-type: application/json\r\n\r\n{")
        connection.writer.close()

    async with Bed(cut, ok(), ok()) as bed:
        assert [(await bed.ask()).status for _ in range(3)] == [200] * 3
        assert bed.counter("retries") == {"reset": 1}


@pytest.mark.parametrize("ask", [CHAT, STREAM], ids=["unary", "stream"])
@pytest.mark.parametrize("what", list(Confession))
@scenario
async def test_when_every_engine_is_dead_what_had_no_answer_waits_for_the_next_one(what, ask):
    word = in_a_stream(ENGINE_DEAD) if ask is STREAM and what is Confession.DEAD else says(WORDS[what])
    async with Bed(word, ok(), settings=UNPAID) as bed:
        await bed.adopted(bed.publish(e1=None))
        tasks = [asyncio.create_task(bed.ask(ask)) for _ in range(3)]
        await bed.until(lambda: bed.router.waiting("m") == 3, "three that wait")
        tried = len(bed.engines[0].requests)
        late = asyncio.create_task(bed.ask(ask))  # it comes when everybody is known to be dead
        await bed.until(lambda: bed.router.waiting("m") == 4, "one more")
        assert len(bed.engines[0].requests) == tried and out(bed)[0] is Why.DEAD
        bed.publish()
        answers = [await task for task in [*tasks, late]]
        assert [(a.status, a.ended) for a in answers] == [(200, "whole")] * 4
        assert bed.in_flight() == 0 and not bed.router.waits.bytes


@scenario
async def test_a_request_that_two_engines_died_with_is_not_given_to_a_third():
    async with Bed(says(ENGINE_DEAD), says(ENGINE_DEAD), ok()) as bed:
        await bed.adopted(bed.publish(e2=None))
        answer = await bed.ask()
        assert (answer.status, answer.error["message"]) == (500, ENGINE_DEAD)
        assert bed.engines[2].requests == []


@scenario
async def test_a_request_that_two_leaving_engines_refused_waits_for_a_third():
    async with Bed(says(SHUTTING_DOWN), says(SHUTTING_DOWN), ok()) as bed:
        await bed.adopted(bed.publish(e2=None))
        task = asyncio.create_task(bed.ask())
        await bed.until(lambda: bed.router.waiting("m") == 1)
        bed.publish()
        assert (await task).status == 200


@scenario
async def test_who_waits_for_dead_engines_hears_after_a_while_that_there_is_none():
    async with Bed(says(ENGINE_DEAD), settings={"queue": {"wakeTimeoutSeconds": 1}}) as bed:
        answer = await bed.ask()
        assert (answer.status, answer.error["code"]) == (503, "no_endpoint")
        assert "retry-after" in answer.headers
        assert bed.in_flight() == 0 and not bed.router.waits.bytes


@scenario
async def test_panic_does_not_bring_the_dead_back():
    async with Bed(says(ENGINE_DEAD), says(ENGINE_DEAD), ok(), settings={"retries": {"floor": 1000}}) as bed:
        assert [(await bed.ask()).status for _ in range(9)].count(200) >= 8
        tried = sum(len(e.requests) for e in bed.engines[:2])
        assert [(await bed.ask()).status for _ in range(20)] == [200] * 20
        assert sum(len(e.requests) for e in bed.engines[:2]) == tried == 2


def test_a_broken_engine_that_is_idle_does_not_draw_the_requests_of_the_busy_ones():
    fleet = Fleet()
    names = {"broken": 0, "a": 0, "b": 0, "far": 1}
    engines = tuple(Endpoint(instance=n, address=f"{n}:1", pod_uid=n, tier=t, slots=4) for n, t in names.items())
    fleet.apply(Document(models={"m": Model(endpoints=engines)}))
    broken = next(iter(fleet.backends.values()))
    broken.vitals.failed(0.0, RULES, severed=False)
    assert broken.vitals.doubt(0.0)
    fleet.reopen()
    assert take(fleet.models["m"], 8) == {"a": 4, "b": 4}, "idle, but it comes after the others of its tier"
    assert take(fleet.models["m"], 6) == {"broken": 4, "far": 2}, "and before the next tier: its slots are not lost"
