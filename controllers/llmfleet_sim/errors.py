"""vLLM's error answers, by cause.

In: what is wrong. Out: an ApiError that knows its status and body. Pure.
"""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

BUSY = "The engine is currently busy processing other requests. Please try again later."
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
SHUTTING_DOWN = "cannot schedule new futures after shutdown"


def dump(value: Any) -> bytes:
    """Write JSON as vLLM does: no spaces, no escapes beyond the needed ones."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> dict[str, Any]:
        """Give the OpenAI form."""
        inner = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": inner}

    def anthropic_body(self) -> dict[str, Any]:
        """Give the form of /v1/messages."""
        return {"type": "error", "error": {"type": self.kind, "message": self.message}}


def bad_request(message: str, param: str | None = None, value: Any = ...) -> ApiError:
    """Refuse a value that the schema takes; vLLM names parameter and value behind the message."""
    if param is not None:
        shown = "" if value is ... else f", value={value}"
        message = f"{message} (parameter={param}{shown})"
    return ApiError(400, message, "BadRequestError", param)


def wrong_model(name: object, known: Sequence[str]) -> ApiError:
    """Refuse a model that is not served."""
    message = f"The model `{name}` does not exist. Valid aliases: {', '.join(known)}."
    return ApiError(404, message, "NotFoundError", "model")


def engine_dead() -> ApiError:
    """Answer for a dead engine."""
    return ApiError(500, ENGINE_DEAD, "InternalServerError")


class Unhandled(ApiError):
    """An error that vLLM catches in its outermost layer, outside the one that adds `vary`."""


def shutting_down() -> ApiError:
    """Answer for a draining engine."""
    return Unhandled(500, SHUTTING_DOWN, "InternalServerError")


def busy() -> ApiError:
    """Answer over --max-num-queued-reqs."""
    return ApiError(503, BUSY, HTTPStatus(503).phrase)


def shown(value: Any) -> str:
    """Show an input in a validation error without repeating its contents."""
    if isinstance(value, Mapping):
        return f"<dict of {len(value)} items>"
    if isinstance(value, list):
        return f"<list of {len(value)} items>"
    return str(value)


class Problem:
    """One validation error of one field."""

    def __init__(self, kind: str, loc: str, text: str, value: Any, ctx: Mapping[str, Any] | None = None) -> None:
        self.loc = loc
        entry: dict[str, Any] = {"type": kind, "loc": loc, "msg": text, "input": shown(value)}
        if ctx is not None:
            entry["ctx"] = dict(ctx)
        self.text = repr(entry)


def invalid(problems: Sequence[Problem]) -> ApiError:
    """Join validation errors the way vLLM prints pydantic's."""
    count = len(problems)
    head = f"{count} validation error{'s' if count > 1 else ''}:"
    message = "\n  ".join([head, *(p.text for p in problems)])
    return ApiError(400, message, "Bad Request", problems[0].loc)


def not_json(error: json.JSONDecodeError) -> ApiError:
    """Refuse a body that is not JSON."""
    loc = f"body.{error.pos}"
    return invalid([Problem("json_invalid", loc, "JSON decode error", {}, {"error": error.msg})])


class Unreadable(ApiError):
    """A body that is not even text: FastAPI's own answer, not vLLM's."""

    def body(self) -> dict[str, Any]:
        """Give FastAPI's form."""
        return {"detail": self.message}


def unreadable() -> ApiError:
    """Refuse a body that is not UTF-8."""
    return Unreadable(400, "There was an error parsing the body", "Bad Request")


def unsupported_media() -> ApiError:
    """Refuse another content type."""
    message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    return ApiError(400, message, "Bad Request")
