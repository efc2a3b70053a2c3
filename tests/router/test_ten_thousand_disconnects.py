"""Ten thousand clients that leave: no slot stays taken, and every engine that was at work is told to stop."""

import asyncio
import json
import random
import statistics
import time

import uvloop
from bed import CHAT, Bed
from engine import SSE_HEAD, Connection, Request, chat_event
from test_leaving_clients import leave

CLIENTS = 10_000
AT_ONCE = 50


class Watch:
    """Behaves as an engine that never ends, and notes when each of its requests was stopped."""

    def __init__(self) -> None:
        self.received: dict[str, float] = {}
        self.stopped: dict[str, float] = {}
        self._came: dict[str, asyncio.Event] = {}

    def of(self, tag: str) -> asyncio.Event:
        """Return what is set once an engine has this request."""
        return self._came.setdefault(tag, asyncio.Event())

    async def __call__(self, connection: Connection, request: Request) -> None:
        tag = request.json["messages"][0]["content"]
        self.received[tag] = time.monotonic()
        self.of(tag).set()
        try:
            if request.json.get("stream"):
                await connection.send(SSE_HEAD)
                while True:
                    await connection.chunk(chat_event())
                    await asyncio.sleep(0.1)
            await asyncio.sleep(3600)
        finally:
            self.stopped[tag] = time.monotonic()


async def disconnects() -> None:
    chance, watch, left = random.Random(3), Watch(), {}
    gate = asyncio.Semaphore(AT_ONCE)
    async with Bed(watch, watch, slots=AT_ONCE) as bed:

        async def one(number: int) -> None:
            async with gate:
                client = await bed.client()
                body = CHAT | {"messages": [{"role": "user", "content": str(number)}], "stream": number % 2 == 0}
                await client.send(json.dumps(body).encode())
                if number % 4 < 2:  # while an engine is at work; the others at any moment before or after
                    await watch.of(str(number)).wait()
                await asyncio.sleep(chance.random() ** 3 * 0.1)
                left[str(number)] = time.monotonic()
                how = chance.choice(("close", "reset", "half-close"))
                leave(client, how)
                if how == "half-close":
                    assert await client.closed()

        await asyncio.gather(*(one(number) for number in range(CLIENTS)))
        await bed.until(lambda: bed.in_flight() == 0 and not bed.router.clients, "every slot being freed")
        await bed.until(lambda: len(watch.stopped) == len(watch.received), "every engine being stopped")
        assert bed.router.metrics.model("m").in_flight == 0
        assert sum(bed.counter("requests").values()) <= CLIENTS
        assert {outcome for _, outcome in bed.counter("requests")} <= {"aborted", "refused"}
        waits = sorted(max(0.0, watch.stopped[tag] - left[tag]) for tag in watch.stopped)
        worked = {
            kind: sum(int(tag) % 2 == odd for tag in watch.stopped) for kind, odd in (("streams", 0), ("unary", 1))
        }
        print(
            f"{CLIENTS} left, engines stopped for {worked}; ms until an engine was stopped, all on one machine:",
            end=" ",
        )
        print(f"p50 {statistics.median(waits) * 1e3:.1f} p99 {waits[int(len(waits) * 0.99)] * 1e3:.1f}")
        assert min(worked.values()) > CLIENTS // 10, "engines were at work for both kinds"


def test_ten_thousand_clients_that_leave_hold_nothing_and_stop_their_engines():
    uvloop.run(disconnects())
