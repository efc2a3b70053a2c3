"""Finds the server that keeps the jobs, and makes connections to it.

In: settings. Out: `Primary`, by the address that is written there or by what the Sentinels say now, and a client for
it; and in a few words, what stands in the way of either. A client is for one server only: nothing here follows a
primary, so that what is written to one server is never followed by something written to another. Passwords are read
when a `Source` is made, which is at every connect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from llmfleet.router.jobs.primary.agree import Primary, Said, agreed, said_of
from llmfleet.router.jobs.troubles import Unavailable
from llmfleet.router.limits import Redis

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 1.0
CANCEL_SECONDS: Final = 0.2
# The last is uvloop's word for a connection that was closed under a call, as all are when another one is opened.
BROKEN: Final = (RedisError, OSError, TimeoutError, RuntimeError)


class Source:
    """Where jobs are kept, for the life of one connection."""

    def __init__(self, settings: Redis, patience: float) -> None:
        self._settings = settings
        sentinel = settings.sentinel
        self._common: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": patience,
            "health_check_interval": 0,
        }
        tls: dict[str, Any] = {"ssl": True} if sentinel.tls else {}
        options = self._common | tls | self._authority(sentinel.tls)
        options |= _account(sentinel.username, sentinel.password_file)
        make = cast(Callable[..., Sentinel], Sentinel)  # it has no types
        self._sentinels = make([_parts(one) for one in sentinel.addresses], sentinel_kwargs=options)
        self._account = _account(settings.username, settings.password_file)

    def _authority(self, tls: bool) -> dict[str, Any]:
        return {"ssl_ca_certs": self._settings.ca_file} if tls and self._settings.ca_file else {}

    async def find(self) -> Primary:
        """Return the primary of now; raises `Unavailable`."""
        if self._settings.url:
            return Primary(address=urlsplit(self._settings.url).netloc)
        return agreed(await asyncio.gather(*map(self._ask, self._sentinels.sentinels)))

    async def _ask(self, sentinel: redis.Redis) -> Said | str:
        name = self._settings.sentinel.master_name
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                master: Any = await sentinel.sentinel_master(name, return_responses=True)
                replicas: Any = await sentinel.sentinel_slaves(name)
        except AuthenticationError:
            return "the password is refused"
        except ResponseError as error:
            return " ".join(str(error).split()[:12])
        except (RedisError, OSError, TimeoutError):
            return "no answer"
        return said_of(master, replicas)

    def connect(self, primary: Primary, connections: int) -> redis.Redis:
        """Return a client for this server and no other."""
        settings = self._settings
        url = settings.url or f"{'rediss' if settings.sentinel.tls else 'redis'}://{primary.address}/0"
        options = self._common | self._authority(url.startswith("rediss://")) | self._account
        return redis.Redis(connection_pool=redis.ConnectionPool.from_url(url, max_connections=connections, **options))

    async def close(self) -> None:
        """Let go of the Sentinels."""
        await self._sentinels.aclose()


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until none is left."""
    left = set(tasks)
    while left:
        # Redis' client can lose a cancellation in a look at its socket that has a timeout of its own.
        for task in left:
            task.cancel()
        left = (await asyncio.wait(left, timeout=CANCEL_SECONDS))[1]


async def let_go(client: redis.Redis | None, source: Source | None) -> None:
    """Close what there is of a connection; one that cannot even be closed is of no use either."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            if client is not None:
                await client.aclose(close_connection_pool=True)
            if source is not None:
                await source.close()
    except BROKEN as error:
        log.debug("closing redis", extra={"fields": {"reason": reason_of(error)}})


def _account(username: str, password_file: str) -> dict[str, Any]:
    password = Path(password_file).read_text().strip() if password_file else None
    return {"username": username or None, "password": password}


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def reason_of(error: BaseException) -> str:
    """Say in a few words what stands in the way; never an address with a password, as there is none in it."""
    if isinstance(error, Unavailable):
        return str(error)
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "Redis does not answer in time"
    if isinstance(error, ReadOnlyError):
        return "this Redis became a replica"
    if isinstance(error, AuthenticationError):
        return "Redis refuses the password"
    if isinstance(error, ResponseError):
        return f"Redis refuses: {' '.join(str(error).split()[:12])}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return "Redis cannot be reached"
