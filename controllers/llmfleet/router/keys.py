"""Who a request is from: API keys, known by their hashes alone, and what their tenant may do.

In: the mapping of a keys file, then the credentials of each request. Out: a `Tenant`, or a `Refusal` that says nothing
about which part of a key was wrong. Keys are random, so a plain SHA-256 is enough; no key is ever held, logged or
compared as it is. It never reads a file.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from llmfleet.router.errors import Code, Refusal

MAX_KEYS: Final = 2  # of a tenant at a time: the one in use and the one that replaces it
MAX_TENANTS: Final = 10_000
CHALLENGE: Final = b"www-authenticate: Bearer\r\n"
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_HASH: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_SHELF: Final = 4  # bytes of a hash that may be looked up in the open; the rest is compared in constant time
_NO_KEYS: Final = frozenset(sha256(text).hexdigest() for text in (b"", b"\n", b"Bearer "))


class KeysError(ValueError):
    """A keys file that cannot be used; the message names the path and never a hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """What a client is allowed, and how it is treated beside others. 0 and None mean without bound."""

    name: str = ""
    models: frozenset[str] | None = None
    rpm: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0
    weight: float = 1.0
    klass: int = 1  # rank of its class: 0 goes first
    queue_share: float = 1.0
    ours: bytes = b""  # JSON members for each of its bodies: cache_salt, priority

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


ANONYMOUS: Final = Tenant()


class Keyring:
    """Finds the tenant of a key."""

    __slots__ = ("_shelves", "tenants")

    def __init__(self, entries: Mapping[bytes, Tenant]) -> None:
        self.tenants = {tenant.name: tenant for tenant in entries.values()}
        self._shelves: dict[bytes, list[tuple[bytes, Tenant]]] = {}
        for digest, tenant in entries.items():
            self._shelves.setdefault(digest[:_SHELF], []).append((digest, tenant))

    def find(self, credentials: tuple[bytes, ...]) -> Tenant:
        """Return the tenant of a request's one credential, written `Bearer KEY`."""
        if len(credentials) == 1:
            digest = sha256(bare(credentials[0])).digest()
            for known, tenant in self._shelves.get(digest[:_SHELF], ()):
                if hmac.compare_digest(known, digest):
                    return tenant
        message = "a valid API key is needed: send it as Authorization: Bearer KEY or x-api-key: KEY"
        raise Refusal(status=401, code=Code.INVALID_API_KEY, message=message, extra=CHALLENGE)


def bare(value: bytes) -> bytes:
    """Return the key of an Authorization value; a scheme other than Bearer leaves what no hash is known of."""
    scheme, _, key = value.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def hashed(key: str) -> str:
    """Return what a keys file holds of a key."""
    return sha256(key.encode()).hexdigest()


def check_model(tenant: Tenant, model: str) -> None:
    """Refuse a model that a tenant may not use, whether or not it is served."""
    if not tenant.may_use(model):
        message = "this API key may not use that model; GET /v1/models lists those it may"
        raise Refusal(status=403, code=Code.MODEL_NOT_ALLOWED, message=message, param="model", kind="permission_error")


# ---- the keys file ----


def parse_keys(raw: object, classes: Mapping[str, int], default_class: str, *, salted: bool = True) -> Keyring:
    """Read the mapping of a keys file; `classes` are the known ones with the priority engines get."""
    top = _mapping(raw, "keys file")
    _known(top, ("tenants",), "")
    tenants = _mapping(top.get("tenants"), "tenants")
    if not tenants or len(tenants) > MAX_TENANTS:
        raise KeysError(f"tenants: write 1 to {MAX_TENANTS} tenants")
    entries: dict[bytes, Tenant] = {}
    for name, fields in tenants.items():
        tenant, digests = _tenant(name, fields, classes, default_class, salted)
        for digest in digests:
            if digest in entries:
                raise KeysError(f"tenants.{name}.keys: a key stands in this file twice")
            entries[digest] = tenant
    return Keyring(entries)


def _tenant(
    name: object, raw: object, classes: Mapping[str, int], default_class: str, salted: bool
) -> tuple[Tenant, list[bytes]]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise KeysError(f"tenants: {str(name)[:80]!r} is not a name: letters, digits, . _ -, at most 63")
    path = f"tenants.{name}"
    fields = _mapping(raw, path)
    numbers = ("rpm", "tokensPerMinute", "concurrency", "weight", "queueShare")
    _known(fields, ("keys", "models", "class", *numbers), path)
    klass = fields.get("class", default_class)
    if klass not in classes:
        raise KeysError(f"{path}.class: {klass!r} is not one of {', '.join(classes)}")
    tenant = Tenant(
        name=name,
        models=_models(fields.get("models"), path),
        rpm=_whole(fields, "rpm", path),
        tokens_per_minute=_whole(fields, "tokensPerMinute", path),
        concurrency=_whole(fields, "concurrency", path),
        weight=_fraction(fields, "weight", path, 1000),
        klass=sorted(set(classes.values())).index(classes[klass]),
        queue_share=_fraction(fields, "queueShare", path, 1),
        ours=_ours(name, classes[klass], salted),
    )
    return tenant, _digests(fields.get("keys"), path)


def _ours(name: str, priority: int, salted: bool) -> bytes:
    """Engines share cached prefixes only where the salt is the same: nobody learns by time what another one asked."""
    salt = b',"cache_salt":"%b"' % sha256(b"llmfleet tenant " + name.encode()).hexdigest()[:32].encode()
    return (salt if salted else b"") + (b',"priority":%d' % priority if priority else b"")


def _digests(raw: object, path: str) -> list[bytes]:
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_KEYS:
        raise KeysError(f"{path}.keys: write one or {MAX_KEYS} hashes; `llmfleet keys hash` makes one")
    found = [_HASH.fullmatch(value) if isinstance(value, str) else None for value in raw]
    digests = [match[1] for match in found if match is not None]
    if len(digests) != len(raw):
        raise KeysError(f"{path}.keys: an entry is not the lower-case hex of a SHA-256; `llmfleet keys hash` makes one")
    if not _NO_KEYS.isdisjoint(digests):
        raise KeysError(f"{path}.keys: an entry is the hash of an empty key")
    return [bytes.fromhex(digest) for digest in digests]


def _models(raw: object, path: str) -> frozenset[str] | None:
    if raw is None:
        return None
    if not isinstance(raw, list) or not raw or not all(isinstance(name, str) and name for name in raw):
        raise KeysError(f"{path}.models: write a list of model names, or leave it out for all")
    return frozenset(raw)


def _whole(fields: Mapping[Any, Any], key: str, path: str) -> int:
    value = fields.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**12:
        raise KeysError(f"{path}.{key}: {value!r} is not a whole number; 0 or nothing means without bound")
    return value


def _fraction(fields: Mapping[Any, Any], key: str, path: str, most: float) -> float:
    value = fields.get(key, 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise KeysError(f"{path}.{key}: {value!r} is not a number above 0 and at most {most}")
    return float(value)


def _mapping(value: object, path: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise KeysError(f"{path}: write a mapping, not {type(value).__name__}")
    return value


def _known(values: Mapping[Any, Any], names: tuple[str, ...], path: str) -> None:
    for key in values:
        if key not in names:
            where = f"{path}.{key}" if path else str(key)[:80]
            raise KeysError(f"{where}: unknown; known here: {', '.join(sorted(names))}")
