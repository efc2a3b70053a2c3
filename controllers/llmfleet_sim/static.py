"""The answers that need no engine: model cards, tokenizer routes, fixed refusals.

In: configuration and bodies. Out: JSON values. Pure: time and new ids are arguments.
"""

from collections.abc import Callable, Mapping
from typing import Any

from llmfleet_sim import tokens
from llmfleet_sim.ask import serve_name
from llmfleet_sim.config import EngineConfig
from llmfleet_sim.errors import ApiError, Problem
from llmfleet_sim.fields import Fields

SCALE_OUT_ROUTES = (
    "/inference/v1/generate",
    "/inference/v1/abort_requests",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
)


def scale_out_disabled() -> ApiError:
    """Refuse what only --enable-scale-out opens."""
    message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
    return ApiError(403, message, "PermissionDeniedError")


def scaling_refused() -> ApiError:
    """Refuse elastic expert parallelism without a size."""
    return ApiError(400, "new_data_parallel_size is required", "Bad Request")


def model_list(config: EngineConfig, *, now: int, new_id: Callable[[], str]) -> dict[str, Any]:
    """List the served names, then the adapters."""
    parent = config.names[0]
    cards = [_card(name, config.model, None, config.max_model_len, now, new_id()) for name in config.names]
    cards += [_card(name, path, parent, None, now, new_id()) for name, path in config.adapters.items()]
    return {"object": "list", "data": cards}


def _card(name: str, root: str, parent: str | None, longest: int | None, now: int, number: str) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{number}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": now,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": longest,
        "permission": [permission],
    }


def tokenized(body: Mapping[str, Any], config: EngineConfig) -> dict[str, Any]:
    """Answer /tokenize."""
    fields = Fields(body)
    if "prompt" not in body and "messages" not in body:
        fields.need("prompt", "messages")
    fields.string("prompt")
    messages = fields.items("messages")
    fields.check()
    serve_name(body.get("model"), config)
    ids = tokens.encode_chat(messages) if "messages" in body else tokens.encode(body["prompt"])
    texts = [tokens.token_text(t) for t in ids] if body.get("return_token_strs") else None
    longest = config.max_model_len
    return {"count": len(ids), "max_model_len": longest, "tokens": list(ids), "token_strs": texts}


def detokenized(body: Mapping[str, Any], config: EngineConfig) -> dict[str, Any]:
    """Answer /detokenize."""
    fields = Fields(body)
    fields.need("tokens")
    ids = fields.items("tokens")
    for index, token in enumerate(ids):
        if not isinstance(token, int):
            _refuse(fields, "int_type", index, "Input should be a valid integer", token, None)
        elif token < 0:
            text = "Input should be greater than or equal to 0"
            _refuse(fields, "greater_than_equal", index, text, token, {"ge": 0})
    fields.check()
    serve_name(body.get("model"), config)
    return {"prompt": tokens.decode(ids)}


def _refuse(fields: Fields, kind: str, index: int, text: str, token: Any, ctx: Mapping[str, Any] | None) -> None:
    fields.problems.append(Problem(kind, f"body.tokens.{index}", text, token, ctx))


def orca(form: str, waiting: int, usage: float) -> list[tuple[str, str]]:
    """Give the load header that `endpoint-load-metrics-format` asks for."""
    values = {"num_requests_waiting": float(waiting), "kv_cache_usage_perc": usage}
    if form == "JSON":
        inner = ", ".join(f'"{k}": {v}' for k, v in values.items())
        return [("endpoint-load-metrics", f'JSON {{"named_metrics": {{{inner}}}}}')]
    if form == "TEXT":
        return [("endpoint-load-metrics", "TEXT " + ", ".join(f"named_metrics.{k}={v}" for k, v in values.items()))]
    return []


def openapi(paths: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    """Give a small OpenAPI document: the routes and nothing else."""
    listed: dict[str, Any] = {path: {method.lower(): {} for method in methods} for path, methods in paths.items()}
    return {"openapi": "3.1.0", "info": {"title": "FastAPI", "version": "0.1.0"}, "paths": listed}
