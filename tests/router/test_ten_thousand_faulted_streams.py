"""Ten thousand streams, each broken by its engine somewhere: none ends in silence, none is given a wrong byte."""

import asyncio
import json
import random
from collections import Counter

import pytest
import uvloop
from bed import Answer, Bed
from engine import DONE, SSE_HEAD, Connection, Request, error_event
from test_truncation import ROUTES

STREAMS = 10_000
AT_ONCE = 50
FAULTS = ("cut", "reset", "end", "error", "hang", "none")
WEIGHTS = (30, 30, 20, 10, 1, 9)
# Every engine fails here all the time: what the fleet would make of that is another test's matter.
SETTINGS = {
    "health": {"checkSeconds": 0, "consecutiveFailures": 0, "failureRatio": 0, "lostConnections": 0},
    "retries": {"floor": STREAMS, "quarantineAfter": 0},
    "timeouts": {"stallSeconds": 0.5, "firstEventSeconds": 0.5},
}


class Breaking:
    """Behaves as engines that break their streams; which fault a request meets follows from its number and attempt."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    async def __call__(self, connection: Connection, request: Request) -> None:
        tag = tag_of(request)
        self.attempts[tag] += 1
        chance = random.Random(f"{tag}/{self.attempts[tag]}")
        fault = chance.choices(FAULTS, WEIGHTS)[0]
        self.faults[fault] += 1
        whole = ROUTES[request.path]
        if fault == "error":
            pieces = [*whole[: chance.randrange(len(whole))], error_event(500), DONE]
            await connection.send(SSE_HEAD + b"".join(map(chunk, pieces)) + b"0\r\n\r\n")
            return
        raw = SSE_HEAD + b"".join(map(chunk, whole)) + b"0\r\n\r\n"
        if fault == "end":  # a clean end of the transfer, of less than the answer
            await connection.send(SSE_HEAD + b"".join(map(chunk, whole[: chance.randrange(len(whole))])) + b"0\r\n\r\n")
            return
        at = len(raw) if fault == "none" else chance.randrange(1, len(raw))
        first = chance.randrange(at) if at > 1 else 0
        await connection.send(raw[:first])
        await asyncio.sleep(0)
        await connection.send(raw[first:at])
        if fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "cut":
            connection.cut()
        elif fault == "reset":
            connection.reset()


def chunk(item: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(item), item)


def tag_of(request: Request) -> str:
    body = request.json
    return str(body.get("messages", [{}])[0].get("content") or body.get("prompt") or body.get("input"))


def body_of(path: str, tag: str) -> bytes:
    asked = {"model": "m", "stream": True}
    if path.endswith("/completions") and "chat" not in path:
        asked["prompt"] = tag
    elif path.endswith("/responses"):
        asked["input"] = tag
    else:
        asked |= {"messages": [{"role": "user", "content": tag}], "max_tokens": 9}
    return json.dumps(asked).encode()


def judged(path: str, answer: Answer) -> str:
    """Say how an answer ended; `SILENT` is what must never happen, `WRONG` neither."""
    if answer.status != 200:
        return "status" if answer.status >= 500 and answer.error["message"] else "WRONG"
    whole, got = ROUTES[path], answer.events
    if answer.ended == "reset":
        return "reset"
    if got == whole:  # all of it is there, and the engine said so
        return "complete" if answer.ended == "whole" else "WRONG"
    errors = [number for number, event in enumerate(got) if b'"error":{"' in event.replace(b'"error": {', b'"error":{')]
    if not errors:
        return "SILENT"
    return "told" if got[: errors[0]] == whole[: errors[0]] else "WRONG"


async def play() -> tuple[Counter[str], Breaking]:
    breaking, ends, gate = Breaking(), Counter[str](), asyncio.Semaphore(AT_ONCE)
    paths = list(ROUTES)
    async with Bed(breaking, breaking, breaking, settings=SETTINGS) as bed:

        async def one(number: int) -> None:
            async with gate:
                path = paths[number % len(paths)]
                answer = await bed.ask(body_of(path, f"n{number}"), path=path)
                ends[judged(path, answer)] += 1

        await asyncio.gather(*(one(number) for number in range(STREAMS)))
        await bed.until(lambda: bed.in_flight() == 0 and not bed.router.waits, "every slot being freed")
        counted = bed.counter("requests")
        assert sum(counted.values()) == STREAMS, counted
    return ends, breaking


def test_ten_thousand_streams_that_break_are_whole_or_say_that_they_are_not():
    ends, breaking = uvloop.run(play())
    print(f"{STREAMS} streams, {sum(breaking.faults.values())} attempts: {dict(breaking.faults)}; ends: {dict(ends)}")
    assert not ends["SILENT"] and not ends["WRONG"], ends
    assert sum(ends.values()) == STREAMS
    assert min(ends[kind] for kind in ("complete", "told", "status")) > STREAMS // 20, "each way is taken"


@pytest.mark.parametrize("path", ROUTES)
def test_the_judge_sees_what_must_never_happen(path):
    whole = ROUTES[path]
    short = b"".join(whole[:-1])
    assert judged(path, Answer(200, {}, short, "whole")) == "SILENT"
    assert judged(path, Answer(200, {}, short, "eof")) == "SILENT"
    assert judged(path, Answer(200, {}, whole[1] + error_event(500), "eof")) == "WRONG"
    assert judged(path, Answer(200, {}, b"".join(whole), "whole")) == "complete"
