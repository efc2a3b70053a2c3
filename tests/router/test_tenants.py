"""Tenants on the wire: who is let in, what engines see of it, what is counted, and that no secret is ever written."""

import asyncio
import json
import os

import pytest
from bed import CHAT, STREAM, Bed, request_bytes, scenario
from click.testing import CliRunner
from engine import UNARY, chat_event, chat_events, endless, events, json_answer, ok, play, silent, status

from llmfleet.router.keys import hashed
from llmfleet.router.main import keys_command

KEY, NEXT, OTHER = "sk-first-key-of-a", "sk-second-key-of-a", "sk-key-of-b"
TENANTS = {
    "a": {"keys": [hashed(KEY)], "models": ["m"], "class": "high"},
    "b": {"keys": [hashed(OTHER)], "models": ["other"]},
}
A, B = {"Authorization": f"Bearer {KEY}"}, {"x-api-key": OTHER}


@scenario
async def test_without_a_keys_file_everyone_is_let_in_and_credentials_pass_to_engines():
    async with Bed() as bed:
        assert (await bed.ask()).status == 200
        assert (await bed.ask(headers=A)).status == 200
        assert bed.engines[0].requests[1].header("authorization") == f"Bearer {KEY}"
        assert "cache_salt" not in bed.engines[0].requests[0].json


@scenario
async def test_with_one_only_known_keys_are_let_in_and_no_engine_sees_them():
    async with Bed(tenants=TENANTS) as bed:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": KEY}, {"x-api-key": ""}, A | B):
            for path in ("/v1/chat/completions", "/v1/embeddings"):
                answer = await bed.ask(headers=headers, path=path)
                assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
            assert (await bed.ask(headers=headers, method="GET", path="/v1/models")).status == 401
        answer = await bed.ask(path="/v1/messages")
        assert (answer.json["type"], answer.error["type"]) == ("error", "authentication_error")
        assert bed.engines[0].requests == []
        for headers in (A, {"x-api-key": KEY}, {"AUTHORIZATION": f"bearer  {KEY}"}):
            assert (await bed.ask(headers=headers)).status == 200
        for request in bed.engines[0].requests:
            assert not {"authorization", "x-api-key"} & {name.lower() for name, _ in request.headers}
            assert request.json.pop("cache_salt") and request.json["priority"] == -10


@scenario
async def test_the_same_field_twice_is_no_key_even_if_one_of_them_is_right():
    async with Bed(tenants=TENANTS) as bed:
        raw = request_bytes(headers=A).replace(b"Authorization:", b"Authorization: Bearer x\r\nAuthorization:")
        client = await bed.client()
        client.writer.write(raw)
        assert (await client.answer()).status == 401


@scenario
async def test_a_body_is_not_waited_for_when_nobody_may_send_it():
    async with Bed(tenants=TENANTS) as bed:
        client = await bed.client()
        head = request_bytes(headers={"Content-Length": "1000000", "Expect": "100-continue"}).partition(b"\r\n\r\n")[0]
        client.writer.write(head + b"\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert await client.closed()


@scenario
async def test_health_needs_no_key():
    async with Bed(tenants=TENANTS) as bed:
        for path in ("/healthz", "/readyz"):
            assert (await bed.ask(method="GET", path=path)).status == 200


@scenario
async def test_a_tenant_sees_and_uses_its_models_only_and_cannot_tell_which_others_exist():
    async with Bed(tenants=TENANTS) as bed:
        listed = await bed.ask(method="GET", path="/v1/models", headers=A)
        assert [entry["id"] for entry in listed.json["data"]] == ["m"]
        assert (await bed.ask(method="GET", path="/v1/models", headers=B)).json["data"] == []
        assert (await bed.ask(method="GET", path="/v1/models/m", headers=A)).status == 200
        answers = [await bed.ask(CHAT | {"model": model}, headers=B) for model in ("m", "nobody-serves-this")]
        answers += [await bed.ask(method="GET", path=f"/v1/models/{m}", headers=B) for m in ("m", "nobody")]
        assert {(a.status, a.error["code"], a.error["message"]) for a in answers} == {
            (403, "model_not_allowed", "this API key may not use that model; GET /v1/models lists those it may")
        }
        assert (await bed.ask(CHAT | {"model": "other"}, headers=B)).status == 404
        assert bed.engines[0].requests == []


@scenario
async def test_keys_are_rotated_without_a_restart_and_without_a_moment_when_neither_works():
    async with Bed(tenants=TENANTS) as bed:
        client = await bed.client()

        async def works(key):
            await client.send(headers={"Authorization": f"Bearer {key}"})
            return (await client.answer()).status == 200

        def write(*keys):
            tenants = TENANTS | {"a": TENANTS["a"] | {"keys": [hashed(key) for key in keys]}}
            bed.replace(json.dumps({"tenants": tenants}).encode(), bed.keys)

        assert await works(KEY) and not await works(NEXT)
        write(KEY, NEXT)
        await bed.until(lambda: bed.router.metrics.keys_loads == 2)
        assert await works(KEY) and await works(NEXT)
        write(NEXT)
        await bed.until(lambda: bed.router.metrics.keys_loads == 3)
        assert not await works(KEY) and await works(NEXT)


@scenario
async def test_a_key_that_is_withdrawn_works_no_longer_on_a_connection_that_says_the_same_again_and_again():
    async with Bed(tenants=TENANTS) as bed:
        client = await bed.client()
        statuses = []
        for keys in ([KEY, NEXT], [NEXT], [NEXT, KEY]):
            tenants = TENANTS | {"a": TENANTS["a"] | {"keys": [hashed(key) for key in keys]}}
            loads = bed.router.metrics.keys_loads
            bed.replace(json.dumps({"tenants": tenants}).encode(), bed.keys)
            await bed.until(lambda loads=loads: bed.router.metrics.keys_loads > loads)
            for _ in range(3):
                await client.send(headers={"Authorization": f"Bearer {KEY}"})
                statuses.append((await client.answer()).status)
        assert statuses == [200] * 3 + [401] * 3 + [200] * 3
        assert {line["tenant"] for line in await bed.access_log(9)} == {"a", ""}


@scenario
async def test_a_secret_is_swapped_as_kubelets_do_it():
    async with Bed(tenants=TENANTS) as bed:
        root = os.path.dirname(bed.keys)
        for number, key in enumerate((KEY, NEXT)):
            os.mkdir(f"{root}/..{number}")
            with open(f"{root}/..{number}/keys.yaml", "w") as file:
                json.dump({"tenants": {"a": {"keys": [hashed(key)]}}}, file)
        os.symlink("..0", f"{root}/..data")
        os.remove(bed.keys)
        os.symlink("..data/keys.yaml", bed.keys)
        await bed.until(lambda: bed.router.metrics.keys_loads == 2)
        os.symlink("..1", f"{root}/..new")
        os.rename(f"{root}/..new", f"{root}/..data")
        await bed.until(lambda: bed.router.metrics.keys_loads == 3)
        assert (await bed.ask(headers={"x-api-key": NEXT})).status == 200
        assert (await bed.ask(headers=A)).status == 401


@pytest.mark.parametrize(
    "data",
    [b"", b"tenants: [", b"\xff\xfe", b"tenants: {}", b"tenants: {a: {keys: [sk-plain]}}", b"[" * 5000, b"null", b"42"],
)
@scenario
async def test_a_bad_keys_file_changes_nothing_and_is_counted(data, caplog):
    async with Bed(tenants=TENANTS) as bed:
        bed.replace(data, bed.keys)
        await bed.until(lambda: bed.router.metrics.keys_errors == 1)
        assert (await bed.ask(headers=A)).status == 200
        assert (await bed.ask()).status == 401
        os.remove(bed.keys)
        await asyncio.sleep(0.3)
        assert (await bed.ask(headers=A)).status == 200
        assert "keys file not adopted" in caplog.text and "sk-plain" not in caplog.text


@scenario
async def test_a_router_that_never_read_its_keys_lets_nobody_in_and_says_so():
    async with Bed(tenants={}) as bed:
        assert (await bed.ask(method="GET", path="/readyz")).json == {"status": "no keys file"}
        assert (await bed.ask(method="GET", path="/healthz")).status == 200
        for headers in ({}, A):
            answer = await bed.ask(headers=headers)
            assert (answer.status, answer.error["code"]) == (503, "not_ready")
        bed.replace(json.dumps({"tenants": TENANTS}).encode(), bed.keys)
        await bed.until(lambda: bed.router.keyring is not None)
        assert (await bed.ask(headers=A)).status == 200
        assert (await bed.ask(method="GET", path="/readyz")).status == 200


# ---- quotas ----


def limited(**limits):
    return {"a": {"keys": [hashed(KEY)]} | limits}


@scenario
async def test_a_tenant_over_its_requests_is_told_when_to_come_back_and_keeps_its_connection():
    async with Bed(tenants=limited(rpm=2)) as bed:
        client = await bed.client()
        for expected in (200, 200, 429):
            await client.send(headers=A)
            answer = await client.answer()
            assert answer.status == expected
        assert (answer.error["code"], answer.error["type"]) == ("rate_limit_exceeded", "requests")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert len(bed.engines[0].requests) == 2
        assert b'llmfleet_router_quota_refusals_total{limit="requests",tenant="a"} 1.0' in await bed.admin("/metrics")
        answer = await bed.ask(headers=A, path="/v1/messages")
        assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")


@scenario
async def test_tokens_are_settled_by_what_the_engine_counted():
    used = UNARY | {"usage": {"prompt_tokens": 100, "completion_tokens": 400, "total_tokens": 500}}
    async with Bed(play(json_answer(200, used)), tenants=limited(tokensPerMinute=1000)) as bed:
        ask = CHAT | {"max_tokens": 300}
        assert [(await bed.ask(ask, headers=A)).status for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize("how", ["answered", "left", "refused", "lost"])
@scenario
async def test_a_place_is_given_back_however_its_request_ends(how):
    behave = {"answered": ok(), "left": endless(), "refused": status(400), "lost": play(then="cut")}[how]
    async with Bed(behave, tenants=limited(concurrency=1)) as bed:
        for _ in range(3):
            client = await bed.client()
            await client.send(STREAM, headers=A)
            if how == "left":
                await client.head()
                assert (await bed.ask(headers=A)).error["type"] == "concurrency"
            else:
                await client.answer()
            client.writer.close()
            await bed.until(lambda: bed.router.quotas.in_flight("a") == 0)


@scenario
async def test_a_place_is_given_back_when_the_engine_is_silent_for_too_long():
    settings = {"timeouts": {"firstEventSeconds": 0.3}}
    async with Bed(silent(), tenants=limited(concurrency=1), settings=settings) as bed:
        assert (await bed.ask(headers=A)).status == 504
        assert bed.router.quotas.in_flight("a") == 0


# ---- usage and the access log ----

COUNTED = b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":5,"total_tokens":17}}\n\n'
DONE = b"data: [DONE]\n\n"


@scenario
async def test_tokens_are_counted_per_model_and_tenant():
    async with Bed(events(*chat_events(3), COUNTED, DONE), tenants=TENANTS) as bed:
        for _ in range(2):
            assert (await bed.ask(STREAM, headers=A)).events == [*chat_events(3), DONE]
        metrics = await bed.admin("/metrics")
        assert b'llmfleet_router_prompt_tokens_total{model="m",tenant="a"} 24.0' in metrics
        assert b'llmfleet_router_completion_tokens_total{model="m",tenant="a"} 10.0' in metrics


@scenario
async def test_one_line_is_written_per_request_and_says_how_it_ended():
    # The gap: the event loop's clock stands still within a turn, and an answer may fit into one.
    async with Bed(events(*chat_events(3), COUNTED, DONE, gap=0.02), tenants=TENANTS) as bed:
        whole = await bed.ask(STREAM, headers=A)
        await bed.ask(headers={"Authorization": "Bearer wrong"})
        await bed.ask(CHAT | {"n": 99}, headers=A)
        await bed.ask(method="GET", path="/healthz")
        bed.engines[0].behave = events(*(chat_event("x") for _ in range(10)), end=False, then="cut")
        await bed.ask(STREAM, headers=A)
        first, wrong, bounded, broken = await bed.access_log(4)
        assert first["requestId"] == whole.headers["x-request-id"]
        assert {k: first[k] for k in ("tenant", "model", "route", "status", "outcome", "reason", "attempts")} == {
            "tenant": "a",
            "model": "m",
            "route": "/v1/chat/completions",
            "status": 200,
            "outcome": "complete",
            "reason": "",
            "attempts": 1,
        }
        assert (first["promptTokens"], first["completionTokens"], first["usage"]) == (12, 5, "exact")
        assert first["llmcluster"] == "e0" and 0 < first["ttftMs"] <= first["durationMs"]
        assert (wrong["status"], wrong["outcome"], wrong["reason"], wrong["tenant"]) == (
            401,
            "refused",
            "invalid_api_key",
            "",
        )
        assert (bounded["status"], bounded["reason"], bounded["tenant"]) == (400, "limit_exceeded", "a")
        assert (broken["outcome"], broken["reason"], broken["usage"]) == ("truncated", "lost", "estimated")
        assert 8 <= broken["completionTokens"] <= 11


@scenario
async def test_neither_a_prompt_nor_a_key_nor_what_a_client_invents_is_ever_written(caplog):
    marks = ("PROMPT-MARK", KEY, "sk-guess", "FIELD-MARK", "PATH-MARK", "ID-MARK", "MODEL-MARK")
    async with Bed(play(then="cut"), tenants=TENANTS) as bed:
        body = CHAT | {"messages": [{"role": "user", "content": "PROMPT-MARK"}], "FIELD-MARK": 1}
        for headers in (A, {"x-api-key": "sk-guess"}):
            headers = headers | {"X-Request-Id": "ID-MARK"}
            await bed.ask(body, headers=headers)
            await bed.ask(body | {"stream": True}, headers=headers)
            await bed.ask(body | {"model": "MODEL-MARK"}, headers=headers)
            await bed.ask(body, headers=headers, path="/v1/PATH-MARK")
            await bed.ask(method="GET", headers=headers, path="/v1/models/MODEL-MARK")
        lines = await bed.access_log(10)
        written = json.dumps(lines) + caplog.text + (await bed.admin("/metrics")).decode()
        written += (await bed.admin("/fleet")).decode()
        assert [mark for mark in marks if mark in written] == []


@scenario
async def test_the_access_log_may_be_switched_off():
    async with Bed(settings={"accessLog": {"enabled": False}}) as bed:
        assert (await bed.ask()).status == 200
        assert bed.router.records is None
        bed.app.access_log.flush()
        await bed.app.access_log.close()
        assert await bed.access_log(0) == []


@scenario
async def test_lines_that_nobody_takes_are_dropped_and_counted_and_hold_up_nothing():
    async with Bed() as bed:
        read, write = os.pipe()
        os.set_blocking(write, True)
        bed.app.access_log._descriptor = write
        bed.router.records.extend([RECORD] * 2000)  # more than a pipe holds
        await bed.until(lambda: not bed.router.records)
        bed.router.records.extend([RECORD] * 100_300)
        await bed.until(lambda: bed.router.metrics.access_log_dropped >= 300)
        assert len(bed.router.records) <= 100_010
        assert (await bed.ask()).status == 200
        bed.router.records.clear()
        os.close(read)
        await bed.until(lambda: bed.app.access_log._writing.done())
        os.close(write)
        bed.app.access_log._descriptor = bed._access_log.fileno()


@scenario
async def test_the_last_lines_follow_those_that_are_still_being_written():
    async with Bed() as bed:
        read, write = os.pipe()
        access_log = bed.app.access_log
        access_log._descriptor = write
        bed.router.records.extend([record(b"first")] * 2000)  # more than a pipe holds
        await bed.until(lambda: not bed.router.records)
        bed.router.records.extend([record(b"last")] * 2000)
        closing = asyncio.create_task(access_log.close())
        await asyncio.sleep(0.1)
        lines = await asyncio.to_thread(lines_of, read, 4000)
        await closing
        assert [json.loads(line)["requestId"] for line in lines] == ["first"] * 2000 + ["last"] * 2000
        os.close(read)
        os.close(write)
        access_log._descriptor = bed._access_log.fileno()


def lines_of(descriptor, count):
    data = b""
    while data.count(b"\n") < count:
        data += os.read(descriptor, 65536)
    return data.splitlines()


def record(request_id=b"r"):
    from llmfleet.router.usage import Record

    return Record(at=0, request_id=request_id, tenant="", model="m", route=b"/", status=200, outcome="", reason="")


RECORD = record()


# ---- the command ----


def test_the_hash_of_a_key_is_made_from_standard_input_alone():
    runner = CliRunner()
    key = "sk-" + "x" * 30
    for text in (key, key + "\n", f"  {key}\r\n"):
        made = runner.invoke(keys_command, ["hash"], input=text)
        assert (made.exit_code, made.output.strip()) == (0, hashed(key))
    for bad in ("", "\n", "short\n", "two words of some length here\n", "ü" * 30):
        made = runner.invoke(keys_command, ["hash"], input=bad)
        assert made.exit_code == 2 and "write one key of at least 20" in made.output
    new = {runner.invoke(keys_command, ["new"]).output.strip() for _ in range(5)}
    assert len(new) == 5 and all(len(key) > 40 for key in new)
