"""An engine process that does as the prompt says and writes down what it saw.

    python -m history.fake_engine NAME PORT LOG

In: chat requests whose prompt holds a JSON wish: {"tag", "pieces", "gap", "fates"}; the first fate is for a first try,
the second for a second one. Out: answers whose every piece names its engine and number, and one line in LOG per event,
written before the bytes it speaks of, in one system call, so that a killed process has told everything.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "router"))

from engine import DONE, SSE_HEAD, Connection, Engine, Request, error_event, json_answer

# What a client of the history sends and no engine may see.
POISON = "poison"
LISTED = frozenset(
    [
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "temperature",
        "seed",
        "kv_transfer_params",
        "priority",
        "cache_salt",
    ]
)


class Log:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, **event: Any) -> None:
        os.write(self._file, json.dumps(event | {"at": time.monotonic()}).encode() + b"\n")


def foreign(request: Request) -> list[str]:
    """Name what came through that may not."""
    found = [f"body.{key}" for key, value in request.json.items() if key not in LISTED or POISON in json.dumps(value)]
    return found + [f"header.{key}" for key, value in request.headers if POISON in value]


def piece(name: str, index: int, *, last: bool) -> bytes:
    finish = '"stop"' if last else "null"
    text = f'{{"index":0,"delta":{{"content":"{name}:{index} "}},"logprobs":null,"finish_reason":{finish}}}'
    return (
        f'data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{text}]}}\n\n'
    ).encode()


USAGE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'
)


class Actor:
    """Plays the fate of each request."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self._log = name, log
        self._count = 0

    async def __call__(self, connection: Connection, request: Request) -> None:
        if request.method != "POST":
            await connection.send(json_answer(200, {"object": "list", "data": [{"id": "m", "object": "model"}]}))
            return
        wish = json.loads(request.json["messages"][-1]["content"])
        request_id = request.header("x-request-id") or ""
        fates = wish["fates"]
        fate = fates[1 if request_id.endswith("-r") else 0]
        self._count += 1
        number = f"{os.getpid()}-{self._count}"
        key = {"tag": wish["tag"], "engine": self.name, "id": request_id, "number": number}
        self._log.write(what="received", foreign=foreign(request), **key)
        play = Play(self, connection, request, wish, fate, key)
        try:
            await play.run()
        except asyncio.CancelledError:
            play.ended("aborted")
            raise
        except (ConnectionError, RuntimeError) as error:  # uvloop's word for a transport that was reset
            play.ended("aborted")
            raise ConnectionError("the router went away") from error

    def log(self, **event: Any) -> None:
        self._log.write(**event)


class Play:
    """One answer."""

    def __init__(
        self, actor: Actor, connection: Connection, request: Request, wish: dict[str, Any], fate: str, key: Any
    ) -> None:
        self.actor, self.connection, self.wish, self.fate, self.key = actor, connection, wish, fate, key
        self.stream = bool(request.json.get("stream"))
        self.usage = bool((request.json.get("stream_options") or {}).get("include_usage"))
        self.sent = 0
        self.over = False

    def ended(self, how: str) -> None:
        if not self.over:
            self.over = True
            self.actor.log(what="ended", how=how, pieces=self.sent, **self.key)

    async def run(self) -> None:
        early = getattr(self, f"early_{self.fate}", None)
        if early is not None:
            await early()
        elif self.stream:
            await self.events()
        else:
            await self.unary()

    # ---- fates before anything of an answer ----

    async def early_500(self) -> None:
        self.ended("error")
        await self.connection.send(json_answer(500, {"error": {"message": "no", "code": 500}}))

    async def early_503(self) -> None:
        self.ended("error")
        await self.connection.send(json_answer(503, {"error": {"message": "no", "code": 503}}))

    async def early_429(self) -> None:
        self.ended("error")
        await self.connection.send(json_answer(429, {"error": {"message": "no", "code": 429}}))

    async def early_cut(self) -> None:
        self.ended("broken")
        self.connection.cut()

    async def early_reset(self) -> None:
        self.ended("broken")
        self.connection.reset()

    async def early_silent(self) -> None:
        await asyncio.sleep(3600)

    # ---- streams ----

    async def events(self) -> None:
        connection, pieces = self.connection, self.wish["pieces"]
        await connection.send(SSE_HEAD)
        if self.fate == "first_error":
            self.ended("error")
            await connection.chunk(error_event(500))
            await connection.chunk(DONE)
            await connection.end()
            return
        middle = pieces // 2 if self.fate in MIDDLE else pieces
        for index in range(middle):
            await asyncio.sleep(self.wish["gap"])
            await connection.chunk(
                piece(self.actor.name, index, last=index == pieces - 1 and self.fate != "unfinished")
            )
            self.sent += 1
        await self.tail()

    async def tail(self) -> None:
        connection = self.connection
        if self.fate == "mid_cut":
            self.ended("broken")
            connection.cut()
        elif self.fate == "mid_reset":
            self.ended("broken")
            connection.reset()
        elif self.fate == "mid_silent":
            await asyncio.sleep(3600)
        elif self.fate == "mid_error":
            self.ended("error")
            await connection.chunk(error_event(500))
            await connection.chunk(DONE)
            await connection.end()
        elif self.fate == "no_done":
            self.ended("broken")
            await connection.end()
        else:
            if self.usage:
                await connection.chunk(USAGE)
            self.ended("broken" if self.fate == "unfinished" else "answered")
            await connection.chunk(DONE)
            await connection.end()

    # ---- unary ----

    async def unary(self) -> None:
        await asyncio.sleep(self.wish["gap"] * self.wish["pieces"])
        content = "".join(f"{self.actor.name}:{i} " for i in range(self.wish["pieces"]))
        finish = "abort" if self.fate == "unfinished" else "stop"
        message = {"role": "assistant", "content": content}
        answer = json_answer(
            200,
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            },
        )
        if self.fate in MIDDLE or self.fate == "no_done":
            self.ended("broken")
            await self.connection.send(answer[:-20])
            self.connection.reset() if self.fate == "mid_reset" else self.connection.cut()
            return
        self.ended("answered" if finish == "stop" else "broken")
        self.sent = self.wish["pieces"]
        await self.connection.send(answer)


MIDDLE = ("mid_cut", "mid_reset", "mid_silent", "mid_error")
FATES = ("500", "503", "429", "cut", "reset", "silent", "first_error", *MIDDLE, "no_done", "unfinished")


async def main(name: str, port: int, log: str) -> None:
    engine = Engine(behave=Actor(name, Log(log)), port=port)
    await engine.start()
    engine.requests = Forgetful()
    print("ready", flush=True)
    await asyncio.Event().wait()


class Forgetful(list[Any]):
    """Keeps nothing: a run has too many requests."""

    def append(self, _item: Any) -> None:
        return


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
