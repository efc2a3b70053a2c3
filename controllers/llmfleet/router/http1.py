"""HTTP/1.1 as the router writes it, and what both readers of it share.

In: methods, fields, ids, bodies. Out: bytes of heads and chunks. `request.py` and `response.py` read.
It never waits, reads a clock or owns a socket.
"""

from __future__ import annotations

from typing import Final

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
JSON: Final = b"application/json"

PHRASES: Final = {
    200: b"OK",
    202: b"Accepted",
    303: b"See Other",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    410: b"Gone",
    413: b"Content Too Large",
    414: b"URI Too Long",
    417: b"Expectation Failed",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    529: b"Site Is Overloaded",
}


class BadMessage(Exception):
    """Bytes that must not be acted on; `status` is what a client is told."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Surplus(Exception):
    """Raised inside the parser when a second message begins: it stops there."""


def request_head(path: bytes, host: bytes, fields: bytes, request_id: bytes, length: int) -> bytes:
    """Write the head an engine gets: the client's is never forwarded, only the fields allowed from it."""
    return b"POST %b HTTP/1.1\r\nhost: %b%b\r\nx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
        path,
        host,
        fields,
        request_id,
        length,
    )


def stream_head(request_id: bytes, framing: bytes, keep_alive: bool) -> bytes:
    """Write the head of a stream of our own, before an engine was found for it."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
        b"x-request-id: %b%b%b\r\n\r\n" % (request_id, b"" if keep_alive else b"\r\nconnection: close", framing)
    )


def reply(
    status: int,
    body: bytes,
    *,
    request_id: bytes,
    keep_alive: bool,
    extra: bytes = b"",
    with_body: bool = True,
    content_type: bytes = JSON,
) -> bytes:
    """Write a whole answer of the router's own; `extra` is further header lines, each ended by CR LF."""
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\nx-request-id: %b\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
        status,
        PHRASES.get(status, b"Status"),
        content_type,
        request_id,
        b"" if keep_alive else b"connection: close\r\n",
        extra,
        len(body),
        body if with_body else b"",
    )


def chunk(payload: bytes) -> bytes:
    """Frame bytes as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)
