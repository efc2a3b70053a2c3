"""The plain path: requests that should just work."""

import asyncio
import json
from pathlib import Path

from bed import CHAT, STREAM, Bed, request_bytes, scenario
from engine import DONE, chat_events, events, ok


@scenario
async def test_a_unary_answer_is_relayed_whole():
    async with Bed() as bed:
        answer = await bed.ask()
        assert (answer.status, answer.ended) == (200, "whole")
        assert answer.json["choices"][0]["message"]["content"] == "hello"
        assert answer.headers["server"] == "uvicorn"
        assert bed.in_flight() == 0


@scenario
async def test_a_stream_is_relayed_event_by_event():
    async with Bed(ok(3, gap=0.05)) as bed:
        client = await bed.client()
        await client.send(STREAM)
        status, headers = await client.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        chunks = [await client.chunk() for _ in range(7)]
        assert chunks == [*chat_events(3), DONE, b""]
        await bed.until(lambda: bed.in_flight() == 0, "the slot being freed")


@scenario
async def test_one_connection_serves_many_requests_on_one_engine_connection():
    """The prototype read the keep-alive flag too late and opened an engine connection per request."""
    async with Bed() as bed:
        client = await bed.client()
        for i in range(20):
            await client.send(STREAM if i % 2 else CHAT)
            assert (await client.answer()).ended == "whole"
        assert bed.engines[0].connections == 1
        assert len(bed.engines[0].requests) == 20


@scenario
async def test_a_burst_on_an_empty_pool_is_spread_evenly_within_the_slots():
    """The prototype counted in-flight after the connection was made: 34 of 40 streams met on one engine."""
    async with Bed(*[ok(3, gap=0.1)] * 4, slots=10) as bed:
        answers = await asyncio.gather(*(bed.ask(STREAM) for _ in range(40)))
        assert all(a.ended == "whole" for a in answers)
        assert [engine.max_active for engine in bed.engines] == [10, 10, 10, 10]


@scenario
async def test_a_request_goes_to_an_engine_of_its_model_only():
    async with Bed(ok(), ok()) as bed:
        document = json.loads(Path(bed.path).read_bytes())
        engines = document["models"]["m"]["endpoints"]
        document["models"] = {"a/b": {"endpoints": engines[:1]}, "c": {"endpoints": engines[1:]}}
        document["generation"] += 1
        bed.replace(json.dumps(document).encode())
        await bed.adopted(document["generation"])
        for _ in range(3):
            assert (await bed.ask(CHAT | {"model": "a/b"})).status == 200
        assert [len(e.requests) for e in bed.engines] == [3, 0]
        listed = await bed.ask(method="GET", path="/v1/models")
        assert [m["id"] for m in listed.json["data"]] == ["a/b", "c"]
        for path in ("/v1/models/a/b", "/v1/models/a%2Fb"):
            assert (await bed.ask(method="GET", path=path)).json["id"] == "a/b"
        missing = await bed.ask(method="GET", path="/v1/models/m")
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")


@scenario
async def test_an_unknown_model_is_answered_as_vllm_does():
    async with Bed() as bed:
        answer = await bed.ask(CHAT | {"model": "nope"})
        assert answer.status == 404
        assert answer.error == {
            "message": "The model `nope` does not exist.",
            "type": "NotFoundError",
            "param": "model",
            "code": "model_not_found",
        }
        assert bed.engines[0].requests == []


@scenario
async def test_engine_errors_that_are_the_clients_fault_are_relayed_verbatim():
    from engine import status

    for code in (400, 401, 404, 422, 429):
        async with Bed(status(code, {"error": {"message": "why", "code": code}})) as bed:
            answer = await bed.ask()
            assert (answer.status, answer.error["message"]) == (code, "why")
            assert len(bed.engines[0].requests) == 1


@scenario
async def test_a_chunked_body_and_a_trickled_one_reach_the_engine_decoded():
    async with Bed() as bed:
        body = json.dumps(CHAT).encode()
        chunked = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
        answer = await bed.ask(chunked + b"0\r\nX-Trailer: 1\r\n\r\n", headers={"Transfer-Encoding": "chunked"})
        assert answer.status == 200
        client = await bed.client()
        for byte in request_bytes():
            client.writer.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200
        assert [r.body for r in bed.engines[0].requests] == [body, body]


@scenario
async def test_every_answer_carries_a_request_id_of_ours_and_the_engine_gets_the_same():
    async with Bed() as bed:
        first = await bed.ask(headers={"X-Request-Id": "mine"})
        second = await bed.ask(headers={"X-Request-Id": "mine"})
        refused = await bed.ask(b"{")
        ids = [a.headers["x-request-id"] for a in (first, second, refused)]
        assert len(set(ids)) == 3 and "mine" not in ids
        assert [r.header("x-request-id") for r in bed.engines[0].requests] == ids[:2]


@scenario
async def test_events_of_several_choices_and_prompts_are_counted():
    from engine import chat_event, text_event

    both = [chat_event("a", index=0), chat_event("b", index=1)]
    ends = [chat_event(None, index=0, finish="stop"), chat_event(None, index=1, finish="length")]
    async with Bed(events(*both, *ends, DONE)) as bed:
        answer = await bed.ask(STREAM | {"n": 2})
        assert (answer.ended, answer.events) == ("whole", [*both, *ends, DONE])
    texts = [text_event("a", index=0, finish="stop"), text_event("b", index=1, finish="stop")]
    async with Bed(events(*texts, DONE)) as bed:
        answer = await bed.ask({"model": "m", "prompt": ["x", "y"], "stream": True}, path="/v1/completions")
        assert (answer.ended, answer.events) == ("whole", [*texts, DONE])
