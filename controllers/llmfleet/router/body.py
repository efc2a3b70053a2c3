"""Write the body an engine gets: what a client may set, and what the router sets itself.

In: a parsed request and the bytes it came in. Out: bytes for the engine, and whether the client asked for the usage
event. A clean body (every top-level key on the list) keeps its bytes: our fields are spliced in before its final brace,
which nothing but blanks can follow. Any other body is written again. It never lets a client's spelling of one of our
fields through: keys are compared after parsing, so escapes and duplicates are the same key.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import orjson

from llmfleet.router.errors import Code, Refusal

# What of a body reaches an engine: OpenAI's and Anthropic's fields, and vLLM's own for sampling and output. Everything
# else is dropped, as an engine ignores what it does not know, or refused by setting.
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

Unknown = Literal["drop", "refuse"]
ASK_FOR_USAGE: Final = b',"stream_options":{"include_usage":true}'


def prepare(
    raw: bytes, document: dict[str, Any], *, asks_usage: bool, unknown: Unknown = "drop", ours: bytes = b""
) -> tuple[bytes, bool]:
    """Return the engine's body and whether its usage event is to be dropped.

    `asks_usage`: the answer is a stream of a route that tells its usage only when asked. `ours` is what the router
    sets for this tenant, as JSON members each led by a comma.
    """
    clean = ALLOWED_FIELDS.issuperset(document)
    if not clean:
        document = kept(document, unknown)
    drops = False
    if asks_usage:
        options = document.get("stream_options")
        if options is None and "stream_options" not in document:
            ours, drops = ours + ASK_FOR_USAGE, True
        elif not _wants_usage(options):
            document = document | {"stream_options": _with_usage(options)}
            clean, drops = False, True
    if not clean:
        raw = written(document)
    return (splice(raw, ours) if ours else raw), drops


def splice(raw: bytes, members: bytes) -> bytes:
    """Put members before the final brace; in a JSON object with a member only blanks can follow that brace."""
    return raw[: raw.rindex(b"}")] + members + b"}"


def kept(document: dict[str, Any], unknown: Unknown) -> dict[str, Any]:
    """Return what is on the list; what must not be dropped silently is refused by its name."""
    for field in sorted(document.keys() - ALLOWED_FIELDS):
        refused = field in REFUSED_FIELDS or (unknown == "refuse" and field not in OWNED_FIELDS)
        if refused and document[field] is not None:
            message = f"{field[:100]} is not supported here"
            raise Refusal(status=400, code=Code.UNSUPPORTED, message=message, param=field[:100])
    return {key: value for key, value in document.items() if key in ALLOWED_FIELDS}


def written(document: dict[str, Any]) -> bytes:
    """Write a body again."""
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
        raise Refusal(status=400, code=Code.INVALID_JSON, message="the body is nested too deeply") from None


def _wants_usage(options: object) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _bad_options("stream_options", "an object")
    wanted = options.get("include_usage")
    if wanted is not None and not isinstance(wanted, bool):  # an engine would take "on" for true
        raise _bad_options("stream_options.include_usage", "true or false")
    return wanted is True


def _with_usage(options: dict[str, Any] | None) -> dict[str, Any]:
    """Without the usage event vLLM leaves the usage of every chunk out too; it must not come because we asked."""
    rest = {key: value for key, value in (options or {}).items() if key != "continuous_usage_stats"}
    return rest | {"include_usage": True}


def _bad_options(param: str, wanted: str) -> Refusal:
    return Refusal(status=400, code=Code.INVALID_REQUEST, message=f"{param}: write {wanted}", param=param)
