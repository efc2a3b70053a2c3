"""Turn the body of a generation request into what the engine and the answer need, or refuse it as vLLM does.

In: parsed JSON and the engine's configuration. Out: an Ask, or ApiError. Pure.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmfleet_sim.config import EngineConfig
from llmfleet_sim.errors import ApiError, Problem, bad_request, invalid, wrong_model
from llmfleet_sim.fields import Fields
from llmfleet_sim.tokens import VOCABULARY, Tokens, chat_text, decode, encode, encode_chat, message_text

# The longest token of the tokenizer that the recorded answers come from.
_CHARACTERS_PER_TOKEN = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One generation request, checked."""

    model: str
    prompts: tuple[Tokens, ...]
    max_tokens: tuple[int, ...]
    n: int = 1
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stream: bool = False
    usage: bool = False
    continuous_usage: bool = False
    echo: bool = False
    echo_only: bool = False
    logprobs: int | None = None
    token_ids: bool = False
    priority: int = 0
    salt: str = ""
    seed: int = 0
    request_id: str | None = None
    transfer: Mapping[str, Any] | None = None
    role: str = "assistant"
    extra: Mapping[str, Any] | None = None


def serve_name(name: Any, config: EngineConfig) -> str:
    """Check the model a request names; none means the first served name."""
    if not name:
        return config.names[0]
    if name not in config.names and name not in config.adapters:
        raise wrong_model(name, [*config.names, *config.adapters])
    return str(name)


def completion_ask(body: Mapping[str, Any], config: EngineConfig) -> Ask:
    """Read /v1/completions."""
    fields = Fields(body)
    model = fields.string("model")
    common = _sampling(fields)
    logprobs = fields.integer("logprobs")
    limit = fields.integer("max_tokens", 16)
    echo, kind = fields.boolean("echo"), _prompt_kind(fields)
    fields.check()
    if kind == "none":
        raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    _check_stream_options(body, common["stream"])
    if logprobs is not None and logprobs < -1:
        raise bad_request("`logprobs` must be a positive value or -1.", "logprobs", logprobs)
    if body.get("cache_salt") == "":
        raise bad_request("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    name = serve_name(model, config)
    if body.get("suffix"):
        message = "suffix is only supported for models with FIM completion rendering"
        raise ApiError(400, message, "BadRequestError", "suffix")
    prompts = _prompts(body["prompt"], kind)
    echo_only = echo and limit == 0
    limits = tuple(_limit(p, 1 if echo_only else limit, "max_tokens", config, _characters(p, kind)) for p in prompts)
    _check_sampling(body, common, logprobs, limits[0])
    options = body.get("stream_options") or {}
    return Ask(
        model=name,
        prompts=prompts,
        max_tokens=limits,
        echo=echo,
        echo_only=echo_only,
        logprobs=logprobs,
        usage=bool(options.get("include_usage")) or config.force_usage,
        continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
        **common,
    )


def chat_ask(body: Mapping[str, Any], config: EngineConfig) -> Ask:
    """Read /v1/chat/completions."""
    fields = Fields(body)
    fields.need("messages")
    model, messages = fields.string("model"), fields.items("messages")
    _check_messages(fields, messages)
    common = _sampling(fields)
    logprobs, top = fields.boolean("logprobs"), fields.integer("top_logprobs")
    limit = fields.integer("max_completion_tokens")
    limit = fields.integer("max_tokens") if limit is None else limit
    fields.check()
    _check_stream_options(body, common["stream"])
    if top is not None and top and not logprobs:
        raise bad_request("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    if body.get("tool_choice") and not body.get("tools"):
        raise bad_request("When using `tool_choice`, `tools` must be set.", "tool_choice")
    name = serve_name(model, config)
    _check_chat_support(body, name)
    prompt = _handed_over(common["transfer"], config)
    if prompt is None:
        prompt = encode_chat(messages, open_answer=body.get("add_generation_prompt", True) is not False)
    used = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    limits = (_limit(prompt, limit, used, config, len(chat_text(prompt))),)
    _check_sampling(body, common, top if logprobs else None, limits[0])
    options = body.get("stream_options") or {}
    return Ask(
        model=name,
        prompts=(prompt,),
        max_tokens=limits,
        logprobs=(top or 0) if logprobs else None,
        usage=bool(options.get("include_usage")) or config.force_usage,
        continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
        **common,
    )


def _handed_over(transfer: Mapping[str, Any] | None, config: EngineConfig) -> Tokens | None:
    """Take the prompt's ids from the first leg, so that the second needs neither template nor tokenizer."""
    ids = (transfer or {}).get("prompt_token_ids")
    if config.connector is None or not isinstance(ids, list) or not all(isinstance(t, int) for t in ids):
        return None
    return array("Q", ids)


def _sampling(fields: Fields) -> dict[str, Any]:
    """Read the fields both OpenAI routes share."""
    priority = fields.integer("priority", 0, nullable=False)
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        fields.number(name)
    return {
        "n": 1 if (n := fields.integer("n", 1)) is None else n,
        "min_tokens": fields.integer("min_tokens", 0) or 0,
        "ignore_eos": fields.boolean("ignore_eos"),
        "stop": fields.strings("stop"),
        "include_stop": fields.boolean("include_stop_str_in_output"),
        "stream": fields.boolean("stream"),
        "token_ids": fields.boolean("return_token_ids"),
        "priority": priority or 0,
        "salt": fields.string("cache_salt") or "",
        "seed": fields.integer("seed") or 0,
        "request_id": fields.string("request_id"),
        "transfer": fields.mapping("kv_transfer_params"),
    }


def _check_stream_options(body: Mapping[str, Any], stream: bool) -> None:
    if body.get("stream_options") and not stream:
        raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")


def _check_messages(fields: Fields, messages: list[Any]) -> None:
    """Refuse messages without a role; the rest of the schema is vLLM's union of eleven types."""
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            fields.problems.append(Problem("missing", f"body.messages.{index}.role", "Field required", message))
        elif not isinstance(message.get("content"), (str, list, type(None))):
            text = "Input should be a valid string"
            where = f"body.messages.{index}.content"
            fields.problems.append(Problem("string_type", where, text, message["content"]))


def _check_chat_support(body: Mapping[str, Any], name: str) -> None:
    """Refuse what a small text model without a tool parser refuses."""
    if not body["messages"]:
        message = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise bad_request(message)
    if body.get("tools") and body.get("tool_choice", "auto") == "auto":
        message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        raise bad_request(message)
    for message in body["messages"]:
        content = message.get("content")
        if isinstance(content, list) and any("text" not in p for p in content if isinstance(p, Mapping)):
            raise bad_request(f"{name} is not a multimodal model")


def _prompt_kind(fields: Fields) -> str:
    """Tell text, texts, ids and lists of ids apart; record what is none of them."""
    prompt = fields.body.get("prompt")
    if prompt is None or prompt == "":
        return "none"
    if isinstance(prompt, str):
        return "text"
    if isinstance(prompt, list):
        if not prompt:
            raise bad_request("You must pass at least one prompt")
        if all(isinstance(p, str) for p in prompt):
            return "text"
        if all(isinstance(p, int) for p in prompt):
            return "ids"
        if all(isinstance(p, list) and all(isinstance(t, int) for t in p) for p in prompt):
            return "lists"
    problem = Problem("list_type", "body.prompt", "Input should be a valid list", prompt)
    string = Problem("string_type", "body.prompt", "Input should be a valid string", prompt)
    fields.problems += [problem, problem, string, problem]
    return "wrong"


def _prompts(prompt: Any, kind: str) -> tuple[Tokens, ...]:
    """Tokenize what has to be."""
    if kind == "text":
        texts = [prompt] if isinstance(prompt, str) else prompt
        return tuple(encode(text) for text in texts)
    lists = [prompt] if kind == "ids" else prompt
    for token in (t for ids in lists for t in ids):
        if not 0 <= token < VOCABULARY:
            raise bad_request(f"Token id {token} is out of vocabulary")
    return tuple(array("Q", ids) for ids in lists)


def _characters(prompt: Tokens, kind: str) -> int:
    """Count the characters of a text prompt; a prompt of ids has none."""
    return len(decode(prompt)) if kind == "text" else 0


def _limit(prompt: Tokens, asked: int | None, name: str, config: EngineConfig, characters: int) -> int:
    """Check lengths and give the tokens that may be generated."""
    longest, have = config.max_model_len, len(prompt)
    if asked is not None and asked > longest:
        message = f"{name}={asked} cannot be greater than max_model_len={longest}. Please request fewer output tokens."
        raise bad_request(message, name, asked)
    if have > longest:
        raise _too_long(have, longest, characters)
    room = longest - have
    limit = room if asked is None else min(asked, room)
    if limit < 1:
        raise bad_request(f"max_tokens must be at least 1, got {limit}.", "max_tokens", limit)
    return limit


def _too_long(have: int, longest: int, characters: int) -> ApiError:
    """Refuse a prompt: by its characters alone where they cannot fit, else by tokens, counted one past the limit."""
    start = f"This model's maximum context length is {longest} tokens. However, your prompt contains "
    end = "Please reduce the length of the input prompt."
    most = longest * _CHARACTERS_PER_TOKEN
    if characters > most:
        bound = f"(more than {most} characters, which is the upper bound for {longest} input tokens). "
        return bad_request(f"{start}{characters} characters {bound}{end}", "input_text", characters)
    count, words = (longest + 1, "at least ") if characters else (have, "")
    reason = "which exceeds this limit even without any output tokens. "
    return bad_request(f"{start}{words}{count} input tokens, {reason}{end}", "input_tokens", count)


def _check_sampling(body: Mapping[str, Any], common: Mapping[str, Any], logprobs: int | None, limit: int) -> None:
    """Apply the checks of vLLM's SamplingParams, in its order."""
    temperature = 1.0 if body.get("temperature") is None else float(body["temperature"])
    if common["n"] < 1:
        raise bad_request(f"n must be at least 1, got {common['n']}.")
    for name in ("presence_penalty", "frequency_penalty"):
        value = float(body.get(name) or 0.0)
        if not -2 <= value <= 2:
            raise bad_request(f"{name} must be in [-2, 2], got {value}.")
    if temperature < 0:
        raise bad_request(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if temperature > 2:
        raise bad_request(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)
    top_p = 1.0 if body.get("top_p") is None else float(body["top_p"])
    if not 0 < top_p <= 1:
        raise bad_request(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    top_k = body.get("top_k")
    if isinstance(top_k, int) and top_k < -1:
        raise bad_request(f"top_k must be 0 (disable), or at least 1, got {top_k}.")
    if common["min_tokens"] > limit:
        message = f"min_tokens must be less than or equal to max_tokens={limit}, got {common['min_tokens']}."
        raise bad_request(message)
    if any(not text for text in common["stop"]):
        raise bad_request("stop cannot contain an empty string.")
    if common["n"] > 1 and temperature == 0:
        raise bad_request(f"n must be 1 when using greedy sampling, got {common['n']}.")
    if logprobs is not None and logprobs > 20:
        message = f"Requested sample logprobs of {logprobs}, which is greater than max allowed: 20"
        raise bad_request(message, "logprobs", logprobs)


def header_priority(header: str | None, asked: int) -> int:
    """Let the header X-Vllm-Priority win over the body, where it is a number."""
    try:
        return asked if header is None else int(header)
    except ValueError:
        return asked


def need_object(body: Any) -> Mapping[str, Any]:
    """Refuse JSON that is no object."""
    if isinstance(body, Mapping):
        return body
    text = "Input should be a valid dictionary or object to extract fields from"
    raise invalid([Problem("model_attributes_type", "body", text, body)])


def plain_messages(items: Any, system: Any = None) -> list[dict[str, Any]]:
    """Bring Anthropic's and the responses API's input into chat messages."""
    messages: list[dict[str, Any]] = []
    if system:
        messages.append({"role": "system", "content": message_text(system)})
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    for item in items:
        if isinstance(item, Mapping):
            messages.append({"role": item.get("role", "user"), "content": message_text(item.get("content"))})
    return messages
