"""Decide whether an object must be applied again, comparing only what we own.

In: the desired manifest, the live one, our field manager. Out: yes or no, and the plan that follows. It never looks at
fields that others wrote, and it knows the apiserver's habits (defaults added, quantities rewritten, empty values
dropped), so that a resting fleet writes nothing while an edit of an owned field heals.

Two tests, both cheap. The hash of what was applied last is kept in an annotation: it catches a field that we stopped
wanting. The subset comparison catches a field that somebody else changed or removed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import orjson

from llmfleet.kube.plan import Apply, Plan
from llmfleet.kube.refs import Manifest, uid_of

APPLIED_PREFIX: Final = "applied.serving.ai/"
"""Annotation `applied.serving.ai/<manager>` holds the hash of what that manager applied last."""

# Lists the apiserver merges by key, by the name of the field that holds them. Any other list is compared whole.
MERGE_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "ownerReferences": ("uid",),
    "conditions": ("type",),
    "resourceClaims": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "hostAliases": ("ip",),
    "schedulingGates": ("name",),
}
_QUANTITY_FIELDS: Final = frozenset({"sizeLimit", "divisor", "storage"})
_QUANTITY_MAPS: Final = frozenset({"requests", "limits"})
_QUANTITY: Final = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)")
_SETS: Final = frozenset({"finalizers"})
_SUFFIXES: Final[Mapping[str, Decimal]] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def plan_apply(desired: Manifest, live: Manifest | None, manager: str, *, force: bool = True) -> Plan:
    """One Apply when it is needed, bound to the live object's UID; nothing when the live object is right."""
    if not needs_apply(desired, live, manager):
        return ()
    if live is None:
        return (Apply(obj=desired, force=force),)
    metadata = {**desired["metadata"], "uid": uid_of(live)}
    return (Apply(obj={**desired, "metadata": metadata}, force=force),)


def needs_apply(desired: Manifest, live: Manifest | None, manager: str) -> bool:
    """True when the live object lacks something of ours, or still has something that we no longer want."""
    if live is None:
        return True
    applied = live["metadata"].get("annotations", {}).get(APPLIED_PREFIX + manager)
    return applied != applied_hash(desired) or not is_subset(desired, live)


def stamped(desired: Manifest, manager: str) -> Manifest:
    """The manifest with the annotation that records what is being applied."""
    metadata = desired["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_PREFIX + manager: applied_hash(desired)}
    return {**desired, "metadata": {**metadata, "annotations": annotations}}


def applied_hash(desired: Manifest) -> str:
    """Hash of what we want, without what the apiserver decides (UID, resourceVersion) and without earlier hashes."""
    metadata = {k: v for k, v in desired["metadata"].items() if k not in ("uid", "resourceVersion")}
    annotations = metadata.get("annotations")
    if annotations:
        metadata["annotations"] = {k: v for k, v in annotations.items() if not k.startswith(APPLIED_PREFIX)}
    if not metadata.get("annotations"):
        metadata.pop("annotations", None)
    content = orjson.dumps({**desired, "metadata": metadata}, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()[:16]


def is_subset(wanted: Any, actual: Any, field: str = "", parent: str = "") -> bool:
    """True when every wanted leaf is in `actual` with the same meaning."""
    if wanted == actual and type(wanted) is type(actual):
        return True  # Most of a resting object: one comparison in C instead of a walk.
    if _is_empty(wanted) and actual is None:
        return True
    if isinstance(wanted, Mapping):
        return isinstance(actual, Mapping) and all(
            is_subset(value, actual.get(key), key, field) for key, value in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return isinstance(actual, list) and _list_is_subset(wanted, actual, field)
    return _same_scalar(wanted, actual, field, parent)


def _is_empty(value: Any) -> bool:
    """The apiserver drops a zero value of an optional field, so its absence means the same."""
    return value is None or value is False or value == "" or value == 0 or value == {} or value == []


def _list_is_subset(wanted: Sequence[Any], actual: Sequence[Any], field: str) -> bool:
    if field in _SETS:
        return set(wanted) <= set(actual)
    keys = MERGE_KEYS.get(field) or _port_keys(wanted, field)
    if keys and all(isinstance(item, Mapping) for item in (*wanted, *actual)):
        found = {_identity(item, keys): item for item in actual}
        return all(is_subset(item, found.get(_identity(item, keys)), "item") for item in wanted)
    return len(wanted) == len(actual) and all(is_subset(w, a, "item") for w, a in zip(wanted, actual, strict=True))


def _port_keys(wanted: Sequence[Any], field: str) -> tuple[str, ...]:
    """Ports of a container and ports of a Service share a field name but not their merge key."""
    if field != "ports":
        return ()
    return ("containerPort",) if any("containerPort" in port for port in wanted) else ("port",)


def _identity(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    protocol = (item.get("protocol", "TCP"),) if keys[0] in ("containerPort", "port") else ()
    return (*(item.get(key) for key in keys), *protocol)


def _same_scalar(wanted: Any, actual: Any, field: str, parent: str) -> bool:
    if wanted == actual and isinstance(wanted, bool) == isinstance(actual, bool):
        return True
    if field in _QUANTITY_FIELDS or parent in _QUANTITY_MAPS:
        left, right = quantity(wanted), quantity(actual)
        return left is not None and left == right
    return False


def quantity(value: Any) -> Decimal | None:
    """A Kubernetes quantity as a number; None when it is none."""
    found = _QUANTITY.fullmatch(str(value))
    return Decimal(found[1]) * _SUFFIXES[found[2]] if found and found[2] in _SUFFIXES else None
