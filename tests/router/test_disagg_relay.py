"""Requests over two engines: every leg, every way a leg fails, and what the client, the slots and the leases see."""

import asyncio
import json

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

from llmfleet.api.document import Role, State

WHOLE_STREAM = [*chat_events(3), DONE]
OFFER = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2]],
    "remote_engine_id": "954b55d3",
    "remote_host": "10.0.0.9",
    "remote_port": 5600,
    "remote_num_tokens": 144,
}


def offering(*, delay=0.0, tokens=144, **changes):
    """A prefill engine: each request gets an offer of its own."""

    async def behave(connection, request):
        await asyncio.sleep(delay)
        offer = OFFER | {"remote_request_id": "kv-" + request.header("x-request-id")} | changes
        body = UNARY | {"usage": {"prompt_tokens": tokens}, "kv_transfer_params": offer}
        await connection.send(json_answer(200, body))

    return behave


class Split(Bed):
    """Engines whose names say their role: p0, p1, d0, d1, b0 ..."""

    def __init__(self, settings=None, slots=256, **engines):
        self.names = list(engines)
        super().__init__(*engines.values(), settings={"disaggregation": settings or {}}, slots=slots)

    def publish(self, **changes):
        roles = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}
        every = {
            f"e{i}": None
            if changes.get(n, {}) is None
            else {"role": roles[n[0]], "engine_revision": "r"} | changes.get(n, {})
            for i, n in enumerate(self.names)
        }
        return super().publish(**every)

    def asked(self, name):
        return [r for r in self.engines[self.names.index(name)].requests if r.method == "POST"]

    def backend(self, name):
        instance = f"e{self.names.index(name)}"
        return next(b for b in self.router.fleet.backends.values() if b.instance == instance)

    def nothing_held(self):
        assert self.in_flight() == 0
        assert all(b.arriving == 0 and b.ledger.pending == 0 for b in self.router.fleet.backends.values())

    def fates(self):
        return {n: dict(self.backend(n).ledger.fates) for n in self.names if self.backend(n).ledger.fates}


# ---- what goes right ----


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["unary", "stream"])
@scenario
async def test_one_engine_prefills_and_the_other_answers_under_one_id(body):
    async with Split(p0=offering(), d0=ok()) as bed:
        answer = await bed.ask(body | {"max_tokens": 7})
        assert (answer.status, answer.ended) == (200, "whole")
        assert answer.events == WHOLE_STREAM if "stream" in body else answer.json == UNARY
        (one,), (two,) = bed.asked("p0"), bed.asked("d0")
        name = one.header("x-request-id")
        assert name == two.header("x-request-id") == answer.headers["x-request-id"]
        assert (one.path, one.json["max_tokens"], one.json["stream"]) == ("/v1/chat/completions", 1, False)
        assert one.json["messages"] == two.json["messages"] == CHAT["messages"]
        assert one.json["kv_transfer_params"]["do_remote_decode"] is True
        assert two.json["kv_transfer_params"] == OFFER | {"remote_request_id": f"kv-{name}"}
        assert two.json["max_tokens"] == 7
        assert bed.counter("ways") == {"split": 1} and bed.counter("requests") == {(200, "complete"): 1}
        assert bed.fates() == {"p0": {"used": 1}}
        bed.nothing_held()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/messages"])
@scenario
async def test_every_route_that_generates_is_split(path):
    async with Split(p0=offering(), d0=ok()) as bed:
        answer = await bed.ask({"model": "m", "prompt": "x", "input": "x", "max_tokens": 9}, path=path)
        assert answer.status == 200
        assert [r.path for name in ("p0", "d0") for r in bed.asked(name)] == [path, path]
        assert "kv_transfer_params" in bed.asked("d0")[0].json


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (CHAT | {"n": 2}, "/v1/chat/completions"),
        ({"model": "m", "prompt": ["a", "b"]}, "/v1/completions"),
        ({"model": "m", "input": "x"}, "/v1/embeddings"),
        (CHAT | {"max_tokens": 1}, "/v1/messages/count_tokens"),
    ],
)
@scenario
async def test_what_cannot_be_split_goes_to_a_decode_engine_as_it_is(body, path):
    async with Split(p0=offering(), d0=ok()) as bed:
        assert (await bed.ask(body, path=path)).status == 200
        assert bed.asked("p0") == [] and bed.asked("d0")[0].json == body
        assert bed.counter("ways") == {"alone": 1}
        bed.nothing_held()


@scenario
async def test_short_prompts_bypass_the_prefill_engine_when_told_to():
    async with Split({"bypassPrefill": {"minPromptTokens": 100}}, p0=offering(), d0=ok()) as bed:
        assert (await bed.ask(CHAT)).status == 200
        assert (await bed.ask({"model": "m", "messages": [{"role": "user", "content": "x" * 400}]})).status == 200
        assert (len(bed.asked("p0")), len(bed.asked("d0"))) == (1, 2)
        assert bed.counter("ways") == {"bypass": 1, "split": 1}


def talk(turns, length=3000):
    """A conversation of so many turns; each begins with the one before."""
    said = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"{n} " * length} for n in range(turns)]
    return {"model": "m", "messages": said}


@scenario
async def test_a_conversation_stays_on_the_pair_that_has_it_cached():
    async with Split(p0=offering(), p1=offering(), p2=offering(), d0=ok(), d1=ok(), d2=ok()) as bed:
        for turns in (1, 3, 5, 7):
            assert (await bed.ask(talk(turns))).status == 200
        assert sorted(len(bed.asked(n)) for n in ("p0", "p1", "p2")) == [0, 0, 4]
        assert sorted(len(bed.asked(n)) for n in ("d0", "d1", "d2")) == [0, 0, 4]
        assert bed.counter("ways") == {"split": 4}


@scenario
async def test_a_prompt_that_a_decode_engine_has_nearly_whole_goes_straight_to_it():
    async with Split({"bypassPrefill": {"minPrefixHit": 0.7}}, p0=offering(), d0=ok(), d1=ok()) as bed:
        assert (await bed.ask(talk(1))).status == 200
        (first,) = [n for n in ("d0", "d1") if bed.asked(n)]
        assert (await bed.ask(talk(3))).status == 200, "a third of it is known: split"
        assert (await bed.ask(talk(4))).status == 200, "three quarters are known"
        assert bed.counter("ways") == {"split": 2, "bypass": 1}
        assert len(bed.asked(first)) == 3 and "kv_transfer_params" not in bed.asked(first)[-1].json


@scenario
async def test_a_clients_own_transfer_params_never_reach_an_engine():
    async with Split(p0=offering(), d0=ok()) as bed:
        body = (
            b'{"model":"m","messages":[],"kv_transfer_params":{"do_remote_prefill":true},"kv\\u005ftransfer_params":1}'
        )
        assert (await bed.ask(body)).status == 200
        assert bed.asked("p0")[0].json["kv_transfer_params"]["do_remote_decode"] is True
        two = bed.asked("d0")[0]
        assert two.body.count(b"transfer_params") == 1 and two.json["kv_transfer_params"]["remote_port"] == 5600


@scenario
async def test_the_parts_of_the_time_to_first_token_add_up_to_it():
    async with Split(p0=offering(delay=0.05), d0=ok(delay=0.05)) as bed:
        for _ in range(3):
            assert (await bed.ask(STREAM)).status == 200
        stats = bed.router.metrics.model("m")
        assert set(stats.phases) == {"queue", "prefill", "transfer", "decode_first_token"}
        assert all(sum(h.counts) == 3 for h in stats.phases.values())
        # A little less than the 0.15 s slept: the loop's clock counts milliseconds, in floats.
        assert stats.phases["prefill"].total >= 0.14 and stats.phases["transfer"].total >= 0.14
        assert sum(h.total for h in stats.phases.values()) == pytest.approx(stats.ttft.total)
        text = (await bed.admin("/metrics")).decode()
        assert 'llmfleet_router_disaggregated_phase_seconds_count{model="m",phase="transfer"} 3.0' in text
        assert 'llmfleet_router_handoffs_total{fate="used",llmcluster="e0"} 3.0' in text
        assert 'llmfleet_router_outstanding_handoffs{llmcluster="e0"} 0.0' in text
        assert 'llmfleet_router_disaggregated_requests_total{model="m",way="split"} 3.0' in text


@scenario
async def test_engines_that_do_both_serve_what_pairs_have_no_room_for():
    async with Split(slots=1, p0=offering(), d0=ok(delay=0.8), b0=ok()) as bed:
        first, second = await asyncio.gather(bed.ask(CHAT), bed.ask(CHAT))
        assert (first.status, second.status) == (200, 200)
        assert [len(bed.asked(n)) for n in bed.names] == [1, 1, 1]


# ---- decode is reserved first ----


@scenario
async def test_a_prompt_is_not_computed_before_there_is_a_slot_to_decode_it():
    async with Split(p0=offering(), d0=ok(delay=4)) as bed:
        generation = bed.publish(d0={"slots": 1})
        await bed.adopted(generation)
        busy = await bed.client()
        await busy.send(CHAT)
        await bed.until(lambda: len(bed.asked("d0")) == 1)
        prefilled = len(bed.asked("p0"))
        waiting = await bed.client()
        await waiting.send(CHAT)
        await asyncio.sleep(0.2)
        assert len(bed.asked("p0")) == prefilled
        assert (await busy.answer()).status == 200


@scenario
async def test_the_slot_is_held_while_the_prompt_is_computed():
    async with Split(p0=offering(delay=1), d0=ok()) as bed:
        client = await bed.client()
        await client.send(CHAT)
        await bed.until(lambda: len(bed.asked("p0")) == 1)
        assert (bed.backend("d0").in_flight, bed.backend("d0").arriving, bed.asked("d0")) == (1, 1, [])
        assert (await client.answer()).status == 200
        bed.nothing_held()


@scenario
async def test_headroom_is_given_back_at_the_first_event_and_the_slot_at_the_end():
    async with Split(p0=offering(), d0=ok(tokens=30, gap=0.02)) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await client.head()
        await bed.until(lambda: bed.backend("d0").arriving == 0)
        assert bed.backend("d0").in_flight == 1
        client.writer.close()
        await bed.until(lambda: bed.in_flight() == 0)
        assert bed.fates() == {"p0": {"used": 1}}


@scenario
async def test_who_waits_for_a_decode_slot_starts_in_order_when_there_is_one():
    async with Split(slots=1, p0=offering(), d0=ok(delay=0.4)) as bed:
        clients = [await bed.client() for _ in range(4)]
        for number, client in enumerate(clients):
            await client.send(CHAT | {"seed": number})
            await bed.until(lambda number=number: bed.in_flight() + bed.router.waiting("m") >= number + 1)
        answers = await asyncio.gather(*(client.answer() for client in clients))
        assert [a.status for a in answers] == [200] * 4
        assert [r.json["seed"] for r in bed.asked("d0")] == [0, 1, 2, 3]
        assert bed.engines[1].max_active == 1 and bed.counter("ways") == {"split": 4}
        bed.nothing_held()


@scenario
async def test_headroom_that_a_first_event_gives_back_starts_the_next_first_leg():
    settings = {"maxPrefillsInFlightPerDecode": 1}
    async with Split(settings, p0=offering(delay=0.5), d0=ok(tokens=20, gap=0.1)) as bed:
        one, two = await bed.client(), await bed.client()
        await one.send(STREAM)
        await bed.until(lambda: len(bed.asked("p0")) == 1)
        await two.send(STREAM)
        await bed.until(lambda: bed.router.waiting("m") == 1)
        await one.head()
        await bed.until(lambda: len(bed.asked("p0")) == 2, "the second first leg")
        assert bed.backend("d0").in_flight == 2, "the first answer still runs"
        one.writer.close()
        assert (await two.answer()).status == 200
        await bed.until(lambda: bed.in_flight() == 0)
        bed.nothing_held()


@scenario
async def test_a_full_waiting_room_before_the_first_leg_says_that_decode_is_saturated():
    async with Split({"maxWaiting": 3}, slots=1, p0=offering(), d0=ok(delay=1.0)) as bed:
        clients = [await bed.client() for _ in range(4)]
        for number, client in enumerate(clients):
            await client.send(CHAT)
            await bed.until(lambda number=number: bed.in_flight() + bed.router.waiting("m") >= number + 1)
        await bed.until(lambda: bed.router.waiting("m") == 3)
        refused = await bed.ask(CHAT)
        assert (refused.status, refused.error["code"]) == (503, "server_is_overloaded")
        assert "decode capacity saturated" in refused.error["message"] and int(refused.headers["retry-after"]) >= 1
        for client in clients[1:]:
            client.writer.close()
        await bed.until(lambda: bed.router.waiting("m") == 0)
        assert (await clients[0].answer()).status == 200
        assert len(bed.asked("p0")) == 1, "nothing was computed for those who waited"


# ---- the first leg fails ----

FIRST_LEG = [
    ("drop", drop(), "reset"),
    ("reset", play(then="reset"), "reset"),
    ("500", status(500), "status"),
    ("503", status(503), "status"),
    ("a redirect", status(302), "not_an_answer"),
    ("half an answer", play(json_answer(200, UNARY)[:-9], then="cut"), "reset"),
    ("no JSON", play(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno"), "no_handoff"),
    ("no hand-off", play(json_answer(200, UNARY)), "no_handoff"),
    ("an incomplete hand-off", offering(remote_block_ids=None), "no_handoff"),
    ("a hand-off without an address", offering(remote_host=None), "no_handoff"),
]


@pytest.mark.parametrize(("case", "behaviour", "reason"), FIRST_LEG, ids=[f[0] for f in FIRST_LEG])
@scenario
async def test_a_failed_prefill_is_asked_of_another_engine(case, behaviour, reason):
    async with Split(p0=behaviour, p1=offering(), d0=ok()) as bed:
        answer = await bed.ask(STREAM)
        assert (answer.status, answer.events) == (200, WHOLE_STREAM)
        assert [len(bed.asked(n)) for n in bed.names] == [1, 1, 1]
        assert bed.counter("retries") == {f"prefill_{reason}": 1}
        assert [bed.backend(n).failures for n in bed.names] == [1, 0, 0]
        bed.nothing_held()


@pytest.mark.parametrize(("case", "behaviour", "reason"), FIRST_LEG, ids=[f[0] for f in FIRST_LEG])
@scenario
async def test_without_another_prefill_engine_the_decode_engine_does_it_all(case, behaviour, reason):
    async with Split(p0=behaviour, d0=ok()) as bed:
        answer = await bed.ask(STREAM)
        assert (answer.status, answer.events) == (200, WHOLE_STREAM)
        assert bed.asked("d0")[0].json == STREAM | {"stream_options": {"include_usage": True}}
        assert bed.counter("ways") == {"split": 1, "fallback": 1}
        bed.nothing_held()


@pytest.mark.parametrize(("case", "behaviour", "reason"), FIRST_LEG, ids=[f[0] for f in FIRST_LEG])
@scenario
async def test_without_a_fallback_two_failed_prefills_are_an_error_and_decode_is_never_asked(case, behaviour, reason):
    async with Split({"fallback": "none"}, p0=behaviour, p1=behaviour, p2=behaviour, d0=ok()) as bed:
        answer = await bed.ask(STREAM)
        # A body that was on two engines when their connections broke goes to no other.
        code = "request_quarantined" if reason == "reset" else "upstream_lost"
        assert (answer.status, answer.error["code"]) == (502, code)
        assert sum(len(bed.asked(n)) for n in ("p0", "p1", "p2")) == 2 and bed.asked("d0") == []
        assert bed.counter("requests") == {(502, "failed"): 1}
        bed.nothing_held()


@scenario
async def test_a_prefill_engine_that_refuses_connections_is_passed_over():
    async with Split(p0=offering(), p1=offering(), d0=ok()) as bed:
        await bed.engines[0].stop()
        assert [(await bed.ask()).status for _ in range(6)] == [200] * 6
        assert set(bed.counter("retries")) == {"prefill_connect"}
        assert bed.counter("ways") == {"split": 6}


@scenario
async def test_a_body_that_takes_two_prefill_engines_down_reaches_no_decode_engine():
    async with Split(p0=drop(), p1=drop(), d0=ok()) as bed:
        for _ in range(2):
            answer = await bed.ask(STREAM)
            assert (answer.status, answer.error["code"]) == (502, "request_quarantined")
        assert bed.asked("d0") == [] and sum(len(bed.asked(n)) for n in ("p0", "p1")) == 2
        bed.engines[0].behave = bed.engines[1].behave = offering()
        assert (await bed.ask(CHAT)).status == 200, "another body is served"
        bed.nothing_held()


@scenario
async def test_a_body_that_takes_a_prefill_and_a_decode_engine_down_reaches_no_third():
    async with Split(p0=offering(), d0=drop(), d1=drop(), d2=ok()) as bed:
        generation = bed.publish(d2=None)
        await bed.adopted(generation)
        assert (await bed.ask(STREAM)).error["code"] == "request_quarantined"
        generation = bed.publish()
        await bed.adopted(generation)
        assert (await bed.ask(STREAM)).error["code"] == "request_quarantined"
        assert bed.asked("d2") == []


@scenario
async def test_a_prefill_engine_that_is_declared_lost_frees_the_request_that_waits_for_it():
    async with Split(p0=silent(), p1=offering(), d0=ok()) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await bed.until(lambda: len(bed.asked("p0")) == 1)
        bed.router._free(bed.backend("p0"))
        assert (await client.answer()).events == WHOLE_STREAM
        assert bed.counter("retries") == {"prefill_lost": 1}
        bed.nothing_held()


@scenario
async def test_a_handoff_that_fails_is_not_held_against_the_decode_engine():
    async with Split(p0=offering(), d0=ok()) as bed:
        bed.engines[1].script = [status(500), ok(), events(error_event(500), DONE), ok(), events(), ok()]
        for _ in range(3):
            assert (await bed.ask(STREAM)).events == WHOLE_STREAM
        assert bed.backend("d0").failures == 0 and bed.backend("d0").vitals.why is None
        assert bed.backend("p0").breaker.opened == 1


@pytest.mark.parametrize("code", [400, 404, 429])
@scenario
async def test_what_is_wrong_with_a_request_is_said_by_the_first_leg(code):
    async with Split(p0=status(code), p1=offering(), d0=ok()) as bed:
        answer = await bed.ask(STREAM)
        assert answer.status == code and answer.error["message"]
        assert bed.asked("p1") == [] and bed.asked("d0") == []
        bed.nothing_held()


@scenario
async def test_a_kept_connection_that_the_prefill_engine_closed_costs_nothing():
    async with Split(p0=offering(), d0=ok()) as bed:
        bed.engines[0].script = [offering(), drop(), offering()]
        assert [(await bed.ask()).status for _ in range(2)] == [200, 200]
        assert bed.engines[0].connections == 2 and bed.counter("ways") == {"split": 2}


@scenario
async def test_a_prefill_engine_that_fails_again_and_again_is_set_aside_and_tried_again_later():
    settings = {"breakerFailures": 2, "breakerSeconds": 2}
    async with Split(settings, p0=status(500), d0=ok()) as bed:
        assert [(await bed.ask()).status for _ in range(6)] == [200] * 6
        assert len(bed.asked("p0")) == 2
        bed.engines[0].behave = offering()
        await asyncio.sleep(2.2)
        assert [(await bed.ask()).status for _ in range(3)] == [200] * 3
        assert len(bed.asked("p0")) == 5
        assert bed.counter("ways") == {"split": 5, "fallback": 6}
        assert 'prefill_breaker_opened_total{llmcluster="e0"} 1.0' in (await bed.admin("/metrics")).decode()


@scenario
async def test_with_the_only_prefill_engine_set_aside_and_no_fallback_requests_are_refused_at_once():
    settings = {"breakerFailures": 1, "breakerSeconds": 60, "fallback": "none"}
    async with Split(settings, p0=status(500), d0=ok()) as bed:
        assert (await bed.ask()).status == 502
        refused = await bed.ask()
        assert (refused.status, refused.error["code"]) == (503, "no_endpoint")
        assert "no prefill engine" in refused.error["message"] and refused.headers["retry-after"]
        assert len(bed.asked("p0")) == 1 and bed.asked("d0") == []


# ---- the second leg fails before its first event ----

SECOND_LEG = [
    ("drop", drop(), "reset"),
    ("500", status(500), "status"),
    ("an error event first", events(error_event(500), DONE), "error_event"),
    ("head only", play(SSE_HEAD, then="cut"), "reset"),
    ("an empty stream", events(), "truncated"),
]


@pytest.mark.parametrize(("case", "behaviour", "reason"), SECOND_LEG, ids=[f[0] for f in SECOND_LEG])
@scenario
async def test_a_failed_second_leg_is_repeated_with_a_new_handoff(case, behaviour, reason):
    async with Split(p0=offering(), p1=offering(), d0=behaviour, d1=ok()) as bed:
        answer = await bed.ask(STREAM)
        assert (answer.status, answer.events) == (200, WHOLE_STREAM)
        assert bed.counter("retries") == {reason: 1} and bed.counter("ways") == {"split": 2}
        (first,), (second,) = bed.asked("d0"), bed.asked("d1")
        used = [r.json["kv_transfer_params"]["remote_request_id"] for r in (first, second)]
        assert used[0] != used[1], "a hand-off is used once"
        assert second.header("x-request-id") == first.header("x-request-id") + "-r"
        assert used[1] == "kv-" + second.header("x-request-id"), "both new legs bear the new id"
        assert sum(len(bed.asked(n)) for n in ("p0", "p1")) == 2
        bed.nothing_held()


@pytest.mark.parametrize(("case", "behaviour", "reason"), SECOND_LEG, ids=[f[0] for f in SECOND_LEG])
@scenario
async def test_with_one_pair_a_failed_handoff_ends_with_the_decode_engine_doing_it_all(case, behaviour, reason):
    async with Split(p0=offering(), d0=ok()) as bed:
        bed.engines[1].script = [behaviour]
        answer = await bed.ask(STREAM)
        if reason == "reset":  # it may be dead; there is no other
            assert (answer.status, answer.error["code"]) == (502, "upstream_lost")
        else:
            assert (answer.status, answer.events) == (200, WHOLE_STREAM)
            assert "kv_transfer_params" not in bed.asked("d0")[1].json
        assert bed.fates() == {"p0": {"failed": 1}}
        bed.nothing_held()


@pytest.mark.parametrize(("case", "behaviour", "reason"), SECOND_LEG, ids=[f[0] for f in SECOND_LEG])
@scenario
async def test_two_failed_second_legs_are_an_error(case, behaviour, reason):
    async with Split(p0=offering(), p1=offering(), d0=behaviour, d1=behaviour, d2=ok()) as bed:
        generation = bed.publish(d2={"engine_revision": "another"})
        await bed.adopted(generation)
        answer = await bed.ask(STREAM)
        assert answer.status in (500, 502)
        assert sum(len(bed.asked(n)) for n in ("d0", "d1")) == 2 and bed.asked("d2") == []
        bed.nothing_held()


@pytest.mark.parametrize("fallback", ["prefillOnDecode", "none"])
@scenario
async def test_with_no_decode_engine_to_reach_it_waits_and_its_prompt_is_computed_anew(fallback):
    """A hand-off does not live as long as a request may wait: the one that could not be sent is given up."""
    async with Split({"fallback": fallback}, p0=offering(), d0=ok(), d1=ok()) as bed:
        await bed.adopted(bed.publish(d1=None))
        await bed.engines[1].stop()
        task = asyncio.create_task(bed.ask(STREAM))
        await bed.until(lambda: bed.router.waiting("m") == 1, "a held request")
        bed.nothing_held()
        bed.publish()
        answer = await task
        assert (answer.status, answer.events) == (200, WHOLE_STREAM)
        legs, (second,) = bed.asked("p0"), bed.asked("d1")
        assert second.json["kv_transfer_params"]["remote_request_id"] == "kv-" + legs[-1].header("x-request-id")
        assert len(legs) >= 2 and bed.asked("d0") == []
        assert bed.fates() == {"p0": {"failed": len(legs) - 1, "used": 1}}
        bed.nothing_held()


@scenario
async def test_a_handoff_that_takes_too_long_is_given_up_and_blamed_on_its_prefill_engine():
    settings = {"kvTimeoutSeconds": 0.3, "kvTimeoutMicrosecondsPerToken": 0, "breakerFailures": 1}
    async with Split(settings, p0=offering(), p1=offering(), d0=silent(), d1=ok()) as bed:
        answer = await bed.ask(STREAM)
        assert (answer.status, answer.events) == (200, WHOLE_STREAM)
        assert bed.counter("retries") == {"kv_timeout": 1}
        assert [bed.backend(n).breaker.opened for n in ("p0", "p1")] == [1, 0]
        await bed.until(lambda: bed.engines[2].active == 0, "the engine being aborted")
        bed.nothing_held()


@scenario
async def test_longer_prompts_have_longer_to_arrive():
    settings = {"kvTimeoutSeconds": 0.1, "kvTimeoutMicrosecondsPerToken": 1000}
    async with Split(settings, p0=offering(tokens=2000), d0=ok(delay=0.8)) as bed:
        assert (await bed.ask(STREAM)).status == 200
        assert bed.counter("retries") == {}


@scenario
async def test_a_handoff_that_takes_too_long_twice_is_a_gateway_timeout():
    settings = {"kvTimeoutSeconds": 0.3, "kvTimeoutMicrosecondsPerToken": 0, "fallback": "none"}
    async with Split(settings, p0=offering(), d0=silent()) as bed:
        answer = await bed.ask(STREAM)
        assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
        bed.nothing_held()


@scenario
async def test_a_unary_answer_is_not_hurried_as_nobody_sees_its_first_token():
    settings = {"kvTimeoutSeconds": 0.1, "kvTimeoutMicrosecondsPerToken": 0}
    async with Split(settings, p0=offering(), d0=ok(delay=0.8)) as bed:
        assert (await bed.ask(CHAT)).status == 200
        assert bed.counter("retries") == {}


@scenario
async def test_a_handoff_whose_lease_is_over_before_it_can_be_sent_is_never_sent():
    async with Split({"kvLeaseSeconds": 0.1, "fallback": "none"}, p0=offering(), d0=ok()) as bed:
        loop = bed.router.loop
        real, ahead = loop.time, 0.0

        class Clock:
            """The loop's clock, which leaps while a connection is made."""

            def __getattr__(self, name):
                return getattr(loop, name)

            def time(self):
                return real() + ahead

            def create_connection(self, *args):
                nonlocal ahead
                ahead += 0.2 if args[2] == bed.engines[1].port else 0.0
                return loop.create_connection(*args)

        bed.router.loop = Clock()
        answer = await bed.ask(STREAM)
        assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
        assert bed.asked("d0") == [] and set(bed.fates()["p0"]) == {"expired"}
        bed.router.loop = loop
        bed.nothing_held()


@scenario
async def test_after_the_first_event_nothing_is_repeated():
    async with Split(p0=offering(), d0=events(chat_event(), end=False, then="cut"), d1=ok()) as bed:
        answer = await bed.ask(STREAM)
        assert answer.status == 200 and answer.ended == "eof"
        assert "the engine was lost" in answer.body.decode()
        assert bed.asked("d1") == [] and len(bed.asked("p0")) == 1
        assert bed.fates() == {"p0": {"used": 1}}
        bed.nothing_held()


@scenario
async def test_engines_of_another_revision_are_never_given_a_handoff():
    async with Split(p0=offering(), d0=ok(), d1=ok()) as bed:
        generation = bed.publish(d0={"engine_revision": "old"})
        await bed.adopted(generation)
        assert [(await bed.ask()).status for _ in range(4)] == [200] * 4
        assert bed.asked("d0") == [] and len(bed.asked("d1")) == 4


@scenario
async def test_a_draining_prefill_engine_keeps_its_word_and_gets_no_new_leg():
    async with Split(p0=offering(delay=1), d0=ok()) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await bed.until(lambda: len(bed.asked("p0")) == 1)
        generation = bed.publish(p0={"state": State.DRAINING})
        await bed.adopted(generation)
        assert (await client.answer()).events == WHOLE_STREAM
        assert bed.fates() == {"p0": {"used": 1}}
        assert (await bed.ask()).status == 200
        assert len(bed.asked("p0")) == 1 and bed.counter("ways") == {"split": 1, "fallback": 1}


# ---- clients that leave ----


@scenario
async def test_a_client_that_leaves_during_the_first_leg_frees_both_engines_at_once():
    async with Split(p0=silent(), d0=ok()) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await bed.until(lambda: len(bed.asked("p0")) == 1)
        client.writer.close()
        await bed.until(lambda: bed.in_flight() == 0)
        await bed.until(lambda: bed.engines[0].aborted == 1, "the prefill being aborted")
        assert bed.asked("d0") == [] and bed.fates() == {}
        bed.nothing_held()


@scenario
async def test_a_client_that_leaves_during_the_second_leg_frees_decode_at_once_and_prefill_within_its_lease():
    async with Split({"kvLeaseSeconds": 2}, p0=offering(), d0=silent()) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await bed.until(lambda: len(bed.asked("d0")) == 1)
        client.writer.close()
        await bed.until(lambda: bed.in_flight() == 0)
        await bed.until(lambda: bed.engines[1].aborted == 1, "the decode being aborted")
        bed.nothing_held()
        assert bed.fates() == {"p0": {"abandoned": 1}}
        ledger = bed.backend("p0").ledger
        assert ledger.outstanding(bed.router.loop.time()) == 1
        assert 'outstanding_handoffs{llmcluster="e0"} 1.0' in (await bed.admin("/metrics")).decode()
        await bed.until(lambda: ledger.outstanding(bed.router.loop.time()) == 0, "the lease ending")


@scenario
async def test_handoffs_that_nobody_reads_are_bounded():
    settings = {"maxHandoffsPerPrefill": 2, "kvLeaseSeconds": 60, "fallback": "none"}
    async with Split(settings, p0=offering(), d0=silent()) as bed:
        for number in range(2):
            client = await bed.client()
            await client.send(STREAM)
            await bed.until(lambda number=number: len(bed.asked("d0")) == number + 1)
            client.writer.close()
            await bed.until(lambda: bed.in_flight() == 0)
        late = await bed.client()
        await late.send(STREAM)
        await asyncio.sleep(0.3)
        assert len(bed.asked("p0")) == 2
        late.writer.close()


@scenario
async def test_three_hundred_clients_that_leave_anywhere_leave_nothing_behind():
    async with Split(p0=offering(delay=0.01), d0=ok(tokens=20, gap=0.005), slots=64) as bed:

        async def leave(after):
            client = await bed.client()
            await client.send(STREAM)
            await asyncio.sleep(after)
            client.writer.transport.abort()

        for batch in range(10):
            await asyncio.gather(*(leave(0.002 * n) for n in range(batch % 3, 30 + batch % 3)))
        await bed.until(lambda: bed.in_flight() == 0)
        bed.nothing_held()
        assert bed.router.metrics.model("m").in_flight == 0


@scenario
async def test_a_router_that_stops_tells_a_client_whose_prompt_is_being_computed():
    async with Split(p0=silent(), d0=ok()) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await bed.until(lambda: len(bed.asked("p0")) == 1)
        for each in list(bed.router.clients):
            each.give_up()
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (503, "not_ready")
        bed.nothing_held()


@scenario
async def test_one_deadline_covers_all_legs():
    settings = {"timeouts": {"firstEventSeconds": 0.5}}
    async with Split(p0=silent(), d0=ok()) as bed:
        bed.router.settings = type(bed.router.settings)(
            timeouts=type(bed.router.settings.timeouts)(first_event_seconds=settings["timeouts"]["firstEventSeconds"])
        )
        answer = await bed.ask(STREAM)
        assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
        bed.nothing_held()


@scenario
async def test_the_fleet_view_names_both_roles_and_counts_each_request_once():
    async with Split(p0=offering(delay=1), d0=ok()) as bed:
        client = await bed.client()
        await client.send(CHAT)
        await bed.until(lambda: len(bed.asked("p0")) == 1)
        model = json.loads(await bed.admin("/fleet"))["models"]["m"]
        assert [(e["role"], e["inFlight"]) for e in model["endpoints"]] == [("prefill", 1), ("decode", 1)]
        assert (model["inFlight"], model["slots"]) == (1, 256)
        assert (await client.answer()).status == 200


def nested(levels):
    return json.dumps(CHAT).encode()[:-1] + b',"metadata":' + b'{"a":' * levels + b"1" + b"}" * levels + b"}"


@scenario
async def test_a_body_nested_too_deeply_for_a_first_leg_is_refused_at_once():
    async with Split(p0=offering(), d0=ok()) as bed:
        answer = await bed.ask(nested(300))
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")
        assert not bed.asked("p0") and not bed.asked("d0")
        bed.nothing_held()


@scenario
async def test_a_body_nested_too_deeply_that_waited_harms_nobody_else():
    async with Split(slots=1, p0=offering(), d0=ok(delay=0.8)) as bed:
        first, second = await bed.client(), await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() >= 1)
        await second.send(nested(300))
        await bed.until(lambda: bed.router.waiting("m") == 1)
        assert [(await client.answer()).status for client in (first, second)] == [200, 400]
        bed.nothing_held()


@scenario
async def test_who_waited_before_its_model_was_split_is_answered_and_holds_nobody_up():
    async with Split(slots=1, b0=silent(), p0=offering(), d0=ok()) as bed:
        await bed.adopted(bed.publish(p0=None, d0=None))
        first, second = await bed.client(), await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() == 1)
        await second.send()
        await bed.until(lambda: bed.router.waiting("m") == 1)
        await bed.adopted(bed.publish(b0=None))
        assert (await second.answer()).status == 200
        assert (await bed.ask()).status == 200 and len(bed.asked("p0")) == 1


@scenario
async def test_a_first_leg_that_is_sent_again_on_its_engine_keeps_its_slot():
    async def close_late(connection, request):
        await asyncio.sleep(0.6)
        connection.cut()

    async with Split(slots=1, p0=offering(delay=0.3), d0=ok(), d1=ok()) as bed:
        await bed.ask()  # leaves a connection behind, which may be stale
        bed.engines[0].script.append(close_late)
        first, second = await bed.client(), await bed.client()
        await first.send()
        await bed.until(lambda: bed.in_flight() == 2)
        await second.send()
        await bed.until(lambda: bed.router.waiting("m") == 1)
        assert [(await client.answer()).status for client in (first, second)] == [200, 200]
        assert bed.counter("retries") == {"prefill_reset": 1} and bed.engines[0].max_active == 1
        bed.nothing_held()
