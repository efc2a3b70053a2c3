"""The router's settings: every limit and timeout, its default and its bounds.

In: the mapping of a settings file. Out: frozen `Settings`, or a `SettingsError` that names the path and says what to
write. Unknown keys are errors: a misspelt limit must not be silently absent. It never reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, cast

CONNECTION_RESERVE: Final = 128  # descriptors for the admin port, files, the event loop and the engines' idle ones


class SettingsError(ValueError):
    """Settings that cannot be used."""


def setting(default: float | int, low: float, high: float) -> Any:
    """Declare a number with its default and bounds."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may send and hold."""

    max_header_bytes: int = setting(32768, 1024, 1 << 20)
    max_headers: int = setting(100, 8, 1000)
    max_body_bytes: int = setting(32 << 20, 1024, 1 << 30)
    max_json_values: int = setting(1_000_000, 1000, 1 << 30)
    max_pipelined_bytes: int = setting(65536, 0, 1 << 26)
    max_connections: int = setting(0, 0, 1_000_000)
    max_event_bytes: int = setting(16 << 20, 1024, 1 << 30)
    max_held_answer_bytes: int = setting(1 << 20, 0, 1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """In seconds; no request waits for ever for anything."""

    header_seconds: float = setting(10, 0.05, 600)
    body_seconds: float = setting(60, 0.05, 3600)
    idle_seconds: float = setting(75, 0.05, 3600)
    connect_seconds: float = setting(1, 0.01, 60)
    first_event_seconds: float = setting(600, 0.05, 86400)
    stall_seconds: float = setting(60, 0.05, 86400)
    client_stall_seconds: float = setting(60, 0.05, 86400)
    upstream_idle_seconds: float = setting(4, 0, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How the process ends after SIGTERM."""

    settle_seconds: float = setting(5, 0, 300)
    timeout_seconds: float = setting(600, 0, 86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    drain: Drain = Drain()
    forward_headers: tuple[str, ...] = (
        "accept",
        "anthropic-beta",
        "anthropic-version",
        "authorization",
        "content-type",
        "traceparent",
        "tracestate",
        "user-agent",
    )
    log_level: str = "info"


LOG_LEVELS: Final = ("debug", "info", "warning", "error")
# Fields that frame a message or that are the router's to set towards an engine.
_NEVER_FORWARDED: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-data-parallel-rank",
        "x-request-id",
    }
)


def parse_settings(raw: object) -> Settings:
    """Read the mapping of a settings file; an empty file means every default."""
    top = _mapping({} if raw is None else raw, "settings")
    known = {"limits", "timeouts", "drain", "forwardHeaders", "logLevel"}
    _refuse_unknown(top, known, "")
    settings = Settings(
        limits=_section(Limits, top.get("limits"), "limits"),
        timeouts=_section(Timeouts, top.get("timeouts"), "timeouts"),
        drain=_section(Drain, top.get("drain"), "drain"),
    )
    headers = _headers(top.get("forwardHeaders", list(settings.forward_headers)))
    level = top.get("logLevel", settings.log_level)
    if level not in LOG_LEVELS:
        raise SettingsError(f"logLevel: {level!r} is not one of {', '.join(LOG_LEVELS)}")
    return Settings(
        limits=settings.limits,
        timeouts=settings.timeouts,
        drain=settings.drain,
        forward_headers=headers,
        log_level=level,
    )


def setting_names() -> list[str]:
    """Return every setting as it is written in a file, for the documentation test."""
    sections: dict[str, type] = {"limits": Limits, "timeouts": Timeouts, "drain": Drain}
    inner = [f"{section}.{camel(f.name)}" for section, kind in sections.items() for f in fields(kind)]
    return [*inner, "forwardHeaders", "logLevel"]


def max_connections(limits: Limits, open_files: int) -> int:
    """Bound client connections so that each can have an engine connection beside it."""
    possible = max(1, (open_files - CONNECTION_RESERVE) // 2)
    return min(limits.max_connections, possible) if limits.max_connections else possible


def camel(name: str) -> str:
    """Spell a field as settings files do."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _section(kind: Any, raw: object, path: str) -> Any:
    values = _mapping({} if raw is None else raw, path)
    known = {camel(f.name): f for f in fields(kind)}
    _refuse_unknown(values, set(known), path)
    return kind(**{known[key].name: _number(value, known[key], f"{path}.{key}") for key, value in values.items()})


def _number(value: object, spec: Any, path: str) -> float | int:
    whole = spec.name.startswith("max_")
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise SettingsError(f"{path}: {value!r} is not a {'whole number' if whole else 'number of seconds'}")
    number = cast(float, value)
    low, high = spec.metadata["low"], spec.metadata["high"]
    if not low <= number <= high:
        raise SettingsError(f"{path}: {value} is not between {low} and {high}")
    return number


def _headers(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise SettingsError("forwardHeaders: write a list of header names")
    for name in value:
        if not name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
            raise SettingsError(f"forwardHeaders: {name!r} is not a header name")
        if name.lower() in _NEVER_FORWARDED:
            raise SettingsError(f"forwardHeaders: {name} is set by the router itself")
    return tuple(name.lower() for name in value)


def _mapping(value: object, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: write a mapping, not {type(value).__name__}")
    return value


def _refuse_unknown(values: Mapping[str, Any], known: set[str], path: str) -> None:
    for key in values:
        if key not in known:
            where = f"{path}.{key}" if path else str(key)
            raise SettingsError(f"{where}: unknown setting; known here: {', '.join(sorted(known))}")
