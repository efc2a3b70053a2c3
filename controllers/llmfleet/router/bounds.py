"""Bound what one request may ask of an engine: answers, tokens, log probabilities, stops, schemas, media.

In: a parsed body and the limits. Out: nothing, or a `Refusal` that names the field and the most that is taken. Engines
read "2" and 2.0 as 2, so that is how numbers are read here. It never changes a body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

from llmfleet.router.errors import Code, Refusal
from llmfleet.router.limits import Limits

MediaUrls = Literal["data", "any"]

# Parts whose content is a tensor or an object of the engine's own process: a client's would be memory it chose.
_FORBIDDEN_PARTS: Final = frozenset({"audio_embeds", "image_embeds", "image_pil", "prompt_embeds", "video_embeds"})
# vLLM looks for media under these keys whatever the part's type says; `source` and `file` are Anthropic's and OpenAI's.
_MEDIA_KEYS: Final = frozenset(
    {"audio_url", "file", "file_data", "file_url", "image_url", "input_audio", "source", "video_url"}
)
_MEDIA_FIELDS: Final = ("messages", "input", "system")
_URL_KEYS: Final = frozenset({"audio_url", "file_url", "image_url", "url", "video_url"})
_INNER: Final = ("content", "output")  # of a part or an item: may hold parts again


def check(document: dict[str, Any], limits: Limits, media_urls: MediaUrls) -> None:
    """Refuse a request that asks for more than it may."""
    for field, value in document.items():
        check_one = _CHECKS.get(field)
        if check_one is not None and value is not None:
            check_one(field, value, limits)
    _check_media(document, limits, media_urls)


def whole(value: object) -> int | None:
    """Read a number as an engine's lenient parser does; None for what is none."""
    if isinstance(value, int):
        return int(value)
    try:
        number = float(value.replace("_", "")) if isinstance(value, str) else value
        return int(number) if isinstance(number, float) and number.is_integer() else None
    except ValueError:
        return None


def answers(document: dict[str, Any], counts_prompts: bool) -> int:
    """Return how many choices an answer has; each must have a finish reason before `[DONE]`."""
    n = document.get("n")
    count = 1 if n is None else max(1, whole(n) or 1)
    return count * _prompts(document.get("prompt")) if counts_prompts else count


def _prompts(prompt: object) -> int:
    """A list of strings or of token lists is several prompts; a list of token ids is one."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


# ---- single fields ----


def _too_much(field: str, most: int, what: str = "") -> Refusal:
    message = f"{field}: at most {most}{' ' + what if what else ''} are taken here"
    return Refusal(status=400, code=Code.LIMIT_EXCEEDED, message=message, param=field)


def _number(field: str, value: object, least: int, most: int) -> None:
    number = whole(value)
    if number is None or number < least:
        message = f"{field}: write a whole number from {least} to {most}"
        raise Refusal(status=400, code=Code.INVALID_REQUEST, message=message, param=field)
    if number > most:
        raise _too_much(field, most)


def _choices(field: str, value: object, limits: Limits) -> None:
    _number(field, value, 1, limits.max_choices)


def _tokens(field: str, value: object, limits: Limits) -> None:
    _number(field, value, 0, limits.max_output_tokens)


def _logprobs(field: str, value: object, limits: Limits) -> None:
    _number(field, value, 0, limits.max_logprobs)  # -1 would mean the whole vocabulary


def _stops(field: str, value: object, limits: Limits) -> None:
    if isinstance(value, list) and len(value) > limits.max_stops:
        raise _too_much(field, limits.max_stops, "sequences")


def _ids(field: str, value: object, limits: Limits) -> None:
    if isinstance(value, list | dict) and len(value) > limits.max_token_ids:
        raise _too_much(field, limits.max_token_ids, "entries")


def _prompt(field: str, value: object, limits: Limits) -> None:
    if _prompts(value) > limits.max_prompts:
        raise _too_much(field, limits.max_prompts, "prompts")


def _inputs(field: str, value: object, limits: Limits) -> None:
    if isinstance(value, list) and len(value) > limits.max_inputs and not isinstance(value[0], int):
        raise _too_much(field, limits.max_inputs, "entries")


def _tools(field: str, value: object, limits: Limits) -> None:
    if isinstance(value, list) and len(value) > limits.max_tools:
        raise _too_much(field, limits.max_tools, "tools")
    _schema(field, value, limits)


def _schema(field: str, value: object, limits: Limits) -> None:
    """Walk a schema level by level: compiling a grammar of it costs far more than its bytes."""
    level, depth, size = [value], 0, 0
    while level:
        depth += 1
        if depth > limits.max_schema_depth:
            raise _too_much(field, limits.max_schema_depth, "levels of nesting")
        size += sum(map(_size, level))
        if size > limits.max_schema_bytes:
            raise _too_much(field, limits.max_schema_bytes, "bytes of schema")
        level = [inner for item in level for inner in _inside(item)]


def _size(item: object) -> int:
    if isinstance(item, str):
        return len(item) + 2
    return sum(map(len, item)) + 2 * len(item) + 2 if isinstance(item, dict) else 2


def _inside(item: object) -> Iterator[Any]:
    if isinstance(item, dict):
        yield from item.values()
    elif isinstance(item, list):
        yield from item


def _flag(field: str, value: object, limits: Limits) -> None:
    """Engines take 1 and "yes" for true; what the router takes for no stream must be none."""
    if not isinstance(value, bool):
        message = f"{field}: write true or false"
        raise Refusal(status=400, code=Code.INVALID_REQUEST, message=message, param=field)


def _logprobs_or_flag(field: str, value: object, limits: Limits) -> None:
    """A number in completions, a switch in chat."""
    if not isinstance(value, bool):
        _logprobs(field, value, limits)


_CHECKS: Final[dict[str, Callable[[str, Any, Limits], None]]] = {
    "allowed_token_ids": _ids,
    "bad_words": _ids,
    "best_of": _choices,
    "functions": _tools,
    "input": _inputs,
    "logit_bias": _ids,
    "logprob_token_ids": _ids,
    "logprobs": _logprobs_or_flag,
    "max_completion_tokens": _tokens,
    "max_output_tokens": _tokens,
    "max_tokens": _tokens,
    "min_tokens": _tokens,
    "n": _choices,
    "output_config": _schema,
    "output_format": _schema,
    "prompt": _prompt,
    "prompt_logprobs": _logprobs,
    "response_format": _schema,
    "stop": _stops,
    "stop_sequences": _stops,
    "stop_token_ids": _ids,
    "stream": _flag,
    "structured_outputs": _schema,
    "text": _schema,
    "tools": _tools,
    "top_logprobs": _logprobs,
}
CHECKED_FIELDS: Final = frozenset({*_CHECKS, *_MEDIA_FIELDS})  # of any other field the value does not matter here


# ---- media ----


def _check_media(document: dict[str, Any], limits: Limits, urls: MediaUrls) -> None:
    """Count media parts and their bytes, and keep engines from being sent to addresses."""
    for field in _MEDIA_FIELDS:
        items = document.get(field)
        if type(items) is list and not texts(items):
            _check_parts(field, items, limits, urls)


def texts(items: list[Any]) -> bool:
    """Whether a list is messages of text and nothing else, as most are."""
    for item in items:
        if type(item) is not dict or len(item) != 2 or "role" not in item or type(item.get("content")) is not str:
            return False
    return True


def _check_parts(field: str, items: list[Any], limits: Limits, urls: MediaUrls) -> None:
    parts = size = 0
    for part in _parts(items, field):
        media = _media(part, field)
        if media is None:
            continue
        parts += 1
        size += _measure(media, field, urls)
        if parts > limits.max_media_parts:
            raise _too_much(field, limits.max_media_parts, "media parts")
        if size > limits.max_media_bytes:
            raise _too_much(field, limits.max_media_bytes, "bytes of media")


def _parts(items: list[Any], field: str) -> Iterator[dict[str, Any]]:
    """Yield every content part, also those inside tool results. A message itself is none, whatever it holds."""
    stack, messages = [items], field == "messages"
    while stack:
        for item in stack.pop():
            if type(item) is not dict:
                continue
            if not messages:
                yield item
            for key in _INNER:
                inner = item.get(key)
                if type(inner) is list:
                    stack.append(inner)
                elif type(inner) is dict:
                    stack.append([inner])
        messages = False


def _media(part: dict[str, Any], field: str) -> dict[str, Any] | None:
    """Return what a part holds as media, or None."""
    kind = part.get("type")
    if (isinstance(kind, str) and kind in _FORBIDDEN_PARTS) or not _FORBIDDEN_PARTS.isdisjoint(part):
        raise _unsupported(field, "embeddings and objects as content are not supported here")
    if part.get("uuid") is not None:  # names media that some other request left in an engine's cache
        raise _unsupported(field, "uuid in a content part is not supported here")
    if _MEDIA_KEYS.isdisjoint(part):
        return None
    return {key: part[key] for key in part.keys() & _MEDIA_KEYS if part[key] is not None} or None


def _measure(media: dict[str, Any], field: str, urls: MediaUrls) -> int:
    """Add up the bytes of one part's media; a reference to elsewhere is taken only if the setting says so."""
    size, stack = 0, [media]
    while stack:
        for key, value in stack.pop().items():
            if isinstance(value, str):
                size += len(value)
                if key in _URL_KEYS:
                    _check_url(value, field, urls)
            elif isinstance(value, dict):
                stack.append(value)
            elif isinstance(value, list):
                stack.extend({key: inner} for inner in value)
    return size


def _check_url(url: str, field: str, urls: MediaUrls) -> None:
    start = url[:8].lower()
    if start.startswith("data:") or (urls == "any" and start.startswith(("http://", "https://"))):
        return
    raise _unsupported(field, "media by reference are not taken here, send a data: URL")


def _unsupported(field: str, message: str) -> Refusal:
    return Refusal(status=400, code=Code.UNSUPPORTED, message=f"{field}: {message}", param=field)
