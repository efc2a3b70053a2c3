"""Jobs as clients see them, through a live router in front of a real Redis."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from bed import CHAT, STREAM, Answer, Bed, scenario
from engine import DONE, UNARY, chat_events, drop, json_answer, ok, play, silent, status
from redis_server import RedisServer

from llmfleet.router.jobs.scripts import events_channel

ASYNC = {"Prefer": "respond-async"}


def settings(server: RedisServer, **queue: Any) -> dict[str, Any]:
    return {"redis": {"url": server.url, "timeoutSeconds": 1}, "queue": queue}


class JobBed(Bed):
    """A router with jobs."""

    def __init__(
        self,
        server: RedisServer,
        *behaviours: Any,
        slots: int = 256,
        timeouts: dict[str, float] | None = None,
        **queue: Any,
    ) -> None:
        chosen = settings(server, **queue) | {"timeouts": timeouts or {}}
        super().__init__(*behaviours, settings=chosen, slots=slots)

    async def __aenter__(self) -> JobBed:
        await super().__aenter__()
        self.jobs = self.router.jobs
        await self.up()
        return self

    async def up(self) -> None:
        await self.until(lambda: not self.jobs.store.problem, "redis")

    async def put(self, body: Any = None, **headers: str) -> str:
        """Store a request and return the path of its job."""
        answer = await self.ask(body, headers=ASYNC | {k.replace("_", "-"): v for k, v in headers.items()})
        assert answer.status == 202, answer
        return answer.headers["location"]

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        return await self.ask(b"", path=path, method=method, headers=names)

    async def becomes(self, path: str, *states: str) -> dict[str, Any]:
        """Ask until it is; a 503 says that Redis was not asked in time, by a process that stood still."""
        job: dict[str, Any] = {}
        for _ in range(6000):
            answer = await self.get(path)
            job = answer.json
            if answer.status != 503 and job["status"] in states:
                return job
            await asyncio.sleep(0.01)
        raise AssertionError(f"{job} after 60 s, not one of {states}")

    def ended(self) -> dict[str, int]:
        return {state: count for (_, state), count in self.jobs.metrics.ended.items()}


@scenario
async def test_a_job_is_accepted_run_and_read(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        answer = await bed.ask(headers=ASYNC)
        assert answer.status == 202
        path = answer.headers["location"]
        assert path == f"/v1/requests/{answer.json['id']}"
        assert answer.headers["preference-applied"] == "respond-async"
        assert answer.json["status"] == "queued"
        assert answer.json["expires_at"] - answer.json["created_at"] == 60
        result = await bed.get(path + "/result?wait=10")
        assert (result.status, result.json) == (200, UNARY)
        job = (await bed.get(path)).json
        assert (job["status"], job["attempts"], job["result_status"]) == ("complete", 1, 200)
        assert job["result"] == path + "/result"
        assert bed.ended() == {"complete": 1}
        [request] = bed.engines[0].requests
        assert request.json == CHAT
        assert request.header("prefer") is None


@scenario
async def test_other_spellings_of_the_preference_count_and_other_preferences_do_not(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        for value in ("respond-async, wait=10", "wait=1, Respond-Async", "respond-async;x=1"):
            assert (await bed.ask(headers={"Prefer": value})).status == 202, value
        for value in ("return=minimal", "respond-async-no", "xrespond-async"):
            assert (await bed.ask(headers={"Prefer": value})).status == 200, value


@scenario
async def test_without_a_redis_the_preference_is_not_applied_and_there_are_no_requests_to_ask_for():
    async with Bed(ok()) as bed:
        answer = await bed.ask(headers=ASYNC)
        assert answer.status == 200
        assert "preference-applied" not in answer.headers
        assert (await bed.ask(b"", path="/v1/requests/job_" + "0" * 40, method="GET")).status == 404


@scenario
async def test_a_stream_is_replayed_whole_and_from_any_event(redis_server):
    async with JobBed(redis_server, ok(4)) as bed:
        path = await bed.put(STREAM)
        whole = await bed.get(path + "/result?wait=10")
        assert whole.status == 200
        assert whole.headers["content-type"].startswith("text/event-stream")
        expected = [*chat_events(4), DONE]
        assert whole.events == [b"id: %d\n%b" % (i, event) for i, event in enumerate(expected, 1)]
        rest = await bed.get(path + "/result", Last_Event_ID="4")
        assert rest.events == whole.events[4:]
        assert (await bed.get(path + "/result", Last_Event_ID="99")).body == b""
        assert (await bed.get(path + "/result", Last_Event_ID="x")).events == whole.events


@scenario
async def test_an_unknown_id_a_wrong_one_and_somebody_elses_look_the_same(redis_server):
    async with JobBed(redis_server, silent()) as bed:
        path = await bed.put()
        redis_server.client().hset("{llmfleet}:job:" + path.rpartition("/")[2], "tenant", "somebody")
        for wrong in (path, "/v1/requests/job_" + "0" * 40, "/v1/requests/x", "/v1/requests/", path + "/x", path + "x"):
            for method, suffix in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
                answer = await bed.get(wrong + suffix, method)
                assert answer.status == 404, (method, wrong + suffix)
                assert answer.error["code"] == "not_found"


@scenario
async def test_methods_that_do_nothing_are_refused_by_name(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        path = await bed.put()
        answer = await bed.ask(path=path, method="POST")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, DELETE")
        answer = await bed.get(path + "/result", "DELETE")
        assert (answer.status, answer.headers["allow"]) == (405, "GET")


@scenario
async def test_a_bad_request_is_refused_before_it_is_stored(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        assert (await bed.ask(b"{", headers=ASYNC)).status == 400
        assert (await bed.ask(CHAT | {"model": "x"}, headers=ASYNC)).status == 404
        assert (await bed.ask(CHAT | {"chat_template": "x"}, headers=ASYNC)).status == 400
        assert redis_server.client().keys("{llmfleet}:job:*") == []


@scenario
async def test_a_request_too_large_to_be_stored_is_refused_by_name(redis_server):
    async with JobBed(redis_server, ok(), maxJobBytes=2000) as bed:
        large = CHAT | {"user": "x" * 3000}
        answer = await bed.ask(large, headers=ASYNC)
        assert answer.status == 413
        assert "2000 bytes" in answer.error["message"]
        assert (await bed.ask(large)).status == 200


@scenario
async def test_a_result_is_waited_for_and_time_that_runs_out_is_a_202(redis_server):
    async with JobBed(redis_server, silent()) as bed:
        path = await bed.put()
        answer = await bed.get(path + "/result?wait=0.2")
        assert (answer.status, answer.headers["location"]) == (202, path + "/result")
        assert answer.json["status"] in ("queued", "running")
        assert answer.headers["retry-after"] == "1"
        for wait in ("x", "-1", "1e3", "", "nan"):
            assert (await bed.get(f"{path}/result?wait={wait}")).status == 400, wait


@scenario
async def test_the_answer_of_an_engine_that_says_no_is_the_answer(redis_server):
    async with JobBed(redis_server, status(400)) as bed:
        path = await bed.put()
        assert (await bed.becomes(path, "failed"))["result_status"] == 400
        answer = await bed.get(path + "/result")
        assert (answer.status, answer.error["code"]) == (400, 400)
        assert len(bed.engines[0].requests) == 1


@scenario
async def test_a_failing_job_reaches_engines_twice_and_is_dead(redis_server):
    async with JobBed(redis_server, drop(), drop()) as bed:
        path = await bed.put()
        assert (await bed.becomes(path, "dead"))["attempts"] == 2
        assert sum(len(engine.requests) for engine in bed.engines) == 2
        answer = await bed.get(path + "/result")
        assert (answer.status, answer.headers["x-should-retry"]) == (502, "false")
        assert answer.error["code"] == "request_quarantined"
        assert bed.ended() == {"dead": 1}
        again = await bed.put()
        assert (await bed.becomes(again, "failed"))["attempts"] == 1
        assert sum(len(engine.requests) for engine in bed.engines) == 2


@scenario
async def test_with_one_engine_a_failed_attempt_is_made_again_by_a_worker(redis_server):
    async with JobBed(redis_server, ok(), leaseSeconds=1) as bed:
        bed.engines[0].script = [drop()]
        path = await bed.put()
        assert (await bed.becomes(path, "complete"))["attempts"] == 2


@scenario
async def test_a_stream_that_breaks_is_no_answer_and_tried_again(redis_server):
    async with JobBed(redis_server, ok(2), leaseSeconds=1) as bed:
        half = b"%x\r\n%b\r\n" % (len(chat_events()[0]), chat_events()[0])
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        bed.engines[0].script = [play(head, half, then="reset")]
        path = await bed.put(STREAM)
        result = await bed.get(path + "/result?wait=20")
        assert result.status == 200
        assert result.events[-1].endswith(DONE)
        assert (await bed.get(path)).json["attempts"] == 2


@scenario
async def test_an_answer_too_long_to_keep_fails_the_job(redis_server):
    body = UNARY | {"x": "y" * 5000}

    async def long(connection, request):
        await connection.send(json_answer(200, body))

    async with JobBed(redis_server, long, maxResultBytes=2000) as bed:
        path = await bed.put()
        await bed.becomes(path, "failed")
        answer = await bed.get(path + "/result")
        assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
        assert "2000 bytes" in answer.error["message"]


@scenario
async def test_cancelling_stops_the_engine_at_once(redis_server):
    async with JobBed(redis_server, silent()) as bed:
        path = await bed.put()
        await bed.becomes(path, "running")
        await bed.until(lambda: bed.engines[0].active == 1)
        answer = await bed.get(path, "DELETE")
        assert (answer.status, answer.json["status"]) == (200, "cancelled")
        await bed.until(lambda: bed.engines[0].active == 0)
        assert bed.in_flight() == 0
        gone = await bed.get(path + "/result")
        assert (gone.status, gone.error["code"]) == (410, "job_cancelled")
        assert (await bed.get(path, "DELETE")).json["status"] == "cancelled"
        assert bed.ended() == {"cancelled": 1}


@scenario
async def test_a_cancelled_job_that_another_router_runs_is_stopped_there(redis_server):
    async with JobBed(redis_server, silent()) as bed, JobBed(redis_server, silent()) as other:
        other.jobs.worker._stopped = True
        path = await other.put()
        await bed.until(lambda: bed.engines[0].active == 1)
        assert (await other.get(path, "DELETE")).json["status"] == "cancelled"
        await bed.until(lambda: bed.engines[0].active == 0)


@scenario
async def test_a_job_that_finds_no_slot_expires_in_time(redis_server):
    async with JobBed(redis_server, silent(), slots=1, jobTtlSeconds=1) as bed:
        running, waiting = await bed.put(), await bed.put()
        await bed.becomes(waiting, "expired")
        job = (await bed.get(waiting)).json
        assert job["expires_at"] - job["created_at"] == 1
        assert "started_at" not in job
        answer = await bed.get(waiting + "/result")
        assert (answer.status, answer.error["code"]) == (503, "job_expired")
        assert (await bed.get(running)).json["status"] == "running"


@scenario
async def test_a_full_queue_is_said_at_once(redis_server):
    async with JobBed(redis_server, silent(), slots=1, capacity=3) as bed:
        for _ in range(3):
            await bed.put()
        answer = await bed.ask(headers=ASYNC)
        assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
        assert answer.headers["retry-after"] == "1"
        assert bed.jobs.metrics.refused == {("m", "full"): 1}


@scenario
async def test_direct_requests_come_first_and_jobs_keep_their_share(redis_server):
    """Of 20 slots jobs have one whatever happens, and leave two free even when nobody else is there."""
    async with JobBed(redis_server, silent(), slots=20) as bed:
        paths = [await bed.put() for _ in range(30)]
        await bed.until(lambda: bed.engines[0].active == 18, "all but the headroom")
        await asyncio.sleep(0.6)
        assert bed.engines[0].active == 18
        for path in paths[:18]:
            await bed.get(path, "DELETE")
        await bed.until(lambda: bed.engines[0].active == 12, "the other twelve")


@scenario
async def test_while_direct_traffic_takes_every_slot_a_job_gets_the_next_one_that_is_due(redis_server):
    async with JobBed(redis_server, silent(), slots=20) as bed:
        clients = [await bed.client() for _ in range(20)]
        for client in clients:
            await client.send()
        await bed.until(lambda: bed.in_flight() == 20)
        path = await bed.put()
        await bed.becomes(path, "running")  # it is ours, and waits for a slot
        assert bed.engines[0].active == 20
        clients[0].writer.close()
        await bed.until(lambda: bed.jobs.worker.running("m") == 1, "the job at an engine")
        await bed.until(lambda: bed.in_flight() == 20)
        assert bed.engines[0].max_active <= 20


@scenario
async def test_a_job_that_is_due_gets_the_next_slot_before_those_who_wait(redis_server):
    async with JobBed(redis_server, silent(), slots=2) as bed:
        clients = [await bed.client() for _ in range(6)]
        for client in clients:
            await client.send()
        await bed.until(lambda: bed.router.waiting("m") == 4, "four to wait")
        path = await bed.put()
        await bed.until(lambda: bed.jobs.waiting("m") == 1, "the job to be claimed")
        clients[0].writer.close()
        await bed.until(lambda: bed.jobs.worker.running("m") == 1, "the job at an engine")
        assert bed.router.waiting("m") == 4
        # Its share is one slot: with it in use, those who wait come first again.
        other = await bed.put()
        clients[1].writer.close()
        await bed.until(lambda: bed.router.waiting("m") == 3, "one of those who wait")
        assert (await bed.get(other)).json["status"] == "queued"
        await bed.get(path, "DELETE")
        await bed.until(lambda: bed.in_flight() == 2)
        assert bed.engines[0].max_active <= 2


@scenario
async def test_the_same_key_is_the_same_job(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        first = await bed.put(Idempotency_Key="abc")
        assert await bed.put(Idempotency_Key="abc") == first
        assert await bed.put(Idempotency_Key="abd") != first
        other = await bed.ask(CHAT | {"seed": 1}, headers=ASYNC | {"Idempotency-Key": "abc"})
        assert (other.status, other.error["code"]) == (422, "idempotency_key_reused")
        await bed.becomes(first, "complete")
        again = await bed.ask(headers=ASYNC | {"Idempotency-Key": "abc"})
        assert (again.status, again.json["status"]) == (202, "complete")
        assert (await bed.ask(headers=ASYNC | {"Idempotency-Key": "x" * 300})).status == 400


@scenario
async def test_fifty_requests_at_once_with_one_key_are_one_job(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        paths = await asyncio.gather(*(bed.put(Idempotency_Key="one") for _ in range(50)))
        assert len(set(paths)) == 1
        await bed.becomes(paths[0], "complete")
        assert len(bed.engines[0].requests) == 1


@scenario
async def test_official_clients_are_sent_to_the_result_as_they_take_a_202_for_an_answer(redis_server):
    async with JobBed(redis_server, ok(delay=0.3)) as bed:
        answer = await bed.ask(headers=ASYNC | {"X-Stainless-Lang": "python"})
        assert answer.status == 303
        target = answer.headers["location"]
        assert target.endswith("/result?wait=50&hop=1")
        assert (await bed.get(target)).json == UNARY


@scenario
async def test_a_client_that_follows_is_never_given_a_202_and_not_sent_round_for_ever(redis_server):
    async with JobBed(redis_server, silent()) as bed:
        path = await bed.put()
        for hop in (1, 11):
            answer = await bed.get(f"{path}/result?wait=0&hop={hop}")
            assert (answer.status, answer.headers["location"]) == (303, f"{path}/result?wait=50&hop={hop + 1}")
        last = await bed.get(f"{path}/result?wait=0&hop=12")
        assert (last.status, last.headers["x-should-retry"]) == (504, "false")


@scenario
async def test_who_is_redirected_is_a_setting(redis_server):
    sdk = ASYNC | {"X-Stainless-Lang": "js"}
    async with JobBed(redis_server, ok(), redirect="never") as bed:
        assert (await bed.ask(headers=sdk)).status == 202
    async with JobBed(redis_server, ok(), redirect="always") as bed:
        assert (await bed.ask(headers=ASYNC)).status == 303


@scenario
async def test_with_redis_gone_direct_requests_go_on_and_jobs_are_refused_at_once(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        path = await bed.put()
        await bed.becomes(path, "complete")
        redis_server.kill()
        await bed.until(lambda: bool(bed.jobs.store.problem))
        for _ in range(20):
            answer = await bed.ask(headers=ASYNC)
            assert (answer.status, answer.error["code"]) == (503, "jobs_unavailable")
            assert (await bed.ask()).status == 200
        assert (await bed.get(path)).status == 503
        redis_server.start()
        await bed.up()
        assert (await bed.get(path + "/result")).json == UNARY
        await bed.becomes(await bed.put(), "complete")


@scenario
async def test_a_frozen_redis_costs_a_request_its_timeout_once_and_the_rest_nothing(redis_server):
    options = settings(redis_server) | {"redis": {"url": redis_server.url, "timeoutSeconds": 0.08}}
    async with Bed(ok(), settings=options) as bed:
        store = bed.router.jobs.store
        await bed.until(lambda: not store.problem)
        redis_server.freeze()
        answer = await bed.ask(headers=ASYNC)
        assert (answer.status, answer.error["code"]) == (503, "jobs_unavailable")
        assert "in time" in answer.error["message"]
        failures = store.failures
        for _ in range(20):
            assert (await bed.ask(headers=ASYNC)).status == 503
            assert (await bed.ask()).status == 200
        assert store.failures == failures
        redis_server.thaw()
        await bed.until(lambda: not store.problem)
        # What was refused is taken back, although Redis stored it when it woke.
        await bed.until(lambda: not store._doubtful)
        assert redis_server.client().keys("{llmfleet}:job:*") == []


@scenario
async def test_a_job_that_runs_while_redis_is_away_is_stored_when_it_is_back(redis_server):
    async with JobBed(redis_server, ok(delay=1.5)) as bed:
        path = await bed.put()
        await bed.becomes(path, "running")
        await bed.until(lambda: bed.engines[0].active == 1)
        redis_server.kill()
        await bed.until(lambda: bed.engines[0].active == 0, "the answer")
        redis_server.start()
        await bed.up()
        assert (await bed.becomes(path, "complete"))["attempts"] == 1
        assert len(bed.engines[0].requests) == 1


@scenario
async def test_a_password_is_read_again_at_every_connect_and_never_written(redis_command, tmp_path, caplog):
    server = RedisServer(redis_command, tmp_path / "redis", "--requirepass", "open-sesame")
    server.start()
    secret = tmp_path / "password"
    options = {"redis": {"url": server.url, "timeoutSeconds": 1, "passwordFile": str(secret)}}
    try:
        async with Bed(ok(), settings=options) as bed:
            store = bed.router.jobs.store
            await bed.until(lambda: "password: No such file" in store.problem)
            secret.write_text("closed-sesame\n")
            await bed.until(lambda: store.problem == "Redis refuses the password")
            answer = await bed.ask(headers=ASYNC)
            assert (answer.status, answer.error["message"].split(";")[0]) == (503, "Redis refuses the password")
            secret.write_text("open-sesame\n")
            await bed.until(lambda: not store.problem)
            assert (await bed.ask(headers=ASYNC)).status == 202
    finally:
        server.stop()
    assert "sesame" not in caplog.text


@scenario
async def test_reaching_for_a_redis_that_is_not_there_backs_off(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        tries = 0
        reach = bed.jobs.store._open

        async def counted() -> None:
            nonlocal tries
            tries += 1
            await reach()

        bed.jobs.store._open = counted
        redis_server.kill()
        await bed.until(lambda: bool(bed.jobs.store.problem))
        await asyncio.sleep(2)
        assert 1 <= tries <= 12


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
@scenario
async def test_a_redis_that_evicts_is_refused_and_the_reason_is_said(redis_server, policy):
    redis_server.client().config_set("maxmemory-policy", policy)
    async with Bed(ok(), settings=settings(redis_server)) as bed:
        jobs = bed.router.jobs
        await bed.until(lambda: jobs.store.refused)
        answer = await bed.ask(headers=ASYNC)
        assert answer.status == 503
        assert policy in answer.error["message"] and "noeviction" in answer.error["message"]
        assert (await bed.ask()).status == 200
        metrics = (await bed.admin("/metrics")).decode()
        assert "llmfleet_queue_redis_refused 1.0" in metrics
        assert "llmfleet_queue_redis_up 0.0" in metrics
        redis_server.client().config_set("maxmemory-policy", "noeviction")
        await bed.until(lambda: not jobs.store.problem)
        assert (await bed.ask(headers=ASYNC)).status == 202


@scenario
async def test_a_redis_that_begins_to_evict_is_refused_within_seconds(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        redis_server.client().config_set("maxmemory-policy", "allkeys-lru")
        await bed.until(lambda: bed.jobs.store.refused)
        assert (await bed.ask(headers=ASYNC)).status == 503


@scenario
async def test_a_leaving_router_hands_its_jobs_to_another_without_an_attempt(redis_server):
    async with JobBed(redis_server, silent()) as bed:
        path = await bed.put()
        await bed.until(lambda: bed.engines[0].active == 1)
        other = JobBed(redis_server, ok())
        await bed.app.close()
        await bed.until(lambda: bed.engines[0].active == 0)
        async with other:
            assert (await other.becomes(path, "complete"))["attempts"] == 1


@scenario
async def test_a_client_that_leaves_while_its_job_is_stored_takes_it_back(redis_server):
    async with JobBed(redis_server, silent()) as bed:
        admit = bed.jobs.store.admit

        async def slow(*args: Any, **kwargs: Any) -> Any:
            result = await admit(*args, **kwargs)
            await asyncio.sleep(1.5)
            return result

        bed.jobs.store.admit = slow
        client = await bed.client()
        await client.send(headers=ASYNC)
        await bed.until(lambda: redis_server.client().keys("{llmfleet}:job:*") != [])
        client.writer.close()
        await bed.until(lambda: redis_server.client().keys("{llmfleet}:job:*") == [])


@scenario
async def test_what_overflows_into_jobs_is_a_setting(redis_server):
    async with JobBed(redis_server, ok(), overflow="async", asyncThreshold=3, maxJobBytes=2000) as bed:

        def overflows(waiting: int, size: int = 100) -> bool:
            bed.jobs._router = SimpleNamespace(waiting=lambda model: waiting)
            try:
                return bed.jobs.overflows("m", size)
            finally:
                bed.jobs._router = bed.router

        assert [overflows(waiting) for waiting in (0, 2, 3, 4)] == [False, False, True, True]
        assert not overflows(9, 2001)
        redis_server.kill()
        await bed.until(lambda: bool(bed.jobs.store.problem))
        assert not overflows(9)


@scenario
async def test_with_a_threshold_of_none_a_request_that_finds_no_slot_becomes_a_job_unasked(redis_server):
    async with JobBed(redis_server, silent(), slots=2, overflow="async") as bed:
        clients = [await bed.client() for _ in range(2)]
        for client in clients:
            await client.send()
            await bed.until(lambda: bed.in_flight() > 0)
        await bed.until(lambda: bed.in_flight() == 2)
        answer = await bed.ask()
        assert answer.status == 202
        assert "preference-applied" not in answer.headers
        assert (await bed.ask(headers={"X-Stainless-Lang": "python"})).status == 303
        bed.engines[0].behave = ok()
        for client in clients:
            client.writer.close()
        assert (await bed.get(answer.headers["location"] + "/result?wait=20")).json == UNARY
        assert (await bed.ask()).status == 200


@scenario
async def test_metrics_say_what_became_of_jobs(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        await bed.becomes(await bed.put(), "complete")
        metrics = (await bed.admin("/metrics")).decode()
        for line in (
            'llmfleet_queue_jobs_accepted_total{model="m"} 1.0',
            'llmfleet_queue_jobs_claims_total{model="m"} 1.0',
            'llmfleet_queue_jobs_ended_total{model="m",state="complete"} 1.0',
            "llmfleet_queue_jobs_wait_seconds_count 1.0",
            "llmfleet_queue_redis_up 1.0",
        ):
            assert line in metrics, line


@scenario
async def test_the_access_log_has_a_line_for_what_was_said_about_a_job_and_none_for_its_id(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        path = await bed.put()
        await bed.get(path + "/result?wait=10")
        await bed.get(path + "0")
        said = [(line["route"], line["status"], line["outcome"]) for line in await bed.access_log(4)]
        assert ("/v1/chat/completions", 202, "job") in said
        assert ("/v1/requests/", 200, "job") in said
        assert ("/v1/requests/", 404, "refused") in said
        assert all(route in ("/v1/chat/completions", "/v1/requests/") for route, _, _ in said)


@scenario
async def test_prompts_and_answers_are_in_no_log_line(redis_server, caplog):
    async with JobBed(redis_server, ok()) as bed:
        secret = {"model": "m", "messages": [{"role": "user", "content": "zanzibar"}]}
        await bed.becomes(await bed.put(secret), "complete")
        bed.engines[0].behave = drop()
        await bed.becomes(await bed.put(secret), "dead")
        assert "zanzibar" not in caplog.text
        assert "zanzibar" not in json.dumps(redis_server.client().xrange("{llmfleet}:dead"))


@scenario
async def test_words_on_the_channel_that_mean_nothing_do_not_end_the_jobs(redis_server):
    async with JobBed(redis_server, ok()) as bed:
        store, channel = bed.jobs.store, events_channel(bed.router.settings.redis.prefix)
        before = store.reconnects
        # The subscription comes a moment after the connection.
        await bed.until(lambda: redis_server.client().publish(channel, "end") == 1, "somebody listens")
        await bed.until(lambda: store.reconnects > before and not store.problem, "the connection is made anew")
        assert (await bed.becomes(await bed.put(), "complete"))["status"] == "complete"


@scenario
async def test_a_job_at_a_silent_engine_is_given_up_in_time_however_many_others_are_announced(redis_server):
    async with JobBed(redis_server, silent(), timeouts={"firstEventSeconds": 1}) as bed:
        client, channel = redis_server.client(), events_channel(bed.router.settings.redis.prefix)
        path = await bed.put()
        await bed.until(lambda: bed.engines[0].active == 1, "the job is at the engine")
        announced = 0
        while bed.engines[0].aborted == 0:
            assert announced < 1200, "the engine was not let go in a minute"
            announced += client.publish(channel, "new other m")
            await asyncio.sleep(0.05)
        assert announced > 10
        assert (await bed.becomes(path, "dead", "failed"))["status"]


@scenario
async def test_a_job_that_cannot_be_prepared_ends_and_the_next_one_runs(redis_server, monkeypatch):
    async with JobBed(redis_server, ok()) as bed:
        worker = bed.jobs.worker
        prepare = worker._prepare

        def fail_for_one(claim, collector):
            if b"poison" in claim.body:
                raise ValueError("planted")
            return prepare(claim, collector)

        monkeypatch.setattr(worker, "_prepare", fail_for_one)
        bad, good = await bed.put(CHAT | {"user": "poison"}), await bed.put()
        assert (await bed.becomes(good, "complete"))["status"] == "complete"
        assert (await bed.becomes(bad, "complete", "failed"))["status"] == "failed"
