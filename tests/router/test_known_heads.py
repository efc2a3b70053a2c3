"""What is read without llhttp, because llhttp has read the like before, is what llhttp reads in it."""

from __future__ import annotations

import itertools

import pytest
from bed import request_bytes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmfleet.router import request, response
from llmfleet.router.http1 import BadMessage
from llmfleet.router.request import RequestReader, head_pattern
from llmfleet.router.response import ResponseReader

PATTERN = head_pattern(("accept", "content-type"), keyed=True)


def request_reader() -> RequestReader:
    return RequestReader(pattern=PATTERN, max_head=4096, max_headers=20, max_body=5000)


def fed(reader, data, cuts):
    """Feed a message in pieces and say all that a reader can be asked about it."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for first, last in itertools.pairwise(edges):
        if first != last and not reader.complete:
            try:
                reader.feed(data[first:last])
            except BadMessage as error:
                return ("refused", error.status)
    told = [reader.complete, reader.head, reader.surplus]
    if isinstance(reader, RequestReader):
        told += [reader.method, reader.target, reader.version, reader.fields, reader.credentials, reader.length]
        told += [reader.expects_continue, reader.started]
    else:
        told += [reader.sized, reader.events, reader.hops, reader.headed, reader.status if reader.headed else 0]
    return (*told, reader.keep_alive if reader.complete else None, reader.take_body())


NAMES = st.sampled_from(["Accept", "accept", "X-Content-Length", "Connection", "Authorization", "Expect", "Host"])
VALUES = st.sampled_from(["1", "a", "close", "keep-alive", "Bearer k", "100-continue", "Content-Length: 7"])
LENGTH_NAMES = st.sampled_from([b"Content-Length: ", b"content-length: ", b"CONTENT-LENGTH: ", b"Content-Length:"])
DIGITS = st.one_of(
    st.integers(0, 40).map(lambda n: b"%d" % n),
    st.sampled_from([b"007", b"5 ", b" 5", b"+5", b"-1", b"0x5", b"5001", b"1" * 25, b"", b"1_0", "²".encode()]),
)
AFTER = st.sampled_from([b"", b"", b"\r\n", b"\n\r\n", b"x", b"GET / HTTP/1.1\r\n", b"\x00"])
CUTS = st.lists(st.integers(0, 250), max_size=3)


@st.composite
def messages(draw, line):
    """Two messages with the same fields but for the digits of their lengths, which may be wrong."""
    before = draw(st.lists(st.tuples(NAMES, VALUES), max_size=2))
    after = draw(st.lists(st.tuples(NAMES, VALUES), max_size=1))
    name = draw(LENGTH_NAMES)

    def message(digits: bytes, rest: bytes) -> bytes:
        fields = b"".join(f"{n}: {v}\r\n".encode() for n, v in before)
        more = b"".join(f"{n}: {v}\r\n".encode() for n, v in after)
        size = int(digits) if digits.isdigit() and len(digits) < 4 else 5
        return line + fields + name + digits + b"\r\n" + more + b"\r\n" + b"b" * size + rest

    first = message(b"%d" % draw(st.integers(0, 30)), b"")
    digits = draw(DIGITS)
    second = message(digits, draw(AFTER))
    return first, second[: draw(st.integers(0, len(second)))] if draw(st.booleans()) else second


@settings(max_examples=300, deadline=None, derandomize=True)
@given(pair=messages(b"POST /v1/completions?x HTTP/1.1\r\nhost: a\r\n"), cuts=CUTS)
@example(pair=(request_bytes(b"{}"), request_bytes(b'{"a":1}')), cuts=[])
@example(pair=(request_bytes(b"{}"), request_bytes(b'{"a":1}') + b"GET "), cuts=[120])
@example(pair=(request_bytes(b"{}"), request_bytes(b"{}", headers={"Content-Length": "5001"})), cuts=[])
def test_a_second_request_is_read_as_a_first_one_would_be(pair, cuts):
    first, second = pair
    kept, fresh = request_reader(), request_reader()
    fed(kept, first, [])
    if not kept.complete or kept.surplus or not kept.keep_alive:
        return
    for message in (second, first):
        kept.next()
        fresh.next()
        got = fed(kept, message, cuts)
        assert got == fed(fresh, message, cuts)
        if got[0] is not True or kept.surplus or not kept.keep_alive:
            return
        fresh = request_reader()


def test_the_common_second_request_is_really_read_without_the_parser():
    reader = request_reader()
    for body in (b"{}", b'{"a":1}', b"{}" * 9):
        reader.feed(request_bytes(body))
        assert reader.complete and reader.take_body() == body
        assert reader.repeats is (body != b"{}")
        reader.next()
    reader.feed(request_bytes(b"{}", headers={"Accept": "other"}))
    assert reader.complete and not reader.repeats, "another head is read by llhttp again"


def test_a_client_whose_heads_always_differ_is_no_longer_compared():
    reader = request_reader()
    for number in range(9):
        reader.feed(request_bytes(b"{}", headers={"Accept": str(number)}))
        assert reader.complete and not reader.repeats
        reader.next()
    assert reader._misses == request._MAX_MISSES


def test_a_closed_reader_reads_nothing_more_whatever_it_knows():
    reader = request_reader()
    reader.feed(request_bytes(b"{}"))
    reader.next()
    reader.close()
    with pytest.raises(BadMessage):
        reader.feed(request_bytes(b"{}"))


# ---- answers ----

LINES = st.sampled_from(
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 None\r\n", b"HTTP/1.1 500 X\r\n"]
)
EXTRA = st.sampled_from(
    [b"", b"connection: close\r\n", b"x-content-length: 3\r\n", b"content-type: text/event-stream\r\n", b"te: x\r\n"]
)
CHUNKED = b"transfer-encoding: chunked\r\n"
CODINGS = st.sampled_from([CHUNKED, CHUNKED, b"transfer-encoding: gzip, chunked\r\n", b""])
PIECES = st.lists(
    st.sampled_from(
        [
            *(b"3\r\nabc\r\n", b"A\r\n0123456789\r\n", b"a\r\n0123456789\r\n", b"03\r\nabc\r\n", b"3;x=1\r\nabc\r\n"),
            *(b"3\r\nab", b"c\r\n", b"3\nabc\r\n", b"+3\r\nabc\r\n", b"3_\r\nabc\r\n", b"g\r\n", b"\r\n", b"0\r\n\r\n"),
            *(b"0\r\nx: y\r\n\r\n", b"2\r\n\r\n\r\n", b"0\r\n\r\nHTTP/1.1 200 OK\r\n", b"1\r\na\r\n0\r\n\r\n"),
        ]
    ),
    max_size=7,
)


def answers_alike(first: list[bytes], second: list[bytes]) -> None:
    """Read an answer with nothing known, then again with all known that the first one taught."""
    response._ANSWERS.clear()
    reader = ResponseReader()
    for piece in first:
        if not reader.complete:
            try:
                reader.feed(piece)
            except BadMessage:
                break
    known = dict(response._ANSWERS)
    told = []
    for heads in ({}, known):
        response._ANSWERS.clear()
        response._ANSWERS.update(heads)
        reader, seen = ResponseReader(), []
        for piece in second:
            try:
                reader.feed(piece)
            except BadMessage:
                seen.append("refused")
                break
            status = reader.status if reader.headed else 0
            seen.append((reader.head, reader.sized, reader.events, reader.hops, status, reader.complete))
            seen.append((reader.take_body(), reader.surplus, reader.complete and reader.keep_alive))
            if reader.complete:
                break
        told.append(seen)
    assert told[0] == told[1]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(line=LINES, extra=EXTRA, lengths=st.tuples(st.integers(0, 20), DIGITS), rest=AFTER, cut=st.integers(0, 200))
def test_a_second_answer_of_a_length_is_read_as_a_first_one_would_be(line, extra, lengths, rest, cut):
    one, digits = lengths
    first = line + extra + b"content-length: %d\r\nserver: s\r\n\r\n" % one + b"a" * one
    size = int(digits) if digits.isdigit() and len(digits) < 4 else 5
    second = line + extra + b"content-length: " + digits + b"\r\nserver: s\r\n\r\n" + b"a" * size + rest
    answers_alike([first], [second[:cut], second[cut:]] if 0 < cut < len(second) else [second])


@settings(max_examples=500, deadline=None, derandomize=True)
@given(line=LINES, extra=EXTRA, coding=CODINGS, glued=st.booleans(), pieces=PIECES)
@example(line=b"HTTP/1.1 200 OK\r\n", extra=b"", coding=CHUNKED, glued=False, pieces=[b"3\r\nabc\r\n"] * 6)
@example(line=b"HTTP/1.1 200 OK\r\n", extra=b"", coding=CHUNKED, glued=True, pieces=[b"3\r\nabc\r\n0\r\n\r\n"])
def test_a_second_answer_in_chunks_is_read_as_a_first_one_would_be(line, extra, coding, glued, pieces):
    head = line + extra + coding + b"server: s\r\n\r\n"
    second = [head + pieces[0], *pieces[1:]] if glued and pieces else [head, *pieces]
    answers_alike([head, b"3\r\nabc\r\n", b"0\r\n\r\n"], second)


def test_what_is_known_of_answers_is_bounded():
    response._ANSWERS.clear()
    for number in range(3 * response._MAX_KNOWN):
        ResponseReader().feed(b"HTTP/1.1 200 OK\r\nx-id: %d\r\ncontent-length: 0\r\n\r\n" % number)
        assert len(response._ANSWERS) <= response._MAX_KNOWN
    before = len(response._ANSWERS)
    ResponseReader().feed(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 5000 + b"\r\ncontent-length: 0\r\n\r\n")
    assert len(response._ANSWERS) == before
