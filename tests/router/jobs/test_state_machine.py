"""The scripts against a model of ten lines, under any order of two workers, clients and time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_server import RedisServer

from llmfleet.router.jobs import scripts
from llmfleet.router.jobs.rules import MAX_ATTEMPTS

PREFIX, KEEP, LEASE, ORPHAN, CAPACITY = "llmfleet", 600_000, 15_000, 120_000, 4
FINAL = {"complete", "failed", "expired", "cancelled", "dead"}
OPERATIONS = [
    *("admit", "admit", "claim 0", "claim 0", "claim 1", "claim 1", "renew", "complete", "failed", "return", "retry"),
    *("cancel", "silent", "silent", "late", "lost", "sweep"),
]


@pytest.fixture(scope="module")
def server(redis_command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(redis_command, Path(tmp_path_factory.mktemp("redis")))
    server.start()
    yield server
    server.stop()


class World:
    """Redis, and beside it what must be true of it."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        client.flushall()
        self.announced = client.pubsub(ignore_subscribe_messages=True)
        self.announced.subscribe(scripts.events_channel(PREFIX))
        self.announced.get_message(timeout=1)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.claims: list[tuple[str, str]] = []  # id and fence, of whatever worker, still held or not
        self.ends: dict[str, list[str]] = {}

    def run(self, script: str, *args: Any, keys: tuple[str, ...] = ()) -> Any:
        names = [scripts.base(PREFIX), *keys]
        return self.client.eval(script, len(names), *names, *args)

    def open(self) -> list[str]:
        return [ident for ident, job in self.jobs.items() if job["state"] not in FINAL]

    def end(self, ident: str, state: str) -> None:
        self.jobs[ident]["state"] = state
        self.ends.setdefault(ident, [])
        self.ends[ident].append(state)

    # ---- what clients, workers and time do ----

    def admit(self, number: int) -> None:
        ident = f"job{len(self.jobs)}"
        classes = ("high", "low")
        args = [ident, "m", classes[number % 2], f"t{number % 3}", "/p", "body", "", 60_000, CAPACITY, 0, KEEP, "", ""]
        verdict = self.run(scripts.ADMIT, *args, *classes)[0]
        assert verdict == ("full" if len(self.open()) >= CAPACITY else "stored")
        if verdict == "stored":
            new = {"state": "queued", "attempts": 0, "fence": "", "silent": False, "late": False, "lost": False}
            self.jobs[ident] = new

    def claim(self, worker: int) -> None:
        keys = tuple(scripts.queue_key(PREFIX, klass, "m") for klass in ("high", "low"))
        fence = f"fence{len(self.claims)}"
        answer = self.run(scripts.CLAIM, f"w{worker}", LEASE, MAX_ATTEMPTS, KEEP, ORPHAN, fence, keys=keys)
        if answer is None:
            assert not [j for j in self.jobs.values() if j["state"] == "queued" and not j["late"] and not j.get("held")]
            return
        job = self.jobs[answer[0]]
        if len(answer) == 2:
            assert job["state"] == "running" and job["silent"] and job["attempts"] >= MAX_ATTEMPTS
            self.end(answer[0], "dead")
            return
        assert (job["state"] == "queued" and not job["late"]) or (job["state"] == "running" and job["silent"])
        assert job["attempts"] < MAX_ATTEMPTS
        job |= {"state": "running", "attempts": job["attempts"] + 1, "fence": fence}
        job |= {"silent": False, "lost": False, "held": True}
        assert (answer[1], int(answer[2])) == (fence, job["attempts"])
        self.claims.append((answer[0], fence))

    def held(self, number: int) -> tuple[str, str, bool]:
        ident, fence = self.claims[number % len(self.claims)]
        job = self.jobs[ident]
        return ident, fence, job["state"] == "running" and job["fence"] == fence

    def renew(self, number: int) -> None:
        ident, fence, ours = self.held(number)
        assert self.run(scripts.RENEW, ident, fence, ORPHAN) == int(ours)
        if ours:
            self.jobs[ident] |= {"silent": False, "lost": False}

    def finish(self, number: int, state: str) -> None:
        ident, fence, ours = self.held(number)
        again = self.jobs[ident]["fence"] == fence and self.jobs[ident]["state"] == state
        answer = self.run(scripts.FINISH, ident, fence, state, KEEP, 200, "application/json", "{}")
        assert answer == int(ours or again)
        if ours:
            self.end(ident, state)

    def give_back(self, number: int, dispatches: int) -> None:
        ident, fence, ours = self.held(number)
        args = [ident, fence, dispatches, MAX_ATTEMPTS, KEEP, LEASE, int(dispatches > 0), "", "", ""]
        answer = self.run(scripts.GIVE_BACK, *args)
        job = self.jobs[ident]
        if not ours:
            again = job["fence"] == fence and job["state"] in ("queued", "dead")
            assert answer == (job["state"] if again else "")
            return
        job["attempts"] += dispatches - 1
        if job["attempts"] >= MAX_ATTEMPTS:
            assert answer == "dead"
            self.end(ident, "dead")
        else:
            assert answer == "queued"
            late = job["late"] and not dispatches
            job |= {"state": "queued", "held": False, "late": late, "silent": False}

    def cancel(self, number: int) -> None:
        ident = list(self.jobs)[number % len(self.jobs)]
        tenant = self.client.hget(scripts.job_key(PREFIX, ident), "tenant")
        assert self.run(scripts.CANCEL, ident, "stranger", KEEP, 0) is None
        answer = self.run(scripts.CANCEL, ident, tenant, KEEP, 0)
        job = self.jobs[ident]
        if job["state"] not in FINAL:
            self.end(ident, "expired" if job["state"] == "queued" and job["late"] else "cancelled")
        assert answer == job["state"]

    def silent(self, number: int) -> None:
        """Its worker has not been heard of for longer than the lease."""
        ident = list(self.jobs)[number % len(self.jobs)]
        if self.jobs[ident]["state"] == "running":
            entry, klass = self.client.hmget(scripts.job_key(PREFIX, ident), "entry", "klass")
            queue = scripts.queue_key(PREFIX, klass, "m")
            self.client.execute_command("XCLAIM", queue, "workers", "router", 0, entry, "IDLE", 10 * LEASE, "JUSTID")
            self.jobs[ident]["silent"] = True

    def late(self, number: int) -> None:
        """Its time to wait is over."""
        ident = list(self.jobs)[number % len(self.jobs)]
        if self.jobs[ident]["state"] in ("queued", "running"):
            self.client.hset(scripts.job_key(PREFIX, ident), "deadline", 1)
            self.jobs[ident]["late"] = True
            if self.jobs[ident]["state"] == "queued":
                self.client.zadd("{llmfleet}:due", {ident: 1})

    def lost(self, number: int) -> None:
        """Nobody renewed or claimed it for minutes."""
        ident = list(self.jobs)[number % len(self.jobs)]
        if self.jobs[ident]["state"] == "running":
            self.client.zadd("{llmfleet}:due", {ident: 1})
            self.jobs[ident]["lost"] = True

    def sweep(self) -> None:
        answer = self.run(scripts.SWEEP, KEEP, 1)
        due = [i for i in self.open() if self.jobs[i]["late" if self.jobs[i]["state"] == "queued" else "lost"]]
        for ident in due:
            self.end(ident, "expired" if self.jobs[ident]["state"] == "queued" else "dead")
        assert sorted(answer[1::2]) == sorted(self.jobs[ident]["state"] for ident in due)

    # ---- what is always true ----

    def check(self) -> None:
        opened = self.open()
        queues = [scripts.queue_key(PREFIX, klass, "m") for klass in ("high", "low")]
        entries = [fields["id"] for queue in queues for _, fields in self.client.xrange(queue)]
        assert sorted(entries) == sorted(opened)
        assert len(opened) <= CAPACITY
        assert set(self.client.zrange("{llmfleet}:due", 0, -1)) == set(opened)
        shares = self.client.hgetall("{llmfleet}:share:m")
        assert sum(map(int, shares.values())) == len(opened)
        for ident, job in self.jobs.items():
            state, ended = self.client.hmget(scripts.job_key(PREFIX, ident), "state", "finished")
            assert (state, ended is not None) == (job["state"], state in FINAL)
        told: dict[str, list[str]] = {}
        while (message := self.announced.get_message()) is not None:
            words = message["data"].split(" ")
            if words[0] == "end":
                told.setdefault(words[1], []).append(words[2])
        for ident, states in told.items():
            self.jobs[ident].setdefault("told", []).extend(states)
        for ident, job in self.jobs.items():
            assert job.get("told", []) == self.ends.get(ident, []), ident
            assert len(job.get("told", [])) == (1 if job["state"] in FINAL else 0), ident


def step(world: World, operation: str, number: int) -> None:
    word, _, worker = operation.partition(" ")
    if word == "admit":
        world.admit(number)
    elif word == "claim":
        world.claim(int(worker))
    elif word == "sweep":
        world.sweep()
    elif word in ("cancel", "silent", "late", "lost") and world.jobs:
        getattr(world, word)(number)
    elif world.claims:
        if word == "renew":
            world.renew(number)
        elif word in ("complete", "failed"):
            world.finish(number, word)
        elif word in ("return", "retry"):
            world.give_back(number, 0 if word == "return" else 1 + number % 2)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps=st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 11)), min_size=5, max_size=60))
def test_every_job_ends_once_whatever_two_workers_clients_and_time_do(server, steps):
    world = World(server.client())
    for operation, number in steps:
        step(world, operation, number)
        world.check()
    drain(world)


def drain(world: World) -> None:
    """From any state everything comes to an end once time passes, also when every worker is gone."""
    for ident in world.open():
        world.late(list(world.jobs).index(ident))
        world.lost(list(world.jobs).index(ident))
    world.sweep()
    world.check()
    assert world.open() == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (
            "the fence is not looked at",
            ("return job[1] == 'running' and job[2] == fence", "return job[1] == 'running'"),
        ),
        ("the state is not looked at", ("return job[1] == 'running' and job[2] == fence", "return job[2] == fence")),
        ("the entry stays in the queue", ("redis.call('XDEL', queue, job[4])", "")),
        ("the share is not given back", ("if redis.call('HINCRBY', share, job[3], -1) <= 0", "if false")),
    ],
)
def test_the_model_notices_scripts_that_are_wrong(server, monkeypatch, name, change):
    for script in ("FINISH", "GIVE_BACK", "RENEW", "CANCEL", "CLAIM", "SWEEP"):
        monkeypatch.setattr(scripts, script, getattr(scripts, script).replace(*change))
    with pytest.raises((AssertionError, redis.ResponseError)):
        for life in range(3):
            world = World(server.client())
            for operation, number in WRONG[life]:
                step(world, operation, number)
                world.check()


WRONG = [
    [("admit", 0), ("claim 0", 0), ("silent", 0), ("claim 1", 0), ("complete", 0), ("complete", 1)],
    [("admit", 0), ("claim 0", 0), ("complete", 0), ("failed", 0)],
    [("admit", 0), ("cancel", 0)],
]
