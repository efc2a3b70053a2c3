"""The objects of one kind in memory, with indices, and what each change means for it.

In: objects as listed, watched or answered to a write, in any order and any number of times. Out: for each the pair
(before, after), or None when it says nothing new. It never goes back in time: an object older than what is held, or
than the deletion that removed it, is ignored. Not thread-safe; `watch.client.Cache` holds the lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from llmfleet.kube.refs import Key, Manifest, key_of, version_of

Change = tuple[Manifest | None, Manifest | None]
Values = Callable[[Manifest], Iterable[str]]
TOMBSTONES: Final = 2048


class Store:
    """Objects by namespace and name."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[str, Manifest]] = {}
        self._indices: dict[str, tuple[Values, dict[str, dict[Key, None]]]] = {}
        self._deleted: OrderedDict[Key, int] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def find(self, key: Key) -> Manifest | None:
        return self._objects.get(key.namespace, {}).get(key.name)

    def all(self, namespace: str | None = None) -> list[Manifest]:
        if namespace is not None:
            return list(self._objects.get(namespace, {}).values())
        return [obj for held in self._objects.values() for obj in held.values()]

    def keys(self) -> Iterator[Key]:
        return (Key(namespace, name) for namespace, held in self._objects.items() for name in held)

    def add_index(self, name: str, values: Values) -> None:
        self._indices[name] = (values, {})
        for obj in self.all():
            self._index(key_of(obj), None, obj)

    def by_index(self, name: str, value: str) -> list[Manifest]:
        keys = self._indices[name][1].get(value, ())
        return [obj for obj in map(self.find, keys) if obj is not None]

    def upsert(self, obj: Manifest) -> Change | None:
        """Take an object in, unless what is held is as new or it was deleted later."""
        key, version = key_of(obj), version_of(obj)
        before = self.find(key)
        if before is not None and version_of(before) >= version > 0:
            return None
        if self._deleted.get(key, -1) >= version > 0:
            return None
        self._put(key, before, obj)
        return before, obj

    def remove(self, key: Key, version: int) -> Change | None:
        """Forget an object that was deleted at `version`; a newer one of the same name stays."""
        before = self.find(key)
        if before is not None and version and version_of(before) > version:
            return None
        self._bury(key, version)
        if before is None:
            return None
        self._drop(key, before)
        return before, None

    def replace(self, objects: Iterable[Manifest], version: int, covers: Callable[[Key], bool]) -> list[Change]:
        """Take a whole list in: what it does not name any more is gone, unless it is newer than the list."""
        listed: set[Key] = set()
        changes: list[Change] = []
        for obj in objects:
            listed.add(key_of(obj))
            change = self.upsert(obj)
            if change is not None:
                changes.append(change)
        for key in [key for key in self.keys() if key not in listed and covers(key)]:
            change = self.remove(key, version)
            if change is not None:
                changes.append(change)
        return changes

    def forget_versions(self) -> None:
        """Forget versions and tombstones but keep the objects: the next list decides about each of them."""
        for namespace, held in self._objects.items():
            self._objects[namespace] = {name: _unversioned(obj) for name, obj in held.items()}
        self._deleted.clear()

    def _put(self, key: Key, before: Manifest | None, obj: Manifest) -> None:
        self._objects.setdefault(key.namespace, {})[key.name] = obj
        self._size += before is None
        self._index(key, before, obj)

    def _drop(self, key: Key, before: Manifest) -> None:
        held = self._objects[key.namespace]
        del held[key.name]
        if not held:
            del self._objects[key.namespace]
        self._size -= 1
        self._index(key, before, None)

    def _bury(self, key: Key, version: int) -> None:
        self._deleted[key] = max(version, self._deleted.pop(key, 0))
        while len(self._deleted) > TOMBSTONES:
            self._deleted.popitem(last=False)

    def _index(self, key: Key, before: Manifest | None, after: Manifest | None) -> None:
        for values, entries in self._indices.values():
            old = set(values(before)) if before is not None else set()
            new = set(values(after)) if after is not None else set()
            for value in old - new:
                entries[value].pop(key, None)
                if not entries[value]:
                    del entries[value]
            for value in new - old:
                entries.setdefault(value, {})[key] = None


def _unversioned(obj: Manifest) -> Manifest:
    metadata = {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}
    return {**obj, "metadata": metadata}
