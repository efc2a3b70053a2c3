"""Loads that the plain open loop does not make: long prompts, API keys, and jobs followed until they are over.

In: a router's address. Out: the same Outcomes as `e2e.load`, and for jobs what became of every accepted id.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
import requests

from e2e.load import Load, Outcome, Reconnect, connector, kept, persistent, stream, unary

ONCE = Reconnect()


@dataclass
class Shaped:
    """A session whose requests are changed on their way: `words` of prompt that no cache knows, and a key."""

    session: aiohttp.ClientSession
    words: int = 0
    key: Callable[[], str] | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def post(self, url: str, json: dict[str, Any]) -> Any:
        """Send a request as the plain load would, but for what is asked for."""
        if self.words:
            text = f"{next(self.numbers)} {time.time()} " + "word " * self.words
            json = json | ({"prompt": text} if "prompt" in json else {"messages": [{"role": "user", "content": text}]})
        headers = {"authorization": f"Bearer {self.key()}"} if self.key else {}
        return self.session.post(url, json=json, headers=headers)


@contextmanager
def shaped_loop(
    url: str,
    model: str,
    rate: float,
    tokens: int,
    *,
    words: int = 0,
    key: Callable[[], str] | None = None,
    most: int = 0,
    reconnect: Reconnect = ONCE,
) -> Iterator[Load]:
    """Send `rate` requests a second until the block ends, or `most` of them; then wait for every answer."""
    load, stop = Load(), threading.Event()

    async def drive() -> None:
        begin, tasks = time.monotonic(), set[asyncio.Task[Outcome]]()
        async with connector() as session:
            changed: Any = Shaped(session, words, key)
            while not stop.is_set() and not (most and load.sent >= most):
                kind = stream if (load.sent * 7919) % 100 < 70 else unary
                ask = partial(kind, changed, url, model, tokens)
                tasks.add(task := asyncio.create_task(kept(load, persistent(ask, reconnect))))
                task.add_done_callback(tasks.discard)
                load.sent += 1
                await asyncio.sleep(max(0.0, begin + load.sent / rate - time.monotonic()))
            await asyncio.gather(*tasks)

    thread = threading.Thread(target=lambda: asyncio.run(drive()))
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join()


@dataclass
class Jobs:
    """Jobs as one client sees them: which ids it was given, and how the other requests were answered."""

    url: str
    model: str
    tokens: int
    accepted: dict[str, float] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def ask(self) -> None:
        """Ask for one job."""
        body = {"model": self.model, "prompt": f"job {time.time()}", "max_tokens": self.tokens, "ignore_eos": True}
        begin = time.time()
        try:
            answer = requests.post(
                f"{self.url}/v1/completions", json=body, headers={"prefer": "respond-async"}, timeout=30
            )
        except requests.RequestException as problem:
            self.refused[type(problem).__name__] += 1
            return
        self.slowest = max(self.slowest, time.time() - begin)
        if answer.status_code == 202:
            self.accepted[answer.json()["id"]] = begin
        else:
            self.refused[f"{answer.status_code} {code_of(answer)}".strip()] += 1

    def ends(self, seconds: float) -> Counter[str]:
        """How every accepted job ended; those that did not within so many seconds are `unfinished`."""
        deadline, states = time.monotonic() + seconds, Counter[str]()
        for job in self.accepted:
            states[self.end_of(job, deadline)] += 1
        return states

    def end_of(self, job: str, deadline: float) -> str:
        """Ask until a job is over; a job that is not known any more is `forgotten`."""
        while True:
            try:
                answer = requests.get(f"{self.url}/v1/requests/{job}", timeout=10)
                state = answer.json().get("status", "") if answer.status_code == 200 else ""
                if answer.status_code == 404:
                    return "forgotten"
            except (requests.RequestException, ValueError):
                state = ""
            if state not in ("", "queued", "running"):
                return str(state)
            if time.monotonic() > deadline:
                return f"unfinished {state}".strip()
            time.sleep(0.3)


def takes_jobs(jobs: Jobs) -> bool:
    """Whether a job that is asked for now is accepted."""
    before = len(jobs.accepted)
    jobs.ask()
    return len(jobs.accepted) > before


def code_of(answer: requests.Response) -> str:
    """The error code of a refusal."""
    try:
        found: Mapping[str, Any] = answer.json()["error"]
    except (ValueError, KeyError):
        return ""
    return str(found.get("code", ""))


@contextmanager
def asking(jobs: Jobs, rate: float) -> Iterator[None]:
    """Ask for `rate` jobs a second, by four clients, until the block ends."""
    stop = threading.Event()

    def client() -> None:
        while not stop.wait(4 / rate):
            jobs.ask()

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
