"""The only reader of the environment: vLLM's variables that change what an engine does.

In: a mapping like os.environ. Out: a frozen EngineEnvironment.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnvironment:
    """The variables the simulator honours."""

    execute_timeout: float
    keep_alive: int
    dev_mode: bool
    api_keys: tuple[str, ...]
    runtime_lora: bool
    host_ip: str
    nixl_host: str
    nixl_port: int
    log_level: str


def read_environment(env: Mapping[str, str] = os.environ) -> EngineEnvironment:
    """Read every variable once; a number that is none raises ValueError with its name."""
    return EngineEnvironment(
        execute_timeout=_number(env, "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", 300),
        keep_alive=int(_number(env, "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", 5)),
        dev_mode=env.get("VLLM_SERVER_DEV_MODE", "0") == "1",
        api_keys=(env["VLLM_API_KEY"],) if env.get("VLLM_API_KEY") else (),
        runtime_lora=env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").lower() in ("1", "true"),
        host_ip=env.get("VLLM_HOST_IP", ""),
        nixl_host=env.get("VLLM_NIXL_SIDE_CHANNEL_HOST", "localhost"),
        nixl_port=int(_number(env, "VLLM_NIXL_SIDE_CHANNEL_PORT", 5600)),
        log_level=env.get("VLLM_LOGGING_LEVEL", "INFO").upper(),
    )


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a number") from None
