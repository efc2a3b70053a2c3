"""What clients may send, and what of it an engine ever sees."""

import asyncio
import json

import pytest
from bed import CHAT, STREAM, Bed, request_bytes, scenario
from engine import DONE, chat_events, ok, silent

HOST = b"Host: a\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
MALFORMED = {
    "content-length and transfer-encoding": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "transfer-encoding and content-length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two content-lengths": POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "the same content-length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a content-length list": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "a signed content-length": POST + b"Content-Length: +2\r\n\r\n{}",
    "a negative content-length": POST + b"Content-Length: -2\r\n\r\n{}",
    "a hexadecimal content-length": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "an empty content-length": POST + b"Content-Length:\r\n\r\n{}",
    "a huge content-length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "bare line feeds": b"POST /v1/chat/completions HTTP/1.1\nHost: a\nContent-Length: 2\n\n{}",
    "one bare line feed": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\nContent-Length: 2\r\n\r\n{}",
    "a bare carriage return": POST + b"X: a\rb\r\nContent-Length: 2\r\n\r\n{}",
    "a folded field": POST + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "a space before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "a field without a name": POST + b": 2\r\n\r\n",
    "a NUL in a field": POST + b"X: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "no host": b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "two hosts": POST + HOST + b"Content-Length: 2\r\n\r\n{}",
    "an unknown coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding that is not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an obscured coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a chunked HTTP/1.0 request": b"POST /v1/chat/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bad chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a negative chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
    "a chunk longer than its size": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
    "chunks ended by line feeds": POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
    "a huge chunk extension": POST + b"Transfer-Encoding: chunked\r\n\r\n2;" + b"x" * 70_000,
    "an absolute target": b"GET http://elsewhere/healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target that is no path": b"GET healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an unknown method": b"BREW /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a lower-case method": b"get /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/2 by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/1.2": b"GET /healthz HTTP/1.2\r\n" + HOST + b"\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "a space in the target": b"GET /health z HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("case", MALFORMED)
@scenario
async def test_malformed_requests_are_refused_and_never_reach_an_engine(case):
    async with Bed() as bed:
        client = await bed.client()
        client.writer.write(MALFORMED[case] + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await client.answer()
        assert answer.status in (400, 413), case
        assert answer.error["message"] and answer.headers["connection"] == "close"
        assert await client.closed(), "what follows on such a connection is not read"
        assert bed.engines[0].requests == []


LIMITS = {
    "a long head": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
    "a long head that never ends": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000, 431),
    "many fields": (b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    "a long target": (b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "a long target that never ends": (b"GET /" + b"y" * 40_000, 414),
    "an announced body over the limit": (POST + b"Content-Length: 5000\r\n\r\n", 413),
    "a chunked body over the limit": (POST + b"Transfer-Encoding: chunked\r\n\r\n1388\r\n" + b"x" * 4999, 413),
    "an expectation nobody meets": (POST + b"Expect: a-miracle\r\nContent-Length: 2\r\n\r\n{}", 417),
    "an announced body over the limit, expected": (POST + b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n", 413),
}


@pytest.mark.parametrize("case", LIMITS)
@scenario
async def test_limits_are_answered_with_their_status_and_end_the_connection(case):
    raw, status = LIMITS[case]
    async with Bed(settings={"limits": {"maxBodyBytes": 4096}}) as bed:
        client = await bed.client()
        client.writer.write(raw)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close"), case
        assert await client.closed()


@scenario
async def test_a_client_that_keeps_sending_a_refused_body_still_gets_the_answer():
    async with Bed(settings={"limits": {"maxBodyBytes": 4096}}) as bed:
        client = await bed.client()
        client.writer.write(POST + b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)
        assert (await client.answer()).status == 413


PATHS_OF_ENGINES = [
    "/",
    "/metrics",
    "/health",
    "/version",
    "/load",
    "/ping",
    "/invocations",
    "/tokenize",
    "/detokenize",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
    "/collective_rpc",
    "/sleep",
    "/wake_up",
    "/reset_prefix_cache",
    "/server_info",
    "/pause",
    "/resume",
    "/docs",
    "/openapi.json",
    "/generative_scoring",
    "/scale_elastic_ep",
    "/inference/v1/generate",
    "/v1/load_lora_adapter",
    "/v1/audio/transcriptions",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/render",
    "/v1/models/",
    "/fleet",
    "/drain",
    "/v1/chat/completions/",
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/./chat/completions",
    "/v1/chat/../collective_rpc",
    "/v1/chat/completions/../../../collective_rpc",
    "/v1/chat%2fcompletions",
    "/v1/chat/completions%00",
    "/V1/chat/completions",
    "/v1/chat/completions;x",
    "/v1/chat/completions#x",
    "/%2e%2e/metrics",
]


@scenario
async def test_every_path_off_the_list_is_a_404():
    async with Bed() as bed:
        for path in PATHS_OF_ENGINES:
            for method in ("GET", "POST"):
                answer = await bed.ask(CHAT, path=path, method=method)
                assert answer.status in (404, 400), (method, path)
                assert answer.error["code"] in ("not_found", "invalid_request")
        assert bed.engines[0].requests == []


@scenario
async def test_a_wrong_method_is_a_405_that_names_the_right_one():
    async with Bed() as bed:
        for method, path, allowed in (
            ("GET", "/v1/chat/completions", "POST"),
            ("PUT", "/v1/completions", "POST"),
            ("DELETE", "/v1/models", "GET"),
            ("POST", "/healthz", "GET"),
        ):
            answer = await bed.ask(method=method, path=path)
            assert (answer.status, answer.headers["allow"]) == (405, allowed)
            assert answer.error["code"] == "method_not_allowed"


@scenario
async def test_head_requests_get_no_body():
    async with Bed() as bed:
        client = await bed.client()
        client.writer.write(b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        status, _ = await client.head()
        assert status == 405
        await client.send()
        assert (await client.head())[0] == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'"m"', None),
        (b'{"messages": []}', "model"),
        (b'{"model": 1}', "model"),
        (b'{"model": ""}', "model"),
        (b'{"model": null}', "model"),
        (b'{"model": "m", "x": NaN}', None),
        (b'\xff\xfe{"model": "m"}', None),
        (b'{"model": "m", "x": "\xff"}', None),
        (b'{"model": "m", "x": "\\ud800"}', None),
        (b"[" * 100_000, None),
        (b'{"model": "m", "a": ' + b"[" * 5000 + b"]" * 5000 + b"}", None),
    ],
)
@scenario
async def test_bodies_that_are_no_request_are_a_400_on_a_connection_that_stays(body, param):
    async with Bed() as bed:
        client = await bed.client()
        await client.send(body)
        answer = await client.answer()
        assert (answer.status, answer.error["type"], answer.error["param"]) == (400, "invalid_request_error", param)
        await client.send()
        assert (await client.answer()).status == 200


@scenario
async def test_fields_that_are_ours_are_dropped_however_they_are_spelt():
    async with Bed() as bed:
        await bed.ask(CHAT | {"kv_transfer_params": {"do_remote_prefill": True}, "cache_salt": "x", "temperature": 0.5})
        await bed.ask(CHAT | {"priority": -5, "ec_transfer_params": {}})
        await bed.ask(b'{"model":"m","messages":[],"kv\\u005ftransfer_params":{"a":1}}')
        await bed.ask(b'{"model":"m","priority":1,"messages":[],"priority":2}')
        seen = [r.json for r in bed.engines[0].requests]
        assert seen == [CHAT | {"temperature": 0.5}, CHAT, *[{"model": "m", "messages": []}] * 2]


@scenario
async def test_a_body_without_such_fields_is_relayed_byte_for_byte():
    body = (
        b'{ "model" : "m",\n "messages":[{"role":"user","content":"\\u00e9 \xc3\xa9 priority"}], "seed":1e400 ,"n":1.0}'
    )
    async with Bed() as bed:
        assert (await bed.ask(body.replace(b"1e400", b"1e40"))).status == 200
        assert bed.engines[0].requests[0].body == body.replace(b"1e400", b"1e40")


@scenario
async def test_only_listed_header_fields_reach_the_engine():
    async with Bed() as bed:
        sent = {
            "Authorization": "Bearer k",
            "Traceparent": "00-1-2-01",
            "X-Request-Id": "evil",
            "X-Data-Parallel-Rank": "3",
            "X-Forwarded-For": "1.2.3.4",
            "Cookie": "a=b",
            "Connection": "keep-alive, X-Mine",
            "X-Mine": "1",
            "TE": "trailers",
            "Accept-Encoding": "gzip",
        }
        await bed.ask(headers=sent, path="/v1/chat/completions?a=1&kv_transfer_params=x")
        request = bed.engines[0].requests[0]
        names = sorted(key.lower() for key, _ in request.headers)
        assert names == ["authorization", "content-length", "content-type", "host", "traceparent", "x-request-id"]
        assert request.header("host") == bed.engines[0].address
        assert request.header("authorization") == "Bearer k"
        assert request.path == "/v1/chat/completions"


@scenario
async def test_stateful_responses_are_refused_by_name():
    async with Bed() as bed:
        for field, value in (("store", True), ("previous_response_id", "resp_1"), ("background", True)):
            answer = await bed.ask({"model": "m", "input": "x", field: value}, path="/v1/responses")
            assert (answer.status, answer.error["param"], answer.error["code"]) == (400, field, "unsupported_parameter")
        answer = await bed.ask({"model": "m", "input": "x", "store": False}, path="/v1/responses")
        assert answer.status == 200


@scenario
async def test_pipelined_requests_are_cut_after_the_first_answer():
    async with Bed(ok(3, gap=0.02)) as bed:
        client = await bed.client()
        client.writer.write(request_bytes(STREAM) + request_bytes() + b"garbage")
        answer = await client.answer()
        assert (answer.ended, answer.events) == ("whole", [*chat_events(3), DONE])
        assert await client.closed()
        assert len(bed.engines[0].requests) == 1
        late = await bed.client()
        await late.send(STREAM)
        await bed.until(lambda: bed.in_flight() == 1)
        await late.send()
        assert (await late.answer()).ended == "whole"
        assert await late.closed()
        assert len(bed.engines[0].requests) == 2


@scenario
async def test_a_flood_behind_a_request_ends_the_connection():
    async with Bed(silent(), settings={"limits": {"maxPipelinedBytes": 1000}}) as bed:
        client = await bed.client()
        await client.send()
        await bed.until(lambda: bed.in_flight() == 1)
        client.writer.write(b"x" * 5000)
        assert await client.closed()
        await bed.until(lambda: bed.in_flight() == 0 and bed.engines[0].aborted == 1)


@scenario
async def test_expect_100_continue_is_met_before_the_body():
    async with Bed() as bed:
        client = await bed.client()
        raw = request_bytes(headers={"Expect": "100-continue"})
        head, end, body = raw.partition(b"\r\n\r\n")
        client.writer.write(head + end)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(body)
        assert (await client.answer()).status == 200
        assert bed.engines[0].requests[0].header("expect") is None


@scenario
async def test_a_request_that_asks_to_upgrade_is_served_without():
    """Some clients offer h2c with every plaintext request; llhttp would then take the body for another protocol."""
    async with Bed() as bed:
        headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAA"}
        for _ in range(2):
            assert (await bed.ask(headers=headers)).status == 200
        client = await bed.client()
        for byte in request_bytes(headers=headers):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200
        await client.send(headers=headers)
        assert (await client.answer()).status == 200
        assert [r.json for r in bed.engines[0].requests] == [CHAT] * 4


@scenario
async def test_http_1_0_clients_get_unary_answers_and_streams_they_can_read():
    async with Bed() as bed:
        unary = await bed.ask(version="1.0")
        assert (unary.status, unary.ended, unary.headers["connection"]) == (200, "whole", "close")
        stream = await bed.ask(STREAM, version="1.0")
        assert "transfer-encoding" not in stream.headers and "content-length" not in stream.headers
        assert (stream.ended, stream.events) == ("eof", [*chat_events(3), DONE])


@scenario
async def test_connection_close_is_honoured():
    async with Bed() as bed:
        client = await bed.client()
        await client.send(headers={"Connection": "close"})
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.closed()


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("headerSeconds", b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-"),
        ("bodySeconds", request_bytes()[:-5]),
        ("idleSeconds", b""),
    ],
)
@scenario
async def test_slow_requests_and_idle_connections_are_closed(name, raw):
    async with Bed(settings={"timeouts": {name: 0.3}}) as bed:
        client = await bed.client()
        client.writer.write(raw)
        assert await client.closed(), name
        assert (await bed.ask()).status == 200


@scenario
async def test_a_drip_of_header_bytes_does_not_extend_the_timeout():
    async with Bed(settings={"timeouts": {"headerSeconds": 0.4}}) as bed:
        client = await bed.client()
        client.writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ")
        for _ in range(100):
            if client.reader.at_eof() or client.writer.is_closing():
                break
            client.writer.write(b"y")
            await asyncio.sleep(0.05)
        assert await client.closed()


@scenario
async def test_connections_over_the_limit_are_told_so():
    async with Bed(settings={"limits": {"maxConnections": 3}}) as bed:
        clients = [await bed.client() for _ in range(3)]
        await bed.until(lambda: len(bed.router.clients) == 3)
        extra = await bed.client()
        answer = await extra.answer()
        assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
        assert "retry-after" in answer.headers and await extra.closed()
        for client in clients:
            await client.send()
            assert (await client.answer()).status == 200
        assert bed.router.metrics.connections_refused == 1


@scenario
async def test_health_and_readiness_answer_without_an_engine():
    async with Bed() as bed:
        assert (await bed.ask(method="GET", path="/healthz")).json == {"status": "ok"}
        assert (await bed.ask(method="GET", path="/readyz?verbose")).json == {"status": "ready"}
        assert json.loads(await bed.admin("/fleet"))["draining"] is False
