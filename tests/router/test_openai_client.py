"""The official client, unchanged, against the router."""

import asyncio

import openai
import pytest
from bed import Bed, scenario
from engine import DONE, chat_event, error_event, events, ok, silent, status
from sdk import responses, tool_calls

MESSAGES = [{"role": "user", "content": "hi"}]


def client_of(bed: Bed, retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{bed.port}/v1", api_key="k", max_retries=retries)


@scenario
async def test_chat_stream_completion_embedding_and_models_work():
    async with Bed() as bed, client_of(bed) as client:
        chat = await client.chat.completions.create(model="m", messages=MESSAGES)
        assert chat.choices[0].message.content == "hello"
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "t0t1t2"
        assert [m.id async for m in client.models.list()] == ["m"]
        assert (await client.models.retrieve("m")).id == "m"


@pytest.mark.parametrize("code", ["cut", "error"])
@scenario
async def test_a_broken_stream_raises_instead_of_ending(code):
    tail = [error_event(), DONE] if code == "error" else []
    behave = events(chat_event("a"), *tail, end=bool(tail), then="keep" if tail else "cut")
    async with Bed(behave) as bed, client_of(bed) as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        seen = []
        with pytest.raises(openai.APIError) as raised:
            async for item in stream:
                seen.append(item.choices[0].delta.content)
        assert seen == ["a"]
        if code == "cut":
            assert raised.value.code == "upstream_lost"


@scenario
async def test_errors_arrive_as_the_exceptions_their_status_stands_for():
    async with Bed(status(429)) as bed, client_of(bed) as client:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="m", messages=MESSAGES)
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nope", messages=MESSAGES)
        assert missing.value.code == "model_not_found" and missing.value.param == "model"


@scenario
async def test_a_busy_fleet_is_retried_by_the_client_until_it_is_free():
    rules = {"queue": {"overflow": "reject"}}
    async with Bed(ok(delay=0.4), slots=1, settings=rules) as bed, client_of(bed, retries=3) as client:
        both = [client.chat.completions.create(model="m", messages=MESSAGES) for _ in range(2)]
        answers = await asyncio.gather(*both)
        assert [a.choices[0].message.content for a in answers] == ["hello", "hello"]
        assert bed.counter("refusals")["server_is_overloaded"] >= 1


@scenario
async def test_tools_are_sent_and_their_calls_streamed():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    async with Bed(tool_calls()) as bed, client_of(bed) as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True, tools=tools)
        calls = [call async for item in stream for call in item.choices[0].delta.tool_calls or ()]
        assert "".join(call.function.arguments for call in calls) == '{"a":1}'
        assert calls[0].function.name == "f"


@scenario
async def test_responses_work_whole_and_as_events():
    async with Bed(responses()) as bed, client_of(bed) as client:
        assert (await client.responses.create(model="m", input="hi")).output_text == "hello"
        stream = await client.responses.create(model="m", input="hi", stream=True)
        seen = [event.type async for event in stream]
        assert seen == ["response.created", "response.output_text.delta", "response.completed"]


@scenario
async def test_a_fleet_that_fails_for_a_moment_is_asked_again_by_the_client():
    async with Bed(ok()) as bed, client_of(bed, retries=2) as client:
        bed.engines[0].script = [status(503)]
        answer = await client.chat.completions.create(model="m", messages=MESSAGES)
        assert answer.choices[0].message.content == "hello"
        assert len(bed.engines[0].requests) == 2


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@scenario
async def test_a_client_that_times_out_stops_the_engine(stream):
    async with Bed(silent()) as bed, client_of(bed) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="m", messages=MESSAGES, stream=stream, timeout=10)
        await bed.until(lambda: bed.engines[0].aborted == 1, "the engine being aborted")
        assert bed.in_flight() == 0


@scenario
async def test_a_client_that_closes_its_stream_stops_the_engine():
    async with Bed(ok(1000, gap=0.05)) as bed, client_of(bed) as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await bed.until(lambda: bed.engines[0].aborted == 1, "the engine being aborted")
        assert bed.in_flight() == 0


@scenario
async def test_many_clients_at_once_each_get_their_own_answer():
    async with Bed(ok(delay=0.01), ok(delay=0.01), slots=64) as bed, client_of(bed) as client:
        wanted = [client.chat.completions.create(model="m", messages=MESSAGES) for _ in range(100)]
        assert len(await asyncio.gather(*wanted)) == 100
        assert bed.in_flight() == 0
