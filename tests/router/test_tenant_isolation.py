"""One tenant against another on the same router: what it can name or meet of the other's, it can neither read nor move.

Beside `test_tenants.py` (who is let in), `jobs/test_crashes.py` (jobs) and `test_kept_connections.py` (whose request it
is): sessions and prefixes, salts, ids, idempotency keys, quotas, what waits, suspected bodies, the admin's pages.
"""

import asyncio
import json

import pytest
from bed import CHAT, STREAM, Bed, request_bytes, scenario
from engine import drop, endless, ok

from llmfleet.router.keys import hashed

A, B = {"Authorization": "Bearer sk-of-a"}, {"Authorization": "Bearer sk-of-b"}
TENANTS = {"a": {"keys": [hashed("sk-of-a")]}, "b": {"keys": [hashed("sk-of-b")]}}
LONG = CHAT | {"messages": [{"role": "system", "content": "secret " * 800}, {"role": "user", "content": "hi"}]}


def tenants(**of_a):
    return TENANTS | {"a": TENANTS["a"] | of_a}


def prefixes(bed):
    pool = bed.router.fleet.models["m"]
    return pool.hits, pool.misses


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (CHAT, {"X-Session-Id": "the-session-of-a"}),
        (CHAT | {"prompt_cache_key": "the-session-of-a"}, {}),
        (LONG, {}),
    ],
    ids=["session header", "prompt_cache_key", "the same long prompt"],
)
@scenario
async def test_a_tenant_that_says_what_another_one_said_meets_nothing_that_is_cached_for_it(body, headers):
    async with Bed(ok(), ok(), tenants=TENANTS) as bed:
        await bed.ask(body, headers=A | headers)
        assert prefixes(bed) == (0, 1)
        await bed.ask(body, headers=B | headers)
        assert prefixes(bed) == (0, 2), "b found what only a had sent"
        await bed.ask(body, headers=A | headers)
        assert prefixes(bed) == (1, 2), "b made a's own prefix unknown"


@scenario
async def test_no_tenant_gets_anothers_salt_whatever_it_sends():
    async with Bed(ok(), tenants=TENANTS) as bed:
        await bed.ask(headers=A)
        salt_of_a = bed.engines[0].requests[0].json["cache_salt"]
        for stolen in (CHAT | {"cache_salt": salt_of_a}, json.dumps(CHAT).encode()[:-1] + escaped(salt_of_a)):
            assert (await bed.ask(stolen, headers=B)).status == 200
        salts = [request.json["cache_salt"] for request in bed.engines[0].requests]
        assert salts[1] == salts[2] != salt_of_a
        raw = b"".join(json.dumps(request.json).encode() for request in bed.engines[0].requests[1:])
        assert salt_of_a.encode() not in raw


def escaped(salt):
    """The field once more, by a spelling that only a parser reads as its name."""
    return b', "cache\\u005fsalt": ' + json.dumps(salt).encode() + b"}"


@scenario
async def test_a_request_id_of_another_tenant_names_nothing():
    async with Bed(ok(), tenants=TENANTS) as bed:
        first = await bed.ask(headers=A)
        known = first.headers["x-request-id"]
        second = await bed.ask(headers=B | {"X-Request-Id": known})
        assert second.headers["x-request-id"] != known
        ids = [request.header("x-request-id") for request in bed.engines[0].requests]
        assert ids == [known, second.headers["x-request-id"]]
        for path in (f"/v1/requests/{known}", f"/v1/responses/{known}", f"/v1/chat/completions/{known}"):
            assert (await bed.ask(b"", method="GET", path=path, headers=B)).status == 404
        lines = await bed.access_log(5)
        assert [line["requestId"] for line in lines if line["tenant"] == "a"] == [known]
        assert known not in json.dumps([line for line in lines if line["tenant"] != "a"])


@scenario
async def test_two_open_requests_that_say_one_id_are_two_and_the_end_of_one_is_not_the_others():
    counted = {name: tenant | {"concurrency": 9} for name, tenant in TENANTS.items()}
    async with Bed(endless(), tenants=counted) as bed:
        clients = [await bed.client(), await bed.client()]
        for client, headers in zip(clients, (A, B), strict=True):
            await client.send(STREAM, headers=headers | {"X-Request-Id": "the-same"})
            await client.head()
        await bed.until(lambda: bed.in_flight() == 2)
        clients[1].writer.close()
        await bed.until(lambda: bed.in_flight() == 1)
        assert (bed.router.quotas.in_flight("a"), bed.router.quotas.in_flight("b")) == (1, 0)
        assert await clients[0].chunk() and await clients[0].chunk()
        clients[0].writer.close()


@pytest.mark.parametrize(
    "limits", [{"rpm": 2}, {"tokensPerMinute": 600}, {"concurrency": 1}], ids=["requests", "tokens", "concurrency"]
)
@scenario
async def test_a_tenant_that_used_all_it_may_takes_nothing_from_another_and_is_not_shown_to_it(limits):
    async with Bed(endless(), tenants=tenants(**limits)) as bed:
        clients = [await bed.client() for _ in range(3)]
        statuses = []
        for client in clients:
            await client.send(STREAM | {"max_tokens": 250}, headers=A)
            statuses.append((await client.head())[0])
        assert statuses[0] == 200 and statuses[-1] == 429
        client = await bed.client()
        await client.send(STREAM | {"max_tokens": 250}, headers=B)
        status, headers = await client.head()
        assert status == 200
        assert not [name for name in headers if name.startswith("x-ratelimit")]


@scenario
async def test_what_is_sent_with_no_key_a_wrong_one_or_two_uses_up_nobodys_quota():
    both = {"Authorization": "Bearer sk-of-a", "x-api-key": "sk-of-b"}
    async with Bed(ok(), tenants=tenants(rpm=2, concurrency=1)) as bed:
        for headers in ({}, {"x-api-key": "sk-of-A"}, both, A | {"authorization": "Bearer sk-of-b"}) * 3:
            assert (await bed.ask(headers=headers)).status == 401
        assert [(await bed.ask(headers=A)).status for _ in range(3)] == [200, 200, 429]


@scenario
async def test_a_refusal_on_a_shared_connection_tells_the_next_tenant_nothing_of_the_last():
    async with Bed(ok(), tenants=tenants(rpm=1)) as bed:
        client = await bed.client()
        answers = []
        for headers in (A, A, B, {}):
            await client.send(headers=headers)
            answers.append(await client.answer())
        assert [answer.status for answer in answers] == [200, 429, 200, 401]
        told = json.dumps([answers[2].headers, answers[3].headers]) + (answers[2].body + answers[3].body).decode()
        assert not {"ratelimit", "retry-after", "1 requests per minute"} & set(told.split('"')), told
        assert "ratelimit" not in told and "retry-after" not in told


@scenario
async def test_who_waits_in_numbers_holds_up_another_tenant_by_a_turn_and_no_more():
    gate, order = asyncio.Event(), []

    async def held(connection, request):
        await gate.wait()
        await ok()(connection, request)

    async def ask(bed, name, headers):
        answer = await bed.ask(headers=headers)
        order.append((name, answer.status, answer.headers.get("x-llmfleet-rejected")))

    async with Bed(held, slots=1, settings={"queue": {"capacity": 12}}, tenants=tenants(queueShare=0.5)) as bed:
        asking = [asyncio.create_task(ask(bed, "a", A)) for _ in range(20)]
        await bed.until(lambda: len(order) == 13)  # one is at the engine, six wait, the others had no room
        assert order == [("a", 503, "queue_share")] * 13 and bed.router.waiting("m") == 6
        asking.append(asyncio.create_task(ask(bed, "b", B)))
        await bed.until(lambda: bed.router.waiting("m") == 7)
        gate.set()
        await asyncio.gather(*asking)
        assert order[13:].index(("b", 200, None)) <= 2


@scenario
async def test_a_body_that_one_tenant_lost_engines_with_is_not_kept_from_another():
    async with Bed(drop(), drop(), tenants=TENANTS) as bed:
        assert (await bed.ask(headers=A)).error["code"] == "request_quarantined"
        for engine in bed.engines:
            engine.behave = ok()
        before = sum(len(engine.requests) for engine in bed.engines)
        assert (await bed.ask(headers=A)).error["code"] == "request_quarantined"
        assert sum(len(engine.requests) for engine in bed.engines) == before
        assert (await bed.ask(headers=B)).status == 200, "b is told that somebody sent this body, and pays for it"


@pytest.mark.parametrize("path", ["/fleet", "/peers", "/live", "/metrics", "/drain", "/"])
@scenario
async def test_no_key_opens_the_admins_pages_on_the_port_of_clients(path):
    async with Bed(ok(), tenants=TENANTS) as bed:
        for method in ("GET", "POST"):
            answer = await bed.ask(CHAT, method=method, path=path, headers=A)
            assert answer.status == 404 and not {"e0", "sk-of", "tenant"} & set(answer.body.decode().split('"'))
        assert not bed.router.draining


@scenario
async def test_reports_and_metrics_hold_tenants_by_name_at_most_and_never_what_they_sent():
    async with Bed(endless(), tenants=TENANTS) as bed:
        client = await bed.client()
        client.writer.write(request_bytes(STREAM | {"user": "USER-MARK"}, headers=A | {"X-Session-Id": "SESSION-MARK"}))
        await client.head()
        pages = b"".join([await bed.admin(path) for path in ("/fleet", "/peers", "/live", "/metrics")])
        salt = bed.engines[0].requests[0].json["cache_salt"]
        for mark in ("sk-of-a", hashed("sk-of-a"), salt, "USER-MARK", "SESSION-MARK"):
            assert mark.encode() not in pages
        client.writer.close()
