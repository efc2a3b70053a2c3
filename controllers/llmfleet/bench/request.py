"""What is sent: where to, with which prompt, as which bytes.

In: an address, options, a seed. Out: a `Target` and whole HTTP/1.1 requests. It sends nothing, and draws no lots: the
words of a prompt follow from a text that the caller gives.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

_WORDS: Final = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car
"""
WORDS: Final = tuple(_WORDS.split())
"""Short and common: nearly every tokenizer has each of them as one token."""


class TargetError(ValueError):
    """An address that cannot be used, in words for the person who wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    tls: bool
    prefix: str
    """What stands before /v1."""
    key: str = ""

    @property
    def authority(self) -> str:
        """The Host header."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.tls else 80) else f"{name}:{self.port}"

    @property
    def url(self) -> str:
        return f"http{'s' * self.tls}://{self.authority}{self.prefix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompting:
    """What every request of a run has in common."""

    model: str
    words: int
    output_tokens: int
    ignore_eos: bool
    seed: int


def parse_target(text: str, key: str = "") -> Target:
    """Accept http(s)://HOST[:PORT][/prefix], with or without the /v1 that SDKs want to see."""
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        raise TargetError(f"{text!r} has no port between 1 and 65535") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise TargetError(f"{text!r} is no address: write it as http://HOST:PORT")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise TargetError(f"{text!r} has a character that no address has")
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Target(host=parts.hostname, port=port or (443 if tls else 80), tls=tls, prefix=prefix, key=key)


def prompt_text(words: int, key: str) -> str:
    """So many words, which follow from `key`; two keys share no beginning, so no prefix cache helps."""
    return " ".join(WORDS[byte % len(WORDS)] for byte in hashlib.shake_256(key.encode()).digest(words))


def words_for(tokens: int, shorter: tuple[int, int], longer: tuple[int, int]) -> int:
    """How many words make so many tokens, after two prompts of (words, tokens) were counted by the endpoint.

    A chat template adds tokens of its own, so a line is laid through both.
    """
    words = longer[0] - shorter[0]
    each = (longer[1] - shorter[1]) / words if words else 0.0
    if each <= 0:
        return tokens
    return max(1, round(longer[0] + (tokens - longer[1]) / each))


def chat_request(target: Target, prompting: Prompting, key: str) -> bytes:
    """A streamed chat completion that says its usage at the end."""
    body: dict[str, Any] = {
        "model": prompting.model,
        "messages": [{"role": "user", "content": prompt_text(prompting.words, f"{prompting.seed} {key}")}],
        "max_tokens": prompting.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if prompting.ignore_eos:
        body["ignore_eos"] = True
    return request(target, "POST", "/v1/chat/completions", orjson.dumps(body))


def models_request(target: Target) -> bytes:
    """Which models there are."""
    return request(target, "GET", "/v1/models")


def request(target: Target, method: str, path: str, body: bytes = b"") -> bytes:
    """One HTTP/1.1 request on a connection that is kept."""
    lines = [f"{method} {target.prefix}{path} HTTP/1.1", f"Host: {target.authority}", "User-Agent: llmfleet-bench"]
    if target.key:
        lines.append(f"Authorization: Bearer {target.key}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body
