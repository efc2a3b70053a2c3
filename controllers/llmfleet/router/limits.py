"""The router's settings: every limit and timeout, its default and its bounds.

In: the mapping of a settings file. Out: frozen `Settings`, or a `SettingsError` that names the path and says what to
write. Unknown keys are errors: a misspelt limit must not be silently absent. It never reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, cast

CONNECTION_RESERVE: Final = 128  # descriptors for the admin port, files, the event loop and the engines' idle ones
DEFAULT_CLASS: Final = "standard"  # of tenants that name none
_PORT: Final = r":(?:[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])"
_ENDPOINT: Final = rf"|https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?:{_PORT})?(?:/[\w./%~-]*)?"


class SettingsError(ValueError):
    """Settings that cannot be used."""


def setting(default: float | int, low: float, high: float) -> Any:
    """Declare a number with its default and bounds."""
    return field(default=default, metadata={"low": low, "high": high})


def word(default: str, *, among: tuple[str, ...] = (), pattern: str = "", say: str = "") -> Any:
    """Declare a text: one of a few, or one of a form; `say` tells what to write."""
    return field(default=default, metadata={"among": among, "pattern": pattern, "say": say})


def switch(default: bool) -> Any:
    """Declare true or false."""
    return field(default=default, metadata={"switch": True})


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
    # What one request may ask of an engine.
    max_choices: int = setting(8, 1, 16384)
    max_output_tokens: int = setting(131072, 1, 1 << 30)
    max_logprobs: int = setting(20, 0, 1 << 20)
    max_stops: int = setting(16, 0, 10_000)
    max_token_ids: int = setting(1024, 0, 1 << 20)
    max_prompts: int = setting(128, 1, 16384)
    max_inputs: int = setting(2048, 1, 1 << 20)
    max_tools: int = setting(128, 0, 10_000)
    max_schema_depth: int = setting(32, 1, 1000)
    max_schema_bytes: int = setting(1 << 19, 2, 1 << 30)
    max_media_parts: int = setting(16, 0, 10_000)
    max_media_bytes: int = setting(20 << 20, 0, 1 << 30)


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
    client_lost_seconds: float = setting(25, 2, 3600)
    upstream_idle_seconds: float = setting(4, 0, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """When an engine is left out; 0 switches a rule off."""

    check_seconds: float = setting(5, 0, 600)
    check_timeout_seconds: float = setting(2, 0.05, 60)
    check_failures: int = setting(2, 1, 100)
    lost_connections: int = setting(3, 0, 1000)
    consecutive_failures: int = setting(5, 0, 1000)
    failure_ratio: float = setting(0.5, 0, 1)
    failure_ratio_requests: int = setting(20, 1, 1_000_000)
    ejection_seconds: float = setting(10, 0.05, 3600)
    max_ejection_seconds: float = setting(300, 0.05, 86400)
    max_ejected_share: float = setting(0.5, 0, 1)
    panic_share: float = setting(0.5, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Second attempts, as a share of the requests of a model, and bodies that kill engines."""

    share: float = setting(0.1, 0, 1)
    floor: int = setting(10, 0, 100_000)
    window_seconds: float = setting(10, 1, 600)
    quarantine_after: int = setting(2, 0, 16)
    quarantine_seconds: float = setting(300, 1, 86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How the process ends after SIGTERM."""

    settle_seconds: float = setting(5, 0, 300)
    timeout_seconds: float = setting(600, 0, 86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """How the body of a request is treated on its way to an engine."""

    unknown_fields: Literal["drop", "refuse"] = word("drop", among=("drop", "refuse"))
    media_urls: Literal["data", "any"] = word("data", among=("data", "any"))
    cache_salt: Literal["tenant", "off"] = word("tenant", among=("tenant", "off"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLog:
    """One JSON line per request on standard output."""

    enabled: bool = switch(True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Otel:
    """Where spans of requests go; without an endpoint none are made."""

    endpoint: str = word("", pattern=_ENDPOINT, say="write http://HOST:PORT or https://HOST:PORT, without a password")
    sample_ratio: float = setting(1.0, 0, 1)
    service_name: str = word("llmfleet-router", pattern=r"[\w./-]{1,100}", say="write letters, digits, . _ / -")
    max_queued_spans: int = setting(8192, 64, 1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentinel:
    """Who knows which server of a replicated Redis is the primary."""

    master_name: str = word("", pattern=r"|[\w.-]{1,100}", say="write the name that sentinel.conf monitors")
    addresses: tuple[str, ...] = field(default=(), metadata={"addresses": True})
    username: str = word("", pattern=r"\S*", say="write a name")
    password_file: str = word("", pattern=r"|/.*", say="write an absolute path")
    tls: bool = switch(False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """Where jobs are stored; without a URL and without Sentinels there are none."""

    url: str = word("", pattern=r"|rediss?://[^\s@]+", say="write redis://HOST:PORT or rediss://HOST:PORT")
    username: str = word("", pattern=r"\S*", say="write a name")
    password_file: str = word("", pattern=r"|/.*", say="write an absolute path")
    ca_file: str = word("", pattern=r"|/.*", say="write an absolute path")
    prefix: str = word("llmfleet", pattern=r"[\w./-]{1,100}", say="write letters, digits, . _ / -")
    replicated: bool = switch(False)
    timeout_seconds: float = setting(0.08, 0.001, 1)
    sentinel: Sentinel = field(default=Sentinel(), metadata={"section": Sentinel})

    @property
    def wanted(self) -> bool:
        """Whether there are jobs."""
        return bool(self.url or self.sentinel.addresses)

    @property
    def where(self) -> str:
        """In words: an address, or whom the Sentinels name."""
        return self.url or f"{self.sentinel.master_name} of {len(self.sentinel.addresses)} Sentinels"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultCache:
    """Answers to deterministic requests are kept in Redis and given again."""

    enabled: bool = switch(False)
    ttl_seconds: float = setting(300, 1, 86400)
    max_entry_bytes: int = setting(256 << 10, 1024, 16 << 20)
    max_memory_share: float = setting(0.5, 0.01, 1)
    lookup_seconds: float = setting(0.02, 0.001, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What waits, and for how long."""

    overflow: str = word("hold", among=("hold", "async", "reject"))
    async_threshold: int = setting(0, 0, 100_000)
    capacity: int = setting(1000, 1, 100_000)
    ttl_seconds: float = setting(60, 0.05, 3600)
    wake_timeout_seconds: float = setting(600, 0.05, 86400)
    comment_seconds: float = setting(10, 0.05, 600)
    unary_hold_seconds: float = setting(50, 0.05, 86400)
    max_waiting_bytes: int = setting(256 << 20, 1024, 1 << 40)
    job_ttl_seconds: float = setting(60, 0.05, 86400)
    result_seconds: float = setting(600, 1, 86400)
    lease_seconds: float = setting(15, 0.05, 600)
    max_job_bytes: int = setting(256 << 10, 1024, 16 << 20)
    max_result_bytes: int = setting(4 << 20, 1024, 64 << 20)
    job_share: float = setting(0.05, 0, 1)
    job_headroom: float = setting(0.1, 0, 1)
    redirect: str = word("sdk", among=("sdk", "always", "never"))
    classes: tuple[tuple[str, float], ...] = ()  # of jobs: name and TTL, the most urgent first


@dataclass(frozen=True, slots=True, kw_only=True)
class BypassPrefill:
    """Prompts that are prefilled where they are decoded."""

    min_prompt_tokens: int = setting(0, 0, 1 << 30)
    min_prefix_hit: float = setting(0.0, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disaggregation:
    """How requests of a model with prefill and decode engines are split."""

    max_prefills_in_flight_per_decode: int = setting(16, 1, 100_000)
    max_waiting: int = setting(100, 1, 100_000)
    max_handoffs_per_prefill: int = setting(256, 1, 1_000_000)
    kv_lease_seconds: float = setting(30, 0.1, 86400)
    kv_timeout_seconds: float = setting(5, 0.05, 3600)
    kv_timeout_microseconds_per_token: float = setting(100.0, 0, 1_000_000)
    fallback: str = word("prefillOnDecode", among=("prefillOnDecode", "none"))
    bypass_prefill: BypassPrefill = field(default=BypassPrefill(), metadata={"section": BypassPrefill})
    breaker_failures: int = setting(3, 1, 1000)
    breaker_seconds: float = setting(5, 0.05, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """Requests go where the beginning of their prompt is cached."""

    enabled: bool = switch(True)
    block_bytes: int = setting(1024, 64, 1 << 20)
    max_entries: int = setting(65536, 2, 10_000_000)
    load_factor: float = setting(1.25, 1, 100)
    session_headers: tuple[str, ...] = field(default=("x-session-id",), metadata={"headers": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    drain: Drain = Drain()
    health: Health = Health()
    retries: Retries = Retries()
    redis: Redis = Redis()
    result_cache: ResultCache = ResultCache()
    queue: Queue = Queue()
    disaggregation: Disaggregation = Disaggregation()
    body: Body = Body()
    access_log: AccessLog = AccessLog()
    otel: Otel = Otel()
    affinity: Affinity = Affinity()
    classes: Mapping[str, int] = field(default_factory=lambda: {"high": -10, "standard": 0, "low": 10})
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


# Every section of a settings file whose keys are the fields of a dataclass.
SECTIONS: Final[dict[str, Any]] = {
    "limits": Limits,
    "timeouts": Timeouts,
    "drain": Drain,
    "health": Health,
    "retries": Retries,
    "redis": Redis,
    "result_cache": ResultCache,
    "queue": Queue,
    "disaggregation": Disaggregation,
    "body": Body,
    "access_log": AccessLog,
    "otel": Otel,
    "affinity": Affinity,
}
ADDRESS: Final = re.compile(rf"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+){_PORT}")
_HEADER: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
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
        "x-session-id",
        "x-vllm-priority",
    }
)


def parse_settings(raw: object) -> Settings:
    """Read the mapping of a settings file; an empty file means every default."""
    top = _mapping({} if raw is None else raw, "settings")
    _refuse_unknown(top, {*map(camel, SECTIONS), "classes", "forwardHeaders", "logLevel"}, "")
    sections = {name: _section(kind, top.get(camel(name)), camel(name)) for name, kind in SECTIONS.items()}
    plain = Settings()
    level = top.get("logLevel", plain.log_level)
    if level not in LOG_LEVELS:
        raise SettingsError(f"logLevel: {level!r} is not one of {', '.join(LOG_LEVELS)}")
    classes = _priorities(top.get("classes", plain.classes))
    for name, _ in sections["queue"].classes:
        if name not in classes:
            raise SettingsError(f"queue.classes: {name} is not one of the classes: {', '.join(classes)}")
    _refuse_half_a_sentinel(sections["redis"])
    if sections["result_cache"].enabled and not sections["redis"].wanted:
        raise SettingsError("resultCache.enabled: answers are kept in Redis, and none is named: write redis.url too")
    return Settings(
        **sections,
        classes=classes,
        forward_headers=_headers(top.get("forwardHeaders", list(plain.forward_headers))),
        log_level=level,
    )


def setting_names() -> list[str]:
    """Return every setting as it is written in a file, for the documentation test."""
    inner = [f"{camel(section)}.{camel(f.name)}" for section, kind in SECTIONS.items() for f in fields(kind)]
    return [*inner, "classes", "forwardHeaders", "logLevel"]


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
    return kind(**{known[key].name: _value(value, known[key], f"{path}.{key}") for key, value in values.items()})


def _value(value: object, spec: Any, path: str) -> Any:
    if spec.name == "classes":
        return _classes(value, path)
    if "headers" in spec.metadata:
        return _session_headers(value, path)
    if "addresses" in spec.metadata:
        return _addresses(value, path)
    if "section" in spec.metadata:
        return _section(spec.metadata["section"], value, path)
    if "switch" in spec.metadata:
        if not isinstance(value, bool):
            raise SettingsError(f"{path}: {value!r} is not true or false")
        return value
    return _word(value, spec, path) if "among" in spec.metadata else _number(value, spec, path)


def _number(value: object, spec: Any, path: str) -> float | int:
    whole = isinstance(spec.default, int) and not spec.name.endswith("_seconds")
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "number of seconds" if spec.name.endswith("_seconds") else "whole number" if whole else "number"
        raise SettingsError(f"{path}: {value!r} is not a {kind}")
    number = cast(float, value)
    low, high = spec.metadata["low"], spec.metadata["high"]
    if not low <= number <= high:
        raise SettingsError(f"{path}: {value} is not between {low} and {high}")
    return number


def _word(value: object, spec: Any, path: str) -> str:
    among, pattern = spec.metadata["among"], spec.metadata["pattern"]
    if among and value not in among:
        raise SettingsError(f"{path}: {value!r} is not one of {', '.join(among)}")
    if not isinstance(value, str) or (pattern and not re.fullmatch(pattern, value)):
        raise SettingsError(f"{path}: {value!r} cannot be used: {spec.metadata['say']}")
    return value


def _classes(value: object, path: str) -> tuple[tuple[str, float], ...]:
    """Read the classes of jobs: `{NAME: {ttlSeconds: S}}`, the most urgent first."""
    result = []
    for name, raw in _mapping(value, path).items():
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
            raise SettingsError(f"{path}: {name!r} is not a name: write small letters, digits and -")
        inner = _mapping(raw, f"{path}.{name}")
        _refuse_unknown(inner, {"ttlSeconds"}, f"{path}.{name}")
        ttl = _number(
            inner.get("ttlSeconds"), Queue.__dataclass_fields__["job_ttl_seconds"], f"{path}.{name}.ttlSeconds"
        )
        result.append((name, float(ttl)))
    return tuple(result)


def _priorities(value: object) -> Mapping[str, int]:
    """Read the classes of tenants: what engines get as `priority`, lower first."""
    classes = _mapping(value, "classes")
    for name, priority in classes.items():
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
            raise SettingsError(f"classes: {name!r} is not a name: write small letters, digits and -")
        if isinstance(priority, bool) or not isinstance(priority, int) or not -1000 <= priority <= 1000:
            raise SettingsError(f"classes.{name}: {priority!r} is not a whole number from -1000 to 1000")
    if DEFAULT_CLASS not in classes:
        raise SettingsError(f"classes: {DEFAULT_CLASS} is missing, it is the class of tenants that name none")
    return dict(classes)


def _addresses(value: object, path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and ADDRESS.fullmatch(one) for one in value):
        raise SettingsError(f"{path}: write a list of HOST:PORT")
    if twice := sorted({one for one in value if value.count(one) > 1}):
        raise SettingsError(f"{path}: {twice[0]} is there twice: a majority is counted")
    return tuple(value)


def _refuse_half_a_sentinel(redis: Redis) -> None:
    sentinel = redis.sentinel
    if redis.url and sentinel.addresses:
        raise SettingsError("redis: url names a server, and sentinel asks others for it: write one of the two")
    if sentinel != Sentinel() and not (sentinel.master_name and sentinel.addresses):
        raise SettingsError("redis.sentinel: masterName and addresses belong together: write both")


def _session_headers(value: object, path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and _HEADER.fullmatch(name) for name in value):
        raise SettingsError(f"{path}: write a list of header names")
    return tuple(name.lower() for name in value)


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
