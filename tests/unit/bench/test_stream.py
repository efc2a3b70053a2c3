"""An answer, read in pieces of any size: when tokens came, and what every broken answer is called."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.bench.stream import Answer, Ending, Kind, Problem, Sample

DONE = b"data: [DONE]\n\n"


def event(text: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return said({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


def said(found: Any) -> bytes:
    return b"data: " + json.dumps(found).encode() + b"\n\n"


ROLE = said({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
USAGE = said({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
END = event(finish="length")
WHOLE = [ROLE, event("a"), event("b"), event("c"), END, USAGE, DONE]


def read(pieces: list[bytes], *, ending: Ending = Ending.WHOLE, status: int = 200, said: str = "") -> Sample:
    """One piece a second, from second 1 on."""
    answer = Answer()
    answer.status = status
    for moment, piece in enumerate(pieces, 1):
        answer.feed(piece, float(moment))
    return answer.sample(begin=0.0, end=len(pieces) + 1.0, ending=ending, said=said)


def problem(pieces: list[bytes], **more: Any) -> Problem:
    found = read(pieces, **more).problem
    assert found is not None
    return found


def test_the_first_token_is_the_first_text_and_not_the_role() -> None:
    found = read(WHOLE)
    assert (found.ttft, found.last, found.e2e) == (2.0, 4.0, 8.0)
    assert (found.prompt_tokens, found.output_tokens, found.tpot) == (7, 3, 1.0)
    assert found.problem is None


@pytest.mark.parametrize(
    "delta",
    [{"reasoning_content": "hm"}, {"reasoning": "hm"}, {"tool_calls": [{"index": 0}]}, {"refusal": "no"}],
    ids=lambda delta: next(iter(delta)),
)
def test_a_model_that_thinks_or_calls_a_tool_first_has_begun(delta: dict[str, Any]) -> None:
    first = said({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    assert read([ROLE, first, event("b"), END, USAGE, DONE]).ttft == 2.0


def test_usage_on_every_event_counts_the_last_one() -> None:
    growing = [event("x", usage={"prompt_tokens": 7, "completion_tokens": n}) for n in (1, 2, 9)]
    assert read([*growing, END, DONE]).output_tokens == 9


@given(cuts=st.lists(st.integers(1, 400), max_size=30), line_end=st.sampled_from([b"\n", b"\r\n"]))
def test_pieces_of_any_size_say_the_same(cuts: list[int], line_end: bytes) -> None:
    whole = b"".join(WHOLE).replace(b"\n", line_end)
    edges = [0, *sorted(cut for cut in set(cuts) if cut < len(whole)), len(whole)]
    answer = Answer()
    answer.status = 200
    for left, right in pairwise(edges):
        answer.feed(whole[left:right], 5.0)
    found = answer.sample(begin=0.0, end=9.0, ending=Ending.WHOLE)
    assert found == Sample(begin=0.0, end=9.0, first=5.0, last=5.0, prompt_tokens=7, output_tokens=3)


def test_comments_and_event_names_are_passed_over() -> None:
    assert read([b": keep-alive\n\n", b"event: message\n", *WHOLE]).problem is None


ERROR = said({"error": {"message": "engine died", "type": "InternalServerError", "code": 500}})


@pytest.mark.parametrize(
    ("case", "pieces", "ending", "kind", "code"),
    [
        ("no end mark", WHOLE[:-1], Ending.WHOLE, Kind.NO_DONE, ""),
        ("nothing at all", [], Ending.WHOLE, Kind.NO_DONE, ""),
        ("cut in the middle", WHOLE[:3], Ending.CLOSED, Kind.BROKEN_OFF, ""),
        ("cut after the end mark, before the last chunk", WHOLE, Ending.CLOSED, Kind.BROKEN_OFF, ""),
        ("an error event before the end mark", [*WHOLE[:3], ERROR, DONE], Ending.WHOLE, Kind.ERROR_EVENT, "Intern"),
        ("an error event, then cut", [*WHOLE[:3], ERROR], Ending.CLOSED, Kind.ERROR_EVENT, "Intern"),
        ("too late", WHOLE[:2], Ending.TIMEOUT, Kind.TIMEOUT, ""),
        ("aborted", [ROLE, event("a"), event(finish="abort"), USAGE, DONE], Ending.WHOLE, Kind.CUT_SHORT, "finish_"),
        ("no finish reason", [ROLE, event("a"), USAGE, DONE], Ending.WHOLE, Kind.CUT_SHORT, "finish_"),
        ("no text", [ROLE, END, USAGE, DONE], Ending.WHOLE, Kind.NO_TOKEN, ""),
        ("no usage", [ROLE, event("a"), END, DONE], Ending.WHOLE, Kind.NO_USAGE, ""),
        ("no JSON", [ROLE, b"data: {oops\n\n", END, USAGE, DONE], Ending.WHOLE, Kind.MALFORMED, ""),
        ("JSON that is no object", [said([1]), *WHOLE], Ending.WHOLE, Kind.MALFORMED, ""),
        ("not HTTP", [], Ending.NOT_HTTP, Kind.MALFORMED, ""),
        ("nobody there", [], Ending.UNREACHABLE, Kind.UNREACHABLE, ""),
    ],
)
def test_what_a_broken_answer_is_called(case: str, pieces: list[bytes], ending: Ending, kind: Kind, code: str) -> None:
    found = problem(pieces, ending=ending)
    assert (found.kind, found.code[: len(code)]) == (kind, code), case


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (429, {"error": {"message": "busy", "type": "x", "code": "queue_full"}}, "429 queue_full", "busy"),
        (400, {"error": {"message": "no", "type": "BadRequestError", "code": 400}}, "400 BadRequestError", "no"),
        (404, {"object": "error", "message": "none", "type": "NotFoundError"}, "404 NotFoundError", "none"),
        (500, {"detail": "oops"}, "500", "oops"),
        (401, {"error": "Unauthorized"}, "401", "Unauthorized"),
        (502, "<html>Bad Gateway</html>", "502", "<html>Bad Gateway</html>"),
        (503, "", "503", ""),
    ],
)
def test_a_refusal_keeps_status_code_and_words(status: int, body: Any, code: str, words: str) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    assert problem([raw[:9], raw[9:]], status=status) == Problem(kind=Kind.REFUSED, code=code, said=words)


@given(pieces=st.lists(st.sampled_from([*WHOLE, ERROR, b"data: {", b"\n", b"data: 1\n"]), max_size=12))
def test_only_an_answer_with_text_usage_finish_and_end_mark_is_whole(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    if read(pieces).problem is None:
        for part in (b'"content": "', b'"completion_tokens"', b'"finish_reason": "length"', b"[DONE]"):
            assert part in text
        assert b'"error"' not in text
