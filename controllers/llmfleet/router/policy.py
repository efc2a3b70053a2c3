"""Which requests are taken, and what of them reaches an engine.

In: method, path, body. Out: a `Route`, an `Admitted` request, or a `Refusal`. The allow-list is exact: no
normalisation, no prefix, no query. It never forwards a field that is the router's to set, and never waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import orjson

from llmfleet.router import body, bounds
from llmfleet.router.errors import Code, Refusal
from llmfleet.router.keys import ANONYMOUS, Tenant
from llmfleet.router.limits import Limits, Settings
from llmfleet.router.sse import Dialect

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the head of a request says: where it goes, from whom, and what an engine is told of it.

    It is made once for as many requests of a connection as have the same head.
    """

    route: Route
    tenant: Tenant = ANONYMOUS
    fields: bytes = b""  # for the engine
    version_10: bool = False
    session: bytes | None = None  # that the client named


class Plain(IntEnum):
    """What a field must hold in a request that needs no closer look."""

    FREE = 0  # anything
    TEXT = 1
    TOKENS = 2  # a whole number within its bound
    TALK = 3  # messages of text
    MODEL = 4
    FLAG = 5
    ASKED = 6  # for usage, and for nothing else


# An enum member costs a lookup in its class each time; these are read several times per request.
FREE: Final = Plain.FREE
TEXT: Final = Plain.TEXT
TOKENS: Final = Plain.TOKENS
TALK: Final = Plain.TALK
MODEL: Final = Plain.MODEL
FLAG: Final = Plain.FLAG
ASKED: Final = Plain.ASKED
_PLAIN_FIELDS: Final[dict[str, Plain]] = dict.fromkeys(
    body.ALLOWED_FIELDS - bounds.CHECKED_FIELDS - {*_STATEFUL, "model", "stream_options"}, FREE
) | {
    "model": MODEL,
    "messages": TALK,
    "prompt": TEXT,
    "input": TEXT,
    "system": TEXT,
    "stop": TEXT,
    "max_tokens": TOKENS,
    "max_completion_tokens": TOKENS,
    "stream": FLAG,
    "stream_options": ASKED,
}


class Admitted(NamedTuple):  # made per request: a frozen dataclass takes three times as long
    """A request that may go to an engine: its model, the engine's body, and what its answer must hold."""

    model: str
    body: bytes
    choices: int = 1  # each must finish
    streams: bool = False
    drops_usage: bool = False  # the router asked for the usage event, the client did not
    max_tokens: int = 0  # of each choice; 0: not said
    size: int = 0  # of the client's body
    document: dict[str, Any] = {}  # noqa: RUF012 - what the client's body says; nobody changes it


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
REQUESTS_PREFIX: Final = b"/v1/requests/"


def path_of(target: bytes) -> bytes:
    """Return the path of a request target; a query is never forwarded."""
    return target.partition(b"?")[0]


def allowed_method(path: bytes) -> bytes | None:
    """Return the method or methods a path takes, or None for a path that is not on the list."""
    if path in ENGINE_ROUTES:
        return b"POST"
    if path in LOCAL_PATHS or (path.startswith(MODEL_PREFIX) and len(path) > len(MODEL_PREFIX)):
        return b"GET"
    if path.startswith(REQUESTS_PREFIX) and len(path) > len(REQUESTS_PREFIX):
        return b"GET" if path.endswith(b"/result") else b"GET, DELETE"
    return None


def admit(route: Route, raw: bytes, settings: Settings, ours: bytes = b"") -> Admitted:
    """Parse a body, find its model, refuse what it may not ask for and write what an engine gets.

    `ours` is what the router sets in the body for this tenant (see `body.prepare`).
    """
    document = _parse(raw, settings.limits.max_json_values)
    admitted = admit_plain(route, raw, document, settings.limits, ours)
    return admitted if admitted is not None else admit_closely(route, raw, document, settings, ours)


def admit_plain(route: Route, raw: bytes, document: dict[str, Any], limits: Limits, ours: bytes) -> Admitted | None:
    """Admit a request as most are, in one pass over its fields; None says no more than to look closely."""
    model, streams, asked = "", False, False
    tokens = preferred = 0
    for field, value in document.items():
        kind = _PLAIN_FIELDS.get(field)
        if kind is FREE:
            continue
        if kind is TEXT:
            if type(value) is not str:
                return None
        elif kind is TOKENS:
            if type(value) is not int or not 0 <= value <= limits.max_output_tokens:
                return None
            if field == "max_tokens":
                tokens = value
            else:
                preferred = value
        elif kind is TALK:
            if type(value) is not list or not bounds.texts(value):
                return None
        elif kind is MODEL:
            if type(value) is not str:
                return None
            model = value
        elif kind is FLAG:
            if type(value) is not bool:
                return None
            streams = value
        elif kind is ASKED and type(value) is dict and len(value) == 1 and value.get("include_usage") is True:
            asked = True
        else:
            return None
    if not model:
        return None
    streams = streams and route.streams
    drops = streams and route.counts_choices and not asked
    if drops:
        ours += body.ASK_FOR_USAGE
    sent = body.splice(raw, ours) if ours else raw
    if preferred or "max_completion_tokens" in document:
        tokens = preferred
    return Admitted(model, sent, 1, streams, drops, tokens, len(raw), document)


def admit_closely(route: Route, raw: bytes, document: dict[str, Any], settings: Settings, ours: bytes) -> Admitted:
    """Admit any request, or say what is wrong with it."""
    limits, rules = settings.limits, settings.body
    model = document.get("model")
    if not isinstance(model, str) or not model:
        message = "write the name of a served model; GET /v1/models lists them"
        raise Refusal(status=400, code=Code.INVALID_REQUEST, message=message, param="model")
    if route.stateless:
        _refuse_stateful(document)
    bounds.check(document, limits, rules.media_urls)
    streams = route.streams and document.get("stream") is True
    asks = streams and route.counts_choices
    sent, drops = body.prepare(raw, document, asks_usage=asks, unknown=rules.unknown_fields, ours=ours)
    choices = bounds.answers(document, route.dialect is Dialect.COMPLETIONS) if route.counts_choices else 1
    if choices > limits.max_prompts and choices > limits.max_choices:
        message = f"n times prompts: at most {limits.max_prompts} answers are taken here"
        raise Refusal(status=400, code=Code.LIMIT_EXCEEDED, message=message, param="n")
    return Admitted(model, sent, choices, streams, drops, _tokens(document), len(raw), document)


def _tokens(document: dict[str, Any]) -> int:
    """Return how many tokens each answer may have at most; 0 says nothing."""
    for field in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if (value := document.get(field)) is not None:
            return bounds.whole(value) or 0
    return 0


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


def _refuse_stateful(document: dict[str, Any]) -> None:
    for field in _STATEFUL:
        if document.get(field):
            message = f"{field} is not supported: answers are not kept, send the whole conversation"
            raise Refusal(status=400, code=Code.UNSUPPORTED, message=message, param=field)


def model_id(path: bytes) -> str:
    """Return the model a `/v1/models/{id}` path asks for; ids may hold slashes."""
    return unquote(path[len(MODEL_PREFIX) :].decode("latin-1"), errors="replace")


def unknown_path() -> Refusal:
    """Refuse a path that is not on the list."""
    return Refusal(status=404, code=Code.NOT_FOUND, message="this path is not served here")


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
