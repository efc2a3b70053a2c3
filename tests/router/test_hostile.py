"""Clients and engines that mean harm: what they send costs them a connection, never a slot, an engine or the router."""

import asyncio
import socket
import tracemalloc

import orjson
import pytest
from bed import CHAT, STREAM, Bed, Raw, request_bytes, scenario
from engine import (
    DONE,
    SSE_HEAD,
    UNARY,
    Behaviour,
    chat_event,
    chat_events,
    endless,
    events,
    json_answer,
    ok,
    play,
    silent,
)

from llmfleet.api.document import Document, DocumentError, Endpoint, Model, parse_document
from llmfleet.router.clients.proxy import Phase
from llmfleet.router.pick import Fleet, pick
from llmfleet.router.request import RequestReader, head_pattern

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"


# ---- fields ----


@scenario
async def test_a_field_that_engines_take_for_the_routers_own_is_refused_by_name():
    """vLLM copies vllm_xargs into the arguments that kv_transfer_params is read from."""
    async with Bed() as bed:
        for field, value in (
            ("vllm_xargs", {"kv_transfer_params": "x"}),
            ("chat_template", "{{ 7 * 7 }}"),
            ("prompt_embeds", "AAAA"),
            ("mm_processor_kwargs", {"size": 1}),
            ("documents", [{}]),
        ):
            answer = await bed.ask(CHAT | {field: value})
            assert (answer.status, answer.error["param"], answer.error["code"]) == (400, field, "unsupported_parameter")
        assert (await bed.ask(CHAT | {"vllm_xargs": None})).status == 200
        assert [r.json for r in bed.engines[0].requests] == [CHAT]


@scenario
async def test_fields_off_the_list_are_dropped_and_the_others_stay():
    async with Bed() as bed:
        kept = CHAT | {"temperature": 0.5, "ignore_eos": True, "chat_template_kwargs": {"enable_thinking": False}}
        answer = await bed.ask(kept | {"request_id": "x", "session_id": "y", "return_mm_kwargs": True, "nobody": 1})
        assert answer.status == 200
        assert bed.engines[0].requests[0].json == kept


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"m","messages":[],"\\u006bv_transfer_params":{}}',
        b'{"model":"m","\\u006b\\u0076_transfer_params":1,"kv_transfer_params":2,"messages":[]}',
        b'{"priority":1,"model":"x","messages":[],"priority":2,"model":"m"}',
    ],
)
@scenario
async def test_no_spelling_of_a_field_of_ours_reaches_an_engine(raw):
    async with Bed() as bed:
        assert (await bed.ask(raw)).status == 200
        assert bed.engines[0].requests[0].json == {"model": "m", "messages": []}


@scenario
async def test_a_body_too_deep_to_be_written_again_is_a_400_on_a_connection_that_stays():
    async with Bed() as bed:
        client = await bed.client()
        await client.send(b'{"model":"m","priority":1,"messages":' + b"[" * 500 + b"]" * 500 + b"}")
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")
        await client.send()
        assert (await client.answer()).status == 200


@scenario
async def test_a_body_that_would_grow_fifty_fold_when_parsed_is_refused_unparsed():
    async with Bed() as bed:
        bomb = b'{"model":"m","messages":[' + b"{}," * 600_000 + b"{}]}"
        tracemalloc.start()
        try:
            answer = await bed.ask(bomb)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert peak < 5 * len(bomb)
        long = CHAT | {"messages": [{"role": "user", "content": "x" * 2_000_000}]}
        assert (await bed.ask(long)).status == 200


@pytest.mark.parametrize("n", [2, 2.0, "2"])
@scenario
async def test_however_the_number_of_choices_is_written_each_must_finish(n):
    async with Bed(events(*chat_events(2), DONE)) as bed:
        answer = await bed.ask(STREAM | {"n": n})
        assert answer.events[-1] != DONE and b'"error"' in answer.events[-1]


# ---- framing ----


@scenario
async def test_a_content_length_of_five_thousand_digits_is_answered_and_not_a_crash():
    async with Bed() as bed:
        client = await bed.client()
        client.writer.write(POST + b"Content-Length: " + b"0" * 5000 + b"2\r\n\r\n[]")
        assert (await client.answer()).status == 400
        client = await bed.client()
        client.writer.write(POST + b"Content-Length: 1" + b"0" * 5000 + b"\r\n\r\n[]")
        assert (await client.answer()).status in (400, 413)


@scenario
async def test_a_chunked_body_over_the_limit_is_refused_even_if_it_comes_in_one_piece():
    async with Bed(settings={"limits": {"maxBodyBytes": 1024}}) as bed:
        body = orjson.dumps(CHAT | {"user": "x" * 3000})
        client = await bed.client()
        client.writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert (await client.answer()).status == 413
        assert bed.engines[0].requests == []


def test_a_body_in_tiny_chunks_costs_little_more_than_its_bytes():
    reader = RequestReader(pattern=head_pattern(("accept",)), max_head=32768, max_headers=100, max_body=1 << 25)
    reader.feed(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    tracemalloc.start()
    try:
        for _ in range(100):
            reader.feed(b"2\r\nxy\r\n" * 8000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 3 * 1_600_000
    reader.feed(b"0\r\n\r\n")
    assert reader.complete and reader.take_body() == b"xy" * 800_000


def test_a_body_in_many_pieces_is_handed_over_once_and_whole():
    reader = RequestReader(pattern=head_pattern(("accept",)), max_head=32768, max_headers=100, max_body=1 << 25)
    for _ in range(2):
        reader.feed(POST + b"Content-Length: 1000\r\n\r\n")
        for i in range(500):
            reader.feed(b"%02d" % (i % 100))
        assert reader.complete
        assert reader.take_body() == b"".join(b"%02d" % (i % 100) for i in range(500))
        reader.next()


@scenario
async def test_the_method_of_an_earlier_request_says_nothing_about_a_malformed_one():
    async with Bed() as bed:
        client = await bed.client()
        client.writer.write(b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.head())[0] == 405
        client.writer.write(b"\x00\x01\x02 not HTTP\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.ended) == (400, "whole")


# ---- engines ----


@pytest.mark.parametrize(
    "raw",
    [
        json_answer(200, UNARY),
        b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 307 X\r\nlocation: http://10.0.0.9:8000/metrics\r\ncontent-length: 0\r\n\r\n",
    ],
)
@scenario
async def test_an_answer_that_is_no_stream_is_never_passed_on_to_a_client_that_asked_for_one(raw):
    """Official clients read it as an empty stream without an error."""
    async with Bed(play(raw), play(raw)) as bed:
        answer = await bed.ask(STREAM)
        assert (answer.status, answer.error["code"]) == (502, "upstream_lost")
        bed.engines[1].behave = ok()
        for _ in range(2):
            assert (await bed.ask(STREAM)).events == [*chat_events(3), DONE]
        assert bed.in_flight() == 0


@scenario
async def test_an_error_status_answers_a_stream_request_as_it_is():
    async with Bed(
        play(json_answer(400, {"error": {"message": "no", "type": "x", "param": None, "code": 400}}))
    ) as bed:
        assert (await bed.ask(STREAM)).status == 400


@scenario
async def test_counting_tokens_is_never_a_stream():
    async with Bed(play(json_answer(200, {"input_tokens": 3}))) as bed:
        answer = await bed.ask(STREAM, path="/v1/messages/count_tokens")
        assert (answer.status, answer.json) == (200, {"input_tokens": 3})


@scenario
async def test_comments_without_end_before_the_first_event_are_given_up():
    async def comments(connection, request):
        await connection.send(SSE_HEAD)
        while True:
            await connection.chunk(b": ping\n\n" * 100)
            await asyncio.sleep(0)

    async with Bed(comments, settings={"limits": {"maxEventBytes": 4096}}) as bed:
        answer = await bed.ask(STREAM)
        assert answer.status == 502
        await bed.until(lambda: bed.in_flight() == 0 and bed.engines[0].active == 0)


@scenario
async def test_done_after_comments_alone_is_asked_again_elsewhere():
    async with Bed(events(b": ping\n\n", DONE, end=False, then="hang"), ok()) as bed:
        for _ in range(2):
            assert (await bed.ask(STREAM)).events == [*chat_events(3), DONE]


STREAMS = {
    "lines ended by CR LF": b"".join(e.replace(b"\n", b"\r\n") for e in [*chat_events(2), DONE]),
    "no space after data:": b"".join(e.replace(b"data: ", b"data:") for e in [*chat_events(2), DONE]),
    "comments and event fields": b": hi\n\n" + b"".join(b"event: x\nid: 1\n" + e for e in chat_events(2)) + DONE,
    "events of several data lines": b'data: {"choices":[{"index":0,"delta":{},\ndata: "finish_reason":"stop"}]}\n\n'
    + DONE,
    "the marker inside content": chat_event("data: [DONE]\n\n") + chat_event(None, finish="stop") + DONE,
}


@pytest.mark.parametrize("case", STREAMS)
@scenario
async def test_streams_are_understood_however_they_are_written_and_wherever_they_are_cut(case):
    raw = STREAMS[case]
    async with Bed() as bed:
        for cut in range(1, len(raw)):
            if cut % 7 and cut < len(raw) - 24:
                continue
            pieces = [raw[:cut], raw[cut:]]
            bed.engines[0].behave = play(SSE_HEAD, *(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces), b"0\r\n\r\n")
            answer = await bed.ask(STREAM)
            assert (answer.ended, answer.body) == ("whole", raw), cut


@scenario
async def test_the_marker_inside_content_ends_nothing():
    async with Bed(events(chat_event("data: [DONE]\n\n"), then="cut")) as bed:
        answer = await bed.ask(STREAM)
        assert b'"upstream_lost"' in answer.events[-1]


@scenario
async def test_lines_ended_by_cr_alone_never_look_whole():
    raw = b"".join(e.replace(b"\n", b"\r") for e in [*chat_events(2), DONE])
    async with Bed(events(raw)) as bed:
        answer = await bed.ask(STREAM)
        assert answer.status == 502 or answer.ended == "eof"


# ---- endings ----


def cut_unary(size: int, then: str) -> Behaviour:
    """A chunked unary answer that breaks."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    return play(head, b"%x\r\n%b\r\n" % (size, b"x" * size), then=then)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@scenario
async def test_a_large_unary_answer_that_breaks_is_a_reset_and_not_an_end(version):
    async with Bed(cut_unary(200_000, "cut"), settings={"limits": {"maxHeldAnswerBytes": 1000}}) as bed:
        answer = await bed.ask(version=version)
        assert (answer.status, answer.ended) == (200, "reset")


@scenario
async def test_the_end_of_the_process_is_an_error_event_for_streams_and_an_error_for_the_rest():
    settings = {"drain": {"settleSeconds": 0, "timeoutSeconds": 0.2}}
    async with Bed(endless(), settings=settings) as bed:
        stream, old = await bed.client(), await bed.client()
        await stream.send(STREAM)
        await stream.head()
        await old.send(STREAM, version="1.0")
        await old.head()
        bed.engines[0].behave = silent()
        waiting = await bed.client()
        await waiting.send(CHAT)
        await bed.until(lambda: bed.in_flight() == 3)
        await bed.app.leave(asyncio.Event())
        assert bed.in_flight() == 0
        answer = await waiting.answer()
        assert (answer.status, answer.error["code"]) == (503, "not_ready")
        for client in (stream, old):
            data = await client.reader.read()
            assert b'"code":"not_ready"' in data[-200:]
            assert not data.endswith(b"0\r\n\r\n")


LARGE = {"limits": {"maxHeldAnswerBytes": 1 << 25}}  # more than kernels buffer


def deaf_socket(port: int) -> socket.socket:
    """A client that never reads and has little room."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    return sock


@scenario
async def test_a_client_that_reads_nothing_and_leaves_frees_its_engine_at_once():
    async with Bed(endless(gap=0, size=5000)) as bed:
        sock = deaf_socket(bed.port)
        sock.sendall(request_bytes(STREAM))
        await bed.until(lambda: any(c.blocked for c in bed.router.clients), "the router being blocked")
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(30):
            while bed.in_flight() or bed.engines[0].active or bed.router.clients:
                await asyncio.sleep(0.01)
        sock.close()


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}])
@scenario
async def test_an_answer_that_nobody_reads_does_not_keep_its_connection_for_ever(headers):
    big = json_answer(200, UNARY | {"x": "y" * 12_000_000})
    settings = LARGE | {"timeouts": {"clientStallSeconds": 0.4, "idleSeconds": 0.4}}
    async with Bed(play(big), settings=settings) as bed:
        sock = deaf_socket(bed.port)
        sock.sendall(request_bytes(headers=headers))
        await bed.until(lambda: bed.counter("requests") == {(200, "complete"): 1})
        (served,) = bed.router.clients
        # As far from blocked as a connection with bytes to send can be.
        served.blocked = False
        await bed.until(lambda: not bed.router.clients, "the connection being given up")
        sock.close()


@scenario
async def test_a_pipelining_client_with_a_slow_line_gets_its_whole_answer():
    body = UNARY | {"x": "y" * 12_000_000}
    async with Bed(play(json_answer(200, body)), settings=LARGE) as bed:
        sock = deaf_socket(bed.port)
        sock.sendall(request_bytes() + b"\r\n")
        await bed.until(lambda: bed.counter("requests") == {(200, "complete"): 1})
        (served,) = bed.router.clients
        bed.router.sweep(bed.router.loop.time() + 5)
        assert not served.transport.is_closing(), "not cut after the short linger"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.setblocking(False)
        raw = Raw(*await asyncio.open_connection(sock=sock))
        answer = await raw.answer()
        assert (answer.ended, answer.json) == ("whole", body)


@scenario
async def test_a_refused_client_is_listened_to_while_it_sends_but_not_for_ever():
    async with Bed() as bed:
        client = await bed.client()
        client.writer.write(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        answer = await client.answer()
        (served,) = bed.router.clients
        assert (answer.status, served.phase) == (404, Phase.LINGERING)
        first = served._deadline
        await asyncio.sleep(0.01)  # the loop's clock counts milliseconds
        client.writer.write(b"a")
        await bed.until(lambda: served._deadline > first, "another moment for a client that sends")
        served._last_moment = bed.router.loop.time()
        second = served._deadline
        client.writer.write(b"a")
        await bed.until(lambda: served._ignored == 2)
        assert served._deadline == second
        bed.router.sweep(second + 0.1)
        assert await client.closed()


@scenario
async def test_a_flood_of_connections_over_the_limit_is_closed_without_a_word():
    async with Bed(settings={"limits": {"maxConnections": 1}}) as bed:
        keep = await bed.client()
        await keep.send()
        await keep.answer()
        flood = [await asyncio.open_connection("127.0.0.1", bed.port) for _ in range(100)]
        await bed.until(lambda: bed.router.metrics.connections_refused == 100)
        assert len(bed.router.clients) <= 1 + 32
        for _, writer in flood:
            writer.close()
        await keep.send()
        assert (await keep.answer()).status == 200


# ---- documents ----


def at(*engines: int) -> Document:
    endpoints = tuple(Endpoint(instance=f"e{i}", address=f"10.0.0.{i}:8000", pod_uid=f"u{i}", slots=1) for i in engines)
    return Document(models={"m": Model(endpoints=endpoints)})


def test_a_request_that_outlives_its_model_is_never_sent_to_an_engine_nobody_counts():
    fleet = Fleet()
    fleet.apply(at(1, 2))
    old = fleet.models["m"]
    assert pick(old) is not None
    fleet.apply(Document(models={}))
    fleet.apply(at(1, 2))
    assert pick(old) is None
    assert pick(fleet.models["m"]) is not None


def document(address: bytes = b'"10.0.0.1:8000"', model: bytes = b'"m"', instance: bytes = b'"i"') -> bytes:
    endpoint = b'{"instance":%b,"address":%b,"podUID":"u","slots":1}' % (instance, address)
    return b'{"version":1,"generation":1,"models":{%b:{"endpoints":[%b]}}}' % (model, endpoint)


def test_no_document_raises_anything_but_a_document_error():
    parse_document(document())
    for bad in (
        document(address=b'"a:' + b"9" * 5000 + b'"'),
        document(model=b'"\\ud800"'),
        document(instance=b'"\\udfff"'),
        document().replace(b'"version":1', b'"version":' + b"9" * 5000),
    ):
        with pytest.raises(DocumentError):
            parse_document(bad)
    for depth in range(900, 1000):
        with pytest.raises(DocumentError):
            parse_document(b'{"version":' + b"[" * depth + b"]" * depth + b"}")


@scenario
async def test_a_host_that_cannot_be_a_name_costs_a_retry_and_no_slot():
    async with Bed() as bed:
        good = Endpoint(instance="e1", address=bed.engines[0].address, pod_uid="u1")
        bad = Endpoint(instance="e0", address="x" * 70 + "é.example:80", pod_uid="u0")
        bed.router.fleet.apply(Document(models={"m": Model(endpoints=(bad, good))}))
        for _ in range(2):
            assert (await bed.ask()).status == 200
        assert bed.in_flight() == 0
