"""The scripts on a real Redis: what is stored, who holds it, how it ends."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from bed import scenario
from redis_server import RedisServer

from llmfleet.router.jobs import scripts
from llmfleet.router.jobs.client import Store
from llmfleet.router.jobs.entry import Admission, Claim, Dead, Request, Result, State, Verdict, job_id
from llmfleet.router.jobs.troubles import Unavailable
from llmfleet.router.limits import Queue, Redis

NUMBERS = itertools.count(1)
ANSWER = Result(status=200, content_type=b"application/json", body=b"{}")
FAILURE = Result(status=502, content_type=b"application/json", body=b'{"error":{}}')


def new_request(**changes: object) -> Request:
    values = {
        "id": job_id(next(NUMBERS).to_bytes(20, "big")),
        "tenant": "",
        "model": "m",
        "klass": "standard",
        "path": b"/v1/chat/completions",
        "body": b'{"model":"m"}',
    }
    return Request(**(values | changes))


async def ready() -> None:
    return


@asynccontextmanager
async def connected(server: RedisServer, **settings: object) -> AsyncIterator[Store]:
    queue = {key: settings.pop(key) for key in list(settings) if key in Queue.__dataclass_fields__}
    options = {"url": server.url, "timeout_seconds": 20.0} | settings
    store = Store(Redis(**options), Queue(**queue), ["high", "standard"], "worker-0")
    task = asyncio.create_task(store.hold(lambda words: None, ready))
    try:
        await until(lambda: not store.problem)
        store._calm_until = 0.0
        yield store
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.2)
        await store.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true in 60 s")


async def admitted(store: Store, **changes: object) -> Admission:
    return await store.admit(new_request(**changes), ttl_seconds=60)


async def claimed(store: Store) -> Claim:
    claim = await store.claim(["m"])
    assert isinstance(claim, Claim)
    return claim


def went_silent(server: RedisServer, store: Store, ident: str) -> None:
    """As if the worker had not been heard of for an hour."""
    client = server.client()
    entry = client.hget(scripts.job_key("llmfleet", ident), "entry")
    klass = client.hget(scripts.job_key("llmfleet", ident), "klass")
    queue = scripts.queue_key("llmfleet", klass, "m")
    client.execute_command("XCLAIM", queue, "workers", "router", 0, entry, "IDLE", 3_600_000, "JUSTID")


def is_late(server: RedisServer, ident: str) -> None:
    """As if its time were over."""
    client = server.client()
    client.hset(scripts.job_key("llmfleet", ident), "deadline", 1)
    client.zadd("{llmfleet}:due", {ident: 1})


@scenario
async def test_a_job_is_stored_claimed_and_finished(redis_server):
    async with connected(redis_server) as store:
        admission = await admitted(store)
        assert (admission.verdict, admission.held) == (Verdict.STORED, 1)
        view = await store.look(admission.id, "")
        assert (view.state, view.attempts, view.deadline_ms - view.created_ms) == (State.QUEUED, 0, 60_000)
        claim = await claimed(store)
        assert (claim.id, claim.attempts, claim.body) == (admission.id, 1, b'{"model":"m"}')
        assert (await store.look(admission.id, "")).state is State.RUNNING
        assert await store.finish(claim, State.COMPLETE, ANSWER)
        view = await store.look(admission.id, "", whole=True)
        assert (view.state, view.result) == (State.COMPLETE, ANSWER)
        assert await store.held(["m"]) == {"m": 0}


@scenario
async def test_fifty_clients_at_once_fill_the_queue_exactly(redis_server):
    async with connected(redis_server, capacity=100, timeout_seconds=1) as store:

        async def client() -> list[Verdict]:
            return [(await admitted(store)).verdict for _ in range(6)]

        verdicts = [verdict for mine in await asyncio.gather(*(client() for _ in range(50))) for verdict in mine]
        assert verdicts.count(Verdict.STORED) == 100
        assert verdicts.count(Verdict.FULL) == 200
        assert await store.held(["m"]) == {"m": 100}


@scenario
async def test_two_hundred_at_once_wait_in_turn_and_none_of_them_for_a_redis_that_is_away(redis_server):
    async with connected(redis_server, timeout_seconds=20) as store:
        order: list[int] = []

        async def client(number: int) -> None:
            assert (await admitted(store)).verdict is Verdict.STORED
            order.append(number)

        await asyncio.gather(*(client(number) for number in range(200)))
        assert max(abs(place - number) for place, number in enumerate(order)) < 64
        assert (store.problem, store.failures) == ("", 0)


@scenario
async def test_a_full_queue_takes_one_again_for_each_that_ends(redis_server):
    async with connected(redis_server, capacity=2) as store:
        await admitted(store)
        await admitted(store, klass="high")
        assert (await admitted(store)).verdict is Verdict.FULL
        claim = await claimed(store)
        assert (await admitted(store)).verdict is Verdict.FULL
        assert await store.finish(claim, State.COMPLETE, ANSWER)
        assert (await admitted(store)).verdict is Verdict.STORED
        assert (await admitted(store, model="other")).verdict is Verdict.STORED


@scenario
async def test_a_tenant_fills_its_share_and_no_more(redis_server):
    async with connected(redis_server) as store:
        for verdict in (Verdict.STORED, Verdict.STORED, Verdict.SHARE):
            admission = await store.admit(new_request(tenant="a"), ttl_seconds=60, share_limit=2)
            assert admission.verdict is verdict
        assert (await store.admit(new_request(tenant="b"), ttl_seconds=60, share_limit=2)).verdict is Verdict.STORED
        assert await store.finish(await claimed(store), State.COMPLETE, ANSWER)
        assert (await store.admit(new_request(tenant="a"), ttl_seconds=60, share_limit=2)).verdict is Verdict.STORED


@scenario
async def test_urgent_classes_are_claimed_first_and_each_in_order(redis_server):
    async with connected(redis_server) as store:
        ids = [(await admitted(store, klass=klass)).id for klass in ("standard", "standard", "high", "high")]
        assert [(await claimed(store)).id for _ in ids] == [ids[2], ids[3], ids[0], ids[1]]


@scenario
async def test_nobody_else_sees_or_ends_a_tenants_job(redis_server):
    async with connected(redis_server) as store:
        admission = await admitted(store, tenant="a")
        assert await store.look(admission.id, "b") is None
        assert await store.look(admission.id, "") is None
        assert await store.cancel(admission.id, "b") is None
        assert (await store.look(admission.id, "a")).state is State.QUEUED


@scenario
async def test_a_silent_workers_job_goes_to_another_and_its_late_answer_is_refused(redis_server):
    async with connected(redis_server) as store:
        admission = await admitted(store)
        first = await claimed(store)
        assert await store.claim(["m"]) is None
        went_silent(redis_server, store, admission.id)
        second = await claimed(store)
        assert (second.id, second.attempts) == (admission.id, 2)
        assert second.fence != first.fence
        assert not await store.renew(first)
        assert not await store.finish(first, State.COMPLETE, ANSWER)
        assert await store.give_back(first, dispatches=1, result=None, pause=0, begun=True) is None
        assert (await store.look(admission.id, "")).state is State.RUNNING
        assert await store.finish(second, State.FAILED, FAILURE)
        assert await store.finish(second, State.FAILED, FAILURE)  # told again: the same end
        assert not await store.finish(second, State.COMPLETE, ANSWER)


@scenario
async def test_a_renewed_job_stays_with_its_worker(redis_server):
    async with connected(redis_server) as store:
        admission = await admitted(store)
        claim = await claimed(store)
        went_silent(redis_server, store, admission.id)
        assert await store.renew(claim)
        assert await store.claim(["m"]) is None


@scenario
async def test_a_job_whose_second_worker_dies_too_is_a_dead_letter(redis_server):
    async with connected(redis_server) as store:
        admission = await admitted(store, tenant="t")
        for _ in range(2):
            await claimed(store)
            went_silent(redis_server, store, admission.id)
        assert await store.claim(["m"]) == Dead(id=admission.id, model="m")
        assert await store.claim(["m"]) is None
        assert (await store.look(admission.id, "t")).state is State.DEAD
        [(_, letter)] = redis_server.client().xrange("{llmfleet}:dead")
        assert letter == {"id": admission.id, "model": "m", "tenant": "t", "attempts": "2"}


@scenario
async def test_two_failed_attempts_are_a_dead_letter_with_the_last_answer(redis_server):
    async with connected(redis_server) as store:
        admission = await admitted(store)
        first = await claimed(store)
        assert await store.give_back(first, dispatches=1, result=FAILURE, pause=0, begun=True) is State.QUEUED
        second = await claimed(store)
        assert second.attempts == 2
        assert await store.give_back(second, dispatches=1, result=FAILURE, pause=0, begun=True) is State.DEAD
        view = await store.look(admission.id, "", whole=True)
        assert (view.state, view.result) == (State.DEAD, FAILURE)


@scenario
async def test_one_attempt_that_asked_two_engines_was_two(redis_server):
    async with connected(redis_server) as store:
        await admitted(store)
        claim = await claimed(store)
        assert await store.give_back(claim, dispatches=2, result=None, pause=0, begun=True) is State.DEAD


@scenario
async def test_what_is_given_back_untried_keeps_its_attempts_its_place_and_its_time(redis_server):
    async with connected(redis_server) as store:
        first, second = await admitted(store), await admitted(store)
        claim = await claimed(store)
        assert await store.give_back(claim, dispatches=0, result=None, pause=0, begun=False) is State.QUEUED
        assert (await store.look(first.id, "")).deadline_ms == first.deadline_ms
        again = await claimed(store)
        assert (again.id, again.attempts) == (first.id, 1)
        assert (await claimed(store)).id == second.id


@scenario
async def test_a_failed_attempt_is_made_again_after_a_pause(redis_server):
    async with connected(redis_server, lease_seconds=600) as store:
        await admitted(store)
        claim = await claimed(store)
        await store.give_back(claim, dispatches=1, result=None, pause=500, begun=True)
        assert await store.claim(["m"]) is None


@scenario
async def test_a_late_job_is_never_started_and_expires(redis_server):
    async with connected(redis_server) as store:
        late, fresh = await admitted(store), await admitted(store)
        is_late(redis_server, late.id)
        assert (await store.look(late.id, "")).state is State.EXPIRED
        assert (await claimed(store)).id == fresh.id
        assert await store.sweep() == [("m", State.EXPIRED)]
        assert await store.sweep() == []
        assert (await store.look(late.id, "")).state is State.EXPIRED
        assert await store.held(["m"]) == {"m": 1}


@scenario
async def test_a_late_job_cannot_be_cancelled_any_more(redis_server):
    async with connected(redis_server) as store:
        late = await admitted(store)
        is_late(redis_server, late.id)
        assert await store.cancel(late.id, "") is State.EXPIRED


@scenario
async def test_the_time_of_a_class_is_its_own(redis_server):
    async with connected(redis_server) as store:
        admission = await store.admit(new_request(), ttl_seconds=86400)
        assert admission.deadline_ms - admission.created_ms == 86_400_000


@scenario
async def test_a_running_job_outlives_its_deadline(redis_server):
    async with connected(redis_server) as store:
        admission = await admitted(store)
        claim = await claimed(store)
        redis_server.client().hset(scripts.job_key("llmfleet", admission.id), "deadline", 1)
        assert await store.sweep() == []
        assert await store.finish(claim, State.COMPLETE, ANSWER)


@scenario
async def test_a_running_job_that_nobody_renews_or_claims_is_given_up_in_the_end(redis_server):
    async with connected(redis_server) as store:
        admission = await admitted(store)
        claim = await claimed(store)
        is_late(redis_server, admission.id)
        assert await store.sweep() == [("m", State.DEAD)]
        assert not await store.finish(claim, State.COMPLETE, ANSWER)


@scenario
async def test_what_runs_is_not_given_up_right_after_an_outage(redis_server):
    async with connected(redis_server) as store:
        admission = await admitted(store)
        claim = await claimed(store)
        is_late(redis_server, admission.id)
        went_silent(redis_server, store, admission.id)
        store._calm_until = asyncio.get_running_loop().time() + 60
        assert await store.sweep() == []
        assert await store.claim(["m"]) is None
        assert await store.renew(claim)


@scenario
async def test_cancelling_ends_a_waiting_and_a_running_job_and_leaves_one_that_is_over(redis_server):
    async with connected(redis_server) as store:
        running, waiting = await admitted(store), await admitted(store)
        claim = await claimed(store)
        assert await store.cancel(running.id, "") is State.CANCELLED
        assert await store.cancel(waiting.id, "") is State.CANCELLED
        assert not await store.finish(claim, State.COMPLETE, ANSWER)
        assert await store.claim(["m"]) is None
        done = await admitted(store)
        await store.finish(await claimed(store), State.COMPLETE, ANSWER)
        assert await store.cancel(done.id, "") is State.COMPLETE
        assert await store.held(["m"]) == {"m": 0}


@scenario
async def test_a_cancel_and_an_answer_at_once_have_one_winner(redis_server):
    async with connected(redis_server) as store:
        for _ in range(40):
            admission = await admitted(store)
            claim = await claimed(store)
            finished, cancelled = await asyncio.gather(
                store.finish(claim, State.COMPLETE, ANSWER), store.cancel(admission.id, "")
            )
            assert finished == (cancelled is State.COMPLETE)
            assert (await store.look(admission.id, "")).state is cancelled


@scenario
async def test_the_same_key_and_body_are_the_same_job_and_another_body_is_refused(redis_server):
    async with connected(redis_server) as store:
        first = await admitted(store, idempotency="k" * 64, digest="one", tenant="a")
        again = await admitted(store, idempotency="k" * 64, digest="one", tenant="a")
        assert (again.verdict, again.id, again.deadline_ms) == (Verdict.AGAIN, first.id, first.deadline_ms)
        other = await admitted(store, idempotency="k" * 64, digest="two", tenant="a")
        assert other.verdict is Verdict.CONFLICT
        assert (await admitted(store, idempotency="k" * 64, digest="two", tenant="b")).verdict is Verdict.STORED
        await store.finish(await claimed(store), State.COMPLETE, ANSWER)
        after = await admitted(store, idempotency="k" * 64, digest="one", tenant="a")
        assert (after.verdict, after.id, after.state) == (Verdict.AGAIN, first.id, State.COMPLETE)
        assert await store.held(["m"]) == {"m": 1}


@scenario
async def test_answers_and_keys_are_kept_for_their_time_and_the_prompt_only_until_the_end(redis_server):
    async with connected(redis_server, result_seconds=600) as store:
        admission = await admitted(store, idempotency="k" * 64, digest="one")
        client = redis_server.client()
        key = scripts.job_key("llmfleet", admission.id)
        assert client.ttl(key) == -1
        assert client.hexists(key, "body")
        await store.finish(await claimed(store), State.COMPLETE, ANSWER)
        assert 590 < client.ttl(key) <= 600
        assert 590 < client.ttl(scripts.once_key("llmfleet", "", "k" * 64)) <= 600
        assert not client.hexists(key, "body")


@scenario
async def test_an_entry_without_a_job_is_passed_over(redis_server):
    """A failover can bring entries back that were acknowledged."""
    async with connected(redis_server) as store:
        gone, there = await admitted(store), await admitted(store)
        redis_server.client().delete(scripts.job_key("llmfleet", gone.id))
        assert (await claimed(store)).id == there.id


@scenario
async def test_a_flushed_redis_is_an_empty_one(redis_server):
    async with connected(redis_server) as store:
        await admitted(store)
        redis_server.client().flushall()
        redis_server.client().script_flush()
        assert await store.claim(["m"]) is None
        assert (await admitted(store)).verdict is Verdict.STORED
        assert isinstance(await store.claim(["m"]), Claim)


@scenario
async def test_a_full_redis_takes_no_job_and_still_ends_those_it_has(redis_server):
    async with connected(redis_server) as store:
        admission = await admitted(store)
        claim = await claimed(store)
        redis_server.client().config_set("maxmemory", "1mb")
        with pytest.raises(Unavailable, match="Redis is full"):
            await admitted(store)
        assert not store.problem
        assert await store.finish(claim, State.COMPLETE, ANSWER)
        assert (await store.look(admission.id, "", whole=True)).result == ANSWER
        redis_server.client().config_set("maxmemory", "256mb")
        assert (await admitted(store)).verdict is Verdict.STORED


@scenario
async def test_every_acknowledged_job_is_there_after_kill_nine(redis_server):
    async with connected(redis_server) as store:
        acknowledged: list[str] = []

        async def client() -> None:
            while True:
                with suppress(Unavailable):
                    acknowledged.append((await admitted(store)).id)
                await asyncio.sleep(0)

        clients = [asyncio.create_task(client()) for _ in range(8)]
        await until(lambda: len(acknowledged) > 300)
        redis_server.kill()
        await until(lambda: bool(store.problem))
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        redis_server.start()
        await until(lambda: not store.problem)
        views = [await store.look(ident, "") for ident in acknowledged]
        assert all(view is not None and view.state is State.QUEUED for view in views)


@scenario
async def test_a_job_that_a_repeated_request_was_told_of_is_not_taken_back(redis_server):
    async with connected(redis_server) as store:
        alone = await admitted(store, tenant="a")
        assert await store.cancel(alone.id, "a", forget=True) is State.CANCELLED
        assert await store.look(alone.id, "a") is None
        # Its own client heard nothing, and asked once more, perhaps another router.
        first = await admitted(store, idempotency="k" * 64, digest="one", tenant="a")
        assert (await admitted(store, idempotency="k" * 64, digest="one", tenant="a")).id == first.id
        assert await store.cancel(first.id, "a", forget=True) is State.QUEUED
        view = await store.look(first.id, "a")
        assert view is not None and view.state is State.QUEUED
        assert await store.cancel(first.id, "a") is State.CANCELLED


@scenario
async def test_what_becomes_doubtful_while_another_one_is_taken_back_is_taken_back_too(redis_server):
    async with connected(redis_server) as store:
        first, second = await admitted(store), await admitted(store)
        store._doubtful.append((first.id, ""))
        cancel, seen = store.cancel, []

        async def slow(ident: str, tenant: str, *, forget: bool = False) -> State | None:
            if ident == first.id and not seen:
                seen.append(ident)
                store._doubtful.append((second.id, ""))
            return await cancel(ident, tenant, forget=forget)

        store.cancel = slow  # type: ignore[method-assign]
        await store._withdraw_doubtful()
        assert not store._doubtful
        assert redis_server.client().keys("{llmfleet}:job:*") == []
