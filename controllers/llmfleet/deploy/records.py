"""What the operator must remember about an instance and cannot see: one JSON annotation on its StatefulSet.

In: the annotation's text. Out: `Records`, and the text again. It is written together with the pod template in one
request, so that a crash never leaves one without the other. Unreadable text counts as no memory; a lost memory costs
a longer wait or a second look, never a broken group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from llmfleet import names
from llmfleet.api.types import EMPTY

RECORDS_ANNOTATION: Final = names.GROUP_ANNOTATION


class Cause(StrEnum):
    """Why a whole group is being recreated."""

    LOST_RANK = "LostRank"
    STARTUP_TIMEOUT = "StartupTimeout"
    UPDATE = "Update"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One recreation of the whole group, from the first sign until every old rank is gone."""

    cause: Cause
    since: datetime
    message: str = ""
    served: bool = False
    """Whether the group had become ready before."""
    doomed: tuple[str, ...] = ()
    """UIDs of the pods that must be gone before the group counts as new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A template that did not work, and how we know."""

    template: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counters of the routers for some instances, summed since they started."""

    requests: float = 0
    errors: float = 0
    ttft_sum: float = 0
    ttft_count: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A canary under analysis: since when, and the counters at that time."""

    template: str
    since: datetime
    canary: Figures = Figures()
    rest: Figures = Figures()


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Everything that is remembered; every field has a value that means "nothing yet"."""

    members: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    """Rank -> pod UID and container restarts of the ranks that passed the start gate together."""
    incident: Incident | None = None
    torn_since: datetime | None = None
    """Since when some ranks are past the start gate and others are not."""
    restarts: int = 0
    streak: int = 0
    """Restarts since the group was last Ready for ten minutes."""
    last_restart: datetime | None = None
    last_reason: str = ""
    last_message: str = ""
    """Why the group was last restarted, until it is ready again."""
    loaded: str = ""
    """Container of rank 0 that became ready; another one there now is still loading."""
    load_seconds: float | None = None
    warmed: str = ""
    """Container of rank 0 that answered the warm-up request."""
    good: str = ""
    """Hash of the last template that served."""
    superseded: str = ""
    """Hash of the good template before, until what was kept of it is deleted."""
    failed: Failure | None = None
    trial: Trial | None = None
    backed_off: datetime | None = None
    """When this half-placed group last gave its place to an older one."""


def parse_records(text: str | None) -> Records:
    """Read the annotation; whatever is missing or unreadable counts as nothing yet."""
    try:
        records: Records = decode(Records, json.loads(text or "{}"))
        return records
    except (ValueError, TypeError, KeyError, AttributeError):
        return Records()


def render_records(records: Records) -> str:
    """The annotation's text, the same for the same memory."""
    return json.dumps(encode(records), sort_keys=True, separators=(",", ":"))


def encode(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "__dataclass_fields__"):
        found = {item.name: encode(getattr(value, item.name)) for item in fields(value)}
        return {name: item for name, item in found.items() if item not in (None, "", 0, {}, [])}
    return value


NESTED: Final[Mapping[str, Any]] = {
    "incident": Incident,
    "failed": Failure,
    "trial": Trial,
    "canary": Figures,
    "rest": Figures,
}
TIMES: Final = frozenset({"since", "torn_since", "last_restart", "backed_off"})


def decode(kind: Any, raw: Mapping[str, Any]) -> Any:
    known = {item.name for item in fields(kind)}
    return kind(**{name: decode_field(name, item) for name, item in raw.items() if name in known})


NUMBERS: Final = frozenset({"restarts", "streak", "load_seconds", "requests", "errors", "ttft_sum", "ttft_count"})


def decode_field(name: str, value: Any) -> Any:
    """One field in its own type; anything else is a TypeError or ValueError."""
    if name in NESTED:
        return decode(NESTED[name], require(value, Mapping))
    if name in TIMES:
        return datetime.fromisoformat(value)
    if name == "cause":
        return Cause(value)
    if name == "doomed":
        return tuple(require(value, list))
    if name == "members":
        return require(value, Mapping)
    return require(value, int | float if name in NUMBERS else bool if name == "served" else str)


def require(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not {kind}")
    return value
