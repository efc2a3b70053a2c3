"""The official client, unchanged, against the router."""

import openai
import pytest
from bed import Bed, scenario
from engine import DONE, chat_event, error_event, events, ok, status

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
    async with Bed(ok(delay=0.4), slots=1) as bed, client_of(bed, retries=3) as client:
        import asyncio

        both = [client.chat.completions.create(model="m", messages=MESSAGES) for _ in range(2)]
        answers = await asyncio.gather(*both)
        assert [a.choices[0].message.content for a in answers] == ["hello", "hello"]
        assert bed.counter("refusals")["server_is_overloaded"] >= 1
