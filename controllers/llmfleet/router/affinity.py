"""Which engine has seen the beginning of a prompt: keys of prefixes, and who answered a prompt with the same key.

In: a parsed request, a tenant and a model; candidates with their load. Out: the keys of the request, shortest prefix
first, and the candidate whose cache most likely holds the longest one. A key is a running hash, taken after every
message and after every block of about 256 tokens, so two prompts share exactly the keys of what they share. Tenant and
model are in every key: nobody can learn from timing what another tenant asked, and an adapter's cache is its own.
Nothing depends on the index being right: a wrong entry costs a cache miss. It never waits or counts load itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil
from typing import Any, Final, Protocol, TypeVar

import orjson
from xxhash import xxh3_64_intdigest

from llmfleet.router.sse import Dialect

MAX_KEYS: Final = 256  # of one request
SPARSE_AFTER: Final = 64  # keys, from which on short messages get none of their own
SHORT: Final = 256  # bytes
WIDER_AFTER: Final = 16  # blocks of one size, then they are four times as long
MAX_BITS: Final = 256
MAX_SEEDS: Final = 10_000

# Mixed into the running hash so that the same words from another speaker are another prefix.
_ROLES: Final = {
    name: xxh3_64_intdigest(name.encode()) for name in ("system", "developer", "user", "assistant", "tool")
}
_PLAIN: Final = {"role", "content"}


def seed_of(tenant: str, model: str) -> int:
    """Return what every key of a tenant's requests to a model begins with."""
    return int(xxh3_64_intdigest(f"{len(tenant)}:{tenant}{model}".encode()))


def session_key(seed: int, session: bytes) -> int:
    """Return the key of a session that the client named."""
    return int(xxh3_64_intdigest(session, seed ^ 0x5E551))


def prefix_keys(dialect: Dialect, document: dict[str, Any], seed: int, block: int) -> list[int]:
    """Return the keys of a request, in the order an engine reads it: tools, instructions, then what was said."""
    keys: list[int] = []
    try:
        if dialect is Dialect.CHAT:
            seed = _whole(document.get("tools"), seed, block, keys)
            _messages(document.get("messages"), seed, block, keys)
        elif dialect is Dialect.COMPLETIONS:
            _prompt(document.get("prompt"), seed, block, keys)
        elif dialect is Dialect.MESSAGES:
            seed = _whole(document.get("tools"), seed, block, keys)
            seed = _whole(document.get("system"), seed, block, keys)
            _messages(document.get("messages"), seed, block, keys)
        elif dialect is Dialect.RESPONSES:
            seed = _whole(document.get("tools"), seed, block, keys)
            seed = _whole(document.get("instructions"), seed, block, keys)
            said = document.get("input")
            if isinstance(said, str):
                _whole(said, seed, block, keys)
            else:
                _messages(said, seed, block, keys)
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes; the keys so far are good
        pass
    return keys[:MAX_KEYS]


def _messages(messages: Any, running: int, block: int, keys: list[int]) -> None:
    if not isinstance(messages, list):
        return
    for message in messages:
        if len(keys) >= MAX_KEYS:
            return
        length = 0
        if isinstance(message, dict) and message.keys() == _PLAIN:
            role, content = message["role"], message["content"]
            if isinstance(role, str):
                running ^= _ROLES.get(role) or xxh3_64_intdigest(role.encode())
            if isinstance(content, str):
                data = content.encode()
                length = len(data)
                running = _chain(data, running, block, keys) if length > block else xxh3_64_intdigest(data, running)
            else:
                running, length = _parts(content, running, block, keys)
        else:
            data = orjson.dumps(message)
            length = len(data)
            running = _chain(data, running, block, keys)
        if length >= SHORT or len(keys) < SPARSE_AFTER:
            keys.append(running)


def _parts(content: Any, running: int, block: int, keys: list[int]) -> tuple[int, int]:
    """Take in a content of several parts; long strings, as of images, are hashed where they are."""
    if not isinstance(content, list):
        data = orjson.dumps(content)
        return _chain(data, running, block, keys), len(data)
    length = 0
    for part in content:
        data = _bytes_of(part)
        running = _chain(data, running, block, keys)
        length += len(data)
    return running, length


def _bytes_of(part: Any) -> bytes:
    if isinstance(part, dict) and len(part) == 2:
        if isinstance(text := part.get("text"), str):
            return text.encode()
        image = part.get("image_url")
        if isinstance(image, dict) and len(image) == 1 and isinstance(url := image.get("url"), str):
            return url.encode()
    return orjson.dumps(part)


def _whole(value: Any, running: int, block: int, keys: list[int]) -> int:
    """Take in one text or document, and its end as a key."""
    if not value:
        return running
    running = _chain(value.encode() if isinstance(value, str) else orjson.dumps(value), running, block, keys)
    keys.append(running)
    return running


def _prompt(prompt: Any, running: int, block: int, keys: list[int]) -> None:
    """Take in a completion's prompt: text or token ids, of several the first."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    _whole(prompt, running, block, keys)


def _chain(text: bytes, running: int, block: int, keys: list[int]) -> int:
    """Take in a text with a key after every block; returns the hash at its end, which is no key yet."""
    start, size, left = 0, block, WIDER_AFTER
    while len(text) - start > size and len(keys) < MAX_KEYS:
        running = xxh3_64_intdigest(text[start : start + size], running)
        keys.append(running)
        start += size
        left -= 1
        if not left:
            size, left = size * 4, WIDER_AFTER
    return int(xxh3_64_intdigest(text[start:] if start else text, running))


class PrefixIndex:
    """Which engines answered a prompt with which key; an engine is one bit.

    Two generations stand for recency: what was used since the younger one began is in it, and when it is full the
    older one is dropped whole. So an entry costs no list and no clock, and the index never exceeds its bound.
    """

    __slots__ = ("_bits", "_half", "_old", "_young")

    def __init__(self, max_entries: int) -> None:
        self._half = max(1, max_entries // 2)
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._bits: dict[int, int] = {}  # by the number of an engine

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def bit(self, number: int) -> int:
        """Return the bit of an engine. When all are used up everything is forgotten, and they begin again."""
        bit = self._bits.get(number)
        if bit is None:
            if len(self._bits) >= MAX_BITS:
                self._young, self._old, self._bits = {}, {}, {}
            bit = self._bits[number] = 1 << len(self._bits)
        return bit

    def holders(self, key: int) -> int:
        """Return the bits of the engines that know a key."""
        return self._young.get(key, 0) | self._old.get(key, 0)

    def learn(self, keys: Sequence[int], number: int) -> None:
        """Remember that an engine was given a prompt with these keys."""
        bit, young = self.bit(number), self._young
        for key in keys:
            known = young.get(key)
            if known is None:
                if len(young) >= self._half:
                    self._old, self._young = young, {}
                    young = self._young
                young[key] = self._old.get(key, 0) | bit
            elif not known & bit:
                young[key] = known | bit


class Engine(Protocol):
    """What of an engine matters here."""

    number: int  # nobody else's, ever
    in_flight: int
    slots: int
    limit: int  # of the slots, those that are this router's


class Candidate(Protocol):
    """An engine that may take the request, with its weight among others."""

    weight: int

    @property
    def backend(self) -> Engine:
        """The engine."""


C = TypeVar("C", bound=Candidate)


class Affinity:
    """The keys of requests and the index of one router."""

    __slots__ = ("_block", "_seeds", "_session", "factor", "index")

    def __init__(
        self, *, block_bytes: int, max_entries: int, load_factor: float, session_headers: Sequence[str]
    ) -> None:
        self.index = PrefixIndex(max_entries)
        self.factor = load_factor
        self._block = block_bytes
        self._seeds: dict[tuple[str, str], int] = {}
        names = b"|".join(re.escape(name.encode()) for name in session_headers) or rb"(?!)"
        self._session = re.compile(rb"\r\n(?:" + names + rb"):[ \t]*([^\r]+)", re.IGNORECASE)

    def session(self, head: bytes) -> bytes | None:
        """Return the session that a head names."""
        named = self._session.search(head)
        return named[1].strip() if named is not None else None

    def keys(
        self, tenant: str, model: str, dialect: Dialect, document: dict[str, Any], session: bytes | None
    ) -> list[int]:
        """Return the keys of a request; the session that a client names, by header or in the body, comes last."""
        seed = self._seeds.get((tenant, model))
        if seed is None:
            if len(self._seeds) >= MAX_SEEDS:
                self._seeds.clear()
            seed = self._seeds[tenant, model] = seed_of(tenant, model)
        keys = prefix_keys(dialect, document, seed, self._block)
        if session is not None:
            keys.append(session_key(seed, session))
        elif isinstance(named := document.get("prompt_cache_key"), str) and named:
            keys.append(session_key(seed, named.encode()))
        return keys


def nearest(index: PrefixIndex, keys: Sequence[int], candidates: Sequence[C], factor: float) -> tuple[C | None, bool]:
    """Return the candidate that knows the longest prefix, and whether any knows one.

    A candidate with more than `factor` times its part of the requests in flight, by weight, is passed over, so that a
    prefix in demand moves on to a second engine, and then a third. A sixteenth of an engine's slots is never too much.
    """
    young, old, bits = index._young, index._old, index._bits
    known, fair, asked = False, -1.0, 0
    for key in reversed(keys):
        holders = (young.get(key, 0) | old.get(key, 0)) & ~asked
        if not holders:
            continue
        asked |= holders
        best, least = None, 0.0
        for candidate in candidates:
            backend = candidate.backend
            if not bits.get(backend.number, 0) & holders:
                continue
            known = True
            busy = backend.in_flight
            if busy >= backend.limit:
                continue
            if busy >= backend.slots >> 4:
                if fair < 0.0:
                    fair = factor * _average(candidates)
                if busy >= ceil(fair * candidate.weight):
                    continue
            load = busy / candidate.weight
            if best is None or load < least:
                best, least = candidate, load
        if best is not None:
            return best, True
    return None, known


def _average(candidates: Sequence[C]) -> float:
    """Return the requests in flight per weight, the one to come included."""
    total = weights = 0
    for candidate in candidates:
        total += candidate.backend.in_flight
        weights += candidate.weight
    return (total + 1) / weights
