"""Both official clients, unchanged, when the router answers with a job: a 303 leads them to its result."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from bed import Bed, scenario
from engine import ok, status
from redis_server import RedisServer
from sdk import node

MESSAGES = [{"role": "user", "content": "hi"}]


class JobBed(Bed):
    """A router with a Redis; every request that finds no free slot becomes a job."""

    def __init__(self, server: RedisServer, *behaviours: Any, **queue: Any) -> None:
        settings = {"redis": {"url": server.url, "timeoutSeconds": 1}, "queue": queue}
        super().__init__(*behaviours, settings=settings, slots=1)

    async def __aenter__(self) -> JobBed:
        await super().__aenter__()
        await self.until(lambda: not self.router.jobs.store.problem, "redis")
        return self


def client_of(bed: Bed, **options: Any) -> openai.AsyncOpenAI:
    headers = {"Prefer": "respond-async"}
    url = f"http://127.0.0.1:{bed.port}/v1"
    return openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0, default_headers=headers, **options)


@scenario
async def test_the_python_client_follows_a_job_to_its_answer(redis_server):
    async with JobBed(redis_server, ok(delay=0.2)) as bed, client_of(bed) as client:
        answer = await client.chat.completions.create(model="m", messages=MESSAGES)
        assert answer.choices[0].message.content == "hello"
        assert len(bed.engines[0].requests) == 1
        assert bed.router.jobs.metrics.ended[("m", "complete")] == 1


@scenario
async def test_the_python_client_reads_the_stream_of_a_job(redis_server):
    async with JobBed(redis_server, ok(5)) as bed, client_of(bed) as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "t0t1t2t3t4"


@scenario
async def test_the_python_client_raises_what_a_failed_job_stands_for(redis_server):
    async with JobBed(redis_server, status(400)) as bed, client_of(bed) as client:
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="m", messages=MESSAGES)


@pytest.mark.parametrize("name", ["job", "jobStream"])
@scenario
async def test_the_node_client_follows_a_job_to_its_answer(redis_server, name):
    async with JobBed(redis_server, ok(3, delay=0.2)) as bed:
        seen = await node(name, bed.port)
        assert seen == ("hello" if name == "job" else {"text": "t0t1t2", "error": None})
        assert bed.router.jobs.metrics.ended[("m", "complete")] == 1
