"""What a request used, and the one line that is written about it.

In: an answer's usage object, or the bytes that hold one, or sizes when there is none. Out: tokens, and the access-log
line. OpenAI's and Anthropic's words are read alike. It never sees a prompt or a key, and a line holds nothing that a
client wrote.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

BYTES_PER_TOKEN: Final = 4  # of English text; only for what no engine counted
WINDOW: Final = 1024  # of an answer, from where its usage begins
_COUNTS: Final = re.compile(
    rb'"(?:(?:prompt|input|cache_(?:read|creation)_input)(_tokens)|(?:completion|output)_tokens)":\s*(\d{1,15})'
)
_PROMPT_KEYS: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_OTHER_KEYS: Final = frozenset({*_PROMPT_KEYS, "output_tokens"})


class Usage(NamedTuple):
    """Tokens of one request."""

    prompt: int = 0
    completion: int = 0
    exact: bool = False  # an engine counted them


def read(value: object) -> Usage | None:
    """Read a usage object; Anthropic counts cached input apart."""
    if not isinstance(value, dict):
        return None
    prompt = _count(value.get("prompt_tokens"))
    completion = _count(value.get("completion_tokens"))
    if not _OTHER_KEYS.isdisjoint(value):
        prompt += sum(map(_count, map(value.get, _PROMPT_KEYS)))
        completion = completion or _count(value.get("output_tokens"))
    return Usage(prompt, completion, True) if prompt or completion else None


def find(answer: bytes) -> Usage | None:
    """Find the usage in a unary answer without reading the rest: quotes inside an answer's text are escaped."""
    start = answer.rfind(b'"usage"')
    if start < 0:
        return None
    first, last = answer.find(b"{", start, start + 20), answer.find(b"}", start, start + WINDOW)
    if 0 < first < last:
        try:
            return read(orjson.loads(answer[first : last + 1]))
        except orjson.JSONDecodeError:
            pass  # objects inside the object
    prompt = completion = 0
    for is_prompt, count in _COUNTS.findall(answer, start, start + WINDOW):
        if is_prompt:
            prompt += int(count)
        else:
            completion = completion or int(count)
    return Usage(prompt, completion, True) if prompt or completion else None


def estimate(size: int, answered: int = 0, counted: Usage | None = None) -> Usage:
    """Estimate what nobody counted to its end: from bytes, tokens streamed, and what was said on the way."""
    prompt = counted.prompt if counted is not None and counted.prompt else max(1, size // BYTES_PER_TOKEN)
    return Usage(prompt, max(answered, counted.completion if counted is not None else 0), False)


def merge(before: Usage | None, now: Usage) -> Usage:
    """Join what a stream says in pieces: counts only grow."""
    if before is None:
        return now
    return Usage(max(before.prompt, now.prompt), max(before.completion, now.completion), True)


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 10**15 else 0


class Record(NamedTuple):
    """A request that is over, as the access log tells it. Times in seconds, `at` by the wall clock."""

    at: float
    request_id: bytes
    tenant: str
    model: str
    route: bytes
    status: int
    outcome: str
    reason: str
    attempts: int = 0
    instance: str = ""
    queued: float = 0.0
    ttft: float | None = None
    duration: float = 0.0
    usage: Usage | None = None


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    """Write a word as JSON; a line's words are few."""
    return orjson.dumps(text).decode()


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def rfc3339(seconds: float) -> str:
    """Write a wall-clock time in UTC."""
    whole, thousandths = divmod(int(seconds * 1000), 1000)
    return f"{_second(whole)}.{thousandths:03d}Z"


def line(record: Record, time: str) -> bytes:
    """Write the access-log line, one JSON object; `time` is `record.at` in words."""
    _, request_id, tenant, model, route, status, outcome, reason, attempts, instance, queued, ttft, took, used = record
    if used is None:
        counts = '"promptTokens":null,"completionTokens":null,"usage":"none"'
    else:
        kind = "exact" if used.exact else "estimated"
        counts = f'"promptTokens":{used.prompt},"completionTokens":{used.completion},"usage":"{kind}"'
    first = "null" if ttft is None else f"{ttft * 1000:.1f}"
    return (
        f'{{"time":"{time}","requestId":"{request_id.decode()}","tenant":{_quoted(tenant)},"model":{_quoted(model)},'
        f'"route":{_quoted(route.decode("latin-1"))},"status":{status},"outcome":{_quoted(outcome)},'
        f'"reason":{_quoted(reason)},"attempts":{attempts},"llmcluster":{_quoted(instance)},'
        f'"queuedMs":{queued * 1000:.0f},"ttftMs":{first},"durationMs":{took * 1000:.1f},{counts}}}\n'
    ).encode()
