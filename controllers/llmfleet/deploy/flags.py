"""Spell a spec as the argument list of `vllm serve`, and tell whether an argument is one that the operator sets itself.

In: a `Spec` and the instance's name. Out: a list of strings; the parts that differ between ranks are left to the
kubelet (`$(LLMFLEET_RANK)`) and to the program that starts the engine (`--headless`, and `--host` by the family of
the pod's address), because all ranks share one template. Unset fields give no flag, so vLLM's own default holds. It
never reads a cluster, and the same spec always gives the same list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from llmfleet import names
from llmfleet.api.types import InferenceArgs, Role, Spec, SpeculativeDecoding

SHUTDOWN_TIMEOUT: Final = 10
RANK_VARIABLE: Final = "LLMFLEET_RANK"
MODEL_IMAGE_MOUNT: Final = "/model-image"
MODEL_CLAIM_MOUNT: Final = "/model-claim"

# Flags the operator sets, with their aliases; vLLM's parser also takes any prefix of them, underscores for dashes,
# a dotted key after them, and `--no-` before the switches. Short forms go by their prefixes too (`-t` is `-tp`), and
# one of a single letter may have its value behind it. The CRD refuses the same.
OWNED_FLAGS: Final = (
    "tensor-parallel-size",
    "pipeline-parallel-size",
    "data-parallel-size",
    "prefill-context-parallel-size",
    "nnodes",
    "node-rank",
    "master-addr",
    "master-port",
    "headless",
    "distributed-executor-backend",
    "host",
    "port",
    "uds",
    "grpc",
    "config",
    "shutdown-timeout",
    "model",
    "served-model-name",
    "kv-transfer-config",
    "dtype",
    "max-model-len",
    "max-num-seqs",
    "max-num-batched-tokens",
    "gpu-memory-utilization",
    "device-memory-utilization",
    "block-size",
    "kv-cache-dtype",
    "quantization",
    "enforce-eager",
    "enable-prefix-caching",
    "enable-chunked-prefill",
    "scheduling-policy",
    "trust-remote-code",
    "load-format",
    "seed",
    "speculative-config",
    "spec-method",
    "spec-model",
    "spec-tokens",
    "enable-lora",
    "max-loras",
    "max-lora-rank",
    "lora-modules",
)
OWNED_SHORT: Final = ("tp", "pp", "dp", "pcp", "n", "r", "q", "sc")
NEGATABLE: Final = frozenset(
    {"enforce-eager", "enable-prefix-caching", "enable-chunked-prefill", "trust-remote-code", "enable-lora"}
)
# Engine connectors that send and receive whatever the instance's role.
TWO_WAY_CONNECTORS: Final = frozenset({"MultiConnector", "OffloadingConnector"})


def owned_flag(argument: str) -> str | None:
    """The owned flag that vLLM's parser would take this argument for, if any."""
    name = argument.split("=")[0].split(".")[0].replace("_", "-")
    if name.startswith("--") and len(name) > 2:
        return next((flag for flag in spellings() if flag.startswith(name)), None)
    if name.startswith("-") and len(name) > 1:
        return next((f"-{flag}" for flag in OWNED_SHORT if flag.startswith(name[1:]) or flag == name[1]), None)
    return None


def spellings() -> Iterator[str]:
    for flag in OWNED_FLAGS:
        yield f"--{flag}"
        if flag in NEGATABLE:
            yield f"--no-{flag}"


def engine_args(spec: Spec, cluster: str) -> list[str]:
    """Everything after the word `vllm`."""
    return [
        "serve",
        model_argument(spec),
        *("--port", str(spec.network.base_port)),
        *("--served-model-name", *spec.names),
        *parallel_flags(spec, cluster),
        *inference_flags(spec.inference_args, load_format(spec)),
        *transfer_flags(spec),
        *("--shutdown-timeout", str(SHUTDOWN_TIMEOUT)),
        *spec.inference_args.extra_args,
    ]


def model_argument(spec: Spec) -> str:
    """What vLLM is told to load: its own notation, or the path where the operator mounts the files."""
    scheme, separator, rest = spec.model.partition("://")
    if not separator or scheme == "s3":
        return spec.model
    if scheme == "hf":
        return rest
    if scheme == "oci":
        return MODEL_IMAGE_MOUNT
    _, _, path = rest.partition("/")
    return f"{MODEL_CLAIM_MOUNT}/{path}".rstrip("/")


def load_format(spec: Spec) -> str | None:
    """Object storage needs vLLM's streaming loader unless the user names another."""
    default = "runai_streamer" if spec.model.startswith("s3://") else None
    return spec.inference_args.load_format or default


def parallel_flags(spec: Spec, cluster: str) -> list[str]:
    flags = ["--tensor-parallel-size", str(spec.tensor_parallel_size)]
    if spec.pipeline_parallel_size > 1:
        flags += ["--pipeline-parallel-size", str(spec.pipeline_parallel_size)]
    if spec.replicas > 1:
        flags += node_flags(spec, cluster)
    return flags


def node_flags(spec: Spec, cluster: str) -> list[str]:
    """How the ranks of one group find each other."""
    leader = f"{names.rank_pod(cluster, 0)}.{names.group_service(cluster)}"
    return [
        *("--distributed-executor-backend", "mp"),
        *("--nnodes", str(spec.replicas), "--node-rank", f"$({RANK_VARIABLE})"),
        *("--master-addr", leader, "--master-port", str(spec.network.base_port + 1)),
    ]


def inference_flags(args: InferenceArgs, chosen_load_format: str | None) -> list[str]:
    flags: list[str] = []
    for flag, value in (
        ("dtype", args.dtype),
        ("max-model-len", args.max_model_len),
        ("max-num-seqs", args.max_num_seqs),
        ("max-num-batched-tokens", args.max_num_batched_tokens),
        ("gpu-memory-utilization", args.gpu_memory_utilization),
        ("block-size", args.block_size),
        ("kv-cache-dtype", args.kv_cache_dtype),
        ("quantization", args.quantization),
        ("enforce-eager", args.enforce_eager),
        ("enable-prefix-caching", args.enable_prefix_caching),
        ("enable-chunked-prefill", args.enable_chunked_prefill),
        ("scheduling-policy", args.scheduling_policy),
        ("trust-remote-code", args.trust_remote_code),
        ("load-format", chosen_load_format),
        ("seed", args.seed),
    ):
        flags += spelled(flag, value)
    return [*flags, *speculation_flags(args.speculative_decoding), *lora_flags(args)]


def spelled(flag: str, value: object) -> list[str]:
    """One flag with its value; switches have a negative form instead of one."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", str(value)]


def speculation_flags(speculation: SpeculativeDecoding) -> list[str]:
    if not speculation.enabled:
        return []
    config = {
        "method": speculation.method or None,
        "model": speculation.model or None,
        "num_speculative_tokens": speculation.num_speculative_tokens,
        "draft_tensor_parallel_size": speculation.draft_tensor_parallel_size,
    }
    return ["--speculative-config", compact({key: value for key, value in config.items() if value is not None})]


def lora_flags(args: InferenceArgs) -> list[str]:
    lora = args.lora
    if not lora.enabled:
        return []
    flags = ["--enable-lora", *spelled("max-loras", lora.max_loras), *spelled("max-lora-rank", lora.max_lora_rank)]
    modules = [f"{adapter.name}={adapter.path}" for adapter in lora.adapters]
    return [*flags, "--lora-modules", *modules] if modules else flags


def transfer_flags(spec: Spec) -> list[str]:
    if spec.kv_transfer is None:
        return []
    transfer = spec.kv_transfer
    one_way = "kv_producer" if spec.role is Role.PREFILL else "kv_consumer"
    config: dict[str, Any] = {
        "kv_connector": transfer.connector,
        "kv_role": "kv_both" if transfer.connector in TWO_WAY_CONNECTORS else one_way,
    }
    if transfer.extra_config:
        config["kv_connector_extra_config"] = transfer.extra_config
    if transfer.load_failure_policy:
        config["kv_load_failure_policy"] = str(transfer.load_failure_policy)
    if spec.accelerator.resource_name == "":
        config["kv_buffer_device"] = "cpu"
    return ["--kv-transfer-config", compact(config)]


def compact(config: Mapping[str, Any]) -> str:
    """JSON with one spelling per meaning, so that equal specs give equal objects."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
