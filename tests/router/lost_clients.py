"""Clients whose address vanishes: no FIN, no RST, nobody answers. Run in a network namespace of its own.

In: a loopback device. Out: one line for each case, how many requests are at the engine before and after.
"""

import asyncio
import subprocess

from bed import CHAT, STREAM, Bed, Raw, scenario
from engine import endless, silent

ADDRESS = "10.9.0.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


async def client(bed: Bed) -> Raw:
    return Raw(*await asyncio.open_connection("127.0.0.1", bed.port, local_addr=(ADDRESS, 0)))


@scenario
async def lose(case: str, behaviour, body) -> None:
    ip("addr", "add", f"{ADDRESS}/32", "dev", "lo")
    async with Bed(behaviour, settings={"timeouts": {"clientLostSeconds": 3}}) as bed:
        lost = await client(bed)
        await lost.send(body)
        await bed.until(lambda: bed.engines[0].active == 1)
        if body is STREAM:
            await lost.head()
        before = bed.in_flight()
        ip("addr", "del", f"{ADDRESS}/32", "dev", "lo")
        await bed.until(lambda: bed.in_flight() == 0 and bed.engines[0].active == 0, case)
        print(f"{case}: {before} {bed.in_flight()}", flush=True)


if __name__ == "__main__":
    ip("link", "set", "lo", "up")
    lose("waiting", silent(), CHAT)
    lose("streaming", endless(), STREAM)
