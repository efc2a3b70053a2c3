"""A 200 ends in exactly one of: the whole answer, an error event, a reset. Never in silence."""

import asyncio
import json
from pathlib import Path

import pytest
from bed import STREAM, Answer, Bed, scenario
from engine import (
    DONE,
    SSE_HEAD,
    chat_event,
    chat_events,
    error_event,
    events,
    json_answer,
    play,
    text_event,
)

RECORDED = Path(__file__).parent / "recorded"


def message(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: ".encode() + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


RESPONSES = [
    message("response.created", response={"error": None}),
    message("response.output_text.delta", delta="hi"),
    message("response.completed", response={"error": None, "status": "completed"}),
]
MESSAGES = [
    message("message_start", message={}),
    message("content_block_delta", delta={"type": "text_delta", "text": "hi"}),
    message("message_delta", delta={"stop_reason": "end_turn"}),
    message("message_stop"),
]
ROUTES = {
    "/v1/chat/completions": [*chat_events(2), DONE],
    "/v1/completions": [text_event("a"), text_event("b", finish="length"), DONE],
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
}


def the_error_event(answer: Answer) -> dict:
    """Return the error a stream ended with; its terminating chunk must be missing."""
    assert answer.ended == "eof", answer
    last = answer.events[-1]
    data = next(line for line in last.split(b"\n") if line.startswith(b"data: "))
    return json.loads(data[6:])["error"]


@pytest.mark.parametrize("path", ROUTES)
@scenario
async def test_a_whole_stream_of_every_route_is_relayed_to_its_last_chunk(path):
    async with Bed(events(*ROUTES[path])) as bed:
        answer = await bed.ask(STREAM, path=path)
        assert (answer.ended, answer.events) == ("whole", ROUTES[path])
        assert bed.counter("requests") == {(200, "complete"): 1}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("how", ["cut", "reset", "clean"])
@scenario
async def test_a_stream_without_its_marker_ends_in_an_error_event(path, how):
    kept = ROUTES[path][:2]
    then = "keep" if how == "clean" else how
    async with Bed(events(*kept, end=how == "clean", then=then, gap=0.02)) as bed:
        answer = await bed.ask(STREAM, path=path)
        error = the_error_event(answer)
        assert (error["code"], bool(error["message"])) == ("upstream_lost", True)
        assert answer.events[:-1] == kept
        if path in ("/v1/responses", "/v1/messages"):
            assert answer.events[-1].startswith(b"event: error\n")
        assert sum(bed.counter("truncated").values()) == 1
        assert bed.counter("requests") == {(200, "truncated"): 1}
        assert bed.in_flight() == 0


@scenario
async def test_done_without_every_finish_reason_is_withheld():
    kept = [chat_event("a", index=0), chat_event("b", index=1), chat_event(None, index=0, finish="stop")]
    async with Bed(events(*kept, DONE)) as bed:
        answer = await bed.ask(STREAM | {"n": 2})
        assert the_error_event(answer)["code"] == "upstream_lost"
        assert DONE not in answer.events


@scenario
async def test_an_engine_error_inside_a_stream_is_relayed_and_counted_as_failed():
    sent = [*chat_events(2)[:2], error_event(500), DONE]
    async with Bed(events(*sent)) as bed:
        answer = await bed.ask(STREAM)
        assert (answer.ended, answer.events) == ("whole", sent)
        assert bed.counter("requests") == {(200, "failed"): 1}


@scenario
async def test_an_aborted_choice_is_relayed_and_counted_as_failed():
    sent = [chat_event("a"), chat_event(None, finish="abort"), DONE]
    async with Bed(events(*sent)) as bed:
        assert (await bed.ask(STREAM)).events == sent
        assert bed.counter("requests") == {(200, "failed"): 1}


@scenario
async def test_an_engine_that_dies_after_the_marker_leaves_a_whole_answer():
    for then in ("cut", "reset"):
        async with Bed(events(*chat_events(2), DONE, end=False, then=then, gap=0.02)) as bed:
            answer = await bed.ask(STREAM)
            assert (answer.ended, answer.events) == ("whole", [*chat_events(2), DONE])
            assert bed.counter("requests") == {(200, "complete"): 1}


@scenario
async def test_a_silent_engine_ends_in_an_error_event_and_its_work_is_aborted():
    async with Bed(events(chat_event(), end=False, then="hang"), settings={"timeouts": {"stallSeconds": 0.3}}) as bed:
        answer = await bed.ask(STREAM)
        assert the_error_event(answer)["code"] == "upstream_timeout"
        assert bed.counter("truncated") == {"stalled": 1}
        await bed.until(lambda: bed.engines[0].aborted == 1, "the abort")


@scenario
async def test_an_event_longer_than_the_limit_is_given_up():
    settings = {"limits": {"maxEventBytes": 4096}}
    async with Bed(
        events(chat_event(), chat_event("x" * 10000)[:-2], end=False, then="hang"), settings=settings
    ) as bed:
        answer = await bed.ask(STREAM)
        assert the_error_event(answer)["code"] == "upstream_failed"
        assert bed.in_flight() == 0


@scenario
async def test_a_large_unary_answer_is_streamed_and_its_loss_is_a_reset():
    big = {"choices": [{"message": {"content": "x" * 300_000}, "finish_reason": "stop"}]}
    settings = {"limits": {"maxHeldAnswerBytes": 65536}}
    data = json_answer(200, big)
    async with Bed(play(data), settings=settings) as bed:
        answer = await bed.ask()
        assert answer.ended == "whole" and answer.json == big
    async with Bed(play(data[:-1000], then="cut", gap=0.05), settings=settings) as bed:
        client = await bed.client()
        await client.send()
        with pytest.raises(ConnectionResetError):
            answer = await client.answer()
            if answer.ended == "reset" or answer.ended == "eof":
                raise ConnectionResetError
        assert bed.counter("truncated") == {"lost": 1}


@scenario
async def test_unary_answers_of_every_framing_arrive_whole():
    body = b'{"ok": true}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    framings = [
        head + b"content-length: 12\r\n\r\n" + body,
        head
        + b"transfer-encoding: chunked\r\n\r\n5\r\n"
        + body[:5]
        + b"\r\n7\r\n"
        + body[5:]
        + b"\r\n0\r\nx: y\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + head + b"content-length: 12\r\n\r\n" + body,
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + head + b"content-length: 12\r\n\r\n" + body,
        b"HTTP/1.0 200 OK\r\ncontent-length: 12\r\n\r\n" + body,
    ]
    for raw in framings:
        async with Bed(play(*(raw[i : i + 9] for i in range(0, len(raw), 9)))) as bed:
            answer = await bed.ask()
            assert (answer.status, answer.body, answer.ended) == (200, body, "whole"), raw


@scenario
async def test_a_unary_answer_without_any_length_cannot_be_trusted():
    async with Bed(play(b'HTTP/1.1 200 OK\r\n\r\n{"ok": tr', then="cut")) as bed:
        assert (await bed.ask()).status == 502


@scenario
async def test_hop_by_hop_fields_of_an_engine_stay_on_its_side():
    raw = (
        b"HTTP/1.1 200 OK\r\nconnection: close, x-inner\r\nkeep-alive: timeout=5\r\nx-inner: 1\r\n"
        b"X-Request-Id: theirs\r\nproxy-authenticate: no\r\nx-outer: 2\r\ncontent-length: 2\r\n\r\n{}"
    )
    async with Bed(play(raw, then="cut")) as bed:
        client = await bed.client()
        await client.send()
        answer = await client.answer()
        assert set(answer.headers) == {"x-request-id", "x-outer", "content-length"}
        assert answer.headers["x-request-id"] != "theirs"
        await client.send()
        assert (await client.answer()).status == 200, "the client's connection outlives the engine's"


def recorded(name: str) -> tuple[bytes, list[bytes]]:
    head, _, payload = (RECORDED / name).read_bytes().partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", [event + b"\n\n" for event in payload.split(b"\n\n") if event]


WITH_USAGE = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("name", "path"),
    [("vllm_0.32_chat.http", "/v1/chat/completions"), ("vllm_0.32_completions.http", "/v1/completions")],
)
@scenario
async def test_recorded_vllm_streams_are_relayed_byte_for_byte_in_any_pieces(name, path):
    head, sent = recorded(name)
    raw = head + b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in sent) + b"0\r\n\r\n"
    for size in (1, 7, 100, 1000, len(raw)):
        async with Bed(play(*(raw[i : i + size] for i in range(0, len(raw), size)))) as bed:
            answer = await bed.ask(STREAM | WITH_USAGE, path=path)
            assert (answer.ended, answer.body) == ("whole", b"".join(sent))
            unasked = await bed.ask(STREAM, path=path)
            assert (unasked.ended, unasked.events) == ("whole", [e for e in sent if b'"choices":[]' not in e])
            assert answer.headers["server"] == "uvicorn" and answer.headers["vary"] == "Origin"


@scenario
async def test_a_recorded_unary_answer_is_relayed_byte_for_byte():
    raw = (RECORDED / "vllm_0.32_unary_chat.http").read_bytes()
    async with Bed(play(raw)) as bed:
        answer = await bed.ask()
        assert answer.body == raw.partition(b"\r\n\r\n")[2]


@scenario
async def test_a_stream_cut_at_any_byte_is_never_a_silent_success():
    head, sent = recorded("vllm_0.32_completions.http")
    raw = head + b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in sent) + b"0\r\n\r\n"
    whole = b"".join(sent)
    offsets = [*range(0, len(raw) - 60, 11), *range(len(raw) - 60, len(raw))]
    async with Bed() as bed:

        async def one(offset: int) -> None:
            request = {"model": "m", "prompt": "x", "stream": True} | WITH_USAGE
            answer = await bed.ask(request, path="/v1/completions")
            if answer.status == 200 and answer.ended == "whole":
                assert answer.body == whole, offset
            elif answer.status == 200:
                assert the_error_event(answer)["code"] == "upstream_lost", offset
                assert whole.startswith(b"".join(answer.events[:-1])), offset
            else:
                assert answer.status == 502 and answer.ended == "whole", offset

        for offset in offsets:
            bed.engines[0].behave = play(raw[:offset], then="cut" if offset % 2 else "reset")
            await one(offset)
        assert bed.in_flight() == 0


@scenario
async def test_events_that_share_one_piece_with_the_head_are_judged_too():
    chunk = b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in [*chat_events(2), DONE])
    async with Bed(play(SSE_HEAD + chunk + b"0\r\n\r\n"), play(SSE_HEAD + chunk, then="hang")) as bed:
        answer = await bed.ask(STREAM)
        assert answer.ended == "whole"
        client = await bed.client()
        await client.send(STREAM)
        await client.head()
        assert await client.chunk() == b"".join([*chat_events(2), DONE])
        client.writer.close()
        await bed.until(lambda: bed.in_flight() == 0)
        await asyncio.sleep(0)
