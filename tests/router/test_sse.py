"""The scanner: any chunking of a stream says the same, and no end is taken for another."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from engine import DONE, chat_event, chat_events, error_event, text_event
from hypothesis import given, settings
from hypothesis import strategies as st
from test_truncation import MESSAGES, RESPONSES

from llmfleet.router.sse import Dialect, EventTooLong, Scanner

RECORDED = Path(__file__).parent / "recorded"


def run(stream: bytes, cuts: list[int], dialect: Dialect = Dialect.CHAT, expected: int = 1) -> tuple[bytes, tuple]:
    scanner = Scanner(dialect, expected=expected)
    edges = [0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]
    out = b"".join(scanner.feed(stream[a:b]) for a, b in pairwise(edges) if a != b)
    out += scanner.flush()
    return out, (scanner.started, scanner.token_seen, scanner.terminal, scanner.failed, scanner.broken, scanner.error)


STREAMS = {
    "a chat": (Dialect.CHAT, b"".join([*chat_events(3), DONE])),
    "a chat in CR LF": (Dialect.CHAT, b"".join([*chat_events(3), DONE]).replace(b"\n", b"\r\n")),
    "two choices, one unfinished": (Dialect.CHAT, chat_event("a") + chat_event(None, finish="stop") + DONE),
    "comments between": (Dialect.CHAT, b": ping\n\n" + chat_event("a", finish="stop") + b": ping\n\n" + DONE),
    "an error": (Dialect.CHAT, chat_event("a") + error_event() + DONE),
    "completions": (Dialect.COMPLETIONS, text_event("a") + text_event("b", finish="length") + DONE),
    "responses": (Dialect.RESPONSES, b"".join(RESPONSES)),
    "messages": (Dialect.MESSAGES, b"".join(MESSAGES) + DONE),
    "cut": (Dialect.CHAT, b"".join(chat_events(3))[:-30]),
    "many": (Dialect.CHAT, b"".join([*chat_events(40), DONE])),
    "recorded chat": (Dialect.CHAT, (RECORDED / "vllm_0.32_chat.http").read_bytes().partition(b"\r\n\r\n")[2]),
    "pretty json": (Dialect.CHAT, b'data: {"choices": [{"index" : 0, "finish_reason" : "stop"}]}\n\n' + DONE),
}


@pytest.mark.parametrize("case", STREAMS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_chunking_of_a_stream_says_the_same(case, data):
    dialect, stream = STREAMS[case]
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    expected = 2 if case.startswith("two") else 1
    assert run(stream, cuts, dialect, expected) == run(stream, [], dialect, expected)


@pytest.mark.parametrize("case", [c for c in STREAMS if c != "cut" and not c.startswith("two")])
def test_whole_streams_are_terminal_and_forwarded_unchanged(case):
    dialect, stream = STREAMS[case]
    out, (started, token, terminal, failed, broken, error) = run(stream, [], dialect)
    assert out == stream
    assert (started, token, terminal, broken) == (True, True, True, False)
    assert failed is (case == "an error") and (error is not None) is failed


@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_noise_is_never_terminal_and_never_raises(noise, cuts):
    out, (_, _, terminal, *_rest) = run(noise, cuts)
    if b"[DONE]" not in noise:
        assert not terminal
    assert noise.startswith(out.rstrip(b"\n")) or out == b""


@given(text=st.text(max_size=60))
def test_nothing_a_model_says_looks_like_an_end(text):
    for said in (text, "data: [DONE]\n\n", '"finish_reason":"stop"', '{"error":{"code":500}}', "response.completed"):
        event = chat_event(said + text)
        _, (_, _, terminal, failed, broken, error) = run(event, [])
        assert (terminal, failed, broken, error) == (False, False, False, None)
        delta = b"data: " + json.dumps({"type": "response.output_text.delta", "delta": said}).encode() + b"\n\n"
        assert run(delta, [], Dialect.RESPONSES)[1][2] is False


def test_done_before_every_choice_has_finished_is_withheld():
    kept = chat_event("a") + chat_event(None, finish="stop")
    out, (_, _, terminal, _, broken, _) = run(kept + DONE + chat_event("late"), [], expected=2)
    assert (out, terminal, broken) == (kept, False, True)


def test_events_after_the_marker_are_forwarded_too():
    stream = b"".join(MESSAGES) + DONE + b": bye\n\n"
    assert run(stream, [], Dialect.MESSAGES)[0] == stream


def test_a_marker_without_its_blank_line_counts_at_a_clean_end_only():
    stream = b"".join(chat_events(2)) + b"data: [DONE]\n"
    scanner = Scanner(Dialect.CHAT)
    scanner.feed(stream)
    assert not scanner.terminal
    assert scanner.flush() == b"data: [DONE]\n\n" and scanner.terminal


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_finish_reasons_of_a_given_up_request_are_failures(reason):
    _, (_, _, terminal, failed, _, error) = run(chat_event("a") + chat_event(None, finish=reason) + DONE, [])
    assert (terminal, failed, error) == (True, True, None)


def test_a_failed_response_is_a_failure():
    failed = b'data: {"type":"response.failed","response":{"error":{"code":"server_error"}}}\n\n'
    _, (_, _, terminal, fails, _, _) = run(RESPONSES[0] + failed, [], Dialect.RESPONSES)
    assert (terminal, fails) == (True, True)


def test_the_first_token_is_the_first_delta_that_is_not_empty():
    scanner = Scanner(Dialect.CHAT)
    for event, seen in (
        (chat_event(role=True), False),
        (chat_event(""), False),
        (b": ping\n\n", False),
        (chat_event("x"), True),
    ):
        scanner.feed(event)
        assert scanner.token_seen is seen


def test_an_event_is_bounded_however_it_arrives():
    for piece in (b"x", b"data: " + b"y" * 50):
        scanner = Scanner(Dialect.CHAT, max_event=1000)
        with pytest.raises(EventTooLong):
            for _ in range(2000):
                scanner.feed(piece)
