"""No engine can be reached: what was never sent waits for one that can, bounded in time, number and tries."""

import asyncio

import pytest
from bed import CHAT, Bed, scenario
from engine import ok


def queue(**settings):
    return {"queue": settings}


async def asked(bed, count=1):
    """Ask in the background; returns once so many requests wait."""
    tasks = [asyncio.create_task(bed.ask()) for _ in range(count)]
    await bed.until(lambda: len(bed.router.waits.again) == count, f"{count} held requests")
    return tasks


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
        assert bed.in_flight() == 0 and not bed.router.waits.bytes and not bed.router.waits.again


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
        await bed.until(lambda: len(bed.router.waits.again) == 1)
        client.writer.close()
        await bed.until(lambda: not bed.router.waits.again and not bed.router.waits.bytes)
        assert bed.in_flight() == 0
