"""Router processes that die with a job in their hands, and tenants that meet at one queue."""

from __future__ import annotations

import asyncio
import json

from bed import CHAT, Bed, scenario
from engine import UNARY, Engine, ok, silent
from test_jobs import ASYNC, settings
from test_process import Process

from llmfleet.router.keys import hashed

KEY_A, KEY_B = {"Authorization": "Bearer sk-of-a"}, {"Authorization": "Bearer sk-of-b"}
TENANTS = {
    "a": {"keys": [hashed("sk-of-a")], "queueShare": 0.2, "class": "high"},
    "b": {"keys": [hashed("sk-of-b")], "rpm": 2},
}


@scenario
async def test_a_killed_routers_job_is_run_by_another_after_the_lease(redis_server):
    text = f"redis: {{url: '{redis_server.url}', timeoutSeconds: 1}}\nqueue: {{leaseSeconds: 1}}\n"
    engine = Engine(behave=silent())
    async with Process(engine, text) as victim:
        client = await victim.client()
        for _ in range(3000):
            await client.send(headers=ASYNC)
            answer = await client.answer()
            if answer.status == 202:
                break
            await asyncio.sleep(0.02)
        path = answer.headers["location"]
        while not engine.active:
            await asyncio.sleep(0.01)
        victim.process.kill()
        await victim.process.wait()
        async with Bed(ok(), settings=settings(redis_server, leaseSeconds=1)) as bed:
            for _ in range(6000):
                result = await bed.ask(b"", path=path + "/result?wait=10", method="GET")
                if result.status == 200:
                    break
            assert result.json == UNARY
            job = (await bed.ask(b"", path=path, method="GET")).json
            assert (job["status"], job["attempts"]) == ("complete", 2)
            assert len(bed.engines[0].requests) == 1


@scenario
async def test_a_job_that_killed_two_routers_reaches_no_engine_again(redis_server):
    async with Bed(ok(), settings=settings(redis_server, leaseSeconds=1)) as bed:
        jobs = bed.router.jobs
        await bed.until(lambda: not jobs.store.problem)
        jobs.worker._stopped = True
        path = (await bed.ask(headers=ASYNC)).headers["location"]
        client = redis_server.client()
        for _ in range(2):
            assert await jobs.store.claim(["m"]) is not None
            entry = client.hget("{llmfleet}:job:" + path.rpartition("/")[2], "entry")
            words = (
                "XCLAIM",
                "{llmfleet}:queue:standard:m",
                "workers",
                "router",
                0,
                entry,
                "IDLE",
                9_999_999,
                "JUSTID",
            )
            client.execute_command(*words)
            jobs.store._calm_until = 0.0
        jobs.worker._stopped = False
        answer = await bed.ask(b"", path=path + "/result?wait=20", method="GET")
        assert (answer.status, answer.error["code"]) == (502, "job_dead")
        assert bed.engines[0].requests == []


@scenario
async def test_a_tenants_jobs_are_its_own(redis_server):
    async with Bed(ok(), settings=settings(redis_server), tenants=TENANTS) as bed:
        await bed.until(lambda: not bed.router.jobs.store.problem)
        answer = await bed.ask(headers=ASYNC | KEY_A)
        assert answer.status == 202
        path = answer.headers["location"]
        assert (await bed.ask(b"", path=path + "/result?wait=10", method="GET", headers=KEY_A)).json == UNARY
        for method, suffix in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
            assert (await bed.ask(b"", path=path + suffix, method=method, headers=KEY_B)).status == 404
            assert (await bed.ask(b"", path=path + suffix, method=method)).status == 401
        [request] = bed.engines[0].requests
        assert request.header("authorization") is None
        assert "cache_salt" in request.json and request.json["priority"] == -10


@scenario
async def test_the_same_key_of_two_tenants_is_two_jobs(redis_server):
    async with Bed(ok(), settings=settings(redis_server), tenants=TENANTS) as bed:
        await bed.until(lambda: not bed.router.jobs.store.problem)
        key = ASYNC | {"Idempotency-Key": "k"}
        first, second = await bed.ask(headers=key | KEY_A), await bed.ask(CHAT | {"seed": 1}, headers=key | KEY_B)
        assert (first.status, second.status) == (202, 202)
        assert first.json["id"] != second.json["id"]


@scenario
async def test_a_tenant_fills_its_share_of_the_queue_and_its_quota_counts_jobs(redis_server):
    async with Bed(silent(), settings=settings(redis_server, capacity=10), tenants=TENANTS) as bed:
        await bed.until(lambda: not bed.router.jobs.store.problem)
        answers = [await bed.ask(headers=ASYNC | KEY_A) for _ in range(3)]
        assert [answer.status for answer in answers] == [202, 202, 429]
        assert "your share" in answers[2].error["message"]
        assert [(await bed.ask(headers=ASYNC | KEY_B)).status for _ in range(3)] == [202, 202, 429]


@scenario
async def test_a_job_of_a_tenant_that_is_gone_is_not_run(redis_server):
    async with Bed(ok(), settings=settings(redis_server), tenants=TENANTS) as bed:
        jobs = bed.router.jobs
        await bed.until(lambda: not jobs.store.problem)
        jobs.worker._stopped = True
        path = (await bed.ask(headers=ASYNC | KEY_A)).headers["location"]
        rest = {"a": TENANTS["a"] | {"models": ["other"]}, "b": TENANTS["b"]}
        bed.replace(json.dumps({"tenants": rest}).encode(), bed.keys)
        await bed.until(lambda: bed.router.metrics.keys_loads == 2)
        jobs.worker._stopped = False
        answer = await bed.ask(b"", path=path + "/result?wait=20", method="GET", headers=KEY_A)
        assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
        assert bed.engines[0].requests == []
