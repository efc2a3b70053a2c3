"""A thousand clients at once that trickle heads and bodies, or say nothing: others are served, each one is closed."""

import asyncio
from collections import Counter

from bed import Bed, Raw, request_bytes, scenario
from engine import ok

EACH = 250
SLOW = {
    "a head without end": (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"y"),
    "a body in drips": (request_bytes(b" " * 100_000, headers={"Content-Length": "100000"})[:-99_000], b" "),
    "a head that stops": (b"POST /v1/chat/completions HTTP/1.1\r\n", b""),
    "nothing": (b"", b""),
}
SETTINGS = {"timeouts": {"headerSeconds": 12, "bodySeconds": 12, "idleSeconds": 12}}


async def trickle(client: Raw, first: bytes, drip: bytes) -> str:
    """Be as slow as possible until the router has had enough; returns how it said so."""
    client.writer.write(first)
    ended = asyncio.create_task(client.reader.read())
    while not ended.done():
        if drip and not client.writer.is_closing():
            client.writer.write(drip)
        await asyncio.wait({ended}, timeout=0.5)
    client.writer.close()
    try:
        said = ended.result()
    except ConnectionError:
        return "reset"
    return said[9:12].decode() if said else "closed"


@scenario
async def test_a_thousand_slow_clients_at_once_are_closed_and_keep_nobody_from_being_served():
    async with Bed(ok(), ok(), settings=SETTINGS) as bed:
        slow = [(await bed.client(), *how) for how in SLOW.values() for _ in range(EACH)]
        tasks = [asyncio.create_task(trickle(*one)) for one in slow]
        await bed.until(lambda: len(bed.router.clients) >= len(slow), "a thousand connections")
        answers = Counter()
        while not all(task.done() for task in tasks):
            answers[(await bed.ask()).status] += 1
            await asyncio.sleep(0.05)
        ends = Counter(await asyncio.gather(*tasks))
        print(f"{len(slow)} slow clients: {dict(ends)}; others meanwhile: {dict(answers)}")
        assert set(answers) == {200} and answers[200] > 10
        assert set(ends) <= {"408", "closed", "reset"} and sum(ends.values()) == len(slow)
        await bed.until(lambda: not bed.router.clients and not bed.router.reading, "nothing being held")
        assert sum(len(e.requests) for e in bed.engines) == answers[200], "no slow request reached an engine"
