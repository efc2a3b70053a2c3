"""A request goes to a second engine once, and only while nothing of an answer was forwarded."""

import pytest
from bed import CHAT, STREAM, Bed, scenario
from engine import (
    DONE,
    SSE_HEAD,
    UNARY,
    chat_event,
    chat_events,
    drop,
    error_event,
    events,
    json_answer,
    ok,
    play,
    silent,
    status,
)

WHOLE_STREAM = [*chat_events(3), DONE]
RESET = play(then="reset")
CUT_UNARY = play(json_answer(200, UNARY)[:-20], then="cut")
FAILURES = [
    ("drop", drop(), "reset"),
    ("reset", RESET, "reset"),
    ("500", status(500), "status"),
    ("503", status(503), "status"),
    ("half a head", play(b"HTTP/1.1 200 OK\r\ncontent-", then="cut"), "reset"),
    ("not http", play(b"SSH-2.0-OpenSSH\r\n", then="hang"), "reset"),
    ("a cut unary answer", CUT_UNARY, "reset"),
    ("an aborted unary answer", play(json_answer(200, {"choices": [{"finish_reason": "abort"}]})), "aborted"),
    ("head only", play(SSE_HEAD, then="cut"), "reset"),
    ("no stream", play(json_answer(200, UNARY)), "not_an_answer"),
    ("comments only", events(b": ping\n\n", end=False, then="cut"), "reset"),
    ("an empty stream", events(), "truncated"),
    ("done at once", events(DONE), "truncated"),
    ("half an event", events(chat_event()[:-5], end=False, then="cut"), "reset"),
    ("an error event first", events(error_event(500), DONE), "error_event"),
    ("a 503 event first", events(b": ping\n\n", error_event(503), DONE), "error_event"),
]


@pytest.mark.parametrize(("case", "behaviour", "reason"), FAILURES, ids=[f[0] for f in FAILURES])
@scenario
async def test_a_failure_before_the_first_event_is_retried_once_elsewhere(case, behaviour, reason):
    async with Bed(behaviour, ok()) as bed:
        unary = "unary" in case
        answer = await bed.ask(CHAT if unary else STREAM)
        assert (answer.status, answer.ended) == (200, "whole"), case
        assert answer.json == UNARY if unary else answer.events == WHOLE_STREAM
        assert bed.counter("retries") == {reason: 1}
        assert bed.counter("requests") == {(200, "complete"): 1}
        assert [len(e.requests) for e in bed.engines] == [1, 1]
        assert bed.in_flight() == 0
        assert [b.failures for b in sorted(bed.router.fleet.backends.values(), key=lambda b: b.instance)] == [1, 0]
        again = bed.engines[1].requests[0].header("x-request-id")
        assert again == bed.engines[0].requests[0].header("x-request-id") + "-r"


@pytest.mark.parametrize(("case", "behaviour", "reason"), FAILURES, ids=[f[0] for f in FAILURES])
@scenario
async def test_two_failing_engines_are_asked_once_each_and_the_client_gets_an_error_status(case, behaviour, reason):
    async with Bed(behaviour, behaviour, behaviour) as bed:
        answer = await bed.ask(CHAT if "unary" in case else STREAM)
        assert answer.ended == "whole" and answer.status in (500, 502, 503), case
        assert answer.error["message"]
        assert sum(len(e.requests) for e in bed.engines) == 2
        assert bed.in_flight() == 0
        assert bed.counter("requests") == {(answer.status, "failed"): 1}


@scenario
async def test_an_engine_that_refuses_connections_is_passed_over():
    async with Bed(ok(), ok()) as bed:
        await bed.engines[0].stop()
        answers = [await bed.ask() for _ in range(10)]
        assert [a.status for a in answers] == [200] * 10
        assert set(bed.counter("retries")) == {"connect"}


@pytest.mark.parametrize("code", [400, 404, 429, 502, 504])
@scenario
async def test_other_statuses_are_never_retried(code):
    async with Bed(status(code), status(code)) as bed:
        assert (await bed.ask()).status == code
        assert sum(len(e.requests) for e in bed.engines) == 1


@scenario
async def test_an_error_event_that_is_the_clients_fault_becomes_its_status():
    async with Bed(events(error_event(400), DONE), ok()) as bed:
        answer = await bed.ask(STREAM)
        assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
        assert answer.error["message"] == "EngineCore encountered an issue"
        assert bed.engines[1].requests == []


@scenario
async def test_after_the_first_event_no_other_engine_is_asked():
    async with Bed(events(chat_event(), end=False, then="cut"), ok()) as bed:
        answer = await bed.ask(STREAM)
        assert answer.status == 200 and answer.ended == "eof"
        assert bed.engines[1].requests == []


@scenario
async def test_a_kept_connection_that_the_engine_closed_costs_nothing_even_with_one_engine():
    async with Bed(ok()) as bed:
        bed.engines[0].script = [ok(), drop(), ok()]
        assert [(await bed.ask()).status for _ in range(2)] == [200, 200]
        assert bed.engines[0].connections == 2


@scenario
async def test_a_fresh_connection_that_is_dropped_is_not_tried_again_on_the_same_engine():
    async with Bed(drop()) as bed:
        assert (await bed.ask()).status == 502
        assert len(bed.engines[0].requests) == 1


@scenario
async def test_the_head_is_held_until_the_first_event_and_one_deadline_covers_both_attempts():
    settings = {"timeouts": {"firstEventSeconds": 0.6}}
    async with Bed(play(SSE_HEAD, then="hang"), silent(), settings=settings) as bed:
        answer = await bed.ask(STREAM)
        assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
        assert sum(len(e.requests) for e in bed.engines) == 1
        await bed.until(lambda: all(e.active == 0 for e in bed.engines), "the engine being aborted")
        assert bed.in_flight() == 0


@scenario
async def test_a_full_fleet_refuses_with_retry_after_and_recovers():
    async with Bed(ok(delay=1.2), slots=1, settings={"queue": {"overflow": "reject"}}) as bed:
        client = await bed.client()
        await client.send()
        await bed.until(lambda: bed.in_flight() == 1)
        refused = await bed.ask()
        assert (refused.status, refused.error["code"]) == (503, "server_is_overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        anthropic = await bed.ask(CHAT | {"max_tokens": 1}, path="/v1/messages")
        assert (anthropic.status, anthropic.json["type"], anthropic.error["type"]) == (529, "error", "overloaded_error")
        assert 1 <= int(anthropic.headers["retry-after"]) <= 30
        assert (await client.answer()).status == 200
        assert (await bed.ask()).status == 200
        assert bed.engines[0].max_active == 1


@scenario
async def test_a_retry_respects_the_slots_of_the_second_engine():
    async with Bed(status(500), ok(delay=1), slots=1) as bed:
        busy = await bed.client()
        bed.publish(e0=None)
        await bed.until(lambda: len(bed.router.fleet.models["m"].candidates) == 1)
        await busy.send()
        await bed.until(lambda: bed.in_flight() == 1)
        bed.publish()
        await bed.until(lambda: len(bed.router.fleet.models["m"].candidates) == 2)
        answer = await bed.ask()
        assert answer.status == 500, "the only other engine is full"
        assert (await busy.answer()).status == 200
        assert bed.engines[1].max_active == 1
