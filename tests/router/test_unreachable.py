"""No engine can be reached: what was never sent waits for one that can, bounded in time, number and tries."""

import asyncio
import socket

import pytest
from bed import CHAT, Bed, scenario
from engine import ok

from llmfleet.api.document import Document, Endpoint, Model, render, with_generation
from llmfleet.router.admin.app import fleet_answer
from llmfleet.router.keys import hashed


def queue(**settings):
    return {"queue": settings}


async def asked(bed, count=1):
    """Ask in the background; returns once so many requests wait."""
    tasks = [asyncio.create_task(bed.ask()) for _ in range(count)]
    await bed.until(lambda: bed.router.waiting("m") == count, f"{count} held requests")
    return tasks


async def publish(bed, document):
    """Have the router adopt a document."""
    document = with_generation(document, previous=bed.router.fleet.generation, now_ms=1)
    bed.replace(render(document))
    await bed.adopted(document.generation)


@scenario
async def test_a_request_that_reached_no_engine_is_answered_by_the_first_that_comes():
    async with Bed(ok(), ok()) as bed:
        await bed.adopted(bed.publish(e1=None))
        await bed.engines[0].stop()
        (task,) = await asked(bed)
        bed.publish()
        answer = await task
        assert (answer.status, answer.ended) == (200, "whole")
        assert int(answer.headers["x-llmfleet-queued-ms"]) >= 0
        assert [r.json for r in bed.engines[1].requests] == [CHAT]
        assert bed.in_flight() == 0 and not bed.router.waits.bytes


@scenario
async def test_it_waits_as_long_as_any_request_may_and_tries_less_and_less_often():
    async with Bed(ok(), settings=queue(ttlSeconds=1)) as bed:
        await bed.engines[0].stop()
        answer = await bed.ask()
        assert (answer.status, answer.error["code"], answer.error["type"]) == (503, "no_endpoint", "server_error")
        assert "retry-after" in answer.headers
        assert 1 <= bed.counter("retries")["connect"] <= 3, "0.25 s, 0.5 s, 1 s"
        assert bed.in_flight() == 0 and not bed.router.waits.bytes and not bed.router.waiting("m")


@scenario
async def test_only_so_many_wait_and_the_others_hear_at_once():
    async with Bed(ok(), settings=queue(capacity=2)) as bed:
        await bed.engines[0].stop()
        held = await asked(bed, 2)
        answer = await bed.ask()
        assert (answer.status, answer.error["code"]) == (502, "upstream_lost")
        for task in held:
            task.cancel()


@pytest.mark.parametrize("settings", [queue(overflow="reject")])
@scenario
async def test_who_wants_no_waiting_hears_at_once(settings):
    async with Bed(ok(), settings=settings) as bed:
        await bed.engines[0].stop()
        answer = await bed.ask()
        assert (answer.status, answer.error["code"], answer.error["type"]) == (502, "upstream_lost", "server_error")
        assert bed.in_flight() == 0


@scenario
async def test_a_client_that_leaves_meanwhile_is_forgotten():
    async with Bed(ok()) as bed:
        await bed.engines[0].stop()
        client = await bed.client()
        await client.send()
        await bed.until(lambda: bed.router.waiting("m") == 1)
        client.writer.close()
        await bed.until(lambda: not bed.router.waiting("m") and not bed.router.waits.bytes)
        assert bed.in_flight() == 0


@scenario
async def test_only_one_of_those_who_wait_tries_and_the_first_connection_starts_them_all():
    async with Bed(ok(), ok(), slots=64) as bed:
        await bed.adopted(bed.publish(e1=None))
        await bed.engines[0].stop()
        tasks = await asked(bed, 40)
        assert fleet_answer(bed.router, "pod")["waiting"] == {"m": 40}
        tried = bed.counter("retries")["connect"]
        await asyncio.sleep(1.2)
        assert bed.counter("retries")["connect"] - tried <= 3, "0.25 s, 0.5 s, 1 s, whoever's turn it is"
        bed.publish()
        assert {(await task).status for task in tasks} == {200}
        assert bed.in_flight() == 0 and not bed.router.waits.bytes


@scenario
async def test_a_request_on_its_way_to_an_engine_whose_model_is_taken_away_hears_at_once():
    async with Bed(ok(), settings={"timeouts": {"connectSeconds": 0.5}}) as bed:
        door = socket.socket()
        door.bind(("127.0.0.1", 0))
        door.listen(0)
        full = [socket.socket() for _ in range(4)]  # nobody is let in: whoever connects now waits
        for other in full:
            other.setblocking(False)
            other.connect_ex(door.getsockname())
        address = f"127.0.0.1:{door.getsockname()[1]}"
        silent = Endpoint(instance="e9", address=address, pod_uid="uid-e9", slots=8)
        await publish(bed, Document(models={"m": Model(endpoints=(silent,))}))
        task = asyncio.create_task(bed.ask())
        await bed.until(lambda: bed.in_flight() == 1)
        await publish(bed, Document(models={}))
        assert (await task).status in (502, 503)
        assert not bed.router.waits
        for other in (door, *full):
            other.close()


@scenario
async def test_a_tenant_has_no_more_of_the_waiting_than_its_share():
    tenants = {"small": {"keys": [hashed("sk-small")], "queueShare": 0.25}}
    async with Bed(ok(), settings=queue(capacity=8), tenants=tenants) as bed:
        await bed.engines[0].stop()
        clients = [await bed.client() for _ in range(3)]
        for client in clients:
            await client.send(headers={"Authorization": "Bearer sk-small"})
        answers = [asyncio.create_task(client.answer()) for client in clients]
        refused, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().status for task in refused] == [502]
        assert bed.router.waiting("m") == 2
