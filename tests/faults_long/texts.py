"""A load that knows what it should be told: greedy completions whose text was learnt before anything broke.

In: a router's address, a model, prompts. Out: Outcomes as of any other load, and every answer, whole or cut, that
is not the beginning of what its prompt is continued with: the text of somebody else.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp

from e2e.beside import beside
from e2e.load import (
    COMPLETE,
    ERROR_EVENT,
    RESET,
    SILENT,
    STATUS,
    Load,
    Outcome,
    Reconnect,
    connector,
    how_it_broke,
    kept,
    persistent,
)

TWICE = Reconnect(times=2)  # as both SDKs do by default


@dataclass
class Texts:
    """What is known, and which answers were not that."""

    url: str
    model: str
    tokens: int
    known: dict[str, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)

    async def ask(self, session: aiohttp.ClientSession, prompt: str, streamed: bool) -> Outcome:
        """Ask once and compare."""
        outcome, text = Outcome(RESET, time.time()), list[str]()
        body = {"model": self.model, "prompt": prompt, "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True}
        try:
            async with session.post(f"{self.url}/v1/completions", json=body | {"stream": streamed}) as answer:
                outcome.status = answer.status
                follow = followed if streamed and answer.status == 200 else read
                await follow(answer, outcome, text)
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as problem:
            outcome.kind, outcome.detail = how_it_broke(problem), repr(problem)
        outcome.end = time.time()
        self.compare(prompt, "".join(text), outcome.kind == COMPLETE)
        return outcome

    def compare(self, prompt: str, text: str, whole: bool) -> None:
        """A whole answer is what is known, a cut one its beginning; the first one is what is known from then on."""
        if prompt not in self.known:
            assert whole, f"no whole answer to learn from: {prompt!r}"
            self.known[prompt] = text
        right = text == self.known[prompt] if whole else self.known[prompt].startswith(text)
        if not right:
            self.foreign.append(f"{prompt!r}: {text[:80]!r} instead of {self.known[prompt][:80]!r}")

    def learn(self, prompts: Sequence[str]) -> None:
        """Ask each prompt once while nothing is broken."""

        async def drive() -> None:
            async with connector() as session:
                for prompt in prompts:
                    await self.ask(session, prompt, streamed=False)

        asyncio.run(drive())

    @contextmanager
    def asked(self, rate: float) -> Iterator[Load]:
        """Ask what is known, `rate` requests a second and every other one a stream, until the block ends."""
        load = Load()
        with beside(lambda stop: asyncio.run(self.drive(load, stop, rate))):
            yield load

    async def drive(self, load: Load, stop: threading.Event, rate: float) -> None:
        """The open loop itself."""
        begin, prompts, tasks = time.monotonic(), list(self.known), set[asyncio.Task[Outcome]]()
        async with connector() as session:
            while not stop.is_set():
                ask = partial(self.ask, session, prompts[load.sent % len(prompts)], load.sent % 2 == 0)
                tasks.add(task := asyncio.create_task(kept(load, persistent(ask, TWICE))))
                task.add_done_callback(tasks.discard)
                load.sent += 1
                await asyncio.sleep(max(0.0, begin + load.sent / rate - time.monotonic()))
            await asyncio.gather(*tasks)


async def read(answer: aiohttp.ClientResponse, outcome: Outcome, text: list[str]) -> None:
    """An answer in one piece."""
    raw = await answer.read()
    outcome.kind = COMPLETE if answer.status == 200 else STATUS
    if answer.status == 200:
        text.append(json.loads(raw)["choices"][0]["text"])
    else:
        outcome.detail = raw.decode(errors="replace")[:300]


async def followed(answer: aiohttp.ClientResponse, outcome: Outcome, text: list[str]) -> None:
    """A stream, to whichever end."""
    async for line in answer.content:
        if line.strip() == b"data: [DONE]":
            outcome.kind = COMPLETE if outcome.kind == RESET else outcome.kind
        elif line.startswith(b"data: "):
            note(json.loads(line[6:]), outcome, text)
    if outcome.kind == RESET:
        outcome.kind = SILENT


def note(event: Mapping[str, Any], outcome: Outcome, text: list[str]) -> None:
    """One event of a stream."""
    if "error" in event:
        outcome.kind, outcome.detail = ERROR_EVENT, str(event["error"])[:300]
        return
    for choice in event["choices"]:
        text.append(choice["text"])
        outcome.chunks += 1
