"""The environment of an engine container: what vLLM, the programs in `scripts/` and the user need.

In: an `Identity` and a `Spec`. Out: a list of env entries in a fixed order, the user's merged in by name. Names that
would break the group (owned by the operator) are refused.
"""

from __future__ import annotations

from typing import Any, Final

from llmfleet import names
from llmfleet.api.parse import SpecError
from llmfleet.api.types import CacheType, Spec
from llmfleet.deploy.flags import RANK_VARIABLE
from llmfleet.deploy.merge import merge
from llmfleet.deploy.objects.identity import TEMPLATE_ANNOTATION, Identity

OWNED_ENV: Final = frozenset(
    {
        "VLLM_HOST_IP",
        "VLLM_PORT",
        "MASTER_ADDR",
        "MASTER_PORT",
        "RANK",
        "LOCAL_RANK",
        "NODE_RANK",
        "GROUP_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "VLLM_DP_RANK",
        "VLLM_DP_RANK_LOCAL",
        "VLLM_DP_SIZE",
        "VLLM_DP_MASTER_IP",
        "VLLM_DP_MASTER_PORT",
        "VLLM_NIXL_SIDE_CHANNEL_HOST",
        "VLLM_NIXL_SIDE_CHANNEL_PORT",
    }
)
OWNED_PREFIX: Final = "LLMFLEET_"


def build_env(identity: Identity, spec: Spec) -> list[dict[str, Any]]:
    """Operator first, then the user's entries merged by name."""
    for index, entry in enumerate(spec.env):
        if is_owned(str(entry.get("name", ""))):
            raise SpecError(f"spec.env[{index}].name", f"{entry['name']} is set by the operator; remove it")
    merged: list[dict[str, Any]] = merge(operator_env(identity, spec), [dict(entry) for entry in spec.env], "env")
    return merged


def is_owned(name: str) -> bool:
    return name in OWNED_ENV or name.startswith(OWNED_PREFIX)


def operator_env(identity: Identity, spec: Spec) -> list[dict[str, Any]]:
    return [
        {"name": "HOME", "value": "/home/vllm"},
        from_field("VLLM_HOST_IP", "status.podIP"),
        *program_env(spec),
        *(group_env(identity, spec) if spec.replicas > 1 else []),
        *cache_env(spec),
        *network_env(spec),
        *transfer_env(spec),
        *token_env(spec),
    ]


def from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def program_env(spec: Spec) -> list[dict[str, Any]]:
    """What the probes and the preStop hook read."""
    return [
        from_field(RANK_VARIABLE, f"metadata.labels['{names.POD_INDEX_LABEL}']"),
        {"name": "LLMFLEET_PORT", "value": str(spec.network.base_port)},
        {"name": "LLMFLEET_DRAIN_SECONDS", "value": str(spec.lifecycle.drain_timeout_seconds)},
        {"name": "LLMFLEET_STALL_SECONDS", "value": str(spec.lifecycle.stall_timeout_seconds)},
    ]


def group_env(identity: Identity, spec: Spec) -> list[dict[str, Any]]:
    """What the start gate reads."""
    leader = f"{names.rank_pod(identity.name, 0)}.{names.group_service(identity.name)}"
    return [
        {"name": "LLMFLEET_GROUP_SIZE", "value": str(spec.replicas)},
        {"name": "LLMFLEET_LEADER", "value": leader},
        {"name": "LLMFLEET_GATE_PORT", "value": str(spec.network.base_port + 2)},
        from_field("LLMFLEET_REVISION", f"metadata.annotations['{TEMPLATE_ANNOTATION}']"),
    ]


def cache_env(spec: Spec) -> list[dict[str, Any]]:
    cache = spec.storage.model_cache
    return [] if cache.type is CacheType.NONE else [{"name": "HF_HOME", "value": cache.mount_path}]


def network_env(spec: Spec) -> list[dict[str, Any]]:
    interface = spec.network.interface
    if not interface:
        return []
    return [{"name": name, "value": interface} for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")]


def transfer_env(spec: Spec) -> list[dict[str, Any]]:
    """NIXL's side channel listens on localhost unless told otherwise, where no other pod reaches it."""
    if spec.kv_transfer is None:
        return []
    host = from_field("VLLM_NIXL_SIDE_CHANNEL_HOST", "status.podIP")
    if spec.kv_transfer.port is None:
        return [host]
    return [host, {"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": str(spec.kv_transfer.port)}]


def token_env(spec: Spec) -> list[dict[str, Any]]:
    ref = spec.security.hugging_face_token_secret_ref
    if not ref.name:
        return []
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}]
