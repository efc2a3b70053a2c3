"""Redis, as jobs use it: one script for every change, a bound on every wait, and one word for why it cannot be used.

In: settings and what is to be stored. Out: what the scripts answered, or `Unavailable`. Nothing is tried twice here:
a caller that must succeed comes again. Connections are made by `hold` alone, which backs off; while it has none, every
call fails at once. A Redis that evicts is refused like one that is away. All connections are to one server, for as long
as it is the primary. With Sentinels a change that matters is answered only once every replica that could become the
primary has it, so a failover cannot undo it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, cast

import redis.asyncio as redis
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from llmfleet.router.jobs import health, scripts
from llmfleet.router.jobs.entry import (
    Admission,
    Claim,
    Dead,
    Request,
    Result,
    State,
    Verdict,
    View,
    admission_of,
    claim_of,
    view_of,
)
from llmfleet.router.jobs.primary.agree import Primary, needed_copies
from llmfleet.router.jobs.primary.client import BROKEN, CONNECT_SECONDS, Source, let_go, reason_of
from llmfleet.router.jobs.rules import MAX_ATTEMPTS
from llmfleet.router.jobs.troubles import Doubtful, Unavailable
from llmfleet.router.limits import Queue, Redis

log = logging.getLogger(__name__)

CONNECTIONS: Final = 16
SPARE_CONNECTIONS: Final = 4  # for announcements and signs of life, beside the calls
LOOK_SECONDS: Final = 1.0  # between two signs of life of a Redis that is not asked for anything else
BREATH_SECONDS: Final = 0.05  # between two, however many calls fail
BACKOFF_SECONDS: Final = (0.1, 5.0)
WAIT_MILLISECONDS: Final = 100
ORPHAN_SECONDS: Final = 60.0  # beyond four leases nobody renewed or claimed: the job is given up for lost
NEVER_MILLISECONDS: Final = 1 << 40
PATIENT_SECONDS: Final = 2.0  # for what no client waits for
FENCE_BYTES: Final = 8


class Heard(Protocol):
    """Called with what is announced on the channel of events."""

    def __call__(self, words: Sequence[str]) -> None: ...


class Store:
    """The jobs of one fleet."""

    def __init__(self, settings: Redis, queue: Queue, classes: Sequence[str], worker: str) -> None:
        self._settings, self._queue, self._classes, self._worker = settings, queue, tuple(classes), worker
        self.where = settings.where
        self._base = scripts.base(settings.prefix)
        self._keep = int(queue.result_seconds * 1000)
        self._lease = int(queue.lease_seconds * 1000)
        self._orphan = 4 * self._lease + int(ORPHAN_SECONDS * 1000)
        self._source: Source | None = None
        self._client: redis.Redis | None = None
        self._copies = 0  # replicas that must have what a failover may not undo
        self.primary = ""  # its address, while it can be used
        self._broken = asyncio.Event()
        # In turn: the pool of Redis' client lets who comes last overtake who waits.
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._calm_until = 0.0
        self._doubtful: list[tuple[str, str]] = []  # admissions without an answer: id and tenant
        self.problem = "Redis has not been reached yet"  # empty while it can be used
        self.refused = False  # it answers and must not be used
        self.failures = 0
        self.reconnects = 0

    # ---- the connection ----

    async def hold(self, heard: Heard, ready: Callable[[], Awaitable[None]]) -> None:
        """Keep a connection for ever; while there is one, pass on what is announced."""
        pause = BACKOFF_SECONDS[0]
        while True:
            try:
                await self._open()
                pause = BACKOFF_SECONDS[0]
                await ready()
                await self._listen(heard)
            except (RedisError, OSError, TimeoutError, ValueError, Unavailable) as error:
                self._lost(reason_of(error))
            except Exception:  # a fault of ours, or words on the channel that nobody of us wrote: jobs go on after it
                log.exception("the connection to redis was given up")
                self._lost("a fault of the router")
            await self._close()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, BACKOFF_SECONDS[1])

    async def _open(self) -> None:
        self._broken.clear()
        source = self._source = Source(self._settings, 2 * PATIENT_SECONDS)
        primary = await source.find()
        client = self._client = source.connect(primary, CONNECTIONS + SPARE_CONNECTIONS)
        async with asyncio.timeout(2 * CONNECT_SECONDS):
            found = await client.info("everything")
        self._refuse(found)
        for warning in health.warnings(found, replicated=self._settings.replicated):
            log.warning("redis keeps jobs less safely than it could", extra={"fields": {"reason": warning}})
        self._use(primary, found)
        if self.problem:
            self.reconnects += 1
            fields = {"primary": primary.address, "copies": self._copies, "version": found.get("redis_version")}
            log.info("redis can be used", extra={"fields": fields})
        self.problem = ""
        self._calm_until = asyncio.get_running_loop().time() + self._queue.lease_seconds / 2
        await self._withdraw_doubtful()

    def _refuse(self, found: Mapping[str, Any]) -> None:
        refusal = health.refusal(found)
        self.refused = bool(refusal)
        if refusal:
            raise Unavailable(refusal)

    def _use(self, primary: Primary, found: Mapping[str, Any]) -> None:
        self.primary, self._copies = primary.address, needed_copies(primary, found)

    async def _listen(self, heard: Heard) -> None:
        """Pass announcements on until the connection breaks, looking now and then whether it is still a good one."""
        client = cast(redis.Redis, self._client)
        async with client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(scripts.events_channel(self._settings.prefix))
            reader = asyncio.create_task(_pass_on(channel, heard))
            try:
                while not reader.done():
                    await _first(reader, self._broken, LOOK_SECONDS)
                    self._broken.clear()
                    await self._look(client)
                    await asyncio.sleep(BREATH_SECONDS)
                reader.result()
            finally:
                reader.cancel()

    async def _look(self, client: redis.Redis) -> None:
        """Ask for a sign of life; a call that came too late once does not cost the connection."""
        primary = await cast(Source, self._source).find()
        if primary.address != self.primary:
            raise Unavailable(f"{primary.address} is the primary now")
        async with asyncio.timeout(CONNECT_SECONDS):
            found = await client.info("memory", "replication")
        self._refuse(found)
        self._use(primary, found)
        self.problem = ""
        await self._withdraw_doubtful()

    def _lost(self, reason: str) -> None:
        """Remember and say why Redis cannot be used, once for each reason."""
        if reason != self.problem:
            log.warning("redis cannot be used: no jobs are taken", extra={"fields": {"reason": reason}})
        self.problem = reason
        self._broken.set()

    async def _close(self) -> None:
        client, self._client = self._client, None
        source, self._source = self._source, None
        await let_go(client, source)

    async def close(self) -> None:
        """Let go of every connection."""
        self.problem = self.problem or "the router stops"
        await self._close()

    # ---- calls ----

    async def _call(
        self,
        text: str,
        keys: Sequence[str],
        args: Sequence[Any],
        seconds: float,
        *,
        copies: int = 0,
        wrote: Callable[[Any], bool] = bool,
    ) -> Any:
        """Run a script; whatever stands in its way is `Unavailable`. Waiting for a turn is not Redis' time.

        With `copies`, what it wrote (`wrote` tells by its answer whether it did) is on so many replicas afterwards.
        """
        self._usable()
        try:
            async with self._turns:
                client = self._usable()
                if copies:
                    return await self._copied(client, text, [self._base, *keys], args, seconds, copies, wrote)
                async with asyncio.timeout(seconds):
                    return await self._run(client, text, [self._base, *keys], args)
        except OutOfMemoryError as error:
            self.failures += 1
            raise Unavailable("Redis is full") from error
        except ReadOnlyError as error:  # what was the primary is a replica
            self.failures += 1
            self._lost(reason_of(error))
            raise Unavailable(self.problem) from error
        except ResponseError as error:
            self.failures += 1
            raise Unavailable(reason_of(error)) from error
        except BROKEN as error:
            self.failures += 1
            self._lost(reason_of(error))
            raise Doubtful(self.problem) from error

    async def _copied(
        self,
        client: redis.Redis,
        text: str,
        keys: Sequence[str],
        args: Sequence[Any],
        seconds: float,
        copies: int,
        wrote: Callable[[Any], bool],
    ) -> Any:
        """Run a script, then wait for replicas; WAIT speaks of what was written on its own connection."""
        answer = None
        try:
            async with client.client() as one:
                async with asyncio.timeout(seconds):
                    answer = await self._run(one, text, keys, args)
                if not wrote(answer):
                    return answer
                async with asyncio.timeout(WAIT_MILLISECONDS / 1000 + seconds):
                    found = await one.wait(copies, WAIT_MILLISECONDS)
        except BROKEN as error:
            if answer is None:
                raise
            self.failures += 1
            self._lost(reason_of(error))
            raise Doubtful(self.problem, answer) from error
        if found < copies:
            self._broken.set()  # perhaps it is no longer the primary: look at once
            had = f"{found} of {copies} replicas" if copies > 1 else "no replica"
            raise Doubtful(f"{had} of Redis had it within {WAIT_MILLISECONDS} ms", answer)
        return answer

    def _usable(self) -> redis.Redis:
        if self.problem or self._client is None:
            raise Unavailable(self.problem or "Redis is being reached")
        return self._client

    async def _run(self, client: redis.Redis, text: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return await client.evalsha(scripts.sha(text), len(keys), *keys, *args)
        except NoScriptError:
            return await client.eval(text, len(keys), *keys, *args)

    # ---- for clients ----

    async def admit(self, request: Request, *, ttl_seconds: float, share_limit: int = 0) -> Admission:
        """Store a request, or say why not. What is returned as stored or there already is safe to acknowledge."""
        once = (
            scripts.once_key(self._settings.prefix, request.tenant, request.idempotency) if request.idempotency else ""
        )
        args = [
            *(request.id, request.model, request.klass, request.tenant, request.path, request.body, request.fields),
            *(int(ttl_seconds * 1000), self._queue.capacity, share_limit, self._keep),
            *(once, request.digest, *self._classes),
        ]
        try:
            answer = await self._call(
                scripts.ADMIT, (), args, self._settings.timeout_seconds, copies=self._before_ack(), wrote=_is_stored
            )
        except Doubtful:
            # It may be stored all the same, and its client hears that it is not: taken back by the next sign of life.
            self._doubtful.append((request.id, request.tenant))
            self._broken.set()
            raise
        return admission_of(answer)

    def _before_ack(self) -> int:
        """How many replicas have a job before its client hears of it: one at least where there shall be replicas."""
        settings = self._settings
        return max(1, self._copies) if settings.replicated or settings.sentinel.addresses else 0

    async def _withdraw_doubtful(self) -> None:
        while self._doubtful:
            doubtful = self._doubtful[0]  # more may come while this one is taken back
            await self.cancel(*doubtful, forget=True)
            self._doubtful.remove(doubtful)

    async def look(self, ident: str, tenant: str, *, whole: bool = False) -> View | None:
        """Return a job of this tenant, with its answer if `whole`."""
        args = [ident, tenant, int(whole), int(self._copies > 0)]
        seconds = PATIENT_SECONDS if whole else self._settings.timeout_seconds
        answer = await self._call(scripts.LOOK, (), args, seconds, copies=self._copies, wrote=_is_lasting)
        return view_of(ident, answer) if answer else None

    async def cancel(self, ident: str, tenant: str, *, forget: bool = False) -> State | None:
        """End a job that is not over; returns its state then, None if this tenant has none such.

        With `forget` it is as if it had never been, unless a repeated request was told of it in the meantime.
        """
        args = [ident, tenant, self._keep, int(forget)]
        copies = 0 if forget else self._copies
        answer = await self._call(scripts.CANCEL, (), args, self._settings.timeout_seconds, copies=copies)
        return None if answer is None else State(answer.decode())

    # ---- for workers ----

    async def claim(self, models: Sequence[str]) -> Claim | Dead | None:
        """Take the most urgent job of these models, those whose worker went silent first.

        One that a failover could undo is not `safe` to run: the new primary would not know of the attempt.
        """
        prefix = self._settings.prefix
        # Everybody's leases ran out while Redis was away: let them be renewed first.
        lease = NEVER_MILLISECONDS if self._just_back() else self._lease
        keys = [scripts.queue_key(prefix, klass, model) for klass in self._classes for model in models]
        fence = secrets.token_hex(FENCE_BYTES)
        args = [self._worker, lease, MAX_ATTEMPTS, self._keep, self._orphan, fence]
        try:
            answer = await self._call(scripts.CLAIM, keys, args, PATIENT_SECONDS, copies=self._copies)
        except Doubtful as error:
            if error.answer is None:
                raise
            claim = claim_of(error.answer)
            return claim if isinstance(claim, Dead) else replace(claim, safe=False)
        return None if answer is None else claim_of(answer)

    def _just_back(self) -> bool:
        return asyncio.get_running_loop().time() < self._calm_until

    async def renew(self, claim: Claim) -> bool:
        """Keep a job; False if it is no longer ours."""
        args = [claim.id, claim.fence, self._orphan]
        return bool(await self._call(scripts.RENEW, (), args, PATIENT_SECONDS))

    async def finish(self, claim: Claim, state: State, result: Result) -> bool:
        """Store the answer and end the job; False if somebody else did."""
        args = [claim.id, claim.fence, state, self._keep, result.status, result.content_type, result.body]
        return bool(await self._call(scripts.FINISH, (), args, PATIENT_SECONDS, copies=self._copies))

    async def give_back(
        self, claim: Claim, *, dispatches: int, result: Result | None, pause: float, begun: bool
    ) -> State | None:
        """Let another worker try, or file the job as dead once its attempts are used up."""
        idle = max(0, self._lease - int(pause * 1000))
        args: list[Any] = [claim.id, claim.fence, dispatches, MAX_ATTEMPTS, self._keep, idle, int(begun)]
        args += [result.status, result.content_type, result.body] if result is not None else ["", "", ""]
        answer = await self._call(scripts.GIVE_BACK, (), args, PATIENT_SECONDS, copies=self._copies)
        return State(answer.decode()) if answer else None

    async def sweep(self) -> list[tuple[str, State]]:
        """End what waited or was silent for too long; returns model and state of each."""
        args = [self._keep, int(not self._just_back())]
        answer = await self._call(scripts.SWEEP, (), args, PATIENT_SECONDS)
        words = [word.decode() for word in answer]
        return [(model, State(state)) for model, state in zip(words[::2], words[1::2], strict=True)]

    async def held(self, models: Sequence[str]) -> dict[str, int]:
        """Count the jobs of each model that are not over."""
        answer = await self._call(scripts.HELD, (), [len(self._classes), *self._classes, *models], PATIENT_SECONDS)
        return dict(zip(models, map(int, answer), strict=True))


def _is_stored(answer: Sequence[Any]) -> bool:
    return answer[0].decode() in (Verdict.STORED, Verdict.AGAIN)


def _is_lasting(view: Sequence[Any]) -> bool:
    return not view or view[0].decode() not in (State.QUEUED, State.RUNNING)


async def _pass_on(channel: Any, heard: Heard) -> None:
    async for message in channel.listen():
        heard(message["data"].decode().split(" "))


async def _first(task: asyncio.Task[None], event: asyncio.Event, seconds: float) -> None:
    """Wait until the task is over, the event is set, or time is up."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, waiting), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
