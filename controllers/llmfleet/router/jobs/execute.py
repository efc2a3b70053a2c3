"""Runs jobs: claims them when slots allow, sends each through an exchange like any request, stores what came of it.

In: a router and a store. Out: ended jobs. A job is renewed while it runs and dropped the moment it is no longer ours;
its answer is offered to the store until that takes it or says that somebody else ended the job. It never keeps a job
only in memory: whatever happens to this process, another one claims it after the lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from llmfleet.router import errors
from llmfleet.router.errors import Refusal
from llmfleet.router.jobs import rules
from llmfleet.router.jobs.client import Store
from llmfleet.router.jobs.entry import Claim, Dead, Result, State
from llmfleet.router.jobs.relay import Collector, is_whole
from llmfleet.router.jobs.rules import End
from llmfleet.router.jobs.troubles import Unavailable
from llmfleet.router.limits import Queue
from llmfleet.router.pick import Backend, Fleet, ModelPool
from llmfleet.router.relay import Exchange
from llmfleet.router.sse import Dialect
from llmfleet.telemetry import JobMetrics

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.25
SWEEP_SECONDS: Final = 0.5  # jobs expire this much late at most
COUNT_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.5  # before an attempt that failed is made again
OFFER_SECONDS: Final = (0.1, 2.0)


class Fleetwide(Protocol):
    """What a worker needs of the router it runs in."""

    loop: asyncio.AbstractEventLoop
    fleet: Fleet
    draining: bool

    def waiting(self, model: str) -> int:
        """Count direct requests that wait for a slot."""


class Prepare(Protocol):
    """Makes the exchange of a job, not started yet, or refuses by the rules of now."""

    def __call__(self, claim: Claim, collector: Collector) -> Exchange: ...


class Run:
    """A job of ours: waiting for a slot, or with an exchange."""

    __slots__ = ("claim", "collector", "exchange", "over")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.exchange: Exchange | None = None
        self.collector: Collector | None = None
        self.over = False

    @property
    def dispatches(self) -> int:
        """Count the engines that were asked in this attempt."""
        return 0 if self.exchange is None else self.exchange.attempts - (self.claim.attempts - 1)


class Worker:
    """The jobs of one router process."""

    def __init__(self, router: Fleetwide, store: Store, queue: Queue, metrics: JobMetrics, prepare: Prepare) -> None:
        self._router, self._store, self._queue = router, store, queue
        self._metrics, self._prepare = metrics, prepare
        self._runs: dict[str, Run] = {}
        self._offers: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._checked = self._swept = self._counted = self._renewed = 0.0
        self._stopped = False

    # ---- the loop ----

    async def work(self) -> None:
        """Claim, renew and sweep for ever; a turn that fails is followed by the next one."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._turn()
            except Unavailable:
                continue
            except Exception:
                log.exception("a turn of the jobs' worker failed")
                await asyncio.sleep(TICK_SECONDS)

    async def _turn(self) -> None:
        if self._router.draining:
            self._return_waiting()
        self._start_waiting()
        now = self._router.loop.time()
        if now - self._checked >= TICK_SECONDS / 2:  # not only when nothing wakes it: a busy fleet always does
            self._checked = now
            self._check(now)
        if self._store.problem:
            return
        if now - self._renewed >= self._queue.lease_seconds / 3:
            self._renewed = now
            await self.renew()
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            await self._sweep()
        if now - self._counted >= COUNT_SECONDS:
            self._counted = now
            self._metrics.held = await self._store.held(list(self._router.fleet.models))
        await self._claim()

    async def _claim(self) -> None:
        while not self._stopped and not self._router.draining and (models := self._hungry()):
            found = await self._store.claim(models)
            if found is None:
                return
            if isinstance(found, Dead):
                self._ended(found.model, State.DEAD)
                continue
            if not found.safe:
                self._return(Run(found))
                return
            self._metrics.claims[found.model] += 1
            self._metrics.waited.observe(found.waited_ms / 1000)
            self._runs[found.id] = Run(found)
            self._start_waiting()

    async def renew(self) -> None:
        """Keep what we have; what is no longer ours ends here and now."""
        for run in list(self._runs.values()):
            if not run.over and not await self._store.renew(run.claim):
                self._drop(run)

    async def _sweep(self) -> None:
        for model, state in await self._store.sweep():
            self._ended(model, state)

    def _ended(self, model: str, state: State) -> None:
        self._metrics.ended[(model, str(state))] += 1

    # ---- slots ----

    def heard(self, words: Sequence[str]) -> None:
        """Something happened to a job somewhere."""
        if words[0] == "new":
            self._wake.set()
        elif words[0] == "end" and (run := self._runs.get(words[1])) is not None and words[2] == State.CANCELLED:
            self._drop(run)

    def due(self, model: str) -> bool:
        """Whether the slot that became free is one that jobs are due; then one starts before anything else is done."""
        pool = self._router.fleet.models.get(model)
        if pool is None or not self.waiting(model):
            return False
        if self.running(model) >= rules.floor(_slots(pool), self._queue.job_share):
            return False
        self._router.loop.call_soon(self._start_waiting)
        return True

    def full(self, model: str) -> bool:
        """Whether every slot of a model is taken."""
        pool = self._router.fleet.models.get(model)
        return pool is not None and all(backend.in_flight >= backend.limit for backend in _engines(pool))

    def waiting(self, model: str) -> int:
        """Count jobs of a model that are ours and at no engine yet."""
        return sum(run.exchange is None and run.claim.model == model for run in self._runs.values())

    def running(self, model: str) -> int:
        """Count jobs of a model that are at an engine."""
        return sum(run.exchange is not None and run.claim.model == model for run in self._runs.values())

    @property
    def busy(self) -> int:
        """Count jobs that are ours, or whose answer is not stored yet."""
        return len(self._runs) + len(self._offers)

    def _hungry(self) -> list[str]:
        """Models that can take one more job: now, or with the next slot that the share of jobs is due."""
        counts: Counter[str] = Counter(run.claim.model for run in self._runs.values())
        return [
            name
            for name, pool in self._router.fleet.models.items()
            if _slots(pool) and (counts[name] < rules.floor(_slots(pool), self._queue.job_share) or self._free(pool))
        ]

    def _free(self, pool: ModelPool) -> bool:
        return rules.may_start(
            slots=_slots(pool),
            in_flight=sum(backend.in_flight for backend in _engines(pool)),
            jobs=self.running(pool.name),
            waiting=self._router.waiting(pool.name),
            share=self._queue.job_share,
            headroom=self._queue.job_headroom,
        )

    def _start_waiting(self) -> None:
        for run in list(self._runs.values()):
            if run.exchange is None and not run.over:
                pool = self._router.fleet.models.get(run.claim.model)
                if pool is None or not _engines(pool):
                    self._return(run)
                elif self._free(pool):
                    self._start(run)

    def _start(self, run: Run) -> None:
        collector = run.collector = Collector(self._queue.max_result_bytes, self._over_of(run))
        try:
            run.exchange = self._prepare(run.claim, collector)
        except Refusal as refusal:  # the rules changed since it was stored
            self._refuse(run, refusal)
        except Exception:  # one job that cannot be prepared must not keep the others from running
            log.exception("a job could not be prepared", extra={"fields": {"job": run.claim.id}})
            self._refuse(run, errors.lost(errors.Code.UPSTREAM_FAILED, "the request could not be run", status=500))
        else:
            run.exchange.start()

    def _refuse(self, run: Run, refusal: Refusal) -> None:
        """End a job that reached no engine."""
        status, _, body = errors.render(refusal, Dialect.PLAIN)
        self._offer(run, Result(status=status, content_type=b"application/json", body=body), End.FINISH)

    # ---- ends ----

    def _over_of(self, run: Run) -> Callable[[Result | None], None]:
        return lambda result: self._over(run, result)

    def _over(self, run: Run, result: Result | None) -> None:
        """The exchange is over."""
        exchange = run.exchange
        if run.over or exchange is None:
            return
        if run.collector is not None and run.collector.too_long:
            text = f"the answer is longer than {self._queue.max_result_bytes} bytes and was not kept"
            refusal = errors.lost(errors.Code.UPSTREAM_FAILED, text)
            status, _, body = errors.render(refusal, Dialect.PLAIN)
            too_long = Result(status=status, content_type=b"application/json", body=body)
            self._offer(run, too_long, End.FINISH)
            return
        end = rules.judge(result, whole=is_whole(exchange), dispatched=run.dispatches > 0)
        self._offer(run, result, end)

    def _drop(self, run: Run) -> None:
        """The job is no longer ours: stop its engine."""
        run.over = True
        self._runs.pop(run.claim.id, None)
        if run.exchange is not None:
            run.exchange.cancel()
        self._wake.set()

    def _return_waiting(self) -> None:
        for run in list(self._runs.values()):
            if run.exchange is None:
                self._return(run)

    def _return(self, run: Run) -> None:
        self._offer(run, None, End.RETURN)

    def _offer(self, run: Run, result: Result | None, end: End) -> None:
        """Hand a job over to the store; it is ours until then."""
        run.over = True
        self._runs.pop(run.claim.id, None)
        task = self._router.loop.create_task(self._insist(run, result, end))
        self._offers.add(task)
        task.add_done_callback(self._offers.discard)
        self._wake.set()

    async def _insist(self, run: Run, result: Result | None, end: End) -> None:
        """Tell the store until it has heard, for as long as an answer is worth keeping."""
        loop, pause = self._router.loop, OFFER_SECONDS[0]
        until = loop.time() + self._queue.result_seconds
        while loop.time() < until:
            try:
                await self._tell(run, result, end)
                return
            except Unavailable:
                await asyncio.sleep(pause)
                pause = min(2 * pause, OFFER_SECONDS[1])
        log.error("the answer of a job could not be stored", extra={"fields": {"job": run.claim.id}})

    async def _tell(self, run: Run, result: Result | None, end: End) -> None:
        claim = run.claim
        if end is End.FINISH and result is not None:
            state = rules.final_state(result)
            if await self._store.finish(claim, state, result):
                self._ended(claim.model, state)
            return
        dispatches = 0 if end is End.RETURN else run.dispatches
        begun = run.dispatches > 0
        pause = 0.0 if self._stopped else RETRY_SECONDS
        if end is End.RETRY:
            self._metrics.lost_attempts[claim.model] += 1
        kept = await self._store.give_back(claim, dispatches=dispatches, result=result, pause=pause, begun=begun)
        if kept is State.DEAD:
            self._ended(claim.model, State.DEAD)
            fields = {"job": claim.id, "model": claim.model, "attempts": claim.attempts - 1 + dispatches}
            log.warning("dead letter: every attempt of a job failed", extra={"fields": fields})

    def _check(self, now: float) -> None:
        for run in list(self._runs.values()):
            if run.exchange is not None:
                run.exchange.check(now)

    # ---- leaving ----

    def give_up(self) -> None:
        """The process ends: others may have what is not over, at once and as if we had not tried."""
        self._stopped = True
        for run in list(self._runs.values()):
            run.over = True
            if run.exchange is not None:
                run.exchange.cancel()
            self._return(run)

    async def settled(self, seconds: float) -> None:
        """Wait until everything was told to the store, or time is up."""
        if self._offers:
            await asyncio.wait(self._offers, timeout=seconds)
        for task in list(self._offers):
            task.cancel()

    def exchanges(self) -> list[Exchange]:
        """Return the requests of the jobs that are at engines."""
        return [run.exchange for run in self._runs.values() if run.exchange is not None]

    def in_flight(self) -> dict[str, int]:
        """Count the jobs of each model that are at engines."""
        return dict(Counter(run.claim.model for run in self._runs.values() if run.exchange is not None))


def _engines(pool: ModelPool) -> list[Backend]:
    """Engines that take this model's requests; of a split model those that decode: a request holds one slot there."""
    return [c.backend for c in pool.open or pool.decode.open]


def _slots(pool: ModelPool) -> int:
    return sum(backend.limit for backend in _engines(pool))
