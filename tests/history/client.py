"""Clients that write down exactly what they saw.

In: a port, a `Wish`. Out: one `Call`. A client never retries, never reuses a connection and reads to the end of the
framing, so that how an answer ended is known and not guessed.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from history.fake_engine import POISON
from history.records import FIN, GARBLED, HUNG, LEFT, NOTHING, RESET, TERMINAL, UNREACHABLE, WHOLE, Call, Sighting

PIECE = re.compile(r"(e\d+):(\d+) ")
RST = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a client asks for and how it behaves."""

    tag: str
    stream: bool
    pieces: int
    gap: float
    fates: tuple[str, str]
    leave_after: float | None = None  # seconds until the client goes away
    leave_how: str = "close"  # close, reset or half-close
    slow: float = 0.0  # pause between reads
    poisoned: bool = False
    background: bool = False  # ask for a job


def request_of(wish: Wish) -> bytes:
    prompt = {"tag": wish.tag, "pieces": wish.pieces, "gap": wish.gap, "fates": wish.fates}
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": json.dumps(prompt)}]}
    if wish.stream:
        body["stream"] = True
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: router", "Content-Type: application/json"]
    if wish.poisoned:
        body |= {"kv_transfer_params": {"remote_host": POISON}, "cache_salt": POISON, "request_id": POISON}
        body |= {"priority": -9, "x_unheard_of": POISON}
        head += [f"X-Request-Id: {POISON}", f"X-Data-Parallel-Rank: {POISON}"]
    if wish.background:
        head.append("Prefer: respond-async")
    data = json.dumps(body).encode()
    return "\r\n".join([*head, f"Content-Length: {len(data)}", "Connection: close", "", ""]).encode() + data


async def call(port: int, router: str, wish: Wish, patience: float) -> Call:
    """Make one request; leave early if the wish says so."""
    began = time.monotonic()
    seen = Seen(
        Call(
            tag=wish.tag,
            began=began,
            ended=began,
            how=NOTHING,
            stream=wish.stream,
            asked=wish.pieces,
            router=router,
        )
    )
    limit = wish.leave_after if wish.leave_after is not None else patience
    try:
        async with asyncio.timeout(limit):
            how = await seen.run(port, wish)
    except TimeoutError:
        how = LEFT if wish.leave_after is not None else HUNG
        seen.leave(wish.leave_how)
    finally:
        ended = time.monotonic()
        seen.close()
    return seen.result(how, ended)


class Seen:
    """What has come so far."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._text = b""
        self._head: dict[str, str] = {}
        self._status = 0
        self._first = 0.0
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, port: int, wish: Wish) -> str:
        try:
            reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return UNREACHABLE
        try:
            self._writer.write(request_of(wish))
            await self._writer.drain()
            return await self._read(reader, wish.slow)
        except asyncio.IncompleteReadError as error:
            self._take(error.partial)
            return FIN if self._status else NOTHING
        except (ConnectionError, RuntimeError):  # uvloop refuses to write to what was reset meanwhile
            return RESET if self._status else NOTHING
        except (ValueError, LookupError):
            return GARBLED

    async def _read(self, reader: asyncio.StreamReader, slow: float) -> str:
        raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self._status = int(raw[0].split(" ")[1])
        self._head = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in raw[1:] if ":" in line}
        if "content-length" in self._head:
            self._text = await reader.readexactly(int(self._head["content-length"]))
            return WHOLE
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            self._take((await reader.readexactly(size + 2))[:-2])
            if slow:
                await asyncio.sleep(slow)
        await reader.readexactly(2)
        return WHOLE

    def _take(self, data: bytes) -> None:
        self._text += data
        if not self._first and PIECE.search(self._text.decode("latin-1")):
            self._first = time.monotonic()

    def leave(self, how: str) -> None:
        if self._writer is None or self._writer.transport.is_closing():
            return
        if how == "reset":
            with suppress(OSError):
                self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            self._writer.transport.abort()
        elif how == "half-close" and self._writer.can_write_eof():
            self._writer.write_eof()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def result(self, how: str, ended: float) -> Call:
        text = self._text.decode("latin-1")
        pieces = tuple((engine, int(index)) for engine, index in PIECE.findall(text))
        finished = '"finish_reason":"stop"' in text.replace(": ", ":")
        if self._status == 200:
            finished = finished and (text.rstrip().endswith("data: [DONE]") if self._call.stream else _is_json(text))
        return replace(
            self._call,
            ended=ended,
            how=how,
            status=self._status,
            pieces=pieces,
            finished=finished,
            error=_error(text, self._status),
            first=self._first,
            request_id=self._head.get("x-request-id", ""),
            job=self._job(text),
        )

    def _job(self, text: str) -> str:
        if self._status != 202:
            return ""
        return self._head.get("location", "").rstrip("/").rsplit("/", 1)[-1]


def _is_json(text: str) -> bool:
    with suppress(ValueError):
        return isinstance(json.loads(text), dict)
    return False


def _error(text: str, status: int) -> str:
    """Return the code of an error body or of an error event, or nothing."""
    if status >= 400:
        with suppress(ValueError, KeyError, TypeError):
            return str(json.loads(text)["error"].get("code") or status)
        return str(status)
    for event in text.split("\n\n"):
        line = next((line for line in event.split("\n") if line.startswith("data: ")), "")
        if '"error"' in line:
            with suppress(ValueError, KeyError, TypeError):
                return str(json.loads(line[6:])["error"].get("code") or "error")
    return ""


async def fetch(port: int, method: str, path: str) -> tuple[int, bytes]:
    """Return status and body of one request without a body of its own; 0 if there was no whole answer."""
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"{method} {path} HTTP/1.0\r\nHost: router\r\n\r\n".encode())
            raw = await reader.read()
            writer.close()
    except (OSError, RuntimeError, TimeoutError):
        return 0, b""
    head, _, body = raw.partition(b"\r\n\r\n")
    return (int(head.split(b" ")[1]) if head.startswith(b"HTTP/1.") else 0), body


async def follow(port: Callable[[], int], call: Call, *, cancel: bool, seconds: float) -> list[Sighting]:
    """Ask for an accepted job until it has ended, and once more after that; `port` is of a router that is there now."""
    path, seen, after = f"/v1/requests/{call.job}", list[Sighting](), 2
    end = time.monotonic() + seconds
    if cancel:
        await fetch(port(), "DELETE", path)
    while after and time.monotonic() < end:
        status, body = await fetch(port(), "GET", path)
        if status == 200:
            state = str(json.loads(body)["status"])
            at = time.monotonic()
            result, whole = await _result(port(), path, call) if state == "complete" else (200, False)
            if result == 200:  # a store that is away now is asked again
                seen.append(Sighting(job=call.job, at=at, state=state, whole=whole))
                after -= state in TERMINAL
        await asyncio.sleep(2.0)
    return seen


async def _result(port: int, path: str, call: Call) -> tuple[int, bool]:
    """Return the status of a job's result, and whether that is the whole answer."""
    status, body = await fetch(port, "GET", path + "/result")
    text = body.decode("latin-1")
    pieces = [int(index) for _, index in PIECE.findall(text)]
    ended = text.rstrip().endswith("data: [DONE]") if call.stream else _is_json(text)
    return status, ended and pieces == list(range(call.asked))
