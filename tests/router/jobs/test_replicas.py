"""With replicas a job is acknowledged only once they have it, and a server that was the primary takes none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from bed import Bed, scenario
from engine import ok, silent
from redis_server import RedisServer
from test_jobs import ASYNC, settings
from test_store import ANSWER, admitted, claimed, connected, until

from llmfleet.router.jobs import client as store_client
from llmfleet.router.jobs import scripts
from llmfleet.router.jobs.client import Store
from llmfleet.router.jobs.entry import State
from llmfleet.router.jobs.troubles import Doubtful, Unavailable


@pytest.fixture
def replica(redis_command: list[str], redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(redis_command, tmp_path / "replica", "--replicaof", f"127.0.0.1 {redis_server.port}")
    yield following(server, redis_server)
    server.stop()


@pytest.fixture
def other(redis_command: list[str], redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """A second replica."""
    server = RedisServer(redis_command, tmp_path / "other", "--replicaof", f"127.0.0.1 {redis_server.port}")
    yield following(server, redis_server)
    server.stop()


def following(server: RedisServer, primary: RedisServer) -> RedisServer:
    primary.client().config_set("repl-diskless-sync-delay", "0")
    client = server.start()
    for _ in range(1000):
        if client.info("replication")["master_link_status"] == "up":
            break
        time.sleep(0.02)
    return server


def demote(old: RedisServer, new: RedisServer) -> None:
    """What Sentinels do, without their last step: connections to the old primary stay open."""
    new.client().replicaof("NO", "ONE")
    old.client().replicaof("127.0.0.1", new.port)


async def acknowledged(store: Store) -> str:
    """Store a job; a busy machine may take longer than it may for its copies or an answer, and then says so."""
    async with asyncio.timeout(60):
        while True:
            with suppress(Doubtful, Unavailable):
                return (await admitted(store)).id
            await until(lambda: not store._doubtful and not store.problem)  # it takes it back by itself


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


@scenario
async def test_a_job_that_waits_for_its_replica_while_the_primary_is_demoted_is_taken_back(
    redis_server, replica, monkeypatch
):
    monkeypatch.setattr(store_client, "WAIT_MILLISECONDS", 60_000)
    async with connected(redis_server, replicated=True) as store:
        replica.freeze()
        waiting = asyncio.create_task(admitted(store))
        client = redis_server.client()
        while not client.info("clients")["blocked_clients"]:
            await asyncio.sleep(0.01)
        [key] = client.keys("{llmfleet}:job:*")
        client.replicaof("127.0.0.1", replica.port)
        with pytest.raises(Doubtful):
            await waiting
        assert [ident for ident, _ in store._doubtful] == [key.rpartition(":")[2]]


@scenario
async def test_a_primary_that_became_a_replica_takes_nothing_and_is_left_at_once(redis_server, replica):
    async with Bed(ok(), settings=settings(redis_server)) as bed:
        store = bed.router.jobs.store
        await bed.until(lambda: not store.problem)
        demote(redis_server, replica)
        with pytest.raises(Unavailable):
            await admitted(store)
        assert "replica" in store.problem
        await bed.until(lambda: store.refused)
        answer = await bed.ask(headers=ASYNC)
        assert (answer.status, answer.error["code"]) == (503, "jobs_unavailable")
        assert answer.error["message"].startswith("this Redis is a replica")
        redis_server.client().replicaof("NO", "ONE")
        await bed.until(lambda: not store.problem)
        assert (await bed.ask(headers=ASYNC)).status == 202


@scenario
async def test_what_only_a_replica_has_that_stays_behind_is_not_acknowledged(redis_server, replica, other):
    """One of two replicas is promoted; the other still follows the old primary, which does not know of it yet."""
    async with connected(redis_server, replicated=True) as store:
        store._use = lambda primary, found: None
        store._copies = 2
        first = await acknowledged(store)
        replica.client().replicaof("NO", "ONE")
        with pytest.raises(Doubtful, match=r"[01] of 2 replicas of Redis had it within 100 ms"):
            await admitted(store)
        # Nor is anything that was said of a job believed that the new primary may not know of.
        for question in (store.look("job_" + "0" * 40, ""), store.cancel(first, "")):
            with pytest.raises(Doubtful):
                await question
        assert replica.client().exists(scripts.job_key("llmfleet", first))


@scenario
async def test_a_claim_that_a_failover_could_forget_is_given_back_unrun(redis_server, replica):
    async with Bed(ok(), settings=settings(redis_server)) as bed:
        store, worker = bed.router.jobs.store, bed.router.jobs.worker
        await bed.until(lambda: not store.problem)
        store._use = lambda primary, found: None
        worker._stopped, store._copies, store._calm_until = True, 1, 0.0
        path = (await until_accepted(bed)).headers["location"]
        replica.freeze()
        worker._stopped = False
        returned = []
        give_back = worker._return
        worker._return = lambda run: (returned.append(run), give_back(run))
        await bed.until(lambda: bool(returned), "a claim that is not safe")
        assert bed.engines[0].requests == []
        replica.thaw()
        answer = await bed.ask(b"", path=path + "/result?wait=60", method="GET")
        assert answer.status == 200
        await bed.until(lambda: bed.router.jobs.metrics.ended == {("m", "complete"): 1})
        assert len(bed.engines[0].requests) == 1
        assert (await bed.ask(b"", path=path, method="GET")).json["attempts"] == 1


async def until_accepted(bed: Bed):
    while (answer := await bed.ask(headers=ASYNC)).status != 202:
        assert "replica" in answer.error["message"]
    return answer


@scenario
async def test_an_end_that_was_not_copied_yet_is_told_again_until_it_is(redis_server, replica):
    async with connected(redis_server) as store:
        store._use = lambda primary, found: None
        ident = await acknowledged(store)
        claim = await claimed(store)
        store._copies = 1
        replica.freeze()
        with pytest.raises(Doubtful, match="no replica"):
            await store.finish(claim, State.COMPLETE, ANSWER)
        replica.thaw()
        for _ in range(600):
            try:
                assert await store.finish(claim, State.COMPLETE, ANSWER)
                break
            except Doubtful:
                await asyncio.sleep(0.05)
        demote(redis_server, replica)
        assert replica.client().hget(scripts.job_key("llmfleet", ident), "state") == "complete"
        with pytest.raises(redis.ReadOnlyError):
            redis_server.client().set("a", "b")
