"""Caches of Kubernetes objects, kept current by list and watch.

In: an API, a kind, selectors. Out: objects in memory, and a call to each subscriber per change. It never polls, never
reconnects without a pause that grows, and never trusts a connection that has been silent for longer than the server
promised to keep it open.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from builtins import list as List
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from llmfleet.kube.backoff import WATCH
from llmfleet.kube.client import Api
from llmfleet.kube.errors import Expired, Forbidden, KubeError, NotFound
from llmfleet.kube.refs import Key, Kind, Manifest, key_of, version_of
from llmfleet.kube.selectors import Matcher, parse_selector
from llmfleet.kube.store import Change, Store
from llmfleet.kube.transport.client import Streams
from llmfleet.kube.trim import Trim, shared

log = logging.getLogger(__name__)

# The server ends every watch after WATCH_SECONDS, so a longer silence means that nobody is there any more.
WATCH_SECONDS: Final = 45
SILENCE_SECONDS: Final = 55.0
# A list now and then heals what no event can: a change that never reached us.
RELIST_SECONDS: Final = 900.0
REPORT_SECONDS: Final = 60.0
SETTLED_SECONDS: Final = 1.0
# A kind that is optional and not served is asked for again at this pace.
ABSENT_SECONDS: Final = 60.0

Subscriber = Callable[[Manifest | None, Manifest | None], None]


class Watches(Protocol):
    """Told what happens to lists and watches."""

    def __call__(self, kind: Kind, error: str) -> None: ...


class Cache:
    """Objects of one kind, by namespace and name. Everything it hands out is shared: never change it."""

    def __init__(
        self,
        kind: Kind,
        *,
        namespaces: Iterable[str] = (),
        label_selector: str = "",
        field_selector: str = "",
        trim: Trim,
    ) -> None:
        self.kind = kind
        self.namespaces = tuple(namespaces) or ("",)
        self.label_selector = label_selector
        self.field_selector = field_selector
        self._trim = trim
        self._matches: Matcher = parse_selector(label_selector)
        self._store = Store()
        self._lock = threading.Lock()
        self._synced: set[str] = set()
        self._refused: set[str] = set()
        self._subscribers: List[Subscriber] = []

    def get(self, namespace: str, name: str) -> Manifest | None:
        with self._lock:
            return self._store.find(Key(namespace, name))

    def list(self, namespace: str | None = None) -> List[Manifest]:
        with self._lock:
            return self._store.all(namespace)

    def add_index(self, name: str, values: Callable[[Manifest], Iterable[str]]) -> None:
        """Index objects by values, for `by_index`. The same name again replaces the index."""
        with self._lock:
            self._store.add_index(name, values)

    def by_index(self, name: str, value: str) -> List[Manifest]:
        with self._lock:
            return self._store.by_index(name, value)

    def __len__(self) -> int:
        return len(self._store)

    def synced(self, namespace: str = "") -> bool:
        """True once the first list that covers this namespace is in; for "" all of them."""
        if namespace and self.namespaces != ("",):
            return namespace in self._synced
        return all(watched in self._synced for watched in self.namespaces)

    def refuse(self, namespace: str) -> None:
        """We may not read this namespace, at least not yet."""
        self._refused.add(namespace)

    def settled(self) -> bool:
        """Synced, but for namespaces named one by one that we may not read: their permissions may come later."""
        return all(watched in self._synced or (watched and watched in self._refused) for watched in self.namespaces)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber(before, after)` on every change; it must only enqueue."""
        self._subscribers.append(subscriber)

    def offer(self, obj: Manifest) -> None:
        """Take in what the apiserver answered to one of our writes, so that the next pass reads its own writes."""
        namespace = obj["metadata"].get("namespace", "")
        if self.namespaces != ("",) and namespace not in self.namespaces:
            return
        self._tell([self._update(obj, known_only=bool(self.field_selector))])

    def put(self, obj: Manifest) -> None:
        """An object was added or changed."""
        self._tell([self._update(obj, known_only=False)])

    def remove(self, obj: Manifest) -> None:
        """An object was deleted, or left the selection."""
        with self._lock:
            change = self._store.remove(key_of(obj), version_of(obj))
        self._tell([change])

    def replace(self, objects: List[Manifest], version: int, namespace: str) -> None:
        """A whole list arrived."""
        with self._lock:
            changes = self._store.replace(objects, version, lambda key: not namespace or key.namespace == namespace)
            self._synced.add(namespace)
            self._refused.discard(namespace)
        self._tell(changes)

    def forget_versions(self) -> None:
        """Versions went backwards (etcd was restored): nothing held can be compared with what comes."""
        with self._lock:
            self._store.forget_versions()

    def trim(self, obj: Manifest) -> Manifest:
        """What is kept of an object."""
        kept: Manifest = shared(self._trim(obj))
        return kept

    def _update(self, obj: Manifest, *, known_only: bool) -> Change | None:
        selected = self._matches(obj["metadata"].get("labels") or {})
        with self._lock:
            if known_only and self._store.find(key_of(obj)) is None:
                return None
            if not selected:
                return self._store.remove(key_of(obj), version_of(obj))
            return self._store.upsert(self.trim(obj))

    def _tell(self, changes: Iterable[Change | None]) -> None:
        for change in changes:
            if change is not None:
                for subscriber in self._subscribers:
                    subscriber(*change)


class Reflector:
    """One thread's work: keep a cache equal to one namespace (or all) of the apiserver."""

    def __init__(
        self,
        api: Api,
        cache: Cache,
        namespace: str,
        *,
        optional: bool = False,
        failed: Watches = lambda _kind, _error: None,
        watch_seconds: int = WATCH_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
        relist_seconds: float = RELIST_SECONDS,
    ) -> None:
        self._api, self._cache, self._namespace = api, cache, namespace
        self._optional = optional
        self._failed = failed
        self._watch_seconds = watch_seconds
        self._silence_seconds = silence_seconds
        self._relist_seconds = relist_seconds * random.uniform(0.8, 1.2)
        self._version = ""
        self._newest = 0
        self._listed_at = 0.0
        self._failures = 0
        self._reported_at = float("-inf")
        self._streams = Streams()
        self._stop = threading.Event()

    def __str__(self) -> str:
        return f"{self._cache.kind} in {self._namespace or 'all namespaces'}"

    def run(self, stop: threading.Event) -> None:
        """List, watch, and start again, until told to stop."""
        self._stop = stop
        while not stop.is_set():
            pause = self._round()
            if pause > 0:
                stop.wait(pause)

    def interrupt(self) -> None:
        """End a watch that waits for events, so that `run` sees its stop."""
        self._streams.end()

    def _round(self) -> float:
        """One list if needed and one watch; returns how long to pause before the next."""
        began = time.monotonic()
        try:
            if not self._version or began - self._listed_at > self._relist_seconds:
                self._list()
            self._watch()
        except Exception as error:
            self._settle(began)
            return self._after_failure(error)
        # A server that ends every watch at once, with or without an event, must not make a hot loop.
        return 0.0 if self._settle(began) else self._next_pause(0.0)

    def _list(self) -> None:
        objects: list[Manifest] = []
        version = ""
        for page, version in self._api.pages(  # noqa: B007 (the last one counts)
            self._cache.kind, self._namespace, self._cache.label_selector, self._cache.field_selector
        ):
            objects.extend(map(self._cache.trim, page))
        if _number(version) < self._newest:
            self._cache.forget_versions()
        self._newest = _number(version)
        self._cache.replace(objects, _number(version), self._namespace)
        self._version, self._listed_at = version, time.monotonic()

    def _settle(self, began: float) -> bool:
        """A round that lasted forgives the failures before it."""
        lasted = time.monotonic() - began > SETTLED_SECONDS
        if lasted:
            self._failures = 0
        return lasted

    def _watch(self) -> None:
        for kind_of_event, obj in self._api.watch(
            self._cache.kind,
            namespace=self._namespace,
            resource_version=self._version,
            label_selector=self._cache.label_selector,
            field_selector=self._cache.field_selector,
            seconds=self._watch_seconds,
            read_seconds=self._silence_seconds,
            streams=self._streams,
        ):
            self._take(kind_of_event, obj)

    def _take(self, kind_of_event: str, obj: Manifest) -> None:
        if kind_of_event == "DELETED":
            self._cache.remove(obj)
        elif kind_of_event in ("ADDED", "MODIFIED"):
            self._cache.put(obj)
        version = str(obj["metadata"].get("resourceVersion", ""))
        if _number(version) >= self._newest:
            self._version, self._newest = version, _number(version)

    def _after_failure(self, error: Exception) -> float:
        if isinstance(error, Expired):
            self._version = ""
        self._failed(self._cache.kind, type(error).__name__)
        if self._optional and isinstance(error, Forbidden | NotFound):
            self._cache.replace([], 0, self._namespace)
            self._version = ""
            return ABSENT_SECONDS * random.uniform(0.8, 1.2)
        if isinstance(error, Forbidden):
            self._cache.refuse(self._namespace)
        self._report(error)
        return self._next_pause(error.retry_after if isinstance(error, KubeError) else 0.0)

    def _next_pause(self, at_least: float) -> float:
        self._failures += 1
        return max(at_least, WATCH.delay(self._failures, random.random()))

    def _report(self, error: Exception) -> None:
        """Say it once a minute; a traceback only for what is no answer of an apiserver."""
        if self._stop.is_set() or time.monotonic() - self._reported_at < REPORT_SECONDS:
            return
        self._reported_at = time.monotonic()
        fields = {"resource": str(self._cache.kind), "namespace": self._namespace or "*", "error": str(error)}
        log.warning(
            advice(error, self._cache.kind),
            extra={"fields": fields},
            exc_info=None if isinstance(error, KubeError) else error,
        )


def advice(error: Exception, kind: Kind) -> str:
    """One sentence that says what is missing."""
    if isinstance(error, Forbidden):
        return f"permission is missing: list and watch on {kind}"
    if isinstance(error, NotFound):
        return f"the apiserver does not serve {kind}: is its CustomResourceDefinition installed?"
    return f"cannot list or watch {kind}, trying again"


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else 0
