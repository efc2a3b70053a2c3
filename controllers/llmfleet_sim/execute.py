"""The engine loop: schedule a step, wait as long as the step takes, hand the tokens out.

In: sequences from the HTTP side. Out: tokens to their sinks, metrics, and one call when the engine dies.
All waiting of the model of time happens here.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from llmfleet_sim.blocks import BlockPool
from llmfleet_sim.config import EngineConfig
from llmfleet_sim.errors import ApiError, engine_dead
from llmfleet_sim.faults import Faults
from llmfleet_sim.nixl.app import SideChannel
from llmfleet_sim.nixl.client import Puller, PullError
from llmfleet_sim.nixl.params import Pull
from llmfleet_sim.scheduler import Batch, Limits, Scheduler, Sequence
from llmfleet_sim.telemetry import Telemetry

log = logging.getLogger("llmfleet_sim")


class Group(Protocol):
    """The other ranks of the engine."""

    async def step(self, timeout: float) -> None:
        """Return once every rank has worked on the step; raise GroupError if one cannot."""


class GroupError(Exception):
    """Another rank is dead or does not answer."""


class Engine:
    """One simulated EngineCore."""

    def __init__(self, config: EngineConfig, telemetry: Telemetry, faults: Faults, group: Group | None) -> None:
        self.config = config
        self.telemetry = telemetry
        self.faults = faults
        self.group = group
        self.dead = False
        self.paused = False
        self.on_death: Callable[[], None] = lambda: None
        self.on_crash: Callable[[], None] = lambda: None
        pool = BlockPool(blocks=config.blocks, block_size=config.block_size, caching=config.prefix_caching)
        self.scheduler = Scheduler(
            Limits(
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_model_len=config.max_model_len,
                chunked_prefill=config.chunked_prefill,
                priority=config.priority,
                output_tokens=config.output_tokens,
            ),
            pool,
        )
        self.scheduler.on_admit = telemetry.admitted
        self.scheduler.on_pull = self._pull
        self.side: SideChannel | None = None
        self.puller: Puller | None = None
        if config.connector is not None:
            self.side = SideChannel(config, self.scheduler, telemetry)
            self.side.on_free = self.wake
            self.puller = Puller(config)
        self._pulls: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._clock = 0.0

    async def start(self) -> None:
        """Open the side channel of a connector."""
        if self.side is not None:
            await self.side.start()

    def close(self) -> None:
        """Drop every connection to other engines."""
        for task in self._pulls:
            task.cancel()
        if self.side is not None:
            self.side.close()
        if self.puller is not None:
            self.puller.close()

    def submit(self, sequences: Iterable[Sequence], pull: Pull | None = None) -> None:
        """Queue sequences; with a pull, their prompt's KV comes from another engine."""
        for seq in sequences:
            seq.pull = pull
            self.scheduler.add(seq)
            if pull is not None and self.puller is not None:
                self.puller.queued(pull)
        self._wake.set()

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Drop sequences whose client has gone; they count nowhere, as in vLLM."""
        for seq in sequences:
            self.scheduler.abort(seq)
        self._wake.set()

    def wake(self) -> None:
        """Look again: something outside the scheduler has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Work until the engine dies."""
        loop = asyncio.get_running_loop()
        while not self.dead:
            batch = Batch() if self.paused else self.scheduler.schedule(loop.time())
            if not batch.parts:
                self._wake.clear()
                await self._wake.wait()
                self._clock = loop.time()
                continue
            try:
                await self._step(batch, loop)
            except GroupError as error:
                self.die(str(error))

    async def _step(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        """Let the step take its time, then hand its tokens out."""
        seconds = self.faults.slow * self.config.steps.seconds(
            batch=len(batch.parts), prefill_tokens=batch.prefill_tokens, context_tokens=batch.context_tokens
        )
        self._clock = max(self._clock, loop.time() - 0.05) + seconds
        await self._hang(loop)
        if self.group is not None:
            await self.group.step(self.config.env.execute_timeout)
        await asyncio.sleep(max(0.0, self._clock - loop.time()))
        if self.dead:
            return
        now = loop.time()
        emitted = self.scheduler.complete(batch, now)
        self.telemetry.stepped(batch, emitted, now)
        for seq, word, reason in emitted:
            self._hand_out(seq, word, reason, now)

    async def _hang(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stand still while the fault says so; a worker that hangs too long kills the engine."""
        if not self.faults.hanging(loop.time()):
            return
        limit = loop.time() + self.config.env.execute_timeout
        while self.faults.hanging(loop.time()) and not self.dead:
            if loop.time() > limit:
                raise GroupError("RPC call to sample_tokens timed out.")
            await asyncio.sleep(0.02)
        self._clock = loop.time()

    def _hand_out(self, seq: Sequence, word: int, reason: str, now: float) -> None:
        """Give a token to its sink; a stop string found there ends the sequence."""
        if reason and seq.hold_after and self.side is not None:
            seq.sink.transfer = self.side.offer(seq)
        stopped = seq.sink.emit(seq, word, reason, now)
        if stopped and not reason:
            seq.hold_after = False
            self.scheduler.finish(seq, "stop")
        self._strike(seq)
        if stopped or reason:
            self.telemetry.finished(seq, "stop" if stopped else reason, now)

    def _strike(self, seq: Sequence) -> None:
        """Let a fault on command hit this sequence when it has come far enough."""
        kind = self.faults.strikes(seq.outputs)
        if kind == "die_at_token":
            self.on_crash()
        elif kind == "cut":
            seq.sink.cut()
        elif kind == "error_event":
            self.scheduler.abort(seq)
            seq.sink.fail(engine_dead())

    def _pull(self, seq: Sequence) -> None:
        """Fetch a prompt's KV beside the steps."""
        task = asyncio.create_task(self._fetch(seq))
        self._pulls.add(task)
        task.add_done_callback(self._pulls.discard)

    async def _fetch(self, seq: Sequence) -> None:
        pull, puller = seq.pull, self.puller
        assert pull is not None and puller is not None and self.config.connector is not None
        puller.forget(pull)
        begun = asyncio.get_running_loop().time()
        try:
            seed = await puller.read(pull, len(seq.prompt))
        except PullError as error:
            self.telemetry.scalar("vllm:nixl_num_failed_transfers").inc()
            self._unpulled(seq, str(error))
            return
        if seq.finish:
            return
        self.telemetry.pulled(len(seq.prompt), asyncio.get_running_loop().time() - begun)
        self.scheduler.pulled(seq, seed)
        self.wake()

    def _unpulled(self, seq: Sequence, message: str) -> None:
        """A fetch failed: compute the prompt here, or fail the request, as the policy says."""
        assert self.config.connector is not None
        if seq.finish:
            return
        if self.config.connector.recompute:
            self.scheduler.pulled(seq, None)
            self.wake()
            return
        self.scheduler.abort(seq)
        seq.sink.fail(ApiError(500, message, "InternalServerError"))

    def die(self, why: str) -> None:
        """Fail every request and stay dead; the process ends a little later, as vLLM's does."""
        if self.dead:
            return
        self.dead = True
        log.error("EngineCore encountered a fatal error: %s", why)
        self.fail_all(engine_dead())
        self._wake.set()
        self.on_death()

    def fail_all(self, error: ApiError) -> None:
        """End every request with an error."""
        for seq in self._drop_all():
            seq.sink.fail(error)

    def interrupt_all(self) -> None:
        """End every request where it is, with finish reason `abort`."""
        for seq in self._drop_all():
            seq.sink.interrupt()

    def _drop_all(self) -> list[Sequence]:
        dropped = [*self.scheduler.running, *self.scheduler.waiting]
        for seq in dropped:
            self.scheduler.abort(seq)
        return dropped
