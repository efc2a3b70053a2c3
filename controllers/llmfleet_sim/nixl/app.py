"""The prefill side: blocks held for a decode engine until it has read them or the lease has run out.

In: finished prefills and lines of JSON from decode engines. Out: offers, and the seed of the KV that
stands for its contents. Blocks that were freed still answer with what was last in them: a decode engine
that uses an offer twice gets somebody else's KV, as it does from real memory.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from llmfleet_sim.config import EngineConfig
from llmfleet_sim.nixl.params import build_offer
from llmfleet_sim.scheduler import Scheduler, Sequence
from llmfleet_sim.telemetry import Telemetry

log = logging.getLogger("llmfleet_sim")
_REMEMBERED = 1024


class SideChannel:
    """Offers of one prefill engine and the server that decode engines read from."""

    def __init__(self, config: EngineConfig, scheduler: Scheduler, telemetry: Telemetry) -> None:
        self.config = config
        self.scheduler = scheduler
        self.telemetry = telemetry
        self.on_free: Callable[[], None] = lambda: None
        self._held: dict[str, tuple[Sequence, float]] = {}
        self._seeds: dict[str, int] = {}
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def held(self) -> int:
        """Offers that nobody has read yet."""
        return len(self._held)

    async def start(self) -> None:
        """Listen on the side-channel address."""
        env = self.config.env
        self._server = await asyncio.start_server(self._serve, env.nixl_host, env.nixl_port)
        self._sweeper = asyncio.create_task(self._sweep())

    def close(self) -> None:
        """Stop; what is held is lost."""
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for writer in self._writers:
            writer.close()

    def offer(self, seq: Sequence) -> dict[str, Any]:
        """Hold a finished prefill's blocks and describe them."""
        connector = self.config.connector
        assert connector is not None
        name = f"{seq.request_id}-{seq.seed & 0xFFFFFFFF:08x}"
        self._held[name] = (seq, asyncio.get_running_loop().time() + connector.lease_seconds)
        self._seeds[name] = seq.seed
        while len(self._seeds) > _REMEMBERED:
            del self._seeds[next(iter(self._seeds))]
        return build_offer(
            engine_id=connector.engine_id,
            request_id=name,
            host=self.config.env.nixl_host,
            port=self.config.env.nixl_port,
            tokens=len(seq.prompt),
            blocks=self.scheduler.pool.needed(len(seq.prompt)),
            cached=seq.cached,
            sizes=(self.config.world_size, 1),
            version=self.config.version,
        )

    def _free(self, name: str) -> bool:
        found = self._held.pop(name, None)
        if found is None:
            return False
        self.scheduler.pool.release(found[0].holding)
        self.on_free()
        return True

    async def _sweep(self) -> None:
        """Free what nobody has read in time."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0.25)
            now = loop.time()
            for name in [n for n, (_, end) in self._held.items() if end < now]:
                log.warning("releasing expired KV blocks of a request that no decode engine has read")
                self._free(name)
                self.telemetry.scalar("vllm:nixl_num_kv_expired_reqs").inc()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one decode engine until it leaves."""
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self._answer(json.loads(line))).encode() + b"\n")
        except (ValueError, KeyError, ConnectionError):
            log.warning("side channel: a peer sent something that is no request")
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, line: dict[str, Any]) -> dict[str, Any]:
        connector = self.config.connector
        assert connector is not None
        if line["op"] == "hello":
            return {"engine": connector.engine_id, "fingerprint": connector.fingerprint}
        if line["op"] == "read":
            return {"seed": self._seeds.get(line["request"], 0)}
        if line["op"] == "heartbeat":
            return {"extended": self._extend(line["requests"], connector.lease_seconds)}
        freed = self._free(line["request"])
        if not freed:
            self.telemetry.scalar("vllm:nixl_num_notifications_after_expiry").inc()
        return {"freed": freed}

    def _extend(self, names: list[str], seconds: float) -> int:
        end = asyncio.get_running_loop().time() + seconds
        known = [name for name in names if name in self._held]
        for name in known:
            self._held[name] = (self._held[name][0], end)
        return len(known)
