"""A headless rank: find the leader, wait for the start, answer every step, and outlive the leader.

In: the leader's address. Out: the process's exit code. A follower serves no HTTP and, like vLLM's, does
not end by itself when its leader is gone: only a signal ends it.
"""

import asyncio
import json
import logging

from llmfleet_sim.config import EngineConfig
from llmfleet_sim.faults import Faults

log = logging.getLogger("llmfleet_sim")
_AFTER_ABORTED_START = 35.0
_AFTER_LEADER_DEATH = 11.0
_NORMAL_END = 5.0


async def follow(config: EngineConfig, stop: asyncio.Event, faults: Faults) -> int:
    """Live as a follower; gives the exit code."""
    life = asyncio.create_task(_live(config, faults))
    ended = asyncio.create_task(stop.wait())
    await asyncio.wait({life, ended}, return_when=asyncio.FIRST_COMPLETED)
    if life.done():
        code = life.result()
        if code is not None:
            return code
        await stop.wait()
        await asyncio.sleep(_AFTER_LEADER_DEATH * config.teardown_scale)
        return 0
    life.cancel()
    await asyncio.sleep(_NORMAL_END * config.teardown_scale)
    return 0


async def _live(config: EngineConfig, faults: Faults) -> int | None:
    """Join and work; an exit code, or None when the leader died and only a signal may end this process."""
    link = await _connect(config)
    if link is None:
        log.error("DistNetworkError: the leader %s:%d was never reached", config.master_addr, config.master_port)
        return 1
    reader, writer = link
    writer.write(json.dumps({"rank": config.rank, "nodes": config.nodes}).encode() + b"\n")
    if not await reader.readline():
        log.error("the leader went away before the group started")
        await asyncio.sleep(_AFTER_ABORTED_START * config.teardown_scale)
        return 1
    log.info("rank %d of %d started", config.rank, config.nodes)
    while await _answer(reader, writer, faults):
        pass
    log.error("the leader of the group is gone; this rank waits for a signal")
    return None


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults) -> bool:
    """Answer one step, not before a hang on command is over; no more steps means no more leader."""
    loop = asyncio.get_running_loop()
    try:
        step = await reader.read(1)
        while step and faults.hanging(loop.time()):
            await asyncio.sleep(0.05)
        if step:
            writer.write(b"A")
        return bool(step)
    except ConnectionError:
        return False


async def _connect(config: EngineConfig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Resolve and connect again and again until the rendezvous timeout."""
    loop = asyncio.get_running_loop()
    end = loop.time() + config.rendezvous_timeout
    wait = 0.1
    while loop.time() < end:
        try:
            async with asyncio.timeout(10):
                return await asyncio.open_connection(config.master_addr, config.master_port)
        except (OSError, TimeoutError) as error:
            log.debug("leader not there yet: %s", error)
            await asyncio.sleep(wait)
            wait = min(1.0, wait * 1.5)
    return None
