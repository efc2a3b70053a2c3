"""Which requests are taken, and what of them reaches an engine.

In: method, path, body. Out: a `Route`, an `Admitted` request, or a `Refusal`. The allow-list is exact: no
normalisation, no prefix, no query. It never forwards a field that is the router's to set, and never waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import orjson

from llmfleet.router.errors import Code, Refusal
from llmfleet.router.sse import Dialect

# What of a body reaches an engine: OpenAI's and Anthropic's fields, and vLLM's own for sampling and output. Everything
# else is dropped, as an engine ignores what it does not know.
_OPENAI: Final = """
    audio background best_of dimensions echo encoding_format frequency_penalty function_call functions include
    input instructions logit_bias logprobs max_completion_tokens max_output_tokens max_tokens max_tool_calls
    messages metadata modalities model n parallel_tool_calls prediction presence_penalty previous_response_id
    prompt prompt_cache_key prompt_cache_retention reasoning reasoning_effort response_format safety_identifier
    seed service_tier stop store stream stream_options suffix temperature text tool_choice tools top_logprobs
    top_p truncation user verbosity web_search_options"""
_ANTHROPIC: Final = "output_config output_format stop_sequences system thinking"
_VLLM: Final = """add_generation_prompt add_special_tokens allowed_token_ids bad_words chat_template_kwargs
    continue_final_message embed_dtype endianness ignore_eos include_reasoning include_stop_str_in_output length_penalty
    logprob_token_ids min_p min_tokens padding prompt_logprobs repetition_penalty return_token_ids
    return_tokens_as_token_ids skip_special_tokens spaces_between_special_tokens stop_token_ids structured_outputs
    thinking_token_budget top_k truncate_prompt_tokens truncation_side use_activation use_beam_search"""
ALLOWED_FIELDS: Final = frozenset(f"{_OPENAI} {_ANTHROPIC} {_VLLM}".split())

# Fields that steer an engine from inside the fleet. A client's are dropped: vLLM 0.32 dies of an incomplete
# kv_transfer_params, serves another request's KV for a reused one, and cache_salt and priority are per tenant.
OWNED_FIELDS: Final = frozenset({"kv_transfer_params", "ec_transfer_params", "cache_salt", "priority", "request_id"})

# Known to engines, and refused by name, as the answer would be another one without them. vLLM hands vllm_xargs on as if
# the router had written it, kv_transfer_params included; the others run code or read memory that a client chose.
REFUSED_FIELDS: Final = frozenset(
    {
        "chat_template",
        "documents",
        "media_io_kwargs",
        "mm_payload",
        "mm_processor_kwargs",
        "prompt_embeds",
        "vllm_xargs",
    }
)

# A comma, a colon or an opening bracket may cost 50 times its byte once parsed.
_MARKS: Final = (b",", b"[", b"{", b":")
_UNCOUNTED_BYTES: Final = 1 << 18

# What would need memory of earlier answers; a fleet of engines has none in common.
_STATEFUL: Final = ("store", "previous_response_id", "background")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A path whose requests go to an engine."""

    path: bytes
    dialect: Dialect
    counts_choices: bool = False
    stateless: bool = False
    streams: bool = False


class Admitted(NamedTuple):  # made per request: a frozen dataclass takes three times as long
    """A request that may go to an engine: its model, cleaned body, how many choices must finish, and how it comes."""

    model: str
    body: bytes
    choices: int = 1
    streams: bool = False


ENGINE_ROUTES: Final = {
    route.path: route
    for route in (
        Route(path=b"/v1/chat/completions", dialect=Dialect.CHAT, counts_choices=True, streams=True),
        Route(path=b"/v1/completions", dialect=Dialect.COMPLETIONS, counts_choices=True, streams=True),
        Route(path=b"/v1/embeddings", dialect=Dialect.PLAIN),
        Route(path=b"/v1/responses", dialect=Dialect.RESPONSES, stateless=True, streams=True),
        Route(path=b"/v1/messages", dialect=Dialect.MESSAGES, streams=True),
        Route(path=b"/v1/messages/count_tokens", dialect=Dialect.MESSAGES),
    )
}
LOCAL_PATHS: Final = frozenset({b"/v1/models", b"/healthz", b"/readyz"})
MODEL_PREFIX: Final = b"/v1/models/"


def path_of(target: bytes) -> bytes:
    """Return the path of a request target; a query is never forwarded."""
    return target.partition(b"?")[0]


def allowed_method(path: bytes) -> bytes | None:
    """Return the one method a path takes, or None for a path that is not on the list."""
    if path in ENGINE_ROUTES:
        return b"POST"
    if path in LOCAL_PATHS or (path.startswith(MODEL_PREFIX) and len(path) > len(MODEL_PREFIX)):
        return b"GET"
    return None


def admit(route: Route, body: bytes, max_values: int) -> Admitted:
    """Parse a body, find its model and keep only the fields that are on the list."""
    document = _parse(body, max_values)
    model = document.get("model")
    if not isinstance(model, str) or not model:
        message = "write the name of a served model; GET /v1/models lists them"
        raise Refusal(status=400, code=Code.INVALID_REQUEST, message=message, param="model")
    if route.stateless:
        _refuse_stateful(document)
    if not ALLOWED_FIELDS.issuperset(document):
        body = _cleaned(document)
    choices = expected_choices(route.dialect, document) if route.counts_choices else 1
    return Admitted(model, body, choices, route.streams and document.get("stream") is True)


def _parse(body: bytes, max_values: int) -> dict[str, Any]:
    if len(body) > _UNCOUNTED_BYTES and sum(map(body.count, _MARKS)) > max_values:
        message = f"the body may hold more than {max_values} JSON values"
        raise Refusal(status=413, code=Code.REQUEST_TOO_LARGE, message=message)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(status=400, code=Code.INVALID_JSON, message=f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Refusal(status=400, code=Code.INVALID_REQUEST, message="the body is not a JSON object")
    return document


def _cleaned(document: dict[str, Any]) -> bytes:
    """Write the body again without what is not on the list."""
    for field in sorted(REFUSED_FIELDS & document.keys()):
        if document[field] is not None:
            message = f"{field} is not supported here"
            raise Refusal(status=400, code=Code.UNSUPPORTED, message=message, param=field)
    try:
        return orjson.dumps({key: value for key, value in document.items() if key in ALLOWED_FIELDS})
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
        raise Refusal(status=400, code=Code.INVALID_JSON, message="the body is nested too deeply") from None


def expected_choices(dialect: Dialect, document: dict[str, Any]) -> int:
    """Return how many choices an answer has; each must have a finish reason before `[DONE]`."""
    n = document.get("n", 1)
    # Engines take 2.0 and "2" for 2.
    if (isinstance(n, float) and n.is_integer()) or (isinstance(n, str) and n.isdecimal() and len(n) < 10):
        n = int(n)
    count = n if isinstance(n, int) and n > 0 else 1
    return count * _prompts(document.get("prompt")) if dialect is Dialect.COMPLETIONS else count


def _prompts(prompt: object) -> int:
    """A list of strings or of token lists is several prompts; a list of token ids is one."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _refuse_stateful(document: dict[str, Any]) -> None:
    for field in _STATEFUL:
        if document.get(field):
            message = f"{field} is not supported: answers are not kept, send the whole conversation"
            raise Refusal(status=400, code=Code.UNSUPPORTED, message=message, param=field)


def model_id(path: bytes) -> str:
    """Return the model a `/v1/models/{id}` path asks for; ids may hold slashes."""
    return unquote(path[len(MODEL_PREFIX) :].decode("latin-1"), errors="replace")


def unknown_model(model: str) -> Refusal:
    """Refuse a model nobody serves, in vLLM's words."""
    return Refusal(
        status=404,
        code=Code.MODEL_NOT_FOUND,
        message=f"The model `{model[:200]}` does not exist.",
        param="model",
        kind="NotFoundError",
    )


def models_answer(names: list[str], created: int) -> bytes:
    """Render the list of served models."""
    return orjson.dumps({"object": "list", "data": [_model_entry(name, created) for name in names]})


def model_answer(name: str, created: int) -> bytes:
    """Render one served model."""
    return orjson.dumps(_model_entry(name, created))


def _model_entry(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "llmfleet"}
