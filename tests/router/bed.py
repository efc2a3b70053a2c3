"""A router and its engines in one process on loopback, and a raw client that sees every byte.

In: settings and behaviours. Out: `Bed`, with the live router to look into and helpers to talk to it. Engines are named
e0, e1, ... and serve the model `m`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import uvloop
from engine import Behaviour, Engine, ok

from llmfleet.api.document import Document, Endpoint, Model, Peer, State, render, with_generation
from llmfleet.router.app import App, Listen
from llmfleet.router.limits import parse_settings
from llmfleet.router.policy import Origin
from llmfleet.router.relay import Exchange

SCENARIO_SECONDS = 400


def scenario(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on uvloop, as the router runs; a hang is a failure."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(SCENARIO_SECONDS):
                await test(*args, **kwargs)

        uvloop.run(bounded())

    return run


def endpoint(engine: Engine, name: str, **changes: Any) -> Endpoint:
    return Endpoint(instance=name, address=engine.address, pod_uid=f"uid-{name}", **changes)


class Bed:
    def __init__(
        self,
        *behaviours: Behaviour,
        settings: dict[str, Any] | None = None,
        slots: int = 256,
        tenants: dict[str, Any] | None = None,
    ) -> None:
        self.engines = [Engine(behave=b) for b in behaviours or (ok(),)]
        self._settings = parse_settings(settings)
        self.slots = slots
        self.peers: tuple[Peer, ...] = ()
        self._tenants = tenants  # what a keys file says; None: there is no such file
        self._generation = 0

    async def __aenter__(self) -> Bed:
        self._directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self._directory.name, "backends.json")
        for engine in self.engines:
            await engine.start()
        self.publish()
        listen = Listen(host="127.0.0.1", port=0, admin_port=0)
        keys = os.path.join(self._directory.name, "keys.yaml") if self._tenants is not None else None
        if keys is not None:
            self.keys = keys
            self.replace(json.dumps({"tenants": self._tenants}).encode(), keys)
        self._access_log = open(os.path.join(self._directory.name, "access.log"), "w+b")  # noqa: SIM115
        self.app = App(
            settings=self._settings,
            backends=self.path,
            listen=listen,
            pod="router-0",
            wall_clock=time.time,
            keys=keys,
            access_log=self._access_log.fileno(),
        )
        await self.app.start()
        self.router = self.app.router
        self.port = self.app.port
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.app.close()
        for engine in self.engines:
            await engine.stop()
        self._access_log.close()
        self._directory.cleanup()

    def publish(self, **changes: dict[str, Any]) -> int:
        """Write a document with all engines; `e1={"state": State.DRAINING}` changes one, `e1=None` leaves it out."""
        endpoints = tuple(
            endpoint(engine, f"e{i}", **({"slots": self.slots} | changes.get(f"e{i}", {})))
            for i, engine in enumerate(self.engines)
            if changes.get(f"e{i}", {}) is not None
        )
        document = Document(models={"m": Model(endpoints=endpoints)}, peers=self.peers)
        document = with_generation(document, previous=self._generation, now_ms=int(time.time() * 1000))
        self._generation = document.generation
        self.replace(render(document))
        return document.generation

    def replace(self, data: bytes, path: str | None = None) -> None:
        """Replace the file as route-sync does: a new inode, moved into place."""
        path = path or self.path
        with open(path + ".new", "wb") as file:
            file.write(data)
        os.rename(path + ".new", path)

    async def access_log(self, lines: int = 1) -> list[dict[str, Any]]:
        """Return the lines of the access log, once there are so many."""
        path = os.path.join(self._directory.name, "access.log")

        def found() -> list[bytes]:
            with open(path, "rb") as file:
                return file.read().splitlines()

        await self.until(lambda: len(found()) >= lines, f"{lines} lines in the access log")
        return [json.loads(line) for line in found()]

    async def until(self, condition: Callable[[], bool], what: str = "the condition") -> None:
        for _ in range(12000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{what} did not come true in 120 s")

    async def adopted(self, generation: int) -> None:
        await self.until(lambda: self.router.fleet.generation == generation, "the new document")

    def in_flight(self) -> int:
        return sum(b.in_flight for b in self.router.fleet.backends.values())

    def counter(self, name: str, model: str = "m") -> dict[Any, int]:
        return dict(getattr(self.router.metrics.model(model), name))

    async def client(self) -> Raw:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        return Raw(reader, writer)

    async def ask(self, body: dict[str, Any] | bytes | None = None, **kwargs: Any) -> Answer:
        """One request on a connection of its own."""
        client = await self.client()
        try:
            await client.send(body, **kwargs)
            return await client.answer()
        finally:
            client.writer.close()

    async def admin(self, path: str, method: str = "GET") -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.app.admin_port)
        writer.write(f"{method} {path} HTTP/1.0\r\nHost: a\r\n\r\n".encode())
        data = await reader.read()
        writer.close()
        return data.partition(b"\r\n\r\n")[2]


class Remade:
    """Stands where a tracer would: requests are exchanges of a kind that a test makes, in a compiled router too."""

    def __init__(self, remake: Callable[[type[Exchange]], type[Exchange]]) -> None:
        self.remake = remake

    def adopt(self, kind: type[Exchange], origin: Origin, head: bytes) -> tuple[type[Exchange], Origin]:
        return self.remake(kind), origin


CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = CHAT | {"stream": True}


def request_bytes(
    body: dict[str, Any] | bytes | None = None,
    *,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: dict[str, str] | None = None,
    version: str = "1.1",
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(CHAT if body is None else body).encode()
    if method == "GET":
        data = b""
    lines = {"Host": "router", "Content-Type": "application/json"} | (headers or {})
    if method != "GET" and "Transfer-Encoding" not in lines:
        lines.setdefault("Content-Length", str(len(data)))
    head = f"{method} {path} HTTP/{version}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    return head.encode() + data


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    ended: str  # "whole", "eof" or "reset"

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]

    @property
    def events(self) -> list[bytes]:
        return [event + b"\n\n" for event in self.body.split(b"\n\n") if event.strip()]


class Raw:
    """A client connection that reports how an answer ended instead of raising."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, body: dict[str, Any] | bytes | None = None, **kwargs: Any) -> None:
        self.writer.write(request_bytes(body, **kwargs))
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        headers: dict[str, str] = {}
        for line in lines:
            key, _, value = line.partition(":")
            assert key.lower() not in headers, f"{key} twice"
            headers[key.lower()] = value.strip()
        return int(first.split(" ")[1]), headers

    async def chunk(self) -> bytes:
        size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
        data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def answer(self) -> Answer:
        status, headers = await self.head()
        body = b""
        if status < 200:  # the final answer is still to come
            return Answer(status, headers, body, "whole")
        try:
            if "content-length" in headers:
                while len(body) < int(headers["content-length"]):
                    piece = await self.reader.read(int(headers["content-length"]) - len(body))
                    if not piece:
                        return Answer(status, headers, body, "eof")
                    body += piece
                return Answer(status, headers, body, "whole")
            if headers.get("transfer-encoding") == "chunked":
                while piece := await self.chunk():
                    body += piece
                return Answer(status, headers, body, "whole")
            while piece := await self.reader.read(65536):
                body += piece
        except asyncio.IncompleteReadError:
            return Answer(status, headers, body, "eof")
        except ConnectionResetError:
            return Answer(status, headers, body, "reset")
        return Answer(status, headers, body, "eof")

    async def closed(self) -> bool:
        """Whether the router closes the connection, now or soon."""
        try:
            async with asyncio.timeout(30):
                while await self.reader.read(65536):
                    pass
        except (TimeoutError, ConnectionResetError) as error:
            return isinstance(error, ConnectionResetError)
        return True


__all__ = ["CHAT", "STREAM", "Answer", "Bed", "Raw", "State", "request_bytes", "scenario"]
