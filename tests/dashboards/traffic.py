"""Mixed traffic: many tenants and models, long and short, clients that leave, nonsense, jobs, and engines that fail.

In: a running Fleet. Out: requests, until it is told to stop. It counts nothing: what happened is what the metrics say.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import requests

from dashboards.fleet import Fleet, key_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# 48 blocks of 16 tokens hold no four of these.
PROMPT = "Tell me more about the history of time keeping in small harbours of the north. " * 8
TOKENS = 120


class Traffic:
    """Clients on an event loop of their own; use it as a context."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._numbers = itertools.count()
        self._healed = threading.Event()

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(300)
        assert not self._thread.is_alive()

    def heal(self) -> None:
        """Break nothing from now on."""
        self._healed.set()

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(limit=0)
        url = f"http://127.0.0.1:{self.fleet.port}"
        async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as self.session:
            clients: list[tuple[Callable[[], Awaitable[None]], float, int]] = [
                (self.stream, 0.05, 12),
                (self.unary, 0.1, 2),
                (self.split, 0.1, 3),
                (self.short, 0.3, 1),
                (self.nonsense, 0.3, 1),
                (self.leave, 0.3, 1),
                (self.trial, 0.2, 2),
                (self.job, 0.4, 2),
                (self.faults, 0.7, 1),
            ]
            loops = [self._again(one, pause) for one, pause, count in clients for _ in range(count)]
            await asyncio.gather(*loops)

    async def _again(self, client: Callable[[], Awaitable[None]], pause: float) -> None:
        while not self._stop.is_set():
            # An engine that fails on command breaks connections: that is part of the traffic.
            with suppress(aiohttp.ClientError, asyncio.TimeoutError, requests.RequestException):
                await client()
            await asyncio.sleep(pause)

    async def post(self, path: str, body: object, tenant: str = "team-a", **headers: str) -> aiohttp.ClientResponse:
        sent = {"x-api-key": key_of(tenant), **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with self.session.post(path, json=body, headers=sent) as answer:
            await answer.read()
            return answer

    def chat(self, model: str, text: str, **more: object) -> dict[str, object]:
        message = {"role": "user", "content": f"{text}{next(self._numbers)}"}
        return {"model": model, "messages": [message], "ignore_eos": True, **more}

    async def stream(self) -> None:
        """Every prompt begins in a way of its own, so that no two share blocks of the KV cache."""
        text = f"{next(self._numbers)}: {PROMPT}"
        await self.post(CHAT, self.chat("llama", text, stream=True, max_tokens=TOKENS))

    async def unary(self) -> None:
        await self.post(CHAT, self.chat("llama", "And now? ", max_tokens=20), "team-b")

    async def split(self) -> None:
        await self.post(CHAT, self.chat("qwen", PROMPT, stream=True, max_tokens=30))

    async def short(self) -> None:
        await self.post(CHAT, self.chat("qwen", "Hello ", stream=True, max_tokens=5))

    async def nonsense(self) -> None:
        """A model that is not served, a body without a prompt, and no key."""
        await self.post(CHAT, self.chat("nobody", "Hello "))
        await self.post(COMPLETIONS, {"model": "llama", "max_tokens": "many"})
        await self.post(CHAT, self.chat("llama", "Hello "), "stranger")

    async def leave(self) -> None:
        """Take one piece of a stream and go."""
        body = self.chat("llama", PROMPT, stream=True, max_tokens=TOKENS)
        async with self.session.post(CHAT, json=body, headers={"x-api-key": key_of("team-b")}) as answer:
            await answer.content.readany()
            answer.close()

    async def trial(self) -> None:
        """Two at a time of a tenant that may have one."""
        await self.post(CHAT, self.chat("llama", "Hello ", max_tokens=20), "trial")

    async def job(self) -> None:
        await self.post(CHAT, self.chat("qwen", "Later ", max_tokens=5), "team-b", Prefer="respond-async")

    async def faults(self) -> None:
        """Break a stream in the middle, another before its first token, and refuse connections for a moment."""
        for instance, what in (
            ("llama-0", {"kind": "cut", "token": 10}),
            ("llama-1", {"kind": "error_event", "token": 10}),
            ("llama-0", {"kind": "cut", "token": 1}),
            ("llama-1", {"kind": "refuse"}),
            ("llama-1", {"kind": "clear"}),
        ):
            if self._healed.is_set() and what["kind"] != "clear":
                continue
            await asyncio.to_thread(self.fleet.fault, instance, **what)
            await asyncio.sleep(0.4)
