"""What one simulated engine is: every flag and variable that changes its behaviour, in one frozen value.

In: the parsed flags and the environment. Out: EngineConfig, or ValueError with the flag's name. Pure.
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from llmfleet_sim.settings import EngineEnvironment
from llmfleet_sim.timing import PROFILES, StepModel

VERSIONS = {"0.32": "0.32.0", "0.33": "0.33.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """The NIXL connector of `--kv-transfer-config`."""

    role: str
    engine_id: str
    recompute: bool
    lease_seconds: float
    fingerprint: str

    @property
    def produces(self) -> bool:
        """Whether it hands KV to others."""
        return self.role != "kv_consumer"

    @property
    def consumes(self) -> bool:
        """Whether it takes KV from others."""
        return self.role != "kv_producer"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine process."""

    model: str
    names: tuple[str, ...]
    adapters: Mapping[str, str]
    version: str
    host: str | None
    port: int
    api_keys: tuple[str, ...]
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_queued_reqs: int | None
    chunked_prefill: bool
    priority: bool
    prefix_caching: bool
    block_size: int
    blocks: int
    steps: StepModel
    stream_interval: int
    shutdown_timeout: float
    keep_alive_interval: int
    request_id_headers: bool
    force_usage: bool
    prompt_details: bool
    request_metrics: bool
    load_tracking: bool
    fingerprint: str | None
    nodes: int
    rank: int
    headless: bool
    master_addr: str
    master_port: int
    rendezvous_timeout: float
    connector: Connector | None
    custom_buckets: Mapping[str, Any]
    load_seconds: float
    output_tokens: int
    transfer_us: float
    teardown_scale: float
    sigterm_ends: str
    admin_host: str
    admin_port: int
    seed: int
    world_size: int
    env: EngineEnvironment


def build_config(flags: Namespace, env: EngineEnvironment, *, new_id: str) -> EngineConfig:
    """Resolve defaults as vLLM does; `new_id` names this process where no engine id is given."""
    model = flags.model_tag or flags.model or "Qwen/Qwen3-0.6B"
    max_len = flags.max_model_len if (flags.max_model_len or 0) > 0 else 8192
    tp, pp = flags.tensor_parallel_size or 1, flags.pipeline_parallel_size or 1
    version = VERSIONS[_one_of("--sim-vllm-version", flags.sim_vllm_version, tuple(VERSIONS))]
    return EngineConfig(
        model=model,
        names=tuple(flags.served_model_name or [model]),
        adapters=_adapters(flags.lora_modules or []),
        version=version,
        host=flags.host,
        port=8000 if flags.port is None else flags.port,
        api_keys=tuple(flags.api_key or env.api_keys),
        max_model_len=max_len,
        max_num_seqs=flags.max_num_seqs or 256,
        max_num_batched_tokens=flags.max_num_batched_tokens or 8192,
        max_num_queued_reqs=flags.max_num_queued_reqs,
        chunked_prefill=flags.enable_chunked_prefill is not False,
        priority=flags.scheduling_policy == "priority",
        prefix_caching=flags.enable_prefix_caching is not False,
        block_size=flags.block_size or 16,
        blocks=flags.num_gpu_blocks_override or flags.sim_kv_blocks,
        steps=_steps(flags),
        stream_interval=flags.stream_interval or 1,
        shutdown_timeout=flags.shutdown_timeout or 0,
        keep_alive_interval=flags.sse_keep_alive_interval or 0,
        request_id_headers=bool(flags.enable_request_id_headers),
        force_usage=bool(flags.enable_force_include_usage),
        prompt_details=bool(flags.enable_prompt_tokens_details),
        request_metrics=bool(flags.enable_per_request_metrics),
        load_tracking=bool(flags.enable_server_load_tracking),
        fingerprint=_fingerprint(flags, version, tp, pp, max_len),
        nodes=flags.nnodes or 1,
        rank=flags.node_rank or 0,
        headless=bool(flags.headless),
        master_addr=flags.master_addr or "127.0.0.1",
        master_port=flags.master_port or 29501,
        rendezvous_timeout=flags.distributed_timeout_seconds or 600,
        connector=_connector(flags.kv_transfer_config, new_id, f"{version} {model} {flags.dtype} {flags.block_size}"),
        custom_buckets=_buckets(flags.custom_histogram_buckets),
        load_seconds=flags.sim_load_seconds,
        output_tokens=flags.sim_output_tokens,
        transfer_us=flags.sim_kv_transfer_us,
        teardown_scale=flags.sim_teardown_scale,
        sigterm_ends=_one_of("--sim-sigterm-ends", flags.sim_sigterm_ends, ("auto", "error", "abort", "silence")),
        admin_host=flags.sim_admin_host,
        admin_port=flags.sim_admin_port,
        seed=flags.sim_seed,
        world_size=tp * pp,
        env=env,
    )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{name}: {value} is not one of {', '.join(known)}")
    return value


def _steps(flags: Namespace) -> StepModel:
    return PROFILES[_one_of("--sim-profile", flags.sim_profile, tuple(PROFILES))].with_overrides(
        a=flags.sim_step_a, b=flags.sim_step_b, c=flags.sim_step_c, d=flags.sim_step_d
    )


def _fingerprint(flags: Namespace, version: str, tp: int, pp: int, max_len: int) -> str | None:
    """vLLM's `system_fingerprint`: version, parallel sizes, hash of the configuration."""
    mode = flags.fingerprint_mode or "full"
    if mode == "none":
        return None
    if mode == "custom":
        return str(flags.fingerprint_value or "")
    facts = json.dumps([flags.model_tag, flags.dtype, flags.quantization, tp, pp, max_len, version])
    digest = sha256(facts.encode()).hexdigest()[:8]
    shape = (f"-tp{tp}" if tp > 1 else "") + (f"-pp{pp}" if pp > 1 else "")
    return digest if mode == "hash" else f"vllm-{version}{shape}-{digest}"


def _adapters(modules: list[str]) -> dict[str, str]:
    """Read `name=path` or JSON, as `--lora-modules` takes them."""
    found = {}
    for module in modules:
        if module.startswith("{"):
            entry = json.loads(module)
            found[str(entry["name"])] = str(entry["path"])
        elif "=" in module:
            name, _, path = module.partition("=")
            found[name] = path
        else:
            raise ValueError(f"Invalid JSON format for --lora-modules: {module}")
    return found


def _connector(text: str | None, new_id: str, facts: str) -> Connector | None:
    """Read the connector; only NIXL's pull form is simulated, others are accepted and inert."""
    if not text:
        return None
    given = json.loads(text) if isinstance(text, str) else text
    if given.get("kv_connector") not in ("NixlConnector", "NixlPullConnector"):
        return None
    extra = given.get("kv_connector_extra_config") or {}
    return Connector(
        role=str(given.get("kv_role") or "kv_both"),
        engine_id=str(given.get("engine_id") or new_id),
        recompute=given.get("kv_load_failure_policy") == "recompute",
        lease_seconds=float(extra.get("kv_lease_duration", 30)),
        fingerprint=sha256(facts.encode()).hexdigest()[:16],
    )


def _buckets(given: Any) -> Mapping[str, Any]:
    value = json.loads(given) if isinstance(given, str) else given
    return value or {}
