"""Requests that find no slot wait: in order, bounded, as long as they may, and never beside a free slot."""

import asyncio
import json

import pytest
from bed import CHAT, STREAM, Bed, Remade, scenario
from engine import chat_events, drop, endless, ok, play, silent, status
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.api.document import Document, Endpoint, Model, ModelState, render, with_generation
from llmfleet.router.keys import ANONYMOUS
from llmfleet.router.limits import Queue
from llmfleet.router.pick import Backend, Fleet, ModelPool, pick
from llmfleet.router.waits import Waits


def queue(**changes):
    return {"queue": changes}


@scenario
async def test_a_request_without_a_slot_waits_for_one_and_is_told_how_long():
    async with Bed(ok(delay=0.8), slots=1) as bed:
        clients = [await bed.client() for _ in range(3)]
        for client in clients:
            await client.send()
        await bed.until(lambda: bed.router.waiting("m") == 2)
        text = (await bed.admin("/metrics")).decode()
        assert 'llmfleet_queue_requests{model="m"} 2.0' in text
        assert f'llmfleet_queue_prompt_bytes{{model="m"}} {2.0 * len(json.dumps(CHAT))}' in text
        assert 'llmfleet_router_in_flight_requests{model="m"} 1.0' in text
        answers = [await client.answer() for client in clients]
        assert [a.status for a in answers] == [200] * 3
        waited = [int(a.headers.get("x-llmfleet-queued-ms", 0)) for a in answers]
        assert waited[0] == 0 and 150 <= waited[1] < waited[2]
        assert bed.engines[0].max_active == 1 and bed.router.waiting("m") == 0 and bed.in_flight() == 0
        assert bed.router.waits.bytes == 0 and not bed.router.waits.pools


@scenario
async def test_nobody_passes_those_who_wait():
    async with Bed(ok(delay=1.5), slots=1) as bed:
        clients = [await bed.client() for _ in range(4)]
        for number, client in enumerate(clients):
            await client.send(CHAT | {"seed": number})
            await bed.until(lambda n=number: bed.router.waiting("m") == n)
        for client in clients:
            await client.answer()
        assert [r.json["seed"] for r in bed.engines[0].requests] == [0, 1, 2, 3]


@scenario
async def test_a_client_that_leaves_is_out_of_the_queue_at_once():
    async with Bed(silent(), slots=1) as bed:
        first, second = await bed.client(), await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() == 1)
        await second.send()
        await bed.until(lambda: bed.router.waiting("m") == 1)
        second.writer.transport.abort()
        await bed.until(lambda: bed.router.waiting("m") == 0)
        assert bed.counter("requests") == {(499, "aborted"): 1}
        assert bed.router.waits.bytes == 0


@scenario
async def test_who_waited_as_long_as_they_may_gets_a_503_that_says_when_to_come_back():
    async with Bed(silent(), slots=1, settings=queue(ttlSeconds=0.5)) as bed:
        first = await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() == 1)
        for body in (CHAT, STREAM):
            answer = await bed.ask(body)
            assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
            assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert len(bed.engines[0].requests) == 1
        assert bed.router.metrics.model("m").in_flight == 1


@scenario
async def test_a_full_queue_refuses_at_arrival_with_its_reason():
    async with Bed(silent(), slots=1, settings=queue(capacity=2)) as bed:
        clients = [await bed.client() for _ in range(3)]
        for client in clients:
            await client.send()
        await bed.until(lambda: bed.router.waiting("m") == 2)
        answer = await bed.ask()
        assert (answer.status, answer.headers["x-llmfleet-rejected"]) == (503, "queue_full")
        assert bed.router.waiting("m") == 2


@scenario
async def test_a_wait_that_would_be_too_long_is_refused_at_arrival():
    async with Bed(ok(delay=0.4), slots=1, settings=queue(ttlSeconds=1.2)) as bed:
        clients = [await bed.client() for _ in range(12)]
        for client in clients:
            await client.send()
        answers = [await client.answer() for client in clients[:6]]
        assert answers[0].status == 200
        late = await bed.client()
        for client in clients[6:]:
            client.writer.close()
        await late.send()
        assert (await late.answer()).status in (200, 503)
        crowd = [await bed.client() for _ in range(12)]
        for client in crowd:
            await client.send()
        said = [await client.answer() for client in crowd]
        reasons = {a.headers.get("x-llmfleet-rejected") for a in said if a.status == 503}
        assert "wait_too_long" in reasons


@scenario
async def test_the_memory_of_bodies_that_wait_or_are_read_is_bounded():
    async with Bed(silent(), slots=1, settings=queue(maxWaitingBytes=4096)) as bed:
        first, second = await bed.client(), await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() == 1)
        await second.send(CHAT | {"user": "x" * 3000})
        await bed.until(lambda: bed.router.waiting("m") == 1)
        refused = await bed.ask(CHAT | {"user": "x" * 1500})
        assert (refused.status, refused.headers["x-llmfleet-rejected"]) == (503, "queue_bytes")
        reading = await bed.client()
        reading.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n{")
        answer = await reading.answer()
        assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
        second.writer.transport.abort()
        await bed.until(lambda: bed.router.waits.bytes == 0)
        slow = await bed.client()
        slow.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n{")
        await bed.until(lambda: bed.router.reading == 1)
        slow.writer.write(b" " * 1500)
        await bed.until(lambda: bed.router.reading == 1501)
        slow.writer.transport.abort()
        await bed.until(lambda: bed.router.reading == 0)


@scenario
async def test_bodies_at_engines_count_until_their_answers_begin():
    large, announced = (
        CHAT | {"user": "x" * 3000},
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n{",
    )
    async with Bed(silent(), slots=9, settings=queue(maxWaitingBytes=4096)) as bed:
        first, slow = await bed.client(), await bed.client()
        await first.send(large)
        await bed.until(lambda: bed.in_flight() == 1 and bed.router.held > 3000)
        slow.writer.write(announced % 2000)
        refused = await slow.answer()
        assert (refused.status, refused.error["code"]) == (503, "server_is_overloaded")
        small = await bed.client()
        await small.send()
        await bed.until(lambda: bed.in_flight() == 2)
        small.writer.transport.abort()
        first.writer.transport.abort()
        await bed.until(lambda: bed.router.held == 0)


@scenario
async def test_a_body_is_let_go_when_its_answer_begins():
    async with Bed(endless(), slots=9, settings=queue(maxWaitingBytes=4096)) as bed:
        client = await bed.client()
        await client.send(STREAM | {"user": "x" * 3000})
        await bed.until(lambda: bed.in_flight() == 1 and bed.engines[0].requests and bed.router.held == 0)
        client.writer.transport.abort()
        await bed.until(lambda: bed.in_flight() == 0)
        assert bed.router.held == 0


@scenario
async def test_a_body_that_waits_is_counted_once():
    async with Bed(silent(), slots=1, settings=queue(maxWaitingBytes=4096)) as bed:
        first, second = await bed.client(), await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() == 1)
        await second.send(CHAT | {"user": "x" * 3500})
        await bed.until(lambda: bed.router.waiting("m") == 1)
        first.writer.transport.abort()
        second.writer.transport.abort()
        await bed.until(lambda: bed.router.held == 0)


@scenario
async def test_bodies_that_are_announced_and_never_come_take_no_memory_from_others():
    async with Bed(ok(delay=0.3), slots=1, settings=queue(maxWaitingBytes=4096)) as bed:
        silent_ones = [await bed.client() for _ in range(8)]
        for client in silent_ones:
            client.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\n{")
        await bed.until(lambda: bed.router.reading == 8)
        assert [a.status for a in await asyncio.gather(bed.ask(), bed.ask())] == [200, 200]


@scenario
async def test_chunked_bodies_are_counted_while_they_grow():
    async with Bed(ok(), settings=queue(maxWaitingBytes=4096)) as bed:
        client = await bed.client()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.writer.write(head)
        for _ in range(5):
            client.writer.write(b"400\r\n" + b" " * 1024 + b"\r\n")
            await asyncio.sleep(0.05)
        assert (await client.answer()).status == 503
        await bed.until(lambda: bed.router.reading == 0)


@scenario
async def test_reject_means_that_nobody_waits():
    async with Bed(silent(), slots=1, settings=queue(overflow="reject")) as bed:
        first = await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() == 1)
        assert (await bed.ask()).status == 503
        assert bed.router.waiting("m") == 0


@scenario
async def test_a_new_engine_takes_those_who_wait():
    async with Bed(silent(), ok(), slots=1) as bed:
        await bed.adopted(bed.publish(e1=None))
        first, second = await bed.client(), await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() == 1)
        await second.send()
        await bed.until(lambda: bed.router.waiting("m") == 1)
        await bed.adopted(bed.publish())
        assert (await second.answer()).status == 200


@scenario
async def test_a_request_of_a_lost_engine_waits_for_a_slot_of_another_and_holds_nobody_up():
    async with Bed(drop(), ok(delay=1.5), slots=1) as bed:
        await bed.adopted(bed.publish(e0=None))
        busy, lost = await bed.client(), await bed.client()
        await busy.send()
        await bed.until(lambda: bed.in_flight() == 1)
        await bed.adopted(bed.publish())
        await lost.send(CHAT | {"user": "lost"})
        await bed.until(lambda: bed.router.waiting("m") == 1)
        assert bed.counter("retries") == {"reset": 1}
        bed.engines[0].behave = ok()
        other = await bed.ask(CHAT | {"user": "other"})
        assert other.status == 200 and "x-llmfleet-queued-ms" not in other.headers
        answer = await lost.answer()
        assert answer.status == 200 and int(answer.headers["x-llmfleet-queued-ms"]) > 0
        assert [r.json.get("user") for r in bed.engines[1].requests] == [None, "lost"]
        assert (await busy.answer()).status == 200
        assert bed.in_flight() == 0 and bed.router.waits.bytes == 0


@scenario
async def test_a_request_of_a_lost_engine_waits_no_longer_than_any_other():
    async with Bed(drop(), silent(), slots=1, settings=queue(ttlSeconds=0.4)) as bed:
        await bed.adopted(bed.publish(e0=None))
        busy = await bed.client()
        await busy.send()
        await bed.until(lambda: bed.in_flight() == 1)
        await bed.adopted(bed.publish())
        assert (await bed.ask()).status == 503
        assert bed.router.waiting("m") == 0 and bed.router.waits.bytes == 0


def publish_state(bed, state, *, engines=False):
    bed._generation += 1_000_000
    endpoints = tuple(
        Endpoint(instance=f"e{i}", address=e.address, pod_uid=f"uid-e{i}", slots=bed.slots)
        for i, e in enumerate(bed.engines)
    )
    document = Document(models={"m": Model(state=state, endpoints=endpoints if engines else ())})
    document = with_generation(document, previous=bed._generation, now_ms=0)
    bed._generation = document.generation
    bed.replace(render(document))
    return document.generation


@pytest.mark.parametrize("state", [ModelState.ASLEEP, ModelState.WAKING, ModelState.RESTARTING])
@scenario
async def test_a_model_without_an_engine_is_waited_for_and_its_demand_is_shown(state):
    async with Bed(ok(), settings=queue(ttlSeconds=0.1)) as bed:
        await bed.adopted(publish_state(bed, state))
        client = await bed.client()
        await client.send()
        await bed.until(lambda: bed.router.waiting("m") == 1)
        assert 'llmfleet_queue_requests{model="m"} 1.0' in (await bed.admin("/metrics")).decode()
        await asyncio.sleep(0.6)
        await bed.adopted(publish_state(bed, ModelState.SERVING, engines=True))
        answer = await client.answer()
        assert answer.status == 200 and int(answer.headers["x-llmfleet-queued-ms"]) >= 500


@scenario
async def test_a_stream_for_a_sleeping_model_gets_comments_and_then_its_events():
    async with Bed(ok(), settings=queue(commentSeconds=0.2)) as bed:
        await bed.adopted(publish_state(bed, ModelState.ASLEEP))
        client = await bed.client()
        await client.send(STREAM)
        status_, headers = await client.head()
        assert (status_, headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        assert (await client.chunk()).startswith(b": ")
        await bed.adopted(publish_state(bed, ModelState.SERVING, engines=True))
        body = b""
        while piece := await client.chunk():
            body += piece
        events = [e + b"\n\n" for e in body.split(b"\n\n") if e.strip() and not e.startswith(b":")]
        assert events == [*chat_events(3), b"data: [DONE]\n\n"]
        await client.send()
        assert (await client.answer()).status == 200, "the connection is kept"


@pytest.mark.parametrize("behaviour", [status(400), play(then="cut"), status(500)], ids=["400", "cut", "500"])
@scenario
async def test_after_a_comment_every_failure_is_an_error_event(behaviour):
    async with Bed(behaviour, settings=queue(commentSeconds=0.1)) as bed:
        await bed.adopted(publish_state(bed, ModelState.ASLEEP))
        client = await bed.client()
        await client.send(STREAM)
        await client.head()
        await client.chunk()
        await bed.adopted(publish_state(bed, ModelState.SERVING, engines=True))
        rest = await client.reader.read()
        assert b'data: {"error":' in rest and b"[DONE]" not in rest and b"\r\n0\r\n\r\n" not in rest
        assert bed.in_flight() == 0


@scenario
async def test_a_wake_that_takes_too_long_ends_a_stream_by_an_error_event_and_a_unary_request_by_a_503():
    rules = queue(commentSeconds=0.1, wakeTimeoutSeconds=2, unaryHoldSeconds=0.3)
    async with Bed(ok(), settings=rules) as bed:
        await bed.adopted(publish_state(bed, ModelState.ASLEEP))
        stream = await bed.ask(STREAM)
        assert stream.status == 200 and b'"code":"no_endpoint"' in stream.body and stream.ended == "eof"
        unary = await bed.ask()
        assert (unary.status, unary.error["code"]) == (503, "no_endpoint")
        assert 1 <= int(unary.headers["retry-after"]) <= 30
        patient = await bed.client()
        await patient.send(headers={"Prefer": "wait=100"})
        await asyncio.sleep(0.5)
        assert bed.router.waiting("m") == 1
        assert (await patient.answer()).status == 503
        assert bed.router.waiting("m") == 0


@scenario
async def test_those_who_wait_for_a_model_that_is_removed_are_told():
    async with Bed(silent(), slots=1) as bed:
        first, second = await bed.client(), await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() == 1)
        await second.send()
        await bed.until(lambda: bed.router.waiting("m") == 1)
        document = with_generation(Document(models={}), previous=bed._generation, now_ms=0)
        bed.replace(render(document))
        assert (await second.answer()).status == 503
        assert bed.router.waits.bytes == 0 and not bed.router.waits.pools


@scenario
async def test_on_shutdown_those_who_wait_are_served_first():
    rules = {"drain": {"settleSeconds": 0, "timeoutSeconds": 20}}
    async with Bed(ok(delay=0.8), slots=1, settings=rules) as bed:
        clients = [await bed.client() for _ in range(3)]
        for client in clients:
            await client.send()
        await bed.until(lambda: bed.router.waiting("m") == 2)
        leaving = asyncio.ensure_future(bed.app.leave(asyncio.Event()))
        assert [(await client.answer()).status for client in clients] == [200] * 3
        await leaving


# ---- work-conserving, in a world without time ----


class Someone:
    """A request in a world where starting is all that happens."""

    tenant = ANONYMOUS
    size = 10

    def __init__(self, pool):
        self.pool, self.ticket, self.at = pool, None, None

    def choose(self):
        return pick(self.pool)

    def go(self, backend, now):
        backend.in_flight += 1
        self.at = backend


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["come", "end", "leave", "time"]), st.integers(0, 30)), max_size=120))
def test_nobody_ever_waits_beside_a_free_slot_whatever_happens_in_which_order(steps):
    """Two models share one engine, and each has one of its own."""
    own = {n: Endpoint(instance=n, address=f"{n}:1", pod_uid=n, slots=2) for n in ("a", "b")}
    both = Endpoint(instance="ab", address="ab:1", pod_uid="ab", slots=1)
    fleet = Fleet()
    fleet.apply(Document(models={n: Model(endpoints=(own[n], both)) for n in own}))
    waits, people, now = Waits(Queue(ttl_seconds=20), 100), [], 0.0
    for what, number in steps:
        running = [p for p in people if p.at is not None]
        waiting = [p for p in people if p.ticket is not None]
        if what == "come":
            pool = fleet.models["ab"[number % 2]]
            someone = Someone(pool)
            backend = None if pool.room else someone.choose()
            if backend is not None:
                someone.go(backend, now)
            else:
                waits.enter(someone, now, hold=None, beside=0)
                waits.serve(now)
            people.append(someone)
        elif what == "end" and running:
            done = running[number % len(running)]
            done.at.in_flight -= 1
            done.at = None
            waits.serve(now)
        elif what == "leave" and waiting:
            waits.leave(waiting[number % len(waiting)], now)
        else:
            now += number
            waits.expire(now)
        for pool in fleet.models.values():
            if pool.room:
                assert all(c.backend.in_flight >= c.backend.slots for c in pool.open), what
        assert waits.bytes == 10 * sum(p.ticket is not None for p in people)
        assert set(waits.pools) == {p.pool.name for p in people if p.ticket is not None}


class Patient:
    """Waits, and starts when the test gives it an engine."""

    def __init__(self, pool):
        self.pool, self.size, self.tenant, self.ticket = pool, 10, ANONYMOUS, None
        self.engine = None
        self.told = []

    def choose(self):
        return self.engine

    def go(self, backend, now):
        self.told.append("go")

    def expired(self, retry_after):
        self.told.append("expired")


def two_who_wait():
    waits, pool = Waits(Queue(ttl_seconds=60), 100), ModelPool("m")
    first, second = Patient(pool), Patient(pool)
    for at, waiter in ((0.0, first), (1.0, second)):
        assert waits.enter(waiter, at, hold=None, beside=0) is None
    return waits, first, second


def test_who_was_passed_over_as_its_time_was_up_is_told_so_when_nobody_else_waits_any_more():
    waits, first, second = two_who_wait()
    second.engine = Backend(Endpoint(instance="e", address="127.0.0.1:1", pod_uid="u"))
    waits.serve(60.5)
    assert second.told == ["go"] and "m" in waits.pools
    assert waits.expire(60.6) == [first]
    assert waits.bytes == 0 and not waits.pools


def test_who_left_after_its_time_was_up_is_not_told_so():
    waits, first, second = two_who_wait()
    waits.serve(60.5)
    waits.leave(first, 60.6)
    assert waits.expire(60.7) == [] and waits.bytes == second.size


@scenario
async def test_a_request_that_is_sent_again_on_its_engine_keeps_its_slot():
    async def close_late(connection, request):
        await asyncio.sleep(0.6)
        connection.cut()

    async with Bed(ok(delay=0.3), slots=1) as bed:
        await bed.ask()  # leaves a connection behind, which may be stale
        bed.engines[0].script.append(close_late)
        first, second = await bed.client(), await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() == 1)
        await second.send()
        await bed.until(lambda: bed.router.waiting("m") == 1)
        assert [(await client.answer()).status for client in (first, second)] == [200, 200]
        assert bed.counter("retries") == {"reset": 1} and bed.engines[0].max_active == 1


@scenario
async def test_a_request_that_cannot_be_sent_after_its_wait_harms_nobody_else():
    def fails_for_one(kind):
        class Failing(kind):
            def _dispatch(self, backend):
                if b"poison" in self.body:
                    raise ValueError("planted")
                super()._dispatch(backend)

        return Failing

    async with Bed(ok(delay=0.8), slots=1) as bed:
        bed.router.tracer = Remade(fails_for_one)
        clients = [await bed.client() for _ in range(3)]
        for number, client in enumerate(clients):
            await client.send(CHAT | ({"user": "poison"} if number == 1 else {}))
            await bed.until(lambda n=number: bed.router.waiting("m") == n)
        assert [(await client.answer()).status for client in clients] == [200, 500, 200]
        assert bed.in_flight() == 0 and bed.router.waits.bytes == 0
