"""Redis, as the cache uses it: GET and SET on connections of their own, to the primary that keeps the jobs.

In: settings, keys, bytes. Out: bytes, or `Unavailable`. Nothing is tried twice and nobody waits for a connection: while
there is none, every call fails at once. Connections are made by `hold` alone, which backs off.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final, cast

import redis.asyncio as redis
from redis.exceptions import ReadOnlyError, ResponseError

from llmfleet.router.jobs import scripts
from llmfleet.router.jobs.primary.client import BROKEN, CONNECT_SECONDS, Source, end, let_go, reason_of
from llmfleet.router.jobs.troubles import Unavailable
from llmfleet.router.limits import Settings
from llmfleet.router.results.plan import may_grow

log = logging.getLogger(__name__)

LOOKUPS: Final = 32  # at a time; more are as good as missed
STORES: Final = 8
SPARE_CONNECTIONS: Final = 2  # for signs of life
STORE_SECONDS: Final = 1.0  # nobody waits for it
LOOK_SECONDS: Final = 1.0
REST_SECONDS: Final = 0.25  # without lookups after one that came too late
BACKOFF_SECONDS: Final = (0.1, 2.0)


class Shelf:
    """The kept answers of one fleet."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._settings, self._rules, self._loop = settings.redis, settings.result_cache, loop
        self._base = f"{scripts.base(settings.redis.prefix)}:result:"
        self._keep_ms = int(self._rules.ttl_seconds * 1000)
        self._source: Source | None = None
        self._client: redis.Redis | None = None
        self._primary = ""
        self._broken = asyncio.Event()
        self._lookups = self._stores = 0
        self._rests_until = 0.0
        self.full = False  # Redis has no room for answers
        self.problem = "Redis has not been reached yet"  # empty while it can be used
        self._task: asyncio.Task[None] | None = None

    # ---- the connection ----

    def start(self) -> None:
        """Begin to reach for Redis; nothing waits for it."""
        self._task = self._loop.create_task(self._hold())

    async def close(self) -> None:
        """Let go of every connection."""
        self.problem = self.problem or "the router stops"
        await end(() if self._task is None else (self._task,))
        await self._close()

    async def _hold(self) -> None:
        """Keep connections for ever."""
        pause = BACKOFF_SECONDS[0]
        while True:
            try:
                await self._open()
                pause = BACKOFF_SECONDS[0]
                await self._watch()
            except (*BROKEN, ValueError, Unavailable) as error:
                self._lost(reason_of(error))
            except Exception:
                log.exception("the connection of the result cache was given up")
                self._lost("a fault of the router")
            await self._close()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, BACKOFF_SECONDS[1])

    async def _open(self) -> None:
        self._broken.clear()
        source = self._source = Source(self._settings, STORE_SECONDS)
        primary = await source.find()
        self._primary = primary.address
        self._client = source.connect(primary, LOOKUPS + STORES + SPARE_CONNECTIONS)
        await self._look()
        log.info("the result cache can be used", extra={"fields": {"primary": primary.address}})
        self.problem, self._rests_until = "", 0.0

    async def _watch(self) -> None:
        """Return never; raise when another server is the primary, or this one gives no sign of life."""
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._broken.wait()
            except TimeoutError:
                primary = await cast(Source, self._source).find()
                if primary.address != self._primary:
                    raise Unavailable(f"{primary.address} is the primary now") from None
                await self._look()
            else:
                raise Unavailable(self.problem)

    async def _look(self) -> None:
        async with asyncio.timeout(CONNECT_SECONDS):
            memory = await self._usable().info("memory")
        self.full = not may_grow(memory, self._rules.max_memory_share)

    def _lost(self, reason: str) -> None:
        """Remember why Redis cannot be used, and say it once for each reason."""
        if reason != self.problem:
            log.warning("the result cache cannot be used", extra={"fields": {"reason": reason}})
        self.problem = reason
        self._broken.set()

    async def _close(self) -> None:
        client, self._client = self._client, None
        source, self._source = self._source, None
        await let_go(client, source)

    def _usable(self) -> redis.Redis:
        if self._client is None:
            raise Unavailable(self.problem or "Redis is being reached")
        return self._client

    # ---- calls ----

    @property
    def ready(self) -> bool:
        """Whether a lookup may be answered in time."""
        return not self.problem and self._lookups < LOOKUPS and self._loop.time() >= self._rests_until

    def late(self) -> None:
        """A lookup came too late: the next requests do not wait for another one."""
        self._rests_until = self._loop.time() + REST_SECONDS

    async def fetch(self, key: str) -> bytes | None:
        """Return what is kept under a key. The caller bounds the time: a cancellation may be lost in Redis' client."""
        self._lookups += 1
        try:
            return cast("bytes | None", await self._usable().get(self._base + key))
        except ResponseError as error:  # of this key, or of all: the next look will tell
            raise Unavailable(reason_of(error)) from error
        except BROKEN as error:
            self._lost(reason_of(error))
            raise Unavailable(self.problem) from error
        finally:
            self._lookups -= 1

    async def keep(self, key: str, value: bytes) -> str:
        """Keep an answer for its time, or say in a word why not: there is no room, or too many come at once."""
        if self.full or self._stores >= STORES:
            return "full" if self.full else "busy"
        self._stores += 1
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await self._usable().set(self._base + key, value, px=self._keep_ms)
        except BROKEN as error:
            if isinstance(error, ReadOnlyError) or not isinstance(error, ResponseError):
                self._lost(reason_of(error))
            raise Unavailable(reason_of(error)) from error
        finally:
            self._stores -= 1
        return "stored"
