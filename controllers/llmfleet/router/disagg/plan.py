"""Split a request over two engines: which may be split, over which pair, and what each leg is sent.

In: a body, engines with their load, settings, the time. Out: a way, a pair, the bodies of both legs, deadlines. The
decode engine is chosen first, so that no prefill is computed that nobody can read; both must be of one engine revision.
A hand-off is checked before it is passed on: an incomplete one ends a vLLM process. It never waits or reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from llmfleet.router.affinity import PrefixIndex, nearest
from llmfleet.router.limits import Disaggregation
from llmfleet.router.pick import Backend, Candidate, ModelPool, pick
from llmfleet.router.sse import Dialect

# The form vLLM's connectors document; they fill the rest in.
_ASK: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_ADDRESS: Final = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
# What would ask the first leg for more than one token, or for what nobody reads of it.
_NOT_FOR_LEG_ONE: Final = frozenset(
    {"best_of", "logprobs", "min_tokens", "n", "prompt_logprobs", "stream_options", "top_logprobs"}
)
_ONE_TOKEN: Final = {
    Dialect.CHAT: ("max_tokens", "max_completion_tokens"),
    Dialect.COMPLETIONS: ("max_tokens", "max_completion_tokens"),
    Dialect.RESPONSES: ("max_output_tokens",),
    Dialect.MESSAGES: ("max_tokens",),
}
_BYTES_PER_TOKEN: Final = 4
_USABLE: Final = 0.9  # of a lease: it began when the engine had finished, not when its answer was read


class Way(StrEnum):
    """How a request of a disaggregated model is served; also a label of its metrics."""

    SPLIT = "split"
    BYPASS = "bypass"  # short, or cached where it is decoded
    ALONE = "alone"  # it asks for what cannot be split
    FALLBACK = "fallback"  # no prefill engine may be asked


class NoHandoff(ValueError):
    """A first leg's answer that must not be passed on."""


class Handoff(NamedTuple):
    """Where the KV of a prompt is; used once, and never after its lease."""

    params: bytes
    prompt_tokens: int
    expires_at: float


class Pair(NamedTuple):
    decode: Backend
    prefill: Backend


# ---- which requests are split ----


def way_of(dialect: Dialect, document: dict[str, Any], choices: int, size: int, settings: Disaggregation) -> Way:
    """Decide by the request alone. One hand-off is one prompt's KV, read once: several choices would read it again."""
    if dialect not in _ONE_TOKEN or choices != 1 or not _splittable(document):
        return Way.ALONE
    if prompt_tokens(document, size) < settings.bypass_prefill.min_prompt_tokens:
        return Way.BYPASS
    return Way.SPLIT


def _splittable(document: dict[str, Any]) -> bool:
    """Log probabilities of the prompt and beams need the prompt computed where it is decoded."""
    if document.get("echo") or document.get("use_beam_search") or document.get("max_tokens") == 0:
        return False
    return document.get("prompt_logprobs") is None and document.get("best_of") in (None, 1)


def prompt_tokens(document: dict[str, Any], size: int) -> int:
    """Estimate a prompt's length: token ids are counted, of anything else the body's bytes."""
    prompt = document.get("prompt")
    return len(prompt) if isinstance(prompt, list) and prompt else size // _BYTES_PER_TOKEN


# ---- over which engines ----


def pair(
    pool: ModelPool,
    settings: Disaggregation,
    now: float,
    keys: Sequence[int] = (),
    *,
    avoid_decode: Backend | None = None,
    avoid_prefill: Backend | None = None,
) -> Pair | None:
    """Choose a decode engine with a slot and headroom for one more prompt, then a prefill engine of its revision.

    Of either side one that knows the longest beginning of the prompt, by its keys, if it is not too busy.
    """
    ready = [c for c in pool.prefill.open if _may_prefill(c.backend, settings, now) and _free(c)]
    revisions = {c.backend.revision for c in ready if c.backend is not avoid_prefill}
    among = [c for c in pool.decode.open if c.backend.revision in revisions and has_headroom(c.backend, settings)]
    decode = pick(pool.decode, avoid_decode, among, keys)
    if decode is None:
        return None
    prefill = prefill_for(pool, decode, settings, now, keys, avoid=avoid_prefill)
    return None if prefill is None else Pair(decode, prefill)


def prefill_for(
    pool: ModelPool,
    decode: Backend,
    settings: Disaggregation,
    now: float,
    keys: Sequence[int] = (),
    *,
    avoid: Backend | None = None,
) -> Backend | None:
    """Choose a prefill engine whose KV this decode engine can read."""
    partners = [c for c in pool.prefill.open if c.backend.revision == decode.revision]
    among = [c for c in partners if _may_prefill(c.backend, settings, now)]
    return pick(pool.prefill, avoid, among, keys)


def cached(pool: ModelPool, settings: Disaggregation, keys: Sequence[int]) -> Backend | None:
    """Return a free decode engine that has so much of a prompt that computing it elsewhere is not worth it."""
    decode, least, affinity = pool.decode, settings.bypass_prefill.min_prefix_hit, pool.affinity
    if not least or not keys or affinity is None:
        return None
    found, _ = nearest(affinity.index, keys, [c for c in decode.open if _free(c)], affinity.factor)
    if found is None or known_share(affinity.index, keys, found.backend) < least:
        return None
    return pick(decode, among=[found], keys=keys)


def known_share(index: PrefixIndex, keys: Sequence[int], backend: Backend) -> float:
    """Return how much of a prompt an engine was given before, by its keys."""
    bit = index.bit(backend.number)
    known = next((n for n in range(len(keys), 0, -1) if index.holders(keys[n - 1]) & bit), 0)
    return known / len(keys)


def _free(candidate: Candidate) -> bool:
    return candidate.backend.in_flight < candidate.backend.limit


def has_headroom(decode: Backend, settings: Disaggregation) -> bool:
    """Whether KV for one more prompt may be on its way to a decode engine."""
    return decode.arriving < settings.max_prefills_in_flight_per_decode


def _may_prefill(backend: Backend, settings: Disaggregation, now: float) -> bool:
    """Blocks that nobody has read yet are memory a prefill engine lacks."""
    return backend.breaker.allows(now) and backend.ledger.outstanding(now) < settings.max_handoffs_per_prefill


def any_prefill(pool: ModelPool, settings: Disaggregation, now: float) -> bool:
    """Whether a pair exists at all, free or not; without one a prompt is prefilled where it is decoded, or refused."""
    revisions = {c.backend.revision for c in pool.decode.open}
    return any(c.backend.revision in revisions and c.backend.breaker.allows(now) for c in pool.prefill.open)


# ---- what the legs are sent ----


def leg_one(dialect: Dialect, document: dict[str, Any]) -> bytes:
    """Write the first leg: the same prompt, one token, not streamed, and the KV kept for another engine."""
    body = {key: value for key, value in document.items() if key not in _NOT_FOR_LEG_ONE}
    body |= dict.fromkeys(_ONE_TOKEN[dialect], 1)
    return orjson.dumps(body | {"stream": False, "kv_transfer_params": _ASK})


def read_handoff(answer: bytes, now: float, settings: Disaggregation) -> Handoff:
    """Take the hand-off out of a first leg's answer, whose lease has just begun."""
    try:
        body = orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise NoHandoff("the answer is not JSON") from None
    params = body.get("kv_transfer_params") if isinstance(body, dict) else None
    if not isinstance(params, dict):
        raise NoHandoff("the answer has no kv_transfer_params: does the engine run a KV connector?")
    _check(params)
    return Handoff(orjson.dumps(params), _usage_tokens(body.get("usage")), now + settings.kv_lease_seconds * _USABLE)


def _check(params: dict[str, Any]) -> None:
    """Refuse what would end the decode engine (no blocks) or be ignored by it without a word (no address)."""
    blocks = params.get("remote_block_ids")
    if params.get("do_remote_prefill") is not True or not isinstance(blocks, list) or not blocks:
        raise NoHandoff("the hand-off names no blocks")
    missing = [name for name in _ADDRESS if params.get(name) is None]
    if missing:
        raise NoHandoff(f"the hand-off lacks {', '.join(missing)}")


def _usage_tokens(usage: object) -> int:
    if not isinstance(usage, dict):
        return 0
    count = usage.get("prompt_tokens", usage.get("input_tokens"))
    return count if isinstance(count, int) and count > 0 else 0


def leg_two(body: bytes, handoff: Handoff) -> bytes:
    """Write the second leg: the request as it is, and the hand-off behind it."""
    return b'%b,"kv_transfer_params":%b}' % (body[: body.rindex(b"}")], handoff.params)


def transfer_seconds(handoff: Handoff, settings: Disaggregation) -> float:
    """Return how long the second leg may take to its first event."""
    return settings.kv_timeout_seconds + handoff.prompt_tokens * settings.kv_timeout_microseconds_per_token / 1e6
