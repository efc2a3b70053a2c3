"""Work queue, caches' owner and controller loops: all waiting of a Kubernetes controller happens here.

In: caches, reconcile functions. Out: calls of reconcile, one worker per key. (Signatures first; see `Manager`.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from llmfleet.kube.client import Api
from llmfleet.kube.refs import Key, Kind, Manifest
from llmfleet.kube.trim import Trim
from llmfleet.kube.watch.client import Cache

Reconcile = Callable[[Key], timedelta | None]
Source = tuple[Cache, Callable[[Manifest], Iterable[Key]]]


class Manager:
    """Runs every cache and every controller of one process until told to stop."""

    def __init__(self, api: Api, *, resync: timedelta = timedelta(seconds=30), workers: int = 1) -> None:
        raise NotImplementedError

    def cache(
        self,
        kind: Kind,
        *,
        namespaces: Sequence[str] = (),
        label_selector: str = "",
        field_selector: str = "",
        trim: Trim | None = None,
        optional: bool = False,
    ) -> Cache:
        """The cache of a kind; asked twice with the same arguments it is the same cache, watched once."""
        raise NotImplementedError

    def controller(self, name: str, reconcile: Reconcile, *, sources: Sequence[Source]) -> None:
        """Call `reconcile` for every key that a source's mapping names; never twice at once for one key."""
        raise NotImplementedError

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        raise NotImplementedError
