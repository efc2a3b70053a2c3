"""The backends file is replaced under load, and nothing that is open notices."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from bed import STREAM, Bed, State, scenario
from engine import DONE, chat_events, ok

from llmfleet.api.document import parse_document


@scenario
async def test_twenty_replacements_under_load_lose_nothing():
    async with Bed(ok(3, delay=0.01, gap=0.002), ok(3, gap=0.005), ok(1)) as bed:
        stop = asyncio.Event()
        answers = []

        async def load() -> None:
            client = await bed.client()
            while not stop.is_set():
                await client.send(STREAM)
                answers.append(await client.answer())

        work = [asyncio.create_task(load()) for _ in range(16)]
        variants = [
            {"e0": None},
            {"e1": {"state": State.DRAINING}},
            {},
            {"e2": None, "e0": {"weight": 1}},
            {"e1": None},
        ]
        for i in range(20):
            await bed.adopted(bed.publish(**variants[i % 5]))
        while len(answers) <= 200:  # however slow the machine is
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*work)
        assert all(a.status == 200 and a.ended == "whole" for a in answers)
        assert bed.router.metrics.document_errors == 0
        assert bed.counter("retries") == {}
        assert bed.in_flight() == 0


@scenario
async def test_a_draining_engine_finishes_its_streams_and_gets_nothing_new():
    async with Bed(ok(3, gap=0.5), ok()) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await client.head()
        await bed.adopted(bed.publish(e0={"state": State.DRAINING}))
        for _ in range(6):
            assert (await bed.ask()).status == 200
        assert [len(e.requests) for e in bed.engines] == [1, 6]
        shown = json.loads(await bed.admin("/fleet"))["models"]["m"]["endpoints"]
        assert [(e["instance"], e["state"], e["inFlight"]) for e in shown] == [
            ("e0", "draining", 1),
            ("e1", "ready", 0),
        ]
        body = b"".join(await drain_chunks(client))
        assert body.endswith(DONE)


async def drain_chunks(client) -> list[bytes]:
    chunks = []
    while chunk := await client.chunk():
        chunks.append(chunk)
    return chunks


@scenario
async def test_an_engine_that_left_the_file_stays_counted_until_its_last_stream_is_over():
    async with Bed(ok(3, gap=0.5), ok()) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await client.head()
        await bed.adopted(bed.publish(e0=None))
        fleet = json.loads(await bed.admin("/fleet"))
        assert [(e["instance"], e["inFlight"]) for e in fleet["leaving"]] == [("e0", 1)]
        assert [e["instance"] for e in fleet["models"]["m"]["endpoints"]] == ["e1"]
        metrics = (await bed.admin("/metrics")).decode()
        assert 'llmfleet_router_endpoint_in_flight_requests{llmcluster="e0",role="both"} 1.0' in metrics
        assert b"".join(await drain_chunks(client)) == b"".join([*chat_events(3), DONE])
        await bed.until(
            lambda: [b.instance for b in bed.router.fleet.backends.values()] == ["e1"], "e0 being forgotten"
        )


@scenario
async def test_in_flight_survives_a_document_that_names_the_same_pod_again():
    async with Bed(ok(delay=3.0), slots=1, settings={"queue": {"overflow": "reject"}}) as bed:
        client = await bed.client()
        await client.send()
        await bed.until(lambda: bed.in_flight() == 1)
        for changes in ({"e0": None}, {"e0": {"tier": 3, "weight": 7}}):
            await bed.adopted(bed.publish(**changes))
        assert (await bed.ask()).status == 503, "its one slot is still taken"
        assert (await client.answer()).status == 200
        assert (await bed.ask()).status == 200


BROKEN = {
    "nothing": b"",
    "half": b'{"version":1,"generation":5,"mod',
    "another version": b'{"version":2,"generation":5,"models":{}}',
    "no models": b'{"version":1,"generation":5}',
    "a list": b"[]",
    "no slots": b'{"version":1,"generation":5,"models":{"m":{"endpoints":[{"instance":"a","address":"a:1"}]}}}',
    "not utf-8": b"\xff\xfe",
}


@pytest.mark.parametrize("case", BROKEN)
@scenario
async def test_a_broken_file_is_counted_once_and_the_last_good_one_stays(case):
    async with Bed() as bed:
        generation = bed.router.fleet.generation
        bed.replace(BROKEN[case])
        await bed.until(lambda: bed.router.metrics.document_errors == 1, "the error being counted")
        await asyncio.sleep(0.3)
        assert bed.router.metrics.document_errors == 1
        assert bed.router.fleet.generation == generation
        assert (await bed.ask()).status == 200
        assert (await bed.ask(method="GET", path="/readyz")).status == 200
        await bed.adopted(bed.publish())


@scenario
async def test_a_file_that_disappears_changes_nothing():
    async with Bed() as bed:
        os.unlink(bed.path)
        await asyncio.sleep(0.3)
        assert (await bed.ask()).status == 200
        await bed.adopted(bed.publish())


@scenario
async def test_a_valid_document_without_endpoints_is_adopted():
    async with Bed() as bed:
        await bed.adopted(bed.publish(e0=None))
        answer = await bed.ask()
        assert (answer.status, answer.error["code"]) == (503, "no_endpoint")
        assert "retry-after" in answer.headers
        assert (await bed.ask(method="GET", path="/readyz")).status == 200
        bed.replace(b'{"version":1,"generation":99999999999999,"models":{}}')
        await bed.adopted(99999999999999)
        assert (await bed.ask()).status == 404


@scenario
async def test_a_router_is_ready_only_once_it_has_read_a_document():
    async with Bed() as bed:
        bed.router.loaded = False
        answer = await bed.ask(method="GET", path="/readyz")
        assert (answer.status, "retry-after" in answer.headers) == (503, True)
        assert (await bed.ask()).error["code"] == "not_ready"
        assert (await bed.ask(method="GET", path="/v1/models")).status == 503
        await bed.adopted(bed.publish())
        assert (await bed.ask(method="GET", path="/readyz")).status == 200


@scenario
async def test_the_same_bytes_in_a_new_file_are_read_again_without_effect():
    async with Bed() as bed:
        data = Path(bed.path).read_bytes()
        loads = bed.router.metrics.document_loads
        bed.replace(data)
        await bed.until(lambda: bed.router.metrics.document_loads == loads + 1)
        assert bed.router.fleet.generation == parse_document(data).generation
        assert (await bed.ask()).status == 200


@scenario
async def test_idle_connections_to_an_engine_are_closed_before_the_engine_would_and_when_it_leaves():
    settings = {"timeouts": {"upstreamIdleSeconds": 1}, "affinity": {"enabled": False}}
    async with Bed(ok(), ok(), settings=settings) as bed:
        for _ in range(4):
            await bed.ask()
        backends = list(bed.router.fleet.backends.values())
        assert [len(b.idle) for b in backends] == [1, 1]
        await bed.until(lambda: not any(b.idle for b in backends), "idle connections being closed")
        for _ in range(2):
            await bed.ask()
        await bed.adopted(bed.publish(e0=None))
        assert [len(b.idle) for b in backends] == [0, 1]
