"""Turn generated words into vLLM's answers: one JSON body, or server-sent events as they come.

In: an Ask and the words of its sequences. Out: bytes for the writer. No clock, no socket: times are
arguments, and `write` and `close` are given by the caller. Subclasses know one wire format each.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmfleet_sim.ask import Ask
from llmfleet_sim.config import EngineConfig
from llmfleet_sim.errors import ApiError, dump
from llmfleet_sim.scheduler import Sequence
from llmfleet_sim.text import JSON_TEXTS, TEXTS, TOKENS, WORDS, logprob_at
from llmfleet_sim.tokens import EOS, decode

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True, kw_only=True, eq=False)
class Choice:
    """What one sequence has said."""

    index: int
    prompt: int
    words: list[int] = field(default_factory=list)
    text: str = ""
    sent: int = 0
    sent_words: int = 0
    finish: str = ""
    stop_reason: str | None = None
    cached: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What every event of one answer repeats."""

    id: str
    created: int
    model: str
    fingerprint: str | None


class Answer(ABC):
    """One answer under way: a sink for its sequences, a writer of its events."""

    constant_frames = True
    truncated_on_error = False

    def __init__(self, ask: Ask, identity: Identity, config: EngineConfig) -> None:
        self.ask = ask
        self.identity = identity
        self.config = config
        self.choices = [Choice(index=i, prompt=i // ask.n) for i in range(len(ask.prompts) * ask.n)]
        self.open = len(self.choices)
        self.started = False
        self.failed: ApiError | None = None
        self.transfer: dict[str, Any] | None = None
        self.metrics: dict[str, Any] | None = None
        self.write: Callable[[bytes], None] = lambda data: None
        self.close: Callable[[], None] = lambda: None
        self.cut: Callable[[], None] = lambda: None
        self._hold = 0 if ask.include_stop else max((len(s) for s in ask.stop), default=1) - 1
        plain = not ask.stop and ask.logprobs is None and not ask.token_ids and not ask.continuous_usage
        self._plain = plain and self.constant_frames and config.stream_interval == 1
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    # -- the sink side -------------------------------------------------------------------------

    def emit(self, seq: Sequence, word: int, reason: str, now: float) -> bool:
        """Take one token; say whether a stop string ended the sequence."""
        choice = self.choices[seq.index]
        choice.cached = seq.cached
        choice.words.append(word)
        text = TEXTS[word] if word >= 0 else ""
        if self.ask.stream and not self.started:
            self.begin()
        if self._plain and not reason and self.ask.stream and choice.sent_words:
            choice.text += text
            choice.sent, choice.sent_words = len(choice.text), len(choice.words)
            self._write_plain(choice, word)
            return False
        stopped = self._add_text(choice, text)
        reason = "stop" if stopped else reason
        if reason:
            choice.finish = reason
            self.open -= 1
            if self.config.request_metrics and len(self.choices) == 1:
                self.metrics = request_metrics(seq, now)
        if self.ask.stream:
            self._stream(choice)
        if not self.open:
            self.end()
        return stopped

    def fail(self, error: ApiError) -> None:
        """End the answer with an error: an event in a stream that has begun, else the whole body."""
        if not self.open:
            return
        self.open = 0
        self.failed = error
        if self.ask.stream:
            for event in self.error_events():
                self.write(event)
        self.close()

    def interrupt(self) -> None:
        """End the answer where it is, as an engine does that is told to go: finish reason `abort`."""
        if not self.open:
            return
        self.open = 0
        if self.ask.stream and not self.started:
            self.begin()
        for choice in self.choices:
            if not choice.finish:
                choice.finish = "abort"
                if self.ask.stream:
                    self._stream(choice)
        self.end()

    def begin(self) -> None:
        """Write what comes before the first token."""
        self.started = True
        for event in self.opening():
            self.write(event)

    def end(self) -> None:
        """Write what comes after the last token and hand the answer over."""
        if self.ask.stream:
            for event in self.closing():
                self.write(event)
        self.close()

    # -- text ----------------------------------------------------------------------------------

    def _add_text(self, choice: Choice, text: str) -> bool:
        """Append text; cut it at a stop string."""
        if self.ask.echo and len(choice.words) == 1:
            choice.text = decode(self.ask.prompts[choice.prompt])
            text = "" if self.ask.echo_only else text
        searched = max(0, len(choice.text) - max((len(s) for s in self.ask.stop), default=0))
        choice.text += text
        if not self.ask.stop or len(choice.words) <= self.ask.min_tokens:
            return False
        hits = [(choice.text.find(s, searched), s) for s in self.ask.stop]
        hits = [(at, s) for at, s in hits if at >= 0]
        if not hits:
            return False
        at, choice.stop_reason = min(hits)
        choice.text = choice.text[: at + (len(choice.stop_reason) if self.ask.include_stop else 0)]
        return True

    def _stream(self, choice: Choice) -> None:
        """Write the text that may be shown by now."""
        pending = len(choice.words) - choice.sent_words
        if not choice.finish and choice.sent_words and pending < self.config.stream_interval:
            return
        end = len(choice.text) if choice.finish else max(choice.sent, len(choice.text) - self._hold)
        part = choice.text[choice.sent : end]
        first = choice.sent_words
        choice.sent, choice.sent_words = end, len(choice.words)
        event = self.chunk(choice, part, first)
        if event:
            self.write(event)

    def _write_plain(self, choice: Choice, word: int) -> None:
        """Write the common event from its constant parts."""
        frame = self._frames.get(choice.index)
        if frame is None:
            mark = "\x00"
            before, _, after = self.chunk(choice, mark, len(choice.words)).partition(b"\\u0000")
            frame = self._frames[choice.index] = (before, after)
        self.write(frame[0] + (JSON_TEXTS[word] if word >= 0 else b"") + frame[1])

    # -- shared parts of the formats -----------------------------------------------------------

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(p) for p in self.ask.prompts)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far."""
        return sum(len(c.words) for c in self.choices)

    def usage(self, **more: Any) -> dict[str, Any]:
        """Give the usage object."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            **more,
        }

    def details(self) -> dict[str, Any] | None:
        """Give prompt_tokens_details where --enable-prompt-tokens-details asks for it."""
        if not self.config.prompt_details:
            return None
        return {
            "cached_tokens": self.choices[-1].cached,
            "created_cache_tokens": self.created_cache_tokens(),
            "multimodal_tokens": None,
        }

    def created_cache_tokens(self) -> int | None:
        """Give the prompt tokens that went into the prefix cache, where the route counts them."""
        return None

    def last_usage(self) -> dict[str, Any]:
        """Give the usage of a stream's last event, which leaves nulls out."""
        details = {k: v for k, v in (self.details() or {}).items() if v is not None}
        return self.usage(**({"prompt_tokens_details": details} if details else {}))

    def tokens(self, choice: Choice, first: int = 0) -> list[int] | None:
        """Give token ids where the request asks for them."""
        if not self.ask.token_ids:
            return None
        return [TOKENS[w] if w >= 0 else EOS for w in choice.words[first:]]

    def event(self, body: Any) -> bytes:
        """Frame one event."""
        return b"data: " + dump(body) + b"\n\n"

    # -- formats -------------------------------------------------------------------------------

    def greeting(self) -> list[bytes]:
        """Give the events that do not wait for the engine."""
        return []

    def opening(self) -> list[bytes]:
        """Give the events before the first token."""
        return []

    def error_events(self) -> list[bytes]:
        """Give the events of a stream that fails: vLLM writes these with spaces, and ends even them with [DONE]."""
        assert self.failed is not None
        return [b"data: " + json.dumps(self.failed.body()).encode() + b"\n\n", DONE]

    @abstractmethod
    def chunk(self, choice: Choice, text: str, first: int) -> bytes:
        """Give the event of new text."""

    @abstractmethod
    def closing(self) -> list[bytes]:
        """Give the events after the last token."""

    @abstractmethod
    def whole(self) -> Any:
        """Give the unary body."""


def stamp(value: dict[str, Any], identity: Identity) -> dict[str, Any]:
    """Add the fingerprint, unless --fingerprint-mode none hides it."""
    return value if identity.fingerprint is None else {**value, "system_fingerprint": identity.fingerprint}


def request_metrics(seq: Sequence, now: float) -> dict[str, Any]:
    """Give the times of one request in milliseconds, for --enable-per-request-metrics."""
    decode, inference = (now - seq.first_token) * 1000, (now - seq.scheduled) * 1000
    return {
        "time_to_first_token_ms": (seq.first_token - seq.scheduled) * 1000,
        "generation_time_ms": decode,
        "queue_time_ms": (seq.scheduled - seq.arrived) * 1000,
        "mean_itl_ms": decode / (seq.outputs - 1) if seq.outputs > 1 else None,
        "tokens_per_second": seq.outputs / inference * 1000 if inference else None,
        "speculative_decoding": None,
    }


def present(value: dict[str, Any] | None) -> dict[str, Any]:
    """Give the `metrics` of a stream's usage event: absent where there are none, and without nulls."""
    return {} if value is None else {"metrics": {k: v for k, v in value.items() if v is not None}}


def likeliest(text: str, value: float, place: int, count: int) -> dict[str, float]:
    """Give the likeliest tokens of one place, the chosen one first."""
    others = {" " + WORDS[(place * 7 + r) % len(WORDS)]: logprob_at(place, r, r) for r in range(1, count)}
    return {text: value, **{k: v for k, v in others.items() if k != text}}
