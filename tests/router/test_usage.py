"""Usage: read wherever an engine tells it, left out for clients that did not ask, estimated when nobody counted."""

import json
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from engine import DONE, UNARY, chat_event, chat_events, text_event
from hypothesis import given, settings
from hypothesis import strategies as st
from test_truncation import MESSAGES

from llmfleet.router import usage
from llmfleet.router.sse import Dialect, Scanner
from llmfleet.router.usage import Record, Usage

RECORDED = Path(__file__).parent / "recorded"
COUNTS = {"prompt_tokens": 12, "total_tokens": 17, "completion_tokens": 5, "prompt_tokens_details": None}


def usage_event(choices=(), space=""):
    body = {"id": "c", "object": "chat.completion.chunk", "choices": list(choices), "usage": COUNTS}
    separators = ("," + space, ":" + space)
    return b"data: " + json.dumps(body, separators=separators).encode() + b"\n\n"


def run(stream, cuts=(), *, drops, dialect=Dialect.CHAT, expected=1):
    scanner = Scanner(dialect, expected=expected, drops_usage=drops)
    edges = [0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]
    out = b"".join(scanner.feed(stream[a:b]) for a, b in pairwise(edges) if a != b)
    return out + scanner.flush(), scanner


STREAMS = {
    "short": (chat_events(2), 1),
    "long": (chat_events(60), 1),
    "two choices": ([*chat_events(3), chat_event("b", index=1), chat_event(None, index=1, finish="length")], 2),
    "with comments": ([b": ping\n\n", *chat_events(2), b": ping\n\n"], 1),
    "in CR LF": ([event.replace(b"\n", b"\r\n") for event in chat_events(2)], 1),
}


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("space", ["", " "])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_usage_event_alone_is_left_out_however_the_stream_is_cut(case, space, data):
    events, expected = STREAMS[case]
    stream = b"".join([*events, usage_event(space=space), DONE])
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    out, scanner = run(stream, cuts, drops=True, expected=expected)
    assert out == b"".join([*events, DONE])
    assert scanner.usage == Usage(12, 5, True) and scanner.terminal and not scanner.failed
    out, scanner = run(stream, cuts, drops=False, expected=expected)
    assert out == stream and scanner.usage == Usage(12, 5, True)


def test_an_event_with_a_choice_is_never_left_out():
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    stream = chat_event("a") + usage_event([last]) + DONE
    out, scanner = run(stream, drops=True)
    assert out == stream and scanner.usage == Usage(12, 5, True)


def test_an_event_without_usage_is_never_left_out():
    odd = b'data: {"choices":[],"usage":null}\n\ndata: {"choices":[]}\n\n'
    stream = b"".join(chat_events(1)) + odd + DONE
    assert run(stream, drops=True)[0] == stream


def test_completions_tell_their_usage_in_the_same_way():
    stream = text_event("a") + text_event("b", finish="length")
    out, scanner = run(stream + usage_event() + DONE, drops=True, dialect=Dialect.COMPLETIONS)
    assert out == stream + DONE and scanner.usage == Usage(12, 5, True)


def test_responses_and_messages_carry_usage_by_themselves():
    completed = {"type": "response.completed", "response": {"usage": {"input_tokens": 7, "output_tokens": 9}}}
    stream = b"event: response.completed\ndata: " + json.dumps(completed).encode() + b"\n\n"
    out, scanner = run(stream, drops=False, dialect=Dialect.RESPONSES)
    assert out == stream and scanner.usage == Usage(7, 9, True)
    started = {"type": "message_start", "message": {"usage": {"input_tokens": 4, "cache_read_input_tokens": 6}}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 11}}
    pieces = [b"data: " + json.dumps(value).encode() + b"\n\n" for value in (started, delta)]
    stream = b"".join([pieces[0], *MESSAGES[1:-1], pieces[1], MESSAGES[-1]])
    for cuts in ([], range(0, len(stream), 7)):
        out, scanner = run(stream, cuts, drops=False, dialect=Dialect.MESSAGES)
        assert out == stream and scanner.usage == Usage(10, 11, True)


def test_what_a_broken_stream_had_streamed_is_estimated_from_its_events():
    for tokens in (1, 10, 500):
        _, scanner = run(b"".join(chat_events(tokens)[:-1]), range(0, 100_000, 997), drops=True)
        assert scanner.usage is None
        assert abs(scanner.tokens() - tokens) <= 1 + tokens // 20
    assert run(chat_event(role=True), drops=True)[1].tokens() == 0


@pytest.mark.parametrize("name", sorted(path.name for path in RECORDED.glob("*.http")))
def test_the_usage_of_recorded_answers_is_found(name):
    body = (RECORDED / name).read_bytes().partition(b"\r\n\r\n")[2]
    if b"data: " in body:
        dialect = Dialect.COMPLETIONS if "text_completion" in body.decode() else Dialect.CHAT
        _, scanner = run(body, drops=True, dialect=dialect)
        assert (scanner.usage is not None) == (b'"usage":{' in body)
    elif b'"usage"' in body:
        told = json.loads(body)["usage"]
        assert usage.find(body) == Usage(told["prompt_tokens"], told.get("completion_tokens", 0), True)


def test_unary_usage_is_found_without_reading_the_answer():
    told = Usage(1, 1, True)
    text = UNARY | {"choices": [{"message": {"content": 'he said "usage": {"prompt_tokens": 99}'}}]}
    for answer in (UNARY, text, UNARY | {"later": [1, 2, 3]}):
        assert usage.find(json.dumps(answer).encode()) == usage.find(orjson.dumps(answer)) == told
    embedding = {"data": [{"embedding": [0.1] * 2000}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    assert usage.find(json.dumps(embedding).encode()) == Usage(8, 0, True)
    nested = {"prompt_tokens": 8, "prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens": 4}
    assert usage.find(json.dumps({"usage": nested, "x": {}}).encode()) == Usage(8, 4, True)
    message = {"usage": {"cache_read_input_tokens": 3, "input_tokens": 2, "output_tokens": 4}, "stop_reason": "x"}
    assert usage.find(json.dumps(message).encode()) == Usage(5, 4, True)
    for nothing in (b"", b"{}", b'{"usage":null}', b'{"usage":{}}', b'{"usage":{"prompt_tokens":-1}}', b'"usage"'):
        assert usage.find(nothing) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.floats(), st.lists, max_leaves=4))
def test_usage_that_is_no_count_counts_for_nothing(value):
    for key in ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"):
        found = usage.read({key: value})
        if type(value) is int and 0 < value < 10**15:
            assert found is not None and found.prompt + found.completion == value
        else:
            assert found is None
    assert usage.read(value) is None


def test_counts_of_a_stream_only_grow():
    assert usage.merge(None, Usage(1, 2, True)) == Usage(1, 2, True)
    assert usage.merge(Usage(10, 1, True), Usage(0, 5, True)) == Usage(10, 5, True)


def test_a_line_is_one_json_object_and_says_which_counts_are_exact():
    record = Record(
        at=0,
        request_id=b"req-1",
        tenant="a",
        model="m",
        route=b"/v1/chat/completions",
        status=200,
        outcome="complete",
        reason="",
        attempts=1,
        instance="e0",
        queued=0.25,
        ttft=0.0123,
        duration=1.5,
        usage=Usage(12, 5, True),
    )
    data = usage.line(record, "2026-11-21T16:00:00.000Z")
    assert data.endswith(b"}\n") and data.count(b"\n") == 1
    told = json.loads(data)
    assert (told["queuedMs"], told["ttftMs"], told["durationMs"]) == (250, 12.3, 1500.0)
    assert (told["promptTokens"], told["completionTokens"], told["usage"]) == (12, 5, "exact")
    assert json.loads(usage.line(record._replace(usage=usage.estimate(400, 3)), ""))["usage"] == "estimated"
    assert json.loads(usage.line(record._replace(usage=None, ttft=None), ""))["promptTokens"] is None


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SECONDS = st.floats(0, 1e5)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    texts=st.tuples(TEXT, TEXT, TEXT, TEXT, TEXT),
    route=st.binary(max_size=8),
    numbers=st.tuples(st.integers(100, 599), st.integers(0, 2), SECONDS, SECONDS | st.none(), SECONDS),
    used=st.none() | st.builds(Usage, st.integers(0, 10**9), st.integers(0, 10**9), st.booleans()),
)
def test_a_line_says_what_a_json_library_would_say(texts, route, numbers, used):
    tenant, model, outcome, reason, instance = texts
    status, attempts, queued, ttft, took = numbers
    record = Record(
        1.5, b"r-1", tenant, model, route, status, outcome, reason, attempts, instance, queued, ttft, took, used
    )
    assert json.loads(usage.line(record, "T")) == {
        "time": "T",
        "requestId": "r-1",
        "tenant": tenant,
        "model": model,
        "route": route.decode("latin-1"),
        "status": status,
        "outcome": outcome,
        "reason": reason,
        "attempts": attempts,
        "llmcluster": instance,
        "queuedMs": round(queued * 1000),
        "ttftMs": None if ttft is None else round(ttft * 1000, 1),
        "durationMs": round(took * 1000, 1),
        "promptTokens": used.prompt if used else None,
        "completionTokens": used.completion if used else None,
        "usage": "none" if used is None else "exact" if used.exact else "estimated",
    }


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seconds=st.floats(0, 4e9))
def test_a_time_is_written_in_utc_to_the_thousandth(seconds):
    told = datetime.fromisoformat(usage.rfc3339(seconds))
    assert told.tzinfo is not None and abs(told.timestamp() - seconds) < 0.0011
    assert len(usage.rfc3339(seconds)) == len("2026-11-21T16:00:00.000Z")
