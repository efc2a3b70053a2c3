"""Sixty-six requests that try to make two HTTP parsers disagree, or to reach what an edge must not serve.

In: nothing. Out: `CORPUS`, name -> (bytes, kind). `REJECT`: an error or a closed connection, and no engine sees any of
it. `ACCEPT`: may be served; an engine then sees exactly the one request that was meant. `TRAVERSE`: a spelling of a
path that engines know and clients must not reach. Bodies are real requests, so that whatever is let through is seen.
"""

from __future__ import annotations

from typing import Final

REJECT, ACCEPT, TRAVERSE = "reject", "accept", "traverse"

BODY: Final = b'{"model":"m","messages":[]}'
SIZE: Final = len(BODY)
SMUGGLED_BODY: Final = b'{"model":"m","user":"smuggled"}'
# What follows the request that a front end believes in; an engine must see neither.
HIDDEN: Final = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED_BODY) + SMUGGLED_BODY
)
ADMIN: Final = b"GET /collective_rpc HTTP/1.1\r\nHost: x\r\n\r\n"

_POST: Final = b"POST /v1/chat/completions HTTP/1.1\r\n"
_HOST: Final = b"Host: x\r\n"
_TYPE: Final = b"Content-Type: application/json\r\n"
_END: Final = b"\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
_LENGTH: Final = b"Content-Length: %d\r\n" % SIZE
_CHUNKS: Final = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY)


def _post(fields: bytes, body: bytes = BODY) -> bytes:
    return _POST + _HOST + fields + _END + body


def _sized(value: bytes, body: bytes = BODY) -> bytes:
    return _post(b"Content-Length: %b\r\n" % value, body)


def _chunks(body: bytes) -> bytes:
    return _post(_CHUNKED, body)


def _get(target: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\n" % target + _HOST + _END


CORPUS: Final[dict[str, tuple[bytes, str]]] = {
    # two framings, or one that is not quite one
    "length and chunked, hidden after": (
        _post(_TYPE + b"Content-Length: %d\r\n" % (5 + len(HIDDEN)) + _CHUNKED, b"0\r\n\r\n" + HIDDEN),
        REJECT,
    ),
    "length and chunked, hidden inside": (
        _post(_TYPE + b"Content-Length: 4\r\n" + _CHUNKED, b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)),
        REJECT,
    ),
    "two codings, the last identity": (
        _post(_CHUNKED + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n" + HIDDEN),
        REJECT,
    ),
    "xchunked": (_post(b"Transfer-Encoding: xchunked\r\n", _CHUNKS), REJECT),
    "chunked behind a tab, and a length": (_post(b"Transfer-Encoding:\tchunked\r\n" + _LENGTH, _CHUNKS), REJECT),
    "chunked behind a vertical tab": (_post(b"Transfer-Encoding: \x0bchunked\r\n" + _LENGTH, _CHUNKS), REJECT),
    "a space before the colon": (_post(b"Transfer-Encoding : chunked\r\n" + _LENGTH, _CHUNKS), REJECT),
    "chunked in a folded line": (_post(b"X: y\r\n Transfer-Encoding: chunked\r\n" + _LENGTH), REJECT),
    "chunked behind a bare CR": (_post(b"X-A: \rTransfer-Encoding: chunked\r\n" + _LENGTH), REJECT),
    "chunked behind a bare LF": (_post(b"X-A: y\nTransfer-Encoding: chunked\r\n" + _LENGTH, _CHUNKS), REJECT),
    "gzip, chunked": (_post(b"Transfer-Encoding: gzip, chunked\r\n", _CHUNKS), REJECT),
    "chunked, chunked": (_post(b"Transfer-Encoding: chunked, chunked\r\n", _CHUNKS), REJECT),
    "chunked in HTTP/1.0": (
        b"POST /v1/chat/completions HTTP/1.0\r\n" + _CHUNKED + _LENGTH + _END + _CHUNKS,
        REJECT,
    ),
    "two lengths": (_post(_LENGTH + b"Content-Length: %d\r\n" % (SIZE + 1), BODY + b"x"), REJECT),
    "a list of lengths": (_sized(b"%d, %d" % (SIZE, SIZE + 1), BODY + b"x"), REJECT),
    "a length with a plus": (_sized(b"+%d" % SIZE), REJECT),
    "a negative length": (_sized(b"-1"), REJECT),
    "a hexadecimal length": (_sized(b"0x%x" % SIZE), REJECT),
    "a length with an underscore": (_sized(b"2_7"), REJECT),
    "a huge length": (_sized(b"99999999999999999999999"), REJECT),
    "a length with a space": (_sized(b"2 7"), REJECT),
    # chunks
    "a negative chunk": (_chunks(b"-1\r\n%b\r\n0\r\n\r\n" % BODY), REJECT),
    "a chunk size with 0x": (_chunks(b"0x%x\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY)), REJECT),
    "a chunk size with an underscore": (_chunks(b"0_%x\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY)), REJECT),
    "a huge chunk": (_chunks(b"ffffffffffffffffff\r\n%b\r\n0\r\n\r\n" % BODY), REJECT),
    "a chunk longer than it says": (_chunks(b"%x\r\n%bXX0\r\n\r\n" % (SIZE, BODY)), REJECT),
    "chunks ended by LF": (_chunks(b"%x\n%b\n0\n\n" % (SIZE, BODY)), REJECT),
    "LF in a chunk extension": (_chunks(b"%x;a\nb\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY)), REJECT),
    "a chunk extension of 70 KB": (_chunks(b"%x;%b\r\n%b\r\n0\r\n\r\n" % (SIZE, b"a" * 70_000, BODY)), REJECT),
    "a length as trailer": (_chunks(b"%x\r\n%b\r\n0\r\nContent-Length: 50\r\n\r\n" % (SIZE, BODY)), ACCEPT),
    # fields
    "NUL in a value": (_post(b"X: a\x00b\r\n" + _LENGTH), REJECT),
    "bare CR in a value": (_post(b"X: a\rb\r\n" + _LENGTH), REJECT),
    "a field without colon": (_post(b"Foo\r\n" + _LENGTH), REJECT),
    "a field without name": (_post(b": x\r\n" + _LENGTH), REJECT),
    "an underscore for a dash": (_post(b"Content_Length: 9\r\n" + _LENGTH), ACCEPT),
    "a name that is no token": (_post(b"X(y): z\r\n" + _LENGTH), REJECT),
    "no host": (_POST + _LENGTH + _END + BODY, REJECT),
    "two hosts": (_post(b"Host: y\r\n" + _LENGTH), REJECT),
    "a host with a space": (_POST + b"Host: a b\r\n" + _LENGTH + _END + BODY, REJECT),
    "an absolute target of another host": (
        b"POST http://evil/v1/chat/completions HTTP/1.1\r\n" + _HOST + _LENGTH + _END + BODY,
        ACCEPT,
    ),
    # request lines
    "a lower-case method": (b"post /v1/chat/completions HTTP/1.1\r\n" + _HOST + _LENGTH + _END + BODY, REJECT),
    "a method that is no token": (b"P@ST /v1/chat/completions HTTP/1.1\r\n" + _HOST + _END, REJECT),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n" + _HOST + _END, REJECT),
    "HTTP/1.1x": (b"GET / HTTP/1.1x\r\n" + _HOST + _END, REJECT),
    "a space in the target": (_get(b"/a b"), REJECT),
    "NUL in the target": (_get(b"/a\x00"), REJECT),
    "CR LF in the target, encoded": (_get(b"/a%0d%0aX:y"), ACCEPT),
    # paths that engines know
    "dot dot": (_get(b"/v1/../collective_rpc"), TRAVERSE),
    "dot dot, encoded": (_get(b"/v1/%2e%2e/collective_rpc"), TRAVERSE),
    "a slash, encoded": (_get(b"/v1/..%2fcollective_rpc"), TRAVERSE),
    "two slashes": (_get(b"//collective_rpc"), TRAVERSE),
    "backslashes": (_get(b"/v1\\..\\collective_rpc"), TRAVERSE),
    "a parameter": (_get(b"/v1;/../collective_rpc"), TRAVERSE),
    "capitals": (_get(b"/COLLECTIVE_RPC"), TRAVERSE),
    "a slash at the end": (_get(b"/collective_rpc/"), TRAVERSE),
    "a letter, encoded": (_get(b"/%63ollective_rpc"), TRAVERSE),
    # sizes
    "a value of 200 KB": (_post(b"X: " + b"a" * 200_000 + _END + _LENGTH), REJECT),
    "5000 fields": (_post(b"".join(b"X%d: y\r\n" % i for i in range(5000)) + _LENGTH), REJECT),
    "a target of 200 KB": (_get(b"/" + b"a" * 200_000), REJECT),
    # what asks for something else than an answer
    "an expectation": (_post(b"Expect: 100-continue\r\n" + _LENGTH), ACCEPT),
    "an unknown expectation": (_post(b"Expect: foo\r\n" + _LENGTH), ACCEPT),
    "an upgrade to h2c": (
        _post(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + _LENGTH),
        ACCEPT,
    ),
    "a length named hop-by-hop": (_post(b"Connection: close, Content-Length\r\n" + _LENGTH), ACCEPT),
    "a GET with a body": (
        b"GET /v1/models HTTP/1.1\r\n" + _HOST + b"Content-Length: %d\r\n\r\n" % len(ADMIN) + ADMIN,
        ACCEPT,
    ),
    # nothing wrong at all
    "plain": (_post(_TYPE + _LENGTH), ACCEPT),
    "plain, chunked": (_post(_TYPE + _CHUNKED, _CHUNKS), ACCEPT),
}
