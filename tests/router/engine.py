"""An engine that misbehaves on command: a loopback HTTP server whose answers are small async functions.

In: `engine.behave`, one behaviour for every request, or `engine.script`, one per request in order. Out: raw bytes,
cuts, resets and silences, and a record of what arrived. It frames everything itself, so that it can be wrong.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 20:00:14 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"


@dataclass
class Request:
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) <= 1, f"{name} was sent {len(found)} times"
        return found[0] if found else None

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


Behaviour = Callable[["Connection", Request], Awaitable[None]]


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    keep: bool = True

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    def cut(self) -> None:
        """End the connection cleanly (FIN), wherever the answer is."""
        self.keep = False
        self.writer.close()

    def reset(self) -> None:
        """End the connection by RST."""
        self.keep = False
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Engine:
    behave: Behaviour
    script: list[Behaviour] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    active: int = 0
    max_active: int = 0
    aborted: int = 0
    port: int = 0
    health: int = 200  # what GET /health answers; 0 is silence
    checks: int = 0

    async def start(self) -> None:
        self._open: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Stop listening and reset every open connection, as a killed process does."""
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    def close_idle(self) -> None:
        for writer in list(self._open):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        connection = Connection(reader, writer)
        try:
            while connection.keep and (request := await read_request(reader)) is not None:
                if request.path == "/health":
                    await self._health(connection)
                    continue
                self.requests.append(request)
                await self._answer(connection, request)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            with suppress(Exception):
                writer.close()

    async def _health(self, connection: Connection) -> None:
        self.checks += 1
        self.connections -= 1  # counted are those that carry requests
        connection.keep = False
        if not self.health:
            await asyncio.sleep(3600)
        await connection.send(json_answer(self.health, {}))

    async def _answer(self, connection: Connection, request: Request) -> None:
        behave = self.script.pop(0) if self.script else self.behave
        self.active += 1
        self.max_active = max(self.max_active, self.active)
        work = asyncio.ensure_future(behave(connection, request))
        gone = asyncio.ensure_future(watch_for_end(connection.reader))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.aborted += 1
                connection.keep = False
                work.cancel()
            elif work.exception() is not None:
                connection.keep = False
                if isinstance(work.exception(), ConnectionError):
                    self.aborted += 1
                else:
                    raise work.exception()  # type: ignore[misc]
        finally:
            self.active -= 1
            gone.cancel()
            with suppress(BaseException):
                await gone


async def watch_for_end(reader: asyncio.StreamReader) -> None:
    """Return when the peer closed; a next request's bytes are left in the buffer."""
    while not reader.at_eof():
        if reader._buffer:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
            continue
        await reader._wait_for_data("watch")  # type: ignore[attr-defined]


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = [(line.split(":", 1)[0], line.split(":", 1)[1].strip()) for line in lines]
    length = sum(int(value) for key, value in headers if key.lower() == "content-length")
    return Request(method, path, headers, await reader.readexactly(length))


# ---- what events look like ----


def chat_event(text: str | None = "x", *, index: int = 0, finish: str | None = None, role: bool = False) -> bytes:
    delta: dict[str, Any] = {"role": "assistant", "content": ""} if role else {} if text is None else {"content": text}
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def text_event(text: str = "x", *, index: int = 0, finish: str | None = None) -> bytes:
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
    body = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def error_event(code: int = 500) -> bytes:
    error = {"message": "EngineCore encountered an issue", "type": "InternalServerError", "param": None, "code": code}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def chat_events(tokens: int = 3) -> list[bytes]:
    return [chat_event(role=True), *(chat_event(f"t{i}") for i in range(tokens)), chat_event(None, finish="stop")]


UNARY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def json_answer(status: int, body: object, extra: bytes = b"") -> bytes:
    data = json.dumps(body).encode()
    head = b"HTTP/1.1 %d X\r\nserver: uvicorn\r\n%bcontent-length: %d\r\ncontent-type: application/json\r\n\r\n"
    return head % (status, extra, len(data)) + data


# ---- behaviours ----


def ok(tokens: int = 3, *, delay: float = 0.0, gap: float = 0.0) -> Behaviour:
    """Answer as an engine should: a stream if asked for one."""

    async def behave(connection: Connection, request: Request) -> None:
        if delay:
            await asyncio.sleep(delay)
        if not request.json.get("stream"):
            await connection.send(json_answer(200, UNARY))
            return
        await connection.send(SSE_HEAD)
        for event in chat_events(tokens):
            await connection.chunk(event)
            if gap:
                await asyncio.sleep(gap)
        await connection.chunk(DONE)
        await connection.end()

    return behave


def status(code: int, body: object | None = None) -> Behaviour:
    async def behave(connection: Connection, request: Request) -> None:
        error = {"error": {"message": "no", "type": "InternalServerError", "param": None, "code": code}}
        await connection.send(json_answer(code, error if body is None else body))

    return behave


def play(*pieces: bytes, then: str = "keep", gap: float = 0.0) -> Behaviour:
    """Send raw pieces, then keep the connection, cut it, reset it or hang."""

    async def behave(connection: Connection, request: Request) -> None:
        for piece in pieces:
            await connection.send(piece)
            await asyncio.sleep(gap)
        if then == "cut":
            connection.cut()
        elif then == "reset":
            connection.reset()
        elif then == "hang":
            await asyncio.sleep(3600)

    return behave


def events(*items: bytes, end: bool = True, then: str = "keep", gap: float = 0.0) -> Behaviour:
    """Send events, one chunk each, with or without the terminating chunk."""
    pieces = [SSE_HEAD, *(b"%x\r\n%b\r\n" % (len(item), item) for item in items)]
    return play(*pieces, *([b"0\r\n\r\n"] if end else []), then=then, gap=gap)


def endless(gap: float = 0.01, size: int = 1) -> Behaviour:
    """Stream for ever."""

    async def behave(connection: Connection, request: Request) -> None:
        await connection.send(SSE_HEAD)
        while True:
            await connection.chunk(chat_event("y" * size))
            await asyncio.sleep(gap)

    return behave


def silent() -> Behaviour:
    """Take the request and never answer."""
    return play(then="hang")


def drop() -> Behaviour:
    """Take the request and close."""
    return play(then="cut")


def trickle(data: bytes) -> Behaviour:
    """Send an answer one byte at a time."""

    async def behave(connection: Connection, request: Request) -> None:
        for i in range(len(data)):
            await connection.send(data[i : i + 1])
            if i % 16 == 0:
                await asyncio.sleep(0)

    return behave
