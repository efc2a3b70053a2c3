"""A second HTTP parser, stricter than any engine's: what reaches it says whether the router can be desynchronised.

In: bytes of engine connections. Out: `Recorder.requests`, and `Recorder.faults` for every byte that is not exactly what
the router writes: one shape of head, one length, one body, and nothing between two requests. It shares no code with the
router's parser.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import Any

from bed import Raw
from click.testing import CliRunner
from engine import UNARY, json_answer

from llmfleet.cli import main

LINE = re.compile(rb"POST (/v1/[a-z_/]+) HTTP/1\.1")
HEALTH = re.compile(
    rb"GET /health HTTP/1\.1\r\nhost: [0-9.:]+\r\nconnection: close\r\n\r\n"
)  # the router's own question
FIELD = re.compile(rb"([A-Za-z][A-Za-z0-9-]*):([\t\x20-\x7e\x80-\xff]*)")
PATHS = {
    b"/v1/chat/completions",
    b"/v1/completions",
    b"/v1/embeddings",
    b"/v1/responses",
    b"/v1/messages",
    b"/v1/messages/count_tokens",
}
FIELDS = {
    "accept",
    "anthropic-beta",
    "anthropic-version",
    "authorization",
    "content-length",
    "content-type",
    "host",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-request-id",
}
ONCE = ("host", "content-length", "x-request-id")


class Recorder:
    """Engines' side: answers whatever it understands, and remembers what it does not."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes]] = []  # path and body
        self.faults: list[str] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024, limit=1 << 26)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as end:
            if end.partial:
                self.faults.append(f"half a head: {end.partial[:200]!r}")
            return False
        if HEALTH.fullmatch(head):
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            return False
        length = self._judge(head)
        if length is None:
            return False
        body = await reader.readexactly(length)
        self._judge_body(body)
        if reader._buffer:  # type: ignore[attr-defined]
            self.faults.append(f"bytes behind a request: {bytes(reader._buffer)[:200]!r}")  # type: ignore[attr-defined]
            return False
        found = LINE.match(head)
        self.requests.append((found[1] if found else b"", body))
        writer.write(json_answer(200, UNARY))
        await writer.drain()
        return True

    def _judge(self, head: bytes) -> int | None:
        first, *lines = head[:-4].split(b"\r\n")
        line = LINE.fullmatch(first)
        names: list[str] = []
        length = None
        for raw in lines:
            field = FIELD.fullmatch(raw)
            if field is None:
                self.faults.append(f"not a field: {raw[:200]!r}")
                return None
            names.append(field[1].decode().lower())
            if names[-1] == "content-length":
                value = field[2].removeprefix(b" ")
                length = int(value) if re.fullmatch(rb"0|[1-9][0-9]{0,9}", value) else None
        if line is None or line[1] not in PATHS or not set(names) <= FIELDS or b"\n" in head.replace(b"\r\n", b""):
            self.faults.append(f"not a request of the router's: {head[:300]!r}")
            return None
        if any(names.count(name) != 1 for name in ONCE) or length is None:
            self.faults.append(f"not exactly one of {ONCE}: {head[:300]!r}")
            return None
        return length

    def _judge_body(self, body: bytes) -> None:
        """Read as Python's parser, which is what engines use."""
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            self.faults.append(f"not JSON ({error}): {body[:200]!r}")
            return
        if not isinstance(document, dict) or document.get("model") != "m":
            self.faults.append(f"not for this model: {body[:200]!r}")
        for name in ("kv_transfer_params", "ec_transfer_params", "cache_salt", "priority", "request_id", "vllm_xargs"):
            if name in document:
                self.faults.append(f"{name} reached an engine: {body[:200]!r}")


class Edge:
    """A router process of its own in front of a recorder."""

    def __init__(self, settings: str = "") -> None:
        self._settings = settings
        self.recorder = Recorder()

    async def __aenter__(self) -> Edge:
        await self.recorder.start()
        self._directory = tempfile.TemporaryDirectory()
        backends, settings, self._log = (os.path.join(self._directory.name, n) for n in ("b.json", "s.yaml", "log"))
        made = CliRunner().invoke(main, ["backends", "--model", f"m=http://{self.recorder.address}"])
        for path, text in ((backends, made.stdout), (settings, self._settings)):
            with open(path, "w") as file:
                file.write(text)
        command = [sys.executable, "-m", "llmfleet", "router", "--settings", settings, "--backends", backends]
        with open(self._log, "wb") as log, open(os.path.join(self._directory.name, "access"), "wb") as access:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", "0", "--admin-port", "0"], stdout=access, stderr=log
            )
        self.port = await self._port()
        return self

    async def _port(self) -> int:
        for _ in range(3000):
            for line in self.log().splitlines():
                if '"listening"' in line:
                    return int(json.loads(line)["port"])
            await asyncio.sleep(0.01)
        raise AssertionError(f"the router did not start: {self.log()}")

    async def __aexit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.recorder.stop()
        self._directory.cleanup()

    def log(self) -> str:
        with open(self._log) as file:
            return file.read()

    def access(self) -> list[dict[str, Any]]:
        with open(os.path.join(self._directory.name, "access"), "rb") as file:
            return [json.loads(line) for line in file.read().splitlines()]

    def rss(self) -> int:
        """Resident memory of the process in bytes."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def client(self) -> Raw:
        return Raw(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24))
