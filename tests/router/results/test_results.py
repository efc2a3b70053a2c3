"""The result cache as clients see it, through a live router in front of a real Redis."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import Any

from bed import CHAT, Answer, Bed, scenario
from engine import DONE, SSE_HEAD, UNARY, Behaviour, Connection, Request, chat_event, chat_events, events, json_answer
from redis_server import RedisServer
from sentinels import Sentinels

from llmfleet.api.document import Document, Model, ModelState, Role, State, render, with_generation
from llmfleet.router.keys import hashed

GREEDY = CHAT | {"temperature": 0}
STREAMED = GREEDY | {"stream": True}
KEYS = {name: f"sk-{name}-0123456789abcdef" for name in ("a", "b")}


def numbered(finish: str = "stop", delay: float = 0.0, stop: asyncio.Event | None = None) -> Behaviour:
    """Answer with the number of the request, so that no two answers are the same."""
    numbers = itertools.count(1)

    async def behave(connection: Connection, request: Request) -> None:
        text = f"answer {next(numbers)}"
        await asyncio.sleep(delay)
        if not request.json.get("stream"):
            choice = UNARY["choices"][0] | {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
            await connection.send(json_answer(200, UNARY | {"choices": [choice]}))
            return
        await connection.send(SSE_HEAD)
        for event in (chat_event(role=True), chat_event(text), chat_event(None, finish=finish), DONE):
            await connection.chunk(event)
            if stop is not None:
                await stop.wait()
        await connection.end()

    return behave


class CacheBed(Bed):
    """A router with a result cache."""

    def __init__(
        self,
        server: RedisServer,
        *behaviours: Behaviour,
        tenants: Any = None,
        revision: str = "r",
        redis: Any = None,
        **cache: Any,
    ) -> None:
        settings = {
            "redis": redis or {"url": server.url},
            "resultCache": {"enabled": True, "lookupSeconds": 1, **cache},
        }
        super().__init__(*(behaviours or (numbered(),)), settings=settings, tenants=tenants)
        self.server, self.revision = server, revision

    def publish(self, **changes: Any) -> int:
        named = {f"e{i}": {"engine_revision": self.revision} for i in range(len(self.engines))}
        return super().publish(
            **{n: None if changes.get(n, {}) is None else named[n] | changes.get(n, {}) for n in named}
        )

    async def __aenter__(self) -> CacheBed:
        await super().__aenter__()
        self.results = self.router.results
        await self.up()
        return self

    async def up(self) -> None:
        await self.until(lambda: not self.results.shelf.problem, "redis")

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        metrics = self.router.metrics
        assert {model for model, _ in [*metrics.result_lookups, *metrics.result_stores]} <= {"m"}
        return (
            {what: count for (_, what), count in metrics.result_lookups.items()},
            {what: count for (_, what), count in metrics.result_stores.items()},
        )

    async def stored(self, count: int = 1, what: str = "stored") -> None:
        await self.until(lambda: self.counts()[1].get(what, 0) == count, f"{count} answers {what}")

    def asked(self) -> int:
        return sum(len(engine.requests) for engine in self.engines)

    def keys(self) -> list[str]:
        return sorted(self.server.client().keys("{llmfleet}:result:*"))


def said(answer: Answer) -> str:
    assert (answer.status, answer.ended) == (200, "whole"), answer
    return answer.json["choices"][0]["message"]["content"]


def marks(answer: Answer) -> tuple[str | None, bool]:
    return answer.headers.get("x-llmfleet-cache"), "age" in answer.headers


@scenario
async def test_the_second_same_request_is_answered_without_an_engine(redis_server):
    async with CacheBed(redis_server) as bed:
        first = await bed.ask(GREEDY)
        await bed.stored()
        second = await bed.ask(dict(reversed(GREEDY.items())))
        assert (said(first), said(second), bed.asked()) == ("answer 1", "answer 1", 1)
        assert first.body == second.body
        assert (marks(first), marks(second)) == (("miss", False), ("hit", True))
        assert bed.counts() == ({"miss": 1, "hit": 1}, {"stored": 1})
        assert said(await bed.ask(GREEDY | {"max_tokens": 9})) == "answer 2"


@scenario
async def test_the_head_of_a_hit(redis_server):
    async with CacheBed(redis_server) as bed:
        first = await bed.ask(GREEDY)
        await bed.stored()
        second = await bed.ask(GREEDY)
        assert second.headers.pop("x-request-id") != first.headers["x-request-id"]
        assert 0 <= int(second.headers.pop("age")) < 100
        assert second.headers == {
            "content-type": "application/json",
            "x-llmfleet-cache": "hit",
            "content-length": str(len(second.body)),
        }


@scenario
async def test_a_stream_is_replayed_byte_for_byte_to_its_done(redis_server):
    async with CacheBed(redis_server) as bed:
        first = await bed.ask(STREAMED)
        await bed.stored()
        second = await bed.ask(STREAMED)
        assert (first.ended, second.ended) == ("whole", "whole")
        assert first.body == second.body
        assert second.body.endswith(b"data: [DONE]\n\n")
        assert second.headers["content-type"] == first.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (marks(second), second.headers["cache-control"]) == (("hit", True), "no-cache")
        assert said(await bed.ask(GREEDY)) == "answer 2", "another form is another request"
        old = await bed.ask(STREAMED, version="1.0")
        assert (marks(old)[0], old.body) == ("hit", first.body)


@scenario
async def test_a_connection_is_kept_over_hits_and_misses(redis_server):
    async with CacheBed(redis_server) as bed:
        client = await bed.client()
        for number, body in enumerate((GREEDY, STREAMED, GREEDY, STREAMED, GREEDY)):
            await client.send(body)
            answer = await client.answer()
            assert (answer.status, answer.ended) == (200, "whole")
            if number < 2:
                await bed.stored(number + 1)
        assert bed.asked() == 2
        client.writer.close()


@scenario
async def test_requests_that_are_not_greedy_are_never_looked_for(redis_server):
    async with CacheBed(redis_server) as bed:
        for _ in range(2):
            answer = await bed.ask(CHAT)
            assert marks(answer) == (None, False)
        assert (bed.asked(), bed.counts(), bed.keys()) == (2, ({}, {}), [])


@scenario
async def test_a_client_refuses_the_cache_by_cache_control(redis_server):
    async with CacheBed(redis_server) as bed:
        assert said(await bed.ask(GREEDY, headers={"Cache-Control": "no-store"})) == "answer 1"
        assert bed.keys() == []
        assert said(await bed.ask(GREEDY)) == "answer 2"
        await bed.stored()
        never = await bed.ask(GREEDY, headers={"Cache-Control": "no-store"})
        assert (said(never), marks(never)) == ("answer 3", (None, False))
        fresh = await bed.ask(GREEDY, headers={"Cache-Control": "no-cache"})
        assert (said(fresh), marks(fresh)) == ("answer 4", ("miss", False))
        await bed.stored(2)
        assert said(await bed.ask(GREEDY)) == "answer 4", "it was renewed"
        assert said(await bed.ask(GREEDY, headers={"Cache-Control": "max-age=3600"})) == "answer 4"


@scenario
async def test_no_tenant_gets_what_another_one_asked_for(redis_server):
    tenants = {name: {"keys": [hashed(key)]} for name, key in KEYS.items()}
    async with CacheBed(redis_server, tenants=tenants) as bed:
        mine, theirs = ({"x-api-key": KEYS[name]} for name in "ab")
        assert said(await bed.ask(GREEDY, headers=mine)) == "answer 1"
        await bed.stored()
        other = await bed.ask(GREEDY, headers=theirs)
        assert (said(other), marks(other)) == ("answer 2", ("miss", False))
        await bed.stored(2)
        assert said(await bed.ask(GREEDY, headers=mine)) == "answer 1"
        assert said(await bed.ask(GREEDY, headers=theirs)) == "answer 2"
        refused = await bed.ask(GREEDY, headers={"x-api-key": "sk-wrong-0123456789"})
        assert refused.status == 401
        log = await bed.access_log(5)
        assert [line["attempts"] for line in log] == [1, 1, 0, 0, 0]


@scenario
async def test_without_keys_the_credential_that_an_engine_gets_tells_clients_apart(redis_server):
    async with CacheBed(redis_server) as bed:
        for key, text in (("x", "answer 1"), ("y", "answer 2"), ("x", "answer 1")):
            assert said(await bed.ask(GREEDY, headers={"Authorization": f"Bearer {key}"})) == text
            await bed.until(lambda: not bed.results._storing)


@scenario
async def test_a_hit_counts_as_a_request_and_costs_no_tokens(redis_server):
    limits = {"rpm": 3, "tokensPerMinute": 1000, "concurrency": 1}
    async with CacheBed(redis_server, tenants={"a": {"keys": [hashed(KEYS["a"])]} | limits}) as bed:
        headers = {"x-api-key": KEYS["a"]}
        assert said(await bed.ask(GREEDY, headers=headers)) == "answer 1"
        await bed.stored()
        account = bed.router.quotas._accounts["a"]
        for _ in range(2):
            assert said(await bed.ask(GREEDY, headers=headers)) == "answer 1"
        assert account.tokens.size - account.tokens.level <= 2 + 1, "the two tokens of the first answer"
        assert account.in_flight == 0
        assert (await bed.ask(GREEDY, headers=headers)).status == 429
        assert bed.router.metrics.model("m").tokens == {"a": [1, 1]}


@scenario
async def test_another_revision_of_the_engines_never_answers_with_the_old_ones_text(redis_server):
    async with CacheBed(redis_server, numbered(), numbered(), revision="old") as bed:
        first = said(await bed.ask(GREEDY))
        await bed.stored()
        assert said(await bed.ask(GREEDY)) == first
        await bed.adopted(bed.publish(e1={"engine_revision": "new"}))
        assert marks(await bed.ask(GREEDY)) == (None, False), "both may answer: no key is right"
        await bed.adopted(bed.publish(e0={"state": State.DRAINING}, e1={"engine_revision": "new"}))
        second = await bed.ask(GREEDY)
        assert marks(second) == ("miss", False)
        await bed.stored(2)
        assert said(await bed.ask(GREEDY)) == said(second)
        assert len(bed.keys()) == 2


@scenario
async def test_an_answer_that_began_before_a_new_revision_came_is_not_kept(redis_server):
    gate = asyncio.Event()
    async with CacheBed(redis_server, numbered(stop=gate), revision="old") as bed:
        asked = asyncio.create_task(bed.ask(STREAMED))
        await bed.until(lambda: bed.asked() == 1)
        bed.revision = "new"
        await bed.adopted(bed.publish())
        gate.set()
        assert (await asked).ended == "whole"
        await bed.stored(1, "unfit")
        assert bed.keys() == []


@scenario
async def test_a_model_that_sleeps_answers_from_the_cache_alone(redis_server):
    async with CacheBed(redis_server) as bed:
        first = await bed.ask(GREEDY)
        await bed.stored()
        document = Document(models={"m": Model(state=ModelState.ASLEEP)})
        document = with_generation(document, previous=bed._generation, now_ms=int(time.time() * 1000))
        bed.replace(render(document))
        await bed.adopted(document.generation)
        again = await bed.ask(GREEDY)
        assert (again.body, marks(again)) == (first.body, ("hit", True))
        assert bed.router.metrics.model("m").in_flight == 0
        assert bed.router.held == 0


@scenario
async def test_a_hit_needs_no_slot(redis_server):
    gate = asyncio.Event()
    async with CacheBed(redis_server) as bed:
        await bed.ask(GREEDY)
        await bed.stored()
        bed.slots = 1
        await bed.adopted(bed.publish(e0={"slots": 1}))
        bed.engines[0].behave = numbered(stop=gate)
        busy = asyncio.create_task(bed.ask(STREAMED | {"temperature": 1}))
        await bed.until(lambda: bed.in_flight() == 1)
        assert marks(await bed.ask(GREEDY))[0] == "hit"
        gate.set()
        await busy


@scenario
async def test_a_pair_of_engines_is_not_asked_for_a_hit(redis_server):
    async with CacheBed(redis_server, numbered(), numbered()) as bed:
        roles = {"e0": {"role": Role.PREFILL}, "e1": {"role": Role.DECODE}}
        await bed.adopted(bed.publish(**roles))
        first = await bed.ask(STREAMED)  # the prefill engine makes no hand-off, so one engine does it all
        assert first.status == 200
        await bed.stored()
        asked = bed.asked()
        second = await bed.ask(STREAMED)
        assert (second.body, marks(second)[0], bed.asked()) == (first.body, "hit", asked)
        assert bed.in_flight() == 0


# ---- what is not kept ----


@scenario
async def test_streams_that_are_cut_or_fail_are_never_kept(redis_server):
    whole = chat_events()
    bad = [
        events(*whole, end=False, then="cut"),
        events(*whole[:2], end=False, then="reset"),
        events(*whole, end=True),
        events(*whole[:2], DONE),
        events(*whole[:2], b'data: {"error":{"message":"x","code":500}}\n\n', DONE),
        numbered(finish="abort"),
        numbered(finish="tool_calls"),
    ]
    async with CacheBed(redis_server) as bed:
        for count, behaviour in enumerate(bad, 1):
            bed.engines[0].behave = behaviour
            await bed.ask(STREAMED)
            await bed.until(lambda count=count: sum(bed.counts()[1].values()) == count, f"the end of {count}")
        assert bed.counts()[1] == {"unfit": len(bad)}
        assert bed.keys() == []


@scenario
async def test_an_answer_whose_client_left_is_not_kept(redis_server):
    gate = asyncio.Event()
    async with CacheBed(redis_server, numbered(stop=gate)) as bed:
        client = await bed.client()
        await client.send(STREAMED)
        await client.head()
        client.writer.close()
        await bed.until(lambda: bed.counter("requests").get((499, "aborted"), 0) == 1)
        gate.set()
        assert (bed.keys(), bed.counts()[1]) == ([], {})


@scenario
async def test_errors_are_not_kept(redis_server):
    async with CacheBed(redis_server) as bed:
        for status in (400, 429, 500):

            async def refuse(connection: Connection, request: Request, status: int = status) -> None:
                await connection.send(json_answer(status, {"error": {"message": "no", "code": status}}))

            bed.engines[0].behave = refuse
            assert (await bed.ask(GREEDY)).status == status
        assert bed.keys() == []


@scenario
async def test_an_answer_over_the_limit_is_not_kept(redis_server):
    async with CacheBed(redis_server, maxEntryBytes=1024) as bed:
        bed.engines[0].behave = events(*(chat_event("x" * 100) for _ in range(10)), *chat_events(), DONE)
        first = await bed.ask(STREAMED)
        await bed.stored(1, "too_long")
        assert (first.ended, bed.keys()) == ("whole", [])


@scenario
async def test_an_entry_has_its_time_and_no_word_of_the_prompt(redis_server):
    async with CacheBed(redis_server, ttlSeconds=100) as bed:
        body = GREEDY | {"messages": [{"role": "user", "content": "a secret"}]}
        await bed.ask(body)
        await bed.stored()
        [name] = bed.keys()
        client = redis_server.client()
        assert 90_000 < client.pttl(name) <= 100_000
        assert "secret" not in name + client.get(name)


@scenario
async def test_a_redis_that_is_half_full_keeps_no_answer_and_gives_those_it_has(redis_server):
    async with CacheBed(redis_server) as bed:
        await bed.ask(GREEDY)
        await bed.stored()
        client = redis_server.client()
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", int(used * 1.9))
        await bed.until(lambda: bed.results.shelf.full, "a look at Redis' memory")
        assert said(await bed.ask(GREEDY | {"seed": 2})) == "answer 2"
        await bed.stored(1, "full")
        assert said(await bed.ask(GREEDY)) == "answer 1"
        assert json.loads(await bed.admin("/fleet"))["resultCache"] == {"problem": "Redis has no room for answers"}


# ---- Redis in trouble ----


@scenario
async def test_what_is_not_what_was_written_is_a_miss(redis_server):
    async with CacheBed(redis_server) as bed:
        await bed.ask(GREEDY)
        await bed.stored()
        client = redis_server.client()
        [name] = bed.keys()
        value = client.get(name)
        for number, broken in enumerate((value[:-1], value.replace("answer 1", "answer X"), "", "junk"), 2):
            client.set(name, broken)
            answer = await bed.ask(GREEDY)
            assert (said(answer), marks(answer)) == (f"answer {number}", ("miss", False))
            await bed.stored(number)
        assert bed.counts()[0] == {"miss": 1, "corrupt": 4}
        client.delete(name)
        client.lpush(name, "a list")
        assert said(await bed.ask(GREEDY)) == "answer 6"
        assert bed.counts()[0]["unavailable"] == 1


@scenario
async def test_a_frozen_redis_costs_no_request_more_than_the_bound(redis_server, monkeypatch):
    bound = 0.02
    async with CacheBed(redis_server, lookupSeconds=bound) as bed:
        shelf, late = bed.results.shelf, []
        give_up = shelf.late
        monkeypatch.setattr(shelf, "late", lambda: (late.append(shelf.problem), give_up()))
        redis_server.freeze()
        seconds = []
        for number in range(120):
            asked, slept = await asyncio.gather(timed(bed, GREEDY | {"seed": number}), napped(bound))
            seconds.append(asked - slept)
        redis_server.thaw()
        lookups, stores = bed.counts()
        assert lookups == {"unavailable": 120}
        assert stores.keys() <= {"failed", "busy"}
        print(f"{len(late)} waited; beyond {bound} s: {sorted(seconds)[-12:]}")
        # One of those that wait at a time, then nobody for a quarter of a second, until Redis is known to be away.
        assert 1 <= len(late) <= 20
        assert set(late) == {""}
        # Beside a sleep of as long in the same process: a machine that stands still says nothing of the router.
        assert sorted(seconds)[60] < 0
        assert sorted(seconds)[-5] < 0.1
        await bed.up()
        await bed.until(lambda: shelf.ready, "the end of its rest")
        await bed.ask(GREEDY | {"seed": 1000})
        await bed.stored()


async def napped(seconds: float) -> float:
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    return time.perf_counter() - started


async def timed(bed: Bed, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    assert (await bed.ask(body)).status == 200
    return time.perf_counter() - started


@scenario
async def test_a_redis_that_is_gone_costs_nothing_and_is_used_when_it_is_back(redis_server):
    async with CacheBed(redis_server) as bed:
        await bed.ask(GREEDY)
        await bed.stored()
        redis_server.kill()
        await bed.until(lambda: bed.results.shelf.problem != "", "the loss")
        assert (await bed.ask(GREEDY)).status == 200
        redis_server.start()
        await bed.up()
        await bed.until(lambda: bed.results.shelf.ready, "the end of its rest")
        assert marks(await bed.ask(GREEDY))[0] == "hit", "the append-only file has it"


@scenario
async def test_a_router_without_its_redis_serves(redis_server):
    redis_server.kill()
    bed = CacheBed(redis_server)
    await Bed.__aenter__(bed)
    try:
        answer = await bed.ask(GREEDY)
        assert (said(answer), marks(answer)) == ("answer 1", ("miss", False))
    finally:
        await bed.__aexit__()


@scenario
async def test_a_client_that_leaves_during_a_lookup_costs_no_engine_anything(redis_server):
    async with CacheBed(redis_server, lookupSeconds=0.5) as bed:
        redis_server.freeze()
        client = await bed.client()
        await client.send(GREEDY)
        await bed.until(lambda: bed.router.metrics.model("m").in_flight == 1)
        client.writer.close()
        await bed.until(lambda: bed.counter("requests").get((499, "aborted"), 0) == 1)
        await asyncio.sleep(0.6)
        redis_server.thaw()
        assert bed.asked() == 0
        assert bed.router.held == 0


@scenario
async def test_the_same_request_many_times_at_once_is_answered_each_time(redis_server):
    async with CacheBed(redis_server, numbered(delay=0.1)) as bed:
        answers = await asyncio.gather(*(bed.ask(GREEDY) for _ in range(30)))
        texts = {said(answer) for answer in answers}
        await bed.until(lambda: not bed.results._storing)
        assert len(bed.keys()) == 1
        later = await asyncio.gather(*(bed.ask(GREEDY) for _ in range(30)))
        assert {marks(answer)[0] for answer in later} == {"hit"}
        assert len({said(answer) for answer in later}) == 1
        assert said(later[0]) in texts


@scenario
async def test_a_primary_that_sentinels_name_is_used_and_after_a_failover_the_next(redis_command, tmp_path):
    sentinels = Sentinels(redis_command, tmp_path)
    try:
        await asyncio.to_thread(sentinels.start)
        async with CacheBed(sentinels.servers[0], redis={"sentinel": sentinels.settings}) as bed:
            first = await bed.ask(GREEDY)
            await bed.stored()
            assert marks(await bed.ask(GREEDY)) == ("hit", True)
            before = bed.results.shelf._primary
            await asyncio.to_thread(sentinels.fail_over)
            await bed.until(lambda: bed.results.shelf._primary != before and bed.results.shelf.ready, "the next one")
            again = await bed.ask(GREEDY, headers={"Cache-Control": "no-cache"})
            await bed.stored(2)
            assert said(again) == said(await bed.ask(GREEDY)) != said(first)
    finally:
        await asyncio.to_thread(sentinels.stop)


@scenario
async def test_two_routers_share_what_they_keep(redis_server):
    async with CacheBed(redis_server) as one, CacheBed(redis_server) as other:
        first = await one.ask(GREEDY)
        await one.stored()
        second = await other.ask(GREEDY)
        assert (second.body, marks(second)[0], other.asked()) == (first.body, "hit", 0)


@scenario
async def test_a_router_without_the_setting_looks_for_nothing(redis_server):
    async with Bed(numbered(), settings={"redis": {"url": redis_server.url}}) as bed:
        assert bed.router.results is None
        for number in (1, 2):
            answer = await bed.ask(GREEDY)
            assert (said(answer), marks(answer)) == (f"answer {number}", (None, False))
