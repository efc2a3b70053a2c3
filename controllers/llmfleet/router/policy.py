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

# Fields that steer an engine from inside the fleet. A client's are dropped: vLLM 0.32 dies of an incomplete
# kv_transfer_params, serves another request's KV for a reused one, and cache_salt and priority are per tenant.
OWNED_FIELDS: Final = frozenset({"kv_transfer_params", "ec_transfer_params", "cache_salt", "priority"})

# What would need memory of earlier answers; a fleet of engines has none in common.
_STATEFUL: Final = ("store", "previous_response_id", "background")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A path whose requests go to an engine."""

    path: bytes
    dialect: Dialect
    counts_choices: bool = False
    stateless: bool = False


class Admitted(NamedTuple):  # made per request: a frozen dataclass takes three times as long
    """A request that may go to an engine: its model, its cleaned body, and how many choices must finish."""

    model: str
    body: bytes
    choices: int = 1


ENGINE_ROUTES: Final = {
    route.path: route
    for route in (
        Route(path=b"/v1/chat/completions", dialect=Dialect.CHAT, counts_choices=True),
        Route(path=b"/v1/completions", dialect=Dialect.COMPLETIONS, counts_choices=True),
        Route(path=b"/v1/embeddings", dialect=Dialect.PLAIN),
        Route(path=b"/v1/responses", dialect=Dialect.RESPONSES, stateless=True),
        Route(path=b"/v1/messages", dialect=Dialect.MESSAGES),
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


def admit(route: Route, body: bytes) -> Admitted:
    """Parse a body, find its model and drop the fields that are ours."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(status=400, code=Code.INVALID_JSON, message=f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Refusal(status=400, code=Code.INVALID_REQUEST, message="the body is not a JSON object")
    model = document.get("model")
    if not isinstance(model, str) or not model:
        message = "write the name of a served model; GET /v1/models lists them"
        raise Refusal(status=400, code=Code.INVALID_REQUEST, message=message, param="model")
    if route.stateless:
        _refuse_stateful(document)
    if not OWNED_FIELDS.isdisjoint(document):
        body = orjson.dumps({key: value for key, value in document.items() if key not in OWNED_FIELDS})
    return Admitted(model, body, expected_choices(route.dialect, document) if route.counts_choices else 1)


def expected_choices(dialect: Dialect, document: dict[str, Any]) -> int:
    """Return how many choices an answer has; each must have a finish reason before `[DONE]`."""
    n = document.get("n", 1)
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
