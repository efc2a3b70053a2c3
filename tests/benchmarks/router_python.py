"""Measure what of a request's cost is the router's own code: no sockets, no kernel, one process.

    python tests/benchmarks/router_python.py [--repeat N] [--profile KIND]

In: nothing. Out: microseconds of CPU per request, or per event of a stream, the least of all repetitions. Clients and
engine connections are real, their transports only collect what is written. Compare two commits by running each in its
own worktree, in turn: a busy machine makes single runs worthless, and the least of many still means something.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import time
from typing import Any

import uvloop

from llmfleet.api.document import Document, Endpoint, Model, parse_document, render, with_generation
from llmfleet.router.client import Upstream
from llmfleet.router.clients.proxy import Client
from llmfleet.router.keys import hashed, parse_keys
from llmfleet.router.limits import DEFAULT_CLASS, parse_settings
from llmfleet.router.proxy import Router
from llmfleet.router.usage import line, rfc3339
from llmfleet.telemetry import RouterMetrics

KINDS = {
    "parity": "unary, nginx's features",
    "full": "unary, everything on",
    "fast": "event, 20 to a piece",
    "paced": "event",
}
CLIENTS, EVENTS = 32, 100
KEY = "bench-key-of-the-only-tenant"
TENANTS = {"tenants": {"bench": {"keys": [hashed(KEY)], "rpm": 10**8, "tokensPerMinute": 10**12}}}
USAGE = '"usage":{"prompt_tokens":256,"completion_tokens":100,"total_tokens":356}'
TEXT = (
    '{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"content":"%s"},"finish_reason":"stop"}],%s}'
)
EVENT = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\n\n'
)
LAST = EVENT.replace(b'"finish_reason":null', b'"finish_reason":"stop"')
HEAD = b"HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 20:00:14 GMT\r\nserver: uvicorn\r\n"


class Transport:
    """Takes what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.write = self.written.append

    def is_closing(self) -> bool:
        return False


def request(kind: str) -> bytes:
    text = "The quick brown fox jumps over the lazy dog. " * 22
    document: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 100}
    if kind in ("fast", "paced"):
        document["stream"] = True
    body = json.dumps(document).encode()
    secret = f"Authorization: Bearer {KEY}\r\n" if kind != "parity" else ""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{secret}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(kind: str) -> list[bytes]:
    """Return an engine's answer in the pieces it is read in."""
    if kind in ("parity", "full"):
        body = (TEXT % ("x" * 250, USAGE)).encode()
        return [HEAD + b"content-length: %d\r\ncontent-type: application/json\r\n\r\n" % len(body) + body]
    events = [chunk(EVENT)] * (EVENTS - 1) + [chunk(LAST)]
    each = 20 if kind == "fast" else 1
    pieces = [b"".join(events[i : i + each]) for i in range(0, EVENTS, each)]
    end = chunk(b'data: {"choices":[],' + USAGE.encode() + b"}\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return [HEAD + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n", *pieces, end]


class World:
    """A router with its clients and kept engine connections."""

    def __init__(self, kind: str) -> None:
        loop = asyncio.get_running_loop()
        on = kind != "parity"
        settings = parse_settings({"accessLog": {"enabled": on}, "affinity": {"enabled": on}})
        self.router = router = Router(loop, settings, RouterMetrics(lambda: None), keyed=on)  # type: ignore[arg-type]
        endpoints = tuple(
            Endpoint(instance=f"e{i}", address=f"127.0.0.1:{9000 + i}", pod_uid=f"u{i}", slots=8192) for i in range(4)
        )
        document = with_generation(Document(models={"m": Model(endpoints=endpoints)}), previous=0, now_ms=1)
        router.fleet.apply(parse_document(render(document)))
        router.loaded, router.max_connections = True, 1000
        router.keyring = parse_keys(TENANTS, settings.classes, DEFAULT_CLASS) if on else None
        self.request, self.pieces = request(kind), answer(kind)
        self.upstreams = [self._kept(b) for b in router.fleet.backends.values() for _ in range(CLIENTS)]
        self.clients = [Client(router) for _ in range(CLIENTS)]
        for client in self.clients:
            client.connection_made(Transport())  # type: ignore[arg-type]

    def _kept(self, backend: Any) -> Upstream:
        upstream = Upstream(backend)
        upstream.connection_made(Transport())  # type: ignore[arg-type]
        upstream.idle_since, upstream.fresh = self.router.loop.time() + 3600, False
        backend.idle.append(upstream)
        return upstream

    def round(self) -> None:
        """Every client asks once and is answered."""
        for client in self.clients:
            client.data_received(self.request)
        for piece in self.pieces:
            for upstream in self.upstreams:
                if upstream.owner is not None:
                    upstream.data_received(piece)
        records, self.router.records = self.router.records, [] if self.router.records is not None else None
        b"".join(line(record, rfc3339(record.at)) for record in records or ())

    def forget(self) -> None:
        for end in (*self.clients, *self.upstreams):
            end.transport.written.clear()  # type: ignore[attr-defined]


async def measure(kind: str, repeat: int, profile: bool) -> float:
    world = World(kind)
    world.round()
    told = [b"".join(client.transport.written) for client in world.clients]  # type: ignore[attr-defined]
    if not all(data.startswith(b"HTTP/1.1 200 OK\r\n") for data in told):
        raise SystemExit(f"{kind}: {told[0][:300]!r}")
    gc.collect()
    gc.freeze()
    units = CLIENTS * (EVENTS if kind in ("fast", "paced") else 1)
    least = float("inf")
    watch = cProfile.Profile()
    for _ in range(repeat):
        world.forget()
        if profile:
            watch.runcall(world.round)
        begun = time.thread_time()
        world.round()
        least = min(least, time.thread_time() - begun)
    if profile:
        pstats.Stats(watch).sort_stats("tottime").print_stats(30)
    return least / units * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=200)
    parser.add_argument("--profile", choices=list(KINDS), help="print where one kind spends its time")
    options = parser.parse_args()
    for kind in [options.profile] if options.profile else KINDS:
        cost = uvloop.run(measure(kind, options.repeat, options.profile is not None))
        print(f"{KINDS[kind]:28}{cost:8.2f} us")


if __name__ == "__main__":
    main()
