"""Framing: any chunking of the bytes gives the same message, and doubt is refused."""

import json
from itertools import pairwise

import pytest
from bed import CHAT, request_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_edge import MALFORMED

from llmfleet.router.http1 import BadMessage
from llmfleet.router.request import RequestReader, head_pattern
from llmfleet.router.response import ResponseReader, answer_head

PATTERN = head_pattern(("accept", "content-type"))
BODY = json.dumps(CHAT).encode()
CHUNKED_BODY = b"".join(b"%x\r\n%b\r\n" % (len(BODY[i : i + 9]), BODY[i : i + 9]) for i in range(0, len(BODY), 9))
REQUESTS = {
    "sized": request_bytes(),
    "chunked": request_bytes(CHUNKED_BODY + b"0\r\nX: y\r\n\r\n", headers={"Transfer-Encoding": "chunked"}),
    "no body": request_bytes(method="GET", path="/healthz"),
    "upgrade": request_bytes(headers={"Connection": "Upgrade", "Upgrade": "h2c"}),
    "blank lines first": b"\r\n\r\n" + request_bytes(),
}


def reader() -> RequestReader:
    return RequestReader(pattern=PATTERN, max_head=32768, max_headers=100, max_body=1 << 20)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a != b]


def outcome(data: bytes, cuts: list[int]) -> tuple:
    """Feed a message in pieces; what it is must not depend on them."""
    r = reader()
    for piece in pieces(data, cuts):
        if r.complete:
            return ("surplus",)
        try:
            r.feed(piece)
        except BadMessage as error:
            return ("refused", error.status)
    if not r.complete:
        return ("incomplete", r.head != b"")
    if r.surplus:
        return ("surplus",)
    return ("complete", r.method, r.target, r.version, r.keep_alive, r.take_body())


@pytest.mark.parametrize("case", REQUESTS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_chunking_of_a_request_gives_the_same_request(case, data):
    raw = REQUESTS[case]
    whole = outcome(raw, [])
    assert whole[0] == "complete"
    assert outcome(raw, data.draw(st.lists(st.integers(0, len(raw)), max_size=12))) == whole


@pytest.mark.parametrize("case", MALFORMED)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_chunking_of_a_malformed_request_is_refused(case, data):
    raw = MALFORMED[case]
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=12))
    assert outcome(raw, cuts)[0] == "refused"


@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_noise_is_refused_or_incomplete_but_never_a_request(noise, cuts):
    assert outcome(noise, cuts)[0] in ("refused", "incomplete")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_request_never_raises_anything_else(data):
    raw = bytearray(request_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert outcome(bytes(raw), data.draw(st.lists(st.integers(0, len(raw)), max_size=4)))[0]


def test_the_keep_alive_flag_is_read_before_the_parser_forgets_it():
    """Read after the message, the flag says False for every request: each would open a new connection."""
    for version, connection, stays in (
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
    ):
        r = reader()
        r.feed(request_bytes(version=version, headers={"Connection": connection} if connection else None))
        assert (r.complete, r.keep_alive) == (True, stays), (version, connection)
    answer = ResponseReader()
    answer.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert (answer.complete, answer.keep_alive) == (True, True)


def test_one_reader_reads_one_request_after_another():
    r = reader()
    for _ in range(3):
        r.feed(REQUESTS["sized"])
        assert r.complete and r.take_body() == BODY
        r.next()
        assert not r.started


def test_bytes_beyond_a_request_are_noticed_and_not_read():
    for behind in (b"GET / HTTP/1.1\r\n", b"\x00\x01", b"garbage"):
        r = reader()
        r.feed(REQUESTS["sized"] + behind)
        assert (r.complete, r.surplus, r.take_body()) == (True, True, BODY)


ANSWER = b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\ncontent-length: 4\r\n\r\nabcd"


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 80), max_size=10), interim=st.booleans())
def test_any_chunking_of_an_answer_gives_the_same_answer(cuts, interim):
    raw = (b"HTTP/1.1 100 Continue\r\n\r\n" if interim else b"") + ANSWER
    r = ResponseReader()
    body = b""
    for piece in pieces(raw, cuts):
        r.feed(piece)
        body += r.take_body()
    assert (r.status, r.complete, r.keep_alive, r.surplus, body) == (200, True, True, False, b"abcd")
    assert r.head == b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\ncontent-length: 4\r\n"


def test_an_answer_with_bytes_behind_it_is_not_kept():
    for behind in (b"HTTP/1.1 200 OK\r\n", b"x"):
        r = ResponseReader()
        r.feed(ANSWER + behind)
        assert r.complete and r.surplus


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0\r\n",
        b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc",
    ],
)
def test_malformed_answers_are_refused(raw):
    r = ResponseReader()
    with pytest.raises(BadMessage):
        for i in range(0, len(raw), 50_000):
            r.feed(raw[i : i + 50_000])
        assert r.complete, "not read as an answer either"


def test_an_answers_head_is_passed_on_without_what_is_ours():
    r = ResponseReader()
    r.feed(
        b"HTTP/1.1 200 OK\r\nConnection: close, X-Inner\r\nX-Inner: 1\r\nContent-Length: 4\r\n"
        b"Vary: Origin\r\nX-Request-ID: a\r\n\r\nabcd"
    )
    assert (r.sized, r.events, r.hops) == (True, False, True)
    got = answer_head(r, b"r", None, True)
    assert got == b"HTTP/1.1 200 OK\r\nx-request-id: r\r\nContent-Length: 4\r\nVary: Origin\r\n\r\n"
    got = answer_head(r, b"r", b"\r\ntransfer-encoding: chunked", False)
    lines = b"x-request-id: r\r\nconnection: close\r\ntransfer-encoding: chunked\r\nVary: Origin\r\n\r\n"
    assert got == b"HTTP/1.1 200 OK\r\n" + lines


def test_only_the_listed_fields_of_a_request_are_kept_for_the_engine():
    r = reader()
    r.feed(request_bytes(headers={"Accept": "a", "Accept-Encoding": "gzip", "X-Accept": "b", "ACCEPT": "c"}))
    assert r.fields == b"\r\nContent-Type: application/json\r\nAccept: a\r\nACCEPT: c"
