"""The backends document: which endpoint serves which model, for every router of a release.

In: bytes of `backends.json`. Out: a `Document`, or a `DocumentError` that names the path of the first fault; and back
to canonical bytes. The route controller writes it, route-sync copies it, routers read it. Unknown fields are ignored
so that an older router reads a newer document. It never looks at a clock or a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, TypeVar

DOCUMENT_VERSION: Final = 1
MAX_WEIGHT: Final = 1_000_000
MAX_SLOTS: Final = 1_000_000
MAX_TIER: Final = 1_000

Word = TypeVar("Word", bound=StrEnum)


class DocumentError(ValueError):
    """A document that must not be used; the message starts with the path of the fault."""


class ModelState(StrEnum):
    SERVING = "serving"
    WAKING = "waking"
    ASLEEP = "asleep"
    RESTARTING = "restarting"


class Role(StrEnum):
    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


class State(StrEnum):
    """Of an endpoint or of a router peer: a draining one takes nothing new."""

    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One engine: rank 0 of one instance. `pod_uid` with `address` is its identity."""

    instance: str
    address: str
    pod_uid: str
    role: Role = Role.BOTH
    tier: int = 0
    weight: int = 100
    slots: int = 256
    engine_revision: str = ""
    served_revision: str = ""  # of what its answers depend on: its image, arguments and environment
    state: State = State.READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    state: ModelState = ModelState.SERVING
    endpoints: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One router pod and its admin address."""

    name: str
    address: str
    state: State = State.READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    generation: int = 0
    peers: tuple[Peer, ...] = ()
    models: Mapping[str, Model]


def parse_document(data: bytes) -> Document:
    """Read a document and check every rule; the last good one stays in use when this raises."""
    try:
        return _document(json.loads(data))
    except DocumentError:
        raise
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not JSON: {error}") from None


def _document(raw: object) -> Document:
    top = _object(raw, "document")
    version = _integer(top, "version", "", low=1, high=1 << 31)
    if version != DOCUMENT_VERSION:
        raise DocumentError(f"version: {version} is not {DOCUMENT_VERSION}, the only version this build reads")
    document = Document(
        generation=_integer(top, "generation", "", low=0, high=1 << 62),
        peers=tuple(_peer(raw, path) for raw, path in _items(top, "peers", "")),
        models={name: _model(raw, _named(name)) for name, raw in _object(top.get("models"), "models").items()},
    )
    _refuse_duplicates(document)
    _check_hash(top.get("hash"), document)
    return document


def render(document: Document) -> bytes:
    """Return the canonical bytes: equal documents are equal byte for byte."""
    body = _body(document)
    head = {"version": DOCUMENT_VERSION, "generation": document.generation, "hash": content_hash(document)}
    return _canonical(head | body) + b"\n"


def content_hash(document: Document) -> str:
    """Return the SHA-256 of what the document says, its generation left out."""
    return hashlib.sha256(_canonical(_body(document))).hexdigest()


def with_generation(document: Document, *, previous: int, now_ms: int) -> Document:
    """Give the document the next generation: later than the previous one, and later than any before a restart."""
    return replace(document, generation=max(previous + 1, now_ms))


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _body(document: Document) -> dict[str, Any]:
    return {
        "peers": [{"name": p.name, "address": p.address, "state": str(p.state)} for p in document.peers],
        "models": {
            name: {"state": str(model.state), "endpoints": [_endpoint_body(e) for e in model.endpoints]}
            for name, model in document.models.items()
        },
    }


def _endpoint_body(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "instance": endpoint.instance,
        "address": endpoint.address,
        "podUID": endpoint.pod_uid,
        "role": str(endpoint.role),
        "tier": endpoint.tier,
        "weight": endpoint.weight,
        "slots": endpoint.slots,
        "engineRevision": endpoint.engine_revision,
        **({"servedRevision": endpoint.served_revision} if endpoint.served_revision else {}),
        "state": str(endpoint.state),
    }


def _model(value: object, path: str) -> Model:
    raw = _object(value, path)
    return Model(
        state=_enum(raw, "state", path, ModelState, ModelState.SERVING),
        endpoints=tuple(_endpoint(item, at) for item, at in _items(raw, "endpoints", path)),
    )


def _named(model: str) -> str:
    _refuse_half_characters(model, "models")
    return f"models.{model}"


def _refuse_half_characters(text: str, path: str) -> None:
    """JSON can spell half a character; no answer, label or log line can carry one."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DocumentError(f"{path}: {_shown(text)} is not Unicode text")


def _endpoint(value: object, path: str) -> Endpoint:
    raw = _object(value, path)
    return Endpoint(
        instance=_string(raw, "instance", path),
        address=_address(raw, path),
        pod_uid=_string(raw, "podUID", path),
        role=_enum(raw, "role", path, Role, Role.BOTH),
        tier=_integer(raw, "tier", path, low=0, high=MAX_TIER, default=0),
        weight=_integer(raw, "weight", path, low=0, high=MAX_WEIGHT, default=100),
        slots=_integer(raw, "slots", path, low=1, high=MAX_SLOTS),
        engine_revision=_string(raw, "engineRevision", path, default=""),
        served_revision=_string(raw, "servedRevision", path, default=""),
        state=_enum(raw, "state", path, State, State.READY),
    )


def _peer(value: object, path: str) -> Peer:
    raw = _object(value, path)
    return Peer(
        name=_string(raw, "name", path),
        address=_address(raw, path),
        state=_enum(raw, "state", path, State, State.READY),
    )


def _refuse_duplicates(document: Document) -> None:
    """One engine may serve several models; inside one model it appears once, and one address is one pod."""
    pods: dict[str, Endpoint] = {}
    for path, endpoint, seen in _endpoints(document):
        if endpoint.address in seen:
            raise DocumentError(f"{path}.address: {endpoint.address} appears twice")
        seen.add(endpoint.address)
        other = pods.setdefault(endpoint.address, endpoint)
        if other.pod_uid != endpoint.pod_uid:
            raise DocumentError(f"{path}.podUID: {endpoint.address} already belongs to pod {other.pod_uid}")
        if other.slots != endpoint.slots:
            raise DocumentError(f"{path}.slots: {endpoint.slots}, but {endpoint.address} has {other.slots} elsewhere")
    names = [peer.name for peer in document.peers]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise DocumentError(f"peers[{index}].name: {name} appears twice")


def _endpoints(document: Document) -> Iterator[tuple[str, Endpoint, set[str]]]:
    for name, model in document.models.items():
        seen: set[str] = set()
        for index, endpoint in enumerate(model.endpoints):
            yield f"models.{name}.endpoints[{index}]", endpoint, seen


def _check_hash(value: object, document: Document) -> None:
    """A hash that is there must be a string; it is not recomputed, as a newer writer may hash fields unknown here."""
    if value is not None and not isinstance(value, str):
        raise DocumentError(f"hash: {_shown(value)} is not a string")


def _object(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DocumentError(f"{path}: {_shown(value)} is not an object")
    return value


def _items(raw: Mapping[str, Any], key: str, path: str) -> Iterator[tuple[object, str]]:
    value = raw.get(key, [])
    if not isinstance(value, list):
        raise DocumentError(f"{_join(path, key)}: {_shown(value)} is not a list")
    return ((item, f"{_join(path, key)}[{index}]") for index, item in enumerate(value))


def _string(raw: Mapping[str, Any], key: str, path: str, default: str | None = None) -> str:
    value = raw.get(key, default)
    if not isinstance(value, str) or (not value and default is None):
        raise DocumentError(f"{_join(path, key)}: {_shown(value)} is not a non-empty string")
    _refuse_half_characters(value, _join(path, key))
    return value


def _integer(raw: Mapping[str, Any], key: str, path: str, *, low: int, high: int, default: int | None = None) -> int:
    value = raw.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DocumentError(f"{_join(path, key)}: {_shown(value)} is not a whole number")
    if not low <= value <= high:
        raise DocumentError(f"{_join(path, key)}: {value} is not between {low} and {high}")
    return value


def _enum(raw: Mapping[str, Any], key: str, path: str, kind: type[Word], default: Word) -> Word:
    value = raw.get(key, default)
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(kind)
        raise DocumentError(f"{_join(path, key)}: {_shown(value)} is not one of {choices}") from None


def _address(raw: Mapping[str, Any], path: str) -> str:
    value = _string(raw, "address", path)
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise DocumentError(f"{_join(path, 'address')}: {_shown(value)} is not HOST:PORT")
    if any(c.isspace() or not c.isprintable() or c == "/" for c in value):
        raise DocumentError(f"{_join(path, 'address')}: {_shown(value)} is not HOST:PORT")
    return value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
