"""Failovers by real Sentinels while jobs come in and run: what was acknowledged ends, once, and runs twice at most."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bed import Bed, Raw, scenario
from engine import UNARY, Connection, Request, json_answer, ok
from sentinels import Sentinels
from test_jobs import ASYNC

CLIENTS = 4
PAUSE_SECONDS = 0.05


@pytest.fixture
def sentinels(redis_command: list[str], tmp_path: Path) -> Iterator[Sentinels]:
    found = Sentinels(redis_command, tmp_path)
    try:
        found.start()
        yield found
    finally:
        found.stop()


def settings(sentinels: Sentinels) -> dict[str, Any]:
    return {
        "redis": {"sentinel": sentinels.settings, "timeoutSeconds": 1},
        "queue": {"jobTtlSeconds": 3600, "leaseSeconds": 5},
        # A machine that stands still for seconds is no fault of the engines.
        "health": {"checkSeconds": 0, "lostConnections": 0, "consecutiveFailures": 0, "failureRatio": 0},
        "timeouts": {"connectSeconds": 60},
    }


async def slow(connection: Connection, request: Request) -> None:
    """Takes long enough for jobs to be under way whenever something happens."""
    await asyncio.sleep(0.2)
    await connection.send(json_answer(200, UNARY))


class Traffic:
    """Clients that store jobs through routers, and readers that look at what was stored."""

    def __init__(self, *beds: Bed) -> None:
        self.beds = beds
        self.acknowledged: dict[str, str] = {}  # path of a job, and the mark of its request
        self.refused: Counter[str] = Counter()
        self.seen: dict[str, dict[str, Any]] = {}  # the first end that was seen of a job
        self._marks = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Traffic:
        for number in range(CLIENTS):
            self._tasks.append(asyncio.create_task(self._store(self.beds[number % len(self.beds)])))
        for bed in self.beds:
            self._tasks.append(asyncio.create_task(self._read(bed)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End, and raise what a client or a reader stumbled over."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _store(self, bed: Bed) -> None:
        client = await bed.client()
        while True:
            self._marks += 1
            mark = f"job-{self._marks}"
            await client.send({"model": "m", "messages": [{"role": "user", "content": mark}]}, headers=ASYNC)
            answer = await client.answer()
            if answer.status == 202:
                self.acknowledged[answer.headers["location"]] = mark
            else:
                assert (answer.status, answer.error["code"]) == (503, "jobs_unavailable"), answer
                self.refused[answer.error["message"]] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _read(self, bed: Bed) -> None:
        """Look at every job again and again, whichever router took it; an end that was seen stays."""
        client = await bed.client()
        while True:
            for path in list(self.acknowledged)[-50:]:
                await self.look(client, path)
            await asyncio.sleep(PAUSE_SECONDS)

    async def look(self, client: Raw, path: str) -> bool:
        """Whether a job is over; that it cannot be told now is no answer, that it is unknown is a loss."""
        await client.send(b"", path=path, method="GET")
        answer = await client.answer()
        if answer.status == 503:
            return False
        assert answer.status == 200, (path, answer)
        job = answer.json
        if path in self.seen or "finished_at" in job:
            assert self.seen.setdefault(path, job) == job, path
            return True
        return False

    async def goes_on(self, count: int = 40) -> None:
        """Every router takes jobs and ends jobs."""
        enough = len(self.acknowledged) + count
        ended = [sum(bed.router.jobs.metrics.ended.values()) + 10 for bed in self.beds]
        await self.beds[0].until(lambda: len(self.acknowledged) >= enough, "jobs that are acknowledged")
        for bed, least in zip(self.beds, ended, strict=True):
            await bed.until(lambda b=bed, n=least: sum(b.router.jobs.metrics.ended.values()) >= n, "jobs that end")

    async def all_end(self) -> None:
        client = await self.beds[0].client()
        left = list(self.acknowledged)
        for _ in range(2400):
            left = [path for path in left if not await self.look(client, path)]
            if not left:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{len(left)} jobs did not end in 120 s, such as {left[0]}")

    def runs(self) -> Counter[str]:
        """How often engines were asked for each acknowledged job."""
        mine = set(self.acknowledged.values())
        marks = (request.json["messages"][0]["content"] for bed in self.beds for request in bed.engines[0].requests)
        return Counter(mark for mark in marks if mark in mine)


async def killed(sentinels: Sentinels, until_replaced: Callable[[], Any]) -> None:
    primary = sentinels.primary()
    primary.kill()
    await until_replaced()
    new = await asyncio.to_thread(sentinels.primary)
    await asyncio.to_thread(primary.start, "--replicaof", f"127.0.0.1 {new.port}")


async def frozen(sentinels: Sentinels, until_replaced: Callable[[], Any]) -> None:
    primary = sentinels.primary()
    primary.freeze()
    await until_replaced()
    primary.thaw()


async def planned(sentinels: Sentinels, until_replaced: Callable[[], Any]) -> None:
    await asyncio.to_thread(sentinels.fail_over)
    await until_replaced()


@pytest.mark.parametrize("fault", [killed, frozen, planned])
@scenario
async def test_no_acknowledged_job_is_lost_or_ends_twice_or_runs_a_third_time(sentinels, fault):
    options = settings(sentinels)
    async with Bed(slow, settings=options) as one, Bed(slow, settings=options) as two, Traffic(one, two) as traffic:
        stores = [bed.router.jobs.store for bed in (one, two)]
        await traffic.goes_on()
        old = sentinels.primary()

        async def replaced() -> None:
            address = f"127.0.0.1:{old.port}"
            for store in stores:
                await one.until(lambda s=store: not s.problem and s.primary != address, "another primary")
            await traffic.goes_on()

        await fault(sentinels, replaced)
        await asyncio.to_thread(sentinels.all_follow)
        await traffic.goes_on()
        await traffic.stop()
        await traffic.all_end()
        # A claim whose answer got lost is an attempt too: two of these, and a job that never ran is a dead letter.
        assert {job["status"] for job in traffic.seen.values()} <= {"complete", "dead"}
        assert all(job["attempts"] == 2 for job in traffic.seen.values() if job["status"] == "dead")
        assert max(traffic.runs().values()) <= 2
        ran = {traffic.acknowledged[path] for path, job in traffic.seen.items() if job["status"] == "complete"}
        assert ran <= set(traffic.runs())
        metrics = (await one.admin("/metrics")).decode()
        assert f'llmfleet_queue_redis_primary{{address="{stores[0].primary}"}} 1.0' in metrics


@scenario
async def test_without_a_primary_jobs_are_refused_with_the_reason(sentinels, tmp_path):
    options = settings(sentinels)
    options["redis"]["sentinel"] = sentinels.settings | {"masterName": "other"}
    async with Bed(ok(), settings=options) as bed:
        await bed.until(lambda: "No such master with that name" in bed.router.jobs.store.problem)
    secret = tmp_path / "password"
    secret.write_text("closed-sesame\n")
    options["redis"]["sentinel"] = sentinels.settings | {"passwordFile": str(secret)}
    async with Bed(ok(), settings=options) as bed:
        await bed.until(lambda: "3 of 3 Sentinels say nothing" in bed.router.jobs.store.problem)
        assert "sesame" not in json.dumps(json.loads(await bed.admin("/fleet"))["jobs"])
    async with Bed(ok(), settings=settings(sentinels)) as bed:
        store = bed.router.jobs.store
        await bed.until(lambda: not store.problem)
        shown = json.loads(await bed.admin("/fleet"))["jobs"]
        assert shown == {"redis": "jobs of 3 Sentinels", "primary": store.primary, "problem": ""}
        for process in sentinels._processes[1:]:
            process.kill()
        await bed.until(lambda: bool(store.problem), "a majority that is gone")
        await bed.until(lambda: store.problem == "2 of 3 Sentinels say nothing: no answer")
        answer = await bed.ask(headers=ASYNC)
        assert (answer.status, answer.error["code"]) == (503, "jobs_unavailable")
        assert answer.error["message"].startswith("2 of 3 Sentinels say nothing: no answer; ")
        assert (await bed.ask()).status == 200
        assert "llmfleet_queue_redis_primary{" not in (await bed.admin("/metrics")).decode()
