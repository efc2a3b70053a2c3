"""Errors as clients read them: one shape for all routes, and the in-band event of a stream that broke.

In: what went wrong. Out: status, headers, bytes. `Refusal` is how the pure parts say no; the message is for the
person who wrote the request and says what to write. It never carries a prompt, a key or an engine's address.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import orjson

from llmfleet.router.sse import Dialect


class Code(StrEnum):
    """The `code` of every error the router makes itself; also the `reason` label of its metrics."""

    INVALID_REQUEST = "invalid_request"
    INVALID_JSON = "invalid_json"
    UNSUPPORTED = "unsupported_parameter"
    LIMIT_EXCEEDED = "limit_exceeded"
    INVALID_API_KEY = "invalid_api_key"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    RATE_LIMITED = "rate_limit_exceeded"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    REQUEST_TOO_LARGE = "request_too_large"
    OVERLOADED = "server_is_overloaded"
    NO_ENDPOINT = "no_endpoint"
    NOT_READY = "not_ready"
    UPSTREAM_LOST = "upstream_lost"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_FAILED = "upstream_failed"
    QUARANTINED = "request_quarantined"
    JOBS_UNAVAILABLE = "jobs_unavailable"
    JOB_EXPIRED = "job_expired"
    JOB_CANCELLED = "job_cancelled"
    JOB_DEAD = "job_dead"
    IDEMPOTENCY = "idempotency_key_reused"


class Confession(StrEnum):
    """What an engine says of itself in an error; also the `reason` of a second attempt."""

    DEAD = "dead"  # its core has ended: it answered nothing that it had, and will answer nothing more
    LEAVING = "leaving"  # it shuts down: it did not begin with this request


# vLLM's own words, whole: `EngineDeadError`, and what its executor raises once it is shut down.
CONFESSIONS: Final = {
    "EngineCore encountered an issue. See stack trace (above) for the root cause.": Confession.DEAD,
    "cannot schedule new futures after shutdown": Confession.LEAVING,
}

# Official clients honour 1 to 120 seconds; the queue will know a better figure than the shortest.
RETRY_AFTER: Final = b"retry-after: 1\r\n"


class Refusal(Exception):
    """A request that gets an error instead of an engine."""

    def __init__(
        self,
        *,
        status: int,
        code: Code,
        message: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        extra: bytes = b"",
    ) -> None:
        """`extra` is further header lines, each ended by CR LF; with one of them 429 and 503 say when to come back."""
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.kind = status, code, message, param, kind
        self.extra = extra


def overloaded(code: Code, message: str) -> Refusal:
    """Refuse for now: the client is told when to try again."""
    return Refusal(status=503, code=code, message=message, kind="server_error")


def lost(code: Code, message: str, status: int = 502) -> Refusal:
    """Give up on the engine side before any byte was forwarded."""
    return Refusal(status=status, code=code, message=message, kind="server_error")


def render(refusal: Refusal, dialect: Dialect) -> tuple[int, bytes, bytes]:
    """Return status, extra header lines and body. `/v1/messages` adds the two keys its SDK looks for."""
    error = _error(refusal)
    body: dict[str, Any] = {"error": error}
    status, extra = refusal.status, refusal.extra
    if dialect is Dialect.MESSAGES:
        body = {"type": "error", "error": error | {"type": _anthropic_type(status)}}
        status = 529 if status == 503 else status
    if status in (429, 503, 529) and not extra:
        extra = RETRY_AFTER
    return status, extra, orjson.dumps(body)


def event(refusal: Refusal, dialect: Dialect) -> bytes:
    """Return the event that ends a stream which broke after events of it were forwarded."""
    error = _error(refusal)
    if dialect is Dialect.MESSAGES:
        body: dict[str, Any] = {"type": "error", "error": error | {"type": "api_error"}}
        return b"event: error\ndata: %b\n\n" % orjson.dumps(body)
    if dialect is Dialect.RESPONSES:
        body = {"type": "error", "code": error["code"], "message": error["message"], "param": None, "error": error}
        return b"event: error\ndata: %b\n\n" % orjson.dumps(body)
    return b"data: %b\n\n" % orjson.dumps({"error": error})


def confession(error: Mapping[str, Any]) -> Confession | None:
    """Return what an engine's error says of the engine itself, if it does."""
    message = error.get("message")
    return CONFESSIONS.get(message) if isinstance(message, str) else None


def error_in(body: bytes) -> dict[str, Any]:
    """Return the error object in the body of an engine's failure; an empty one if there is none."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {}


def engine_status(error: dict[str, Any]) -> int:
    """Return the status an engine's in-band error stands for; vLLM writes it in `code`."""
    code = error.get("code")
    return code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599 else 500


def _error(refusal: Refusal) -> dict[str, Any]:
    return {
        "message": refusal.message,
        "type": refusal.kind,
        "param": refusal.param,
        "code": str(refusal.code),
    }


def _anthropic_type(status: int) -> str:
    return {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
    }.get(status, "invalid_request_error" if status < 500 else "api_error")
