"""`kv_transfer_params`: what a prefill engine offers and what a decode engine asks for.

In: a request's params or a finished prefill. Out: a Pull, or the params of an offer. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ADDRESS = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")


class KillsEngine(Exception):
    """Params that make vLLM's EngineCore fail an assertion and die."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """Where a prompt's KV is."""

    engine_id: str
    request_id: str
    host: str
    port: int


def offers(params: Mapping[str, Any] | None) -> bool:
    """Whether the answer must carry an offer."""
    return bool(params and params.get("do_remote_decode"))


def read_pull(params: Mapping[str, Any] | None) -> Pull | None:
    """Read what to pull; nothing when the prompt is to be computed here.

    Without block ids vLLM counts external tokens it can never load and asserts; with block ids but an
    incomplete address it logs a warning and computes the prompt itself.
    """
    if not params or not params.get("do_remote_prefill"):
        return None
    if not params.get("remote_block_ids"):
        raise KillsEngine("AssertionError: assert num_external_tokens == 0")
    if any(params.get(name) is None for name in _ADDRESS):
        return None
    return Pull(
        engine_id=str(params["remote_engine_id"]),
        request_id=str(params["remote_request_id"]),
        host=str(params["remote_host"]),
        port=int(params["remote_port"]),
    )


def build_offer(
    *,
    engine_id: str,
    request_id: str,
    host: str,
    port: int,
    tokens: int,
    blocks: int,
    cached: int,
    sizes: tuple[int, int],
    version: str,
) -> dict[str, Any]:
    """Build the params of a finished prefill, keys in vLLM's order."""
    offer: dict[str, Any] = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [list(range(1, blocks + 1))],
        "remote_engine_id": engine_id,
        "remote_request_id": request_id,
        "remote_host": host,
        "remote_port": port,
        "tp_size": sizes[0],
        "dcp_size": 1,
        "pp_size": sizes[1],
        "remote_num_tokens": tokens,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
        "remote_prefill_cached_tokens": cached,
    }
    return offer if version == "0.32.0" else {**offer, "remote_registration_generation": 0}
