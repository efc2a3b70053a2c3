"""Turn an HTTP answer of the Kubernetes API into an exception, or into nothing when it is success.

In: status code, headers and body. Out: the matching `KubeError`. It never reads from a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from llmfleet.kube.errors import (
    Conflict,
    Expired,
    Forbidden,
    KubeError,
    NamespaceGone,
    NotFound,
    Rejected,
    Unavailable,
)

_BY_CODE: Mapping[int, type[KubeError]] = {
    400: Rejected,
    403: Forbidden,
    404: NotFound,
    405: Rejected,
    409: Conflict,
    410: Expired,
    413: Rejected,
    415: Rejected,
    422: Rejected,
}


def error_for(code: int, retry_after: str, body: bytes, asked: str) -> KubeError:
    """The exception for an answer outside 200..299; `asked` says what was asked, for the message."""
    return error_from_status(code, parse_status(body), asked, parse_retry_after(retry_after))


def error_from_status(code: int, status: Mapping[str, Any], asked: str, retry_after: float = 0.0) -> KubeError:
    """The exception for a Status object, from an answer or from an ERROR event of a watch."""
    reason = str(status.get("reason") or "")
    message = f"{asked}: {code} {status.get('message') or reason or 'no message'}"
    details = status.get("details") or {}
    causes = {cause.get("reason") for cause in details.get("causes") or ()}
    wait = retry_after or float(details.get("retryAfterSeconds") or 0)
    kind = NamespaceGone if "NamespaceTerminating" in causes else _BY_CODE.get(code, Unavailable)
    return kind(message, code=code, reason=reason, retry_after=wait)


def parse_status(body: bytes) -> Mapping[str, Any]:
    """The Status object in an error's body; whatever else is there becomes its message."""
    try:
        status = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {"message": body[:300].decode("utf-8", "replace").strip()}
    return status if isinstance(status, dict) else {"message": str(status)[:300]}


def parse_retry_after(text: str) -> float:
    """Seconds of a Retry-After header; 0 when there is none or it is a date. Bounded, so that no answer can park us."""
    return min(float(text), 60.0) if text.strip().isdecimal() else 0.0
