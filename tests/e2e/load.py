"""An honest client: it sends tagged requests and says of each one exactly how it ended.

In: the router's address and what to ask. Out: an `Outcome` per request. A stream that ends cleanly without `[DONE]`
and without an error event is called silent: the one thing the router must never do.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp

from e2e.beside import beside

COMPLETE, ERROR_EVENT, RESET, SILENT, STATUS = "complete", "error event", "reset", "silent", "status"
REFUSED = "refused"
NEVER_CONNECTED = aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError


@dataclass(slots=True)
class Outcome:
    """How one request ended, when, and with how many chunks of text."""

    kind: str
    begin: float
    end: float = 0.0
    chunks: int = 0
    status: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How a client goes on whose connection was refused: nothing of its request was sent, so it may ask again.

    Both OpenAI SDKs do so twice by default, after half a second and after one.
    """

    times: int = 0
    seconds: float = 0.5
    factor: float = 2.0


async def persistent(request: Callable[[], Coroutine[Any, Any, Outcome]], reconnect: Reconnect) -> Outcome:
    """Ask until there is a connection, at most as often as the client would."""
    outcome = await request()
    for again in range(reconnect.times):
        if outcome.kind != REFUSED:
            break
        begin = outcome.begin
        await asyncio.sleep(reconnect.seconds * reconnect.factor**again)
        outcome = await request()
        outcome.begin = begin
    return outcome


async def stream(session: aiohttp.ClientSession, url: str, model: str, tokens: int) -> Outcome:
    """Stream one chat completion to its end, whichever that is."""
    body = {"model": model, "stream": True, "max_tokens": tokens, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": "Say something long."}]
    outcome = Outcome(RESET, time.time())
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            outcome.status = answer.status
            if answer.status != 200:
                outcome.kind, outcome.detail = STATUS, (await answer.text())[:300]
            else:
                await follow(answer, outcome)
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as problem:
        outcome.kind, outcome.detail = how_it_broke(problem), repr(problem)
    outcome.end = time.time()
    return outcome


async def follow(answer: aiohttp.ClientResponse, outcome: Outcome) -> None:
    """Read events until [DONE], an error, or an end that should not be."""
    finished = False
    async for line in answer.content:
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            outcome.kind = COMPLETE if finished and outcome.kind != ERROR_EVENT else outcome.kind
            continue
        event = json.loads(line[6:])
        if "error" in event:
            outcome.kind, outcome.detail = ERROR_EVENT, json.dumps(event)[:300]
        for choice in event.get("choices", ()):
            outcome.chunks += bool(choice["delta"].get("content"))
            finished = finished or choice.get("finish_reason") in ("length", "stop")
    if outcome.kind == RESET:
        outcome.kind, outcome.detail = SILENT, f"clean end after {outcome.chunks} chunks"


async def unary(session: aiohttp.ClientSession, url: str, model: str, tokens: int) -> Outcome:
    """Ask for one completion in one piece."""
    body = {"model": model, "prompt": "Say something.", "max_tokens": tokens, "ignore_eos": True}
    outcome = Outcome(RESET, time.time())
    try:
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            outcome.status, raw = answer.status, await answer.read()
            whole = answer.status == 200 and json.loads(raw)["usage"]["completion_tokens"] == tokens
            outcome.kind = COMPLETE if whole else STATUS
            outcome.detail = "" if whole else raw.decode(errors="replace")[:300]
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as problem:
        outcome.kind, outcome.detail = how_it_broke(problem), repr(problem)
    outcome.end = time.time()
    return outcome


def how_it_broke(problem: Exception) -> str:
    """Tell a connection that never was from one that ended."""
    return REFUSED if isinstance(problem, NEVER_CONNECTED) else RESET


@dataclass
class Load:
    """Requests sent while a test does something else, and how each one ended."""

    outcomes: list[Outcome] = field(default_factory=list)
    sent: int = 0

    def kinds(self) -> Counter[str]:
        """How many requests ended in which way."""
        return Counter(outcome.kind for outcome in self.outcomes)

    def failures(self) -> list[Outcome]:
        """Everything that was not a complete answer."""
        return [outcome for outcome in self.outcomes if outcome.kind != COMPLETE]

    def told(self) -> Counter[str]:
        """What the requests without an answer were told: how often which status with which words."""
        return Counter(f"{one.status} {one.detail}" for one in self.outcomes if one.kind == STATUS)


def connector() -> aiohttp.ClientSession:
    """A session of new connections without a bound of its own, so that the client never queues."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=900, sock_connect=10),  # above every wait of a test
    )


def many_streams(url: str, model: str, count: int, tokens: int, started: Callable[[], None]) -> Load:
    """Open `count` streams together, call `started` once they all run, wait for every end."""

    async def drive() -> Load:
        load = Load(sent=count)
        async with connector() as session:
            tasks = [asyncio.create_task(stream(session, url, model, tokens)) for _ in range(count)]
            await asyncio.sleep(1.5)
            await asyncio.to_thread(started)
            load.outcomes = list(await asyncio.gather(*tasks))
        return load

    return asyncio.run(drive())


@contextmanager
def open_loop(
    url: str, model: str, rate: float, tokens: int, streamed: float = 0.7, reconnect: Reconnect = Reconnect()
) -> Iterator[Load]:
    """Send `rate` requests a second, `streamed` of them streams, until the block ends; then wait for every answer."""
    load = Load()
    with beside(lambda stop: asyncio.run(send_all(load, stop, url, model, rate, tokens, streamed, reconnect))):
        yield load


async def send_all(
    load: Load,
    stop: threading.Event,
    url: str,
    model: str,
    rate: float,
    tokens: int,
    streamed: float,
    reconnect: Reconnect,
) -> None:
    """The open loop itself: the next request never waits for the last answer."""
    begin, tasks = time.monotonic(), set[asyncio.Task[Outcome]]()
    async with connector() as session:
        while not stop.is_set():
            kind = stream if (load.sent * 7919) % 100 < streamed * 100 else unary
            ask = partial(kind, session, url, model, tokens)
            task = asyncio.create_task(kept(load, persistent(ask, reconnect)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            load.sent += 1
            await asyncio.sleep(max(0.0, begin + load.sent / rate - time.monotonic()))
        await asyncio.gather(*tasks)


async def kept(load: Load, request: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Note how a request ended."""
    outcome = await request
    load.outcomes.append(outcome)
    return outcome
