"""Caches of Kubernetes objects, kept current by list and watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmfleet.kube.refs import Manifest


class Cache:
    """Objects of one kind, by namespace and name. Everything it hands out is shared: never change it."""

    def get(self, namespace: str, name: str) -> Manifest | None:
        raise NotImplementedError

    def list(self, namespace: str | None = None) -> list[Manifest]:
        raise NotImplementedError

    def add_index(self, name: str, values: Callable[[Manifest], Iterable[str]]) -> None:
        """Index objects by values; add every index before the manager runs."""
        raise NotImplementedError

    def by_index(self, name: str, value: str) -> list[Manifest]:
        raise NotImplementedError

    def synced(self, namespace: str = "") -> bool:
        """True once the first list that covers this namespace is in."""
        raise NotImplementedError
