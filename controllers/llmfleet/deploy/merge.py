"""Lay a user's pod template over the operator's: the one algorithm behind `spec.podTemplate`.

In: two JSON values. Out: a new one; neither argument is changed. The rules are those of a Kubernetes strategic merge
patch, reduced to what a pod template needs:

* objects merge key by key, recursively; a key set to null is removed;
* a list whose items have a merge key (see MERGE_KEYS) merges item by item: an item with a known key is merged, a new
  one is appended, and one that also says `$patch: delete` removes its namesake;
* every other list, and every scalar, is replaced whole.

It never checks the outcome: see `overlay.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

MERGE_KEYS: Final[Mapping[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "resourceClaims": "name",
    "hostAliases": "ip",
}
DELETE: Final = "$patch"


def merge(base: Any, overlay: Any, field: str = "") -> Any:
    """The overlay laid over the base."""
    if isinstance(base, Mapping) and isinstance(overlay, Mapping):
        return merge_objects(base, overlay)
    key = MERGE_KEYS.get(field)
    if key and is_keyed(base, key) and is_keyed(overlay, key):
        return merge_lists(base, overlay, key)
    return without_nulls(overlay)


def merge_objects(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in overlay.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged[name], value, name) if name in merged else without_nulls(value)
    return merged


def merge_lists(base: Sequence[Any], overlay: Sequence[Any], key: str) -> list[Any]:
    """Items by merge key, in the order base first, then new ones."""
    merged = {item[key]: item for item in base}
    for item in overlay:
        if item.get(DELETE) == "delete":
            merged.pop(item[key], None)
        else:
            merged[item[key]] = merge(merged.get(item[key], {}), item)
    return list(merged.values())


def is_keyed(value: Any, key: str) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, Mapping) and key in item for item in value)


def without_nulls(value: Any) -> Any:
    """A null in an overlay means "absent", also below a key the base does not have."""
    if isinstance(value, Mapping):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value
