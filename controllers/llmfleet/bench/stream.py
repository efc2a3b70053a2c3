"""One answer, read event by event: when its tokens came, how many they were, and whether it is whole.

In: the status, the bytes of the body with the moment each piece arrived, and how the connection ended. Out: a `Sample`.
It waits for nothing and looks at no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson

MOST_SAID: Final = 300
MOST_KEPT: Final = 1 << 20
TEXTS: Final = ("content", "reasoning_content", "reasoning", "refusal")
FINISHED: Final = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"})


class Ending(StrEnum):
    """How the transport of an answer ended."""

    WHOLE = "whole"
    CLOSED = "closed"
    TIMEOUT = "timeout"
    NOT_HTTP = "not HTTP"
    UNREACHABLE = "unreachable"


class Kind(StrEnum):
    """What a request came to that is no whole answer."""

    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    ERROR_EVENT = "error event"
    NO_DONE = "no [DONE]"
    BROKEN_OFF = "broken off"
    TIMEOUT = "timeout"
    CUT_SHORT = "cut short"
    NO_TOKEN = "no token"
    NO_USAGE = "no usage"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error: its kind, a code that groups it with others, and words of this one."""

    kind: Kind
    code: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request that ended; moments are seconds of one clock."""

    begin: float
    end: float
    first: float = 0.0
    """When its first token came; with `last`, meant only where there is no problem."""
    last: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    problem: Problem | None = None

    @property
    def ttft(self) -> float:
        return self.first - self.begin

    @property
    def e2e(self) -> float:
        return self.end - self.begin

    @property
    def tpot(self) -> float | None:
        """Nothing follows the first token of an answer of one."""
        return (self.last - self.first) / (self.output_tokens - 1) if self.output_tokens > 1 else None


class Answer:
    """What is known of an answer so far."""

    __slots__ = (
        "_done",
        "_error",
        "_finish",
        "_rest",
        "_usage",
        "body",
        "events",
        "first",
        "last",
        "malformed",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self.events = True
        """Whether the body is a stream of events and not one piece."""
        self.body = b""
        self.first: float | None = None
        self.last = 0.0
        self.malformed = ""
        self._rest = b""
        self._done = False
        self._error: Any = None
        self._finish: str | None = None
        self._usage: Any = None

    def feed(self, data: bytes, now: float) -> None:
        """Take the next piece of the body, which came at `now`."""
        if self.status != 200 or not self.events:
            self.body = (self.body + data)[:MOST_KEPT]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            self.malformed = self.malformed or data[:MOST_SAID].decode(errors="replace")
            return
        if not isinstance(event, dict):
            self.malformed = self.malformed or data[:MOST_SAID].decode(errors="replace")
            return
        if "error" in event:
            self._error = event["error"]
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices") or ():
            self._choice(choice, now)

    def _choice(self, choice: dict[str, Any], now: float) -> None:
        delta = choice.get("delta") or {}
        if any(delta.get(name) for name in TEXTS) or delta.get("tool_calls"):
            self.last = now
            if self.first is None:
                self.first = now
        self._finish = choice.get("finish_reason") or self._finish

    def sample(self, *, begin: float, end: float, ending: Ending, said: str = "") -> Sample:
        """What it came to, now that it ended."""
        problem = self._problem(ending, said)
        if problem is not None or self.first is None:
            return Sample(begin=begin, end=end, problem=problem, prompt_tokens=self._prompt_tokens())
        return Sample(
            begin=begin,
            end=end,
            first=self.first,
            last=self.last,
            prompt_tokens=self._prompt_tokens(),
            output_tokens=int(self._usage["completion_tokens"]),
        )

    def _prompt_tokens(self) -> int:
        """As the endpoint counted them, or none."""
        found = self._usage.get("prompt_tokens") if isinstance(self._usage, dict) else None
        return found if isinstance(found, int) else 0

    def _problem(self, ending: Ending, said: str) -> Problem | None:
        """The first thing that is wrong: what the endpoint says of itself before what the connection did."""
        if self.status and self.status != 200:
            code, words = described(parsed(self.body), self.body)
            return Problem(kind=Kind.REFUSED, code=f"{self.status} {code}".strip(), said=words)
        if self._error is not None:
            code, words = described({"error": self._error}, b"")
            return Problem(kind=Kind.ERROR_EVENT, code=code, said=words)
        if self.malformed:
            return Problem(kind=Kind.MALFORMED, said=self.malformed)
        return broken(ending, said) or self._unfinished()

    def _unfinished(self) -> Problem | None:
        """An answer that arrived, and is not whole all the same."""
        if not self.events:
            text = self.body[:MOST_SAID].decode(errors="replace")
            return Problem(kind=Kind.MALFORMED, said=f"a stream was asked for, and one piece came: {text}")
        if not self._done:
            return Problem(kind=Kind.NO_DONE, said="the answer ended in good order, but without data: [DONE]")
        if self._finish not in FINISHED:
            return Problem(kind=Kind.CUT_SHORT, code=f"finish_reason {self._finish}")
        if self.first is None:
            return Problem(kind=Kind.NO_TOKEN, said="no event of the stream held text")
        if not isinstance(self._usage, dict) or not isinstance(self._usage.get("completion_tokens"), int):
            return Problem(kind=Kind.NO_USAGE, said="stream_options.include_usage was asked for, and no usage came")
        return None


def broken(ending: Ending, said: str) -> Problem | None:
    """What the connection did to the answer."""
    kinds = {
        Ending.CLOSED: Kind.BROKEN_OFF,
        Ending.TIMEOUT: Kind.TIMEOUT,
        Ending.NOT_HTTP: Kind.MALFORMED,
        Ending.UNREACHABLE: Kind.UNREACHABLE,
    }
    return Problem(kind=kinds[ending], said=said) if ending in kinds else None


def parsed(body: bytes) -> Any:
    """JSON, or None."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def described(found: Any, raw: bytes) -> tuple[str, str]:
    """Code and words of an error in the shapes that servers of this API use."""
    error = found.get("error", found) if isinstance(found, dict) else None
    if isinstance(error, str):
        return "", error[:MOST_SAID]
    if not isinstance(error, dict):
        return "", raw[:MOST_SAID].decode(errors="replace")
    # vLLM writes the status as the code; the type says more.
    code = error.get("code") if isinstance(error.get("code"), str) else error.get("type")
    return str(code or ""), str(error.get("message") or error.get("detail") or "")[:MOST_SAID]
