"""The decode side: read the KV of a prompt from its prefill engine, or fail as slowly as vLLM does.

In: a Pull. Out: the seed that stands for the KV's contents. The seconds are those measured on 0.32.0,
times --sim-teardown-scale.
"""

import asyncio
import json
from typing import Any

from llmfleet_sim.config import EngineConfig
from llmfleet_sim.nixl.params import Pull

_UNREACHABLE = 5.0
_MISMATCH = 8.0
_DIED_FIRST = 2.9
_DIED_AGAIN = 0.05
_BEATS_PER_LEASE = 6


class PullError(Exception):
    """The KV could not be read; the message is what the client sees."""


class _Peer:
    """The connection to one prefill engine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()

    async def call(self, **line: Any) -> dict[str, Any]:
        """Send one line and read one."""
        async with self._lock:
            self._writer.write(json.dumps(line).encode() + b"\n")
            answer = await self._reader.readline()
        if not answer:
            raise ConnectionError("closed")
        return dict(json.loads(answer))

    def close(self) -> None:
        """Drop the connection."""
        self._writer.close()


class Puller:
    """All connections of one decode engine."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._peers: dict[tuple[str, int], tuple[_Peer, str]] = {}
        self._lost: set[str] = set()
        self._queued: dict[str, Pull] = {}
        self._beat: asyncio.Task[None] | None = None

    def queued(self, pull: Pull) -> None:
        """Keep the lease of a prompt that waits for a seat."""
        self._queued[pull.request_id] = pull
        if self._beat is None:
            self._beat = asyncio.create_task(self._heartbeats())

    def forget(self, pull: Pull) -> None:
        """Stop keeping a lease."""
        self._queued.pop(pull.request_id, None)

    def close(self) -> None:
        """Drop every connection."""
        if self._beat is not None:
            self._beat.cancel()
        for peer, _ in self._peers.values():
            peer.close()

    async def read(self, pull: Pull, tokens: int) -> int:
        """Read a prompt's KV; gives its seed."""
        peer = await self._connected(pull)
        try:
            answer = await peer.call(op="read", request=pull.request_id)
            await asyncio.sleep(0.001 + tokens * self.config.transfer_us / 1e6)
            await peer.call(op="done", request=pull.request_id)
        except (OSError, ConnectionError):
            self._peers.pop((pull.host, pull.port), None)
            first = pull.engine_id not in self._lost
            self._lost.add(pull.engine_id)
            raise await self._late(_DIED_FIRST if first else _DIED_AGAIN, "Internal server error") from None
        return int(answer["seed"])

    async def _connected(self, pull: Pull) -> _Peer:
        """Give the connection to the engine that the params name."""
        key = (pull.host, pull.port)
        if key not in self._peers:
            if pull.engine_id in self._lost:
                raise await self._late(_DIED_AGAIN, "Internal server error")
            self._peers[key] = await self._connect(pull)
        peer, engine_id = self._peers[key]
        if engine_id != pull.engine_id:
            message = f"engine ID mismatch: expected {pull.engine_id}, received {engine_id}"
            raise await self._late(_MISMATCH, message)
        return peer

    async def _connect(self, pull: Pull) -> tuple[_Peer, str]:
        connector = self.config.connector
        assert connector is not None
        try:
            async with asyncio.timeout(2):
                peer = _Peer(*await asyncio.open_connection(pull.host, pull.port))
            hello = await peer.call(op="hello")
        except (OSError, TimeoutError):
            raise await self._late(_UNREACHABLE, "Internal server error") from None
        if hello["fingerprint"] != connector.fingerprint:
            peer.close()
            raise await self._late(_MISMATCH, "Internal server error")
        return peer, str(hello["engine"])

    async def _late(self, seconds: float, message: str) -> PullError:
        """Make the error, after the time that vLLM needs to notice."""
        await asyncio.sleep(seconds * self.config.teardown_scale)
        return PullError(message)

    async def _heartbeats(self) -> None:
        """Extend the leases of prompts that wait."""
        assert self.config.connector is not None
        while True:
            await asyncio.sleep(self.config.connector.lease_seconds / _BEATS_PER_LEASE)
            for pull in list(self._queued.values()):
                try:
                    peer = await self._connected(pull)
                    await peer.call(op="heartbeat", requests=[pull.request_id])
                except (PullError, OSError):
                    continue
