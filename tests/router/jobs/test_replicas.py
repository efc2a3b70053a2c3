"""With `redis.replicated` a job is acknowledged only once a replica has it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import Bed, scenario
from engine import ok, silent
from redis_server import RedisServer
from test_jobs import ASYNC

from llmfleet.router.jobs import scripts


@pytest.fixture
def replica(redis_command: list[str], redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(redis_command, tmp_path / "replica", "--replicaof", f"127.0.0.1 {redis_server.port}")
    redis_server.client().config_set("repl-diskless-sync-delay", "0")
    client = server.start()
    for _ in range(1000):
        if client.info("replication")["master_link_status"] == "up":
            break
        time.sleep(0.02)
    yield server
    server.stop()


def replicated(server: RedisServer) -> dict[str, object]:
    return {"redis": {"url": server.url, "replicated": True, "timeoutSeconds": 1}, "queue": {}}


@scenario
async def test_what_is_acknowledged_is_on_the_replica(redis_server, replica):
    async with Bed(silent(), settings=replicated(redis_server)) as bed:
        await bed.until(lambda: not bed.router.jobs.store.problem)
        acknowledged = 0
        while acknowledged < 30:
            answer = await bed.ask(headers=ASYNC)
            if answer.status == 202:  # a busy machine may take longer than the 100 ms, and then says so
                assert replica.client().exists(scripts.job_key("llmfleet", answer.json["id"])) == 1
                acknowledged += 1
            else:
                assert "replica" in answer.error["message"]


@scenario
async def test_without_a_replica_that_answers_no_job_is_acknowledged_or_kept(redis_server, replica):
    async with Bed(ok(), settings=replicated(redis_server)) as bed:
        store = bed.router.jobs.store
        await bed.until(lambda: not store.problem)
        bed.router.jobs.worker._stopped = True
        replica.freeze()
        answer = await bed.ask(headers=ASYNC)
        assert (answer.status, answer.error["code"]) == (503, "jobs_unavailable")
        assert "replica" in answer.error["message"]
        await bed.until(lambda: not redis_server.client().keys("{llmfleet}:job:*"), "the job to be taken back")
        assert (await bed.ask()).status == 200
        replica.thaw()
        await bed.until(lambda: not store.problem)
        for _ in range(500):
            answer = await bed.ask(headers=ASYNC)
            if answer.status == 202:
                break
        assert answer.status == 202


@scenario
async def test_the_address_of_a_replica_is_refused_with_the_reason(redis_server, replica):
    async with Bed(ok(), settings=replicated(replica)) as bed:
        await bed.until(lambda: bed.router.jobs.store.refused)
        answer = await bed.ask(headers=ASYNC)
        assert answer.status == 503
        assert "primary" in answer.error["message"]
