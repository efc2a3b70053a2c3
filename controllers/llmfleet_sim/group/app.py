"""Rank 0's side of a group: wait for the other ranks, then keep them in step.

In: TCP connections on the master port. Out: a step that returns when every rank has worked on it. The
protocol is one JSON line of greeting each way, then one byte per step and one per answer. A rank that
comes after the start gets no answer for as long as this process lives: like a torch process group, it
can never rejoin.
"""

import asyncio
import json
import logging

from llmfleet_sim.execute import GroupError

log = logging.getLogger("llmfleet_sim")
_GRACE = 0.05


class RendezvousError(Exception):
    """Not every rank came in time."""


class LeaderGroup:
    """The links to all other ranks."""

    def __init__(self, *, nodes: int, port: int) -> None:
        self.nodes = nodes
        self.port = port
        self._links: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._late: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()
        self._started = asyncio.Event()
        self._answered = 0.0
        self._server: asyncio.Server | None = None

    async def rendezvous(self, timeout: float) -> None:
        """Listen, and return once every rank is there."""
        self._server = await asyncio.start_server(self._greet, None, self.port, reuse_address=True)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while len(self._links) < self.nodes - 1:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._changed.wait()
            except TimeoutError:
                joined = f"{len(self._links) + 1}/{self.nodes} clients joined"
                raise RendezvousError(
                    f"DistStoreError: Timed out after {timeout:.0f} seconds waiting for clients. {joined}."
                ) from None
        self._started.set()
        for _, writer in self._links.values():
            writer.write(b'{"start":true}\n')

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one connection: a rank before the start, a latecomer after it; a probe says nothing and goes."""
        try:
            rank = int(json.loads(await reader.readline())["rank"])
        except (ValueError, KeyError, TypeError, ConnectionError):
            writer.close()
            return
        if self._started.is_set():
            await self._keep_waiting(rank, reader, writer)
        else:
            await self._join(rank, reader, writer)

    async def _keep_waiting(self, rank: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold a latecomer until it gives up or this process ends."""
        log.warning("rank %d came to a running group and can never join it", rank)
        self._late.add(writer)
        await self._gone(reader)
        self._late.discard(writer)
        writer.close()

    async def _join(self, rank: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Count a rank until the start, unless it goes away before."""
        self._links[rank] = (reader, writer)
        self._changed.set()
        log.info("rank %d joined, %d of %d", rank, len(self._links) + 1, self.nodes)
        waits = [asyncio.create_task(self._gone(reader)), asyncio.create_task(self._started.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not self._started.is_set() and self._links.get(rank, (None,))[0] is reader:
            del self._links[rank]
            writer.close()

    async def _gone(self, reader: asyncio.StreamReader) -> None:
        """Return when the peer has closed; before the start it has nothing to say."""
        try:
            while await reader.read(64):
                pass
        except ConnectionError:
            return

    async def step(self, timeout: float) -> None:
        """Let every rank answer; a lost one fails at once, a silent one after the timeout."""
        loop = asyncio.get_running_loop()
        if any(reader.at_eof() or writer.is_closing() for reader, writer in self._links.values()):
            raise GroupError("a rank of the group is gone: Connection closed by peer")
        if loop.time() - self._answered < _GRACE:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._round()
        except TimeoutError:
            raise GroupError("RPC call to sample_tokens timed out.") from None
        except (ConnectionError, asyncio.IncompleteReadError):
            raise GroupError("a rank of the group is gone: Connection closed by peer") from None
        self._answered = loop.time()

    async def _round(self) -> None:
        for _, writer in self._links.values():
            writer.write(b"S")
        for reader, _ in self._links.values():
            await reader.readexactly(1)

    def close(self) -> None:
        """Drop every link, the waiting latecomers too."""
        for writer in [*(w for _, w in self._links.values()), *self._late]:
            writer.close()
        if self._server is not None:
            self._server.close()
