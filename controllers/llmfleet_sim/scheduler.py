"""Which requests run in the next step, and what a finished step means for each: vLLM's scheduler in small.

In: sequences, limits, and the end time of each step. Out: batches and tokens. Pure: it never waits,
and time only passes through arguments. Running sequences go first, prefills are chunked into the token
budget, the last (or least urgent) running sequence is preempted when blocks run out.
"""

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmfleet_sim.blocks import BlockPool, Holding
from llmfleet_sim.errors import ApiError
from llmfleet_sim.nixl.params import Pull
from llmfleet_sim.text import TOKENS, natural_length, word_at
from llmfleet_sim.tokens import EOS, Tokens


class Sink(Protocol):
    """Where the tokens of one sequence go."""

    transfer: dict[str, Any] | None
    cut: Callable[[], None]

    def emit(self, seq: "Sequence", word: int, reason: str, now: float) -> bool:
        """Take a token (-1 is the end-of-sequence token); say whether a stop string ended the sequence."""

    def fail(self, error: ApiError) -> None:
        """Take the error that ends the sequence."""

    def interrupt(self) -> None:
        """Take the end that a stopping engine makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds one step."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    chunked_prefill: bool = True
    priority: bool = False
    output_tokens: int = 128


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One sampled sequence: what was asked, how far it is, and when things happened."""

    request_id: str
    index: int
    prompt: Tokens
    max_tokens: int
    seed: int
    arrived: float
    sink: Sink
    min_tokens: int = 0
    ignore_eos: bool = False
    priority: int = 0
    salt: int = 0
    pull: Pull | None = None
    pulling: bool = False
    hold_after: bool = False
    tokens: Tokens = field(default_factory=lambda: array("Q"))
    outputs: int = 0
    computed: int = 0
    cached: int = 0
    external: int = 0
    preemptions: int = 0
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    ends_at: int = 0
    holding: Holding = field(default_factory=Holding)
    finish: str = ""

    def __post_init__(self) -> None:
        """Start from the prompt."""
        self.tokens = array("Q", self.prompt)


@dataclass(slots=True, kw_only=True)
class Batch:
    """One step: sequences with the tokens each computes, and the sums the time model needs."""

    parts: list[tuple[Sequence, int]] = field(default_factory=list)
    prefill_tokens: int = 0
    context_tokens: int = 0
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """All tokens of the step."""
        return sum(n for _, n in self.parts)


class Scheduler:
    """The waiting and running sequences of one engine."""

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        self.limits = limits
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.on_admit: Callable[[Sequence], None] = lambda seq: None
        self.on_pull: Callable[[Sequence], None] = lambda seq: None

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.running or self.waiting)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence: by arrival, or by priority and then arrival."""
        seq.ends_at = max(seq.min_tokens, natural_length(seq.seed, self.limits.output_tokens))
        self.waiting.append(seq)
        if self.limits.priority:
            self.waiting = deque(sorted(self.waiting, key=_urgency))

    def abort(self, seq: Sequence) -> None:
        """Drop a sequence wherever it is; its blocks stay cached."""
        if seq.finish:
            return
        seq.finish = "abort"
        if seq in self.running:
            self.running.remove(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        self.pool.release(seq.holding)

    def deferred(self) -> int:
        """How many waiting sequences wait for a KV transfer, not for capacity."""
        return sum(1 for seq in self.waiting if seq.pull is not None)

    def schedule(self, now: float) -> Batch:
        """Choose the next step."""
        batch = Batch()
        budget = self._continue_running(batch)
        if not batch.preempted:
            self._admit(batch, budget, now)
        return batch

    def _continue_running(self, batch: Batch) -> int:
        """Give every running sequence its next token or prefill chunk."""
        budget = self.limits.max_num_batched_tokens
        for seq in list(self.running):
            count = min(len(seq.tokens) - seq.computed, budget)
            if not count or seq not in self.running:
                continue
            if self._make_room(seq, seq.computed + count, batch):
                self._put(batch, seq, count)
                budget -= count
        return budget

    def _make_room(self, seq: Sequence, tokens: int, batch: Batch) -> bool:
        """Grow a sequence, preempting others until it fits; say no if it was preempted itself."""
        while not self.pool.grow(seq.holding, tokens):
            victim = max(self.running, key=_urgency) if self.limits.priority else self.running[-1]
            self._preempt(victim, batch)
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence, batch: Batch) -> None:
        """Send a running sequence back to the head of the queue; everything is computed again."""
        self.running.remove(seq)
        batch.parts = [part for part in batch.parts if part[0] is not seq]
        self.pool.release(seq.holding)
        seq.computed = 0
        seq.preemptions += 1
        self.waiting.appendleft(seq)
        if self.limits.priority:
            self.waiting = deque(sorted(self.waiting, key=_urgency))
        batch.preempted.append(seq)

    def _admit(self, batch: Batch, budget: int, now: float) -> None:
        """Start waiting sequences while seats, budget and blocks last."""
        for seq in list(self.waiting):
            if not budget or not self._seat(seq, batch):
                return
            if seq.pull is not None:
                self._begin_pull(seq)
                continue
            count = self._start(seq, budget)
            if not count:
                return
            self.waiting.remove(seq)
            self.running.append(seq)
            seq.scheduled = seq.scheduled or now
            self.on_admit(seq)
            self._put(batch, seq, count)
            budget -= count

    def _seat(self, seq: Sequence, batch: Batch) -> bool:
        """Find a seat; under priority scheduling a more urgent sequence takes a running one's."""
        if len(self.running) < self.limits.max_num_seqs:
            return True
        if not self.limits.priority:
            return False
        victim = max(self.running, key=_urgency)
        if victim.priority <= seq.priority:
            return False
        self._preempt(victim, batch)
        return True

    def _begin_pull(self, seq: Sequence) -> None:
        """Take the blocks of a prompt that another engine has computed, and have it fetched."""
        if not seq.pulling and self.pool.grow(seq.holding, len(seq.prompt)):
            seq.pulling = True
            self.on_pull(seq)

    def pulled(self, seq: Sequence, seed: int | None) -> None:
        """A fetch has ended: with the KV of this seed, or with none, and then the prompt is computed here."""
        seq.pull, seq.pulling = None, False
        if seed is None:
            self.pool.release(seq.holding)
            return
        seq.seed = seed
        seq.external = seq.cached = len(seq.prompt)
        seq.computed = len(seq.prompt) - 1

    def _start(self, seq: Sequence, budget: int) -> int:
        """Take cached and new blocks for a sequence; 0 when it does not fit."""
        found = self.pool.match(seq.tokens, seq.salt) if not seq.computed else []
        start = seq.computed or len(found) * self.pool.block_size
        count = min(len(seq.tokens) - start, budget)
        if count < len(seq.tokens) - start and not self.limits.chunked_prefill:
            return 0
        if self.pool.needed(len(seq.tokens)) - len(found) - seq.holding.blocks > self.pool.free:
            return 0
        if not seq.computed:
            self.pool.adopt(seq.holding, found, seq.salt)
            seq.computed = start
            if not seq.preemptions:  # what comes back finds its own tokens: no merit of the cache
                seq.cached = seq.cached or start
        return count if self.pool.grow(seq.holding, start + count) else self._give_up(seq)

    def _give_up(self, seq: Sequence) -> int:
        """Undo a start that did not fit after all."""
        self.pool.release(seq.holding)
        seq.computed = 0
        return 0

    def _put(self, batch: Batch, seq: Sequence, count: int) -> None:
        batch.parts.append((seq, count))
        batch.context_tokens += seq.computed
        if seq.computed < len(seq.prompt):
            batch.prefill_tokens += count

    def complete(self, batch: Batch, now: float) -> list[tuple[Sequence, int, str]]:
        """Apply a finished step: (sequence, word, finish reason or "") for every new token."""
        emitted = []
        for seq, count in batch.parts:
            if seq.finish:
                continue
            seq.computed += count
            if seq.computed == len(seq.tokens):
                emitted.append(self._sample(seq, now))
            self.pool.name_full(seq.holding, seq.tokens, seq.computed)
        for seq, _, reason in emitted:
            if reason:
                self.finish(seq, reason)
        return emitted

    def _sample(self, seq: Sequence, now: float) -> tuple[Sequence, int, str]:
        """Give the next token and decide whether it is the last."""
        ended = not seq.ignore_eos and seq.outputs >= seq.ends_at
        word = -1 if ended else word_at(seq.seed, seq.outputs)
        seq.tokens.append(EOS if ended else TOKENS[word])
        seq.outputs += 1
        seq.first_token = seq.first_token or now
        return seq, word, self._reason(seq, ended)

    def _reason(self, seq: Sequence, ended: bool) -> str:
        if ended:
            return "stop"
        full = len(seq.tokens) >= self.limits.max_model_len
        return "length" if seq.outputs >= seq.max_tokens or full else ""

    def finish(self, seq: Sequence, reason: str) -> None:
        """End a running sequence; its blocks stay cached, or held if a transfer must still read them."""
        seq.finish = reason
        if seq in self.running:
            self.running.remove(seq)
        if not seq.hold_after:
            self.pool.release(seq.holding)


def _urgency(seq: Sequence) -> tuple[int, float]:
    """Order of priority scheduling: lower first, then earlier."""
    return seq.priority, seq.arrived
