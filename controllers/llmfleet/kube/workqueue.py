"""Work queue, owner of the caches, and controller loops: all waiting of a Kubernetes controller happens here.

In: caches, mappings from objects to keys, reconcile functions. Out: calls of reconcile, at most one at a time per key.
An event is a hint that enqueues a key; the pass reads the caches later. A pass that fails is tried again with back-off,
and a poisoned object never blocks the others.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from llmfleet.kube.backoff import CONFLICT, RECONCILE
from llmfleet.kube.client import Api
from llmfleet.kube.errors import Conflict, Forbidden, KubeError, NotFound, NotLeader, Unavailable
from llmfleet.kube.pending import PendingKeys
from llmfleet.kube.refs import Key, Kind, Manifest
from llmfleet.kube.trim import Trim, trim_for
from llmfleet.kube.watch.client import Cache, Reflector
from llmfleet.telemetry import ControllerMetrics

log = logging.getLogger(__name__)

Reconcile = Callable[[Key], timedelta | None]
Mapping_ = Callable[[Manifest], Iterable[Key]]
Source = tuple[Cache, Mapping_]

UNSYNCED_SECONDS: Final = 0.1
REPORT_SECONDS: Final = 60.0
STUCK_SECONDS: Final = 300.0
STOP_SECONDS: Final = 5.0
"""How long passes under way may take to finish; afterwards their writes are fenced by the released lease."""


class WorkQueue:
    """`PendingKeys` for threads: `take` waits until a key is due."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pending = PendingKeys()
        self._changed = threading.Condition()
        self._clock = clock
        self._closed = False

    def add(self, key: Key) -> None:
        with self._changed:
            before = self._pending.next_at()
            self._pending.add(key, self._clock())
            self._wake(before)

    def add_after(self, key: Key, delay: timedelta) -> None:
        with self._changed:
            before = self._pending.next_at()
            self._pending.add_later(key, self._clock() + delay.total_seconds())
            self._wake(before)

    def take(self) -> Key | None:
        """The next key, or None once the queue is closed."""
        with self._changed:
            while not self._closed:
                now = self._clock()
                key, due = self._pending.take(now), self._pending.next_at()
                if key is not None:
                    if len(self._pending) or due is not None:
                        # This worker watched the time; somebody else must do so while it is busy.
                        self._changed.notify()
                    return key
                self._changed.wait(None if due is None else max(due - now, 0.0))
            return None

    def done(self, key: Key, again_in: timedelta | None = None, rest: float = 0.0) -> None:
        with self._changed:
            before = self._pending.next_at()
            self._pending.done(key, self._clock(), again_in.total_seconds() if again_in is not None else None, rest)
            self._wake(before)

    def failed(self, key: Key, error: Exception) -> tuple[int, float]:
        """Bring the key back after its back-off; returns how often it failed in a row, and the seconds."""
        with self._changed:
            policy = CONFLICT if isinstance(error, Conflict) else RECONCILE
            failures = self._pending.count_failure(key)
            delay = policy.delay(failures, random.random())
            if isinstance(error, KubeError):
                delay = max(delay, error.retry_after)
            before = self._pending.next_at()
            self._pending.failed(key, self._clock(), delay)
            self._wake(before)
            return failures, delay

    def _wake(self, before: float | None) -> None:
        """Wake one worker, if there is something to take or if the time to wait for has come closer."""
        after = self._pending.next_at()
        if len(self._pending) or (after is not None and (before is None or after < before)):
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return len(self._pending)


def advice(error: Unavailable) -> str:
    """One sentence that says what is missing."""
    if isinstance(error, Forbidden):
        return f"permission is missing: {error.asked}"
    return "the apiserver does not answer a pass, trying again"


def no_rest(_took: float) -> float:
    return 0.0


@dataclass(slots=True, kw_only=True)
class Controller:
    """One reconcile function, its queue and where its keys come from."""

    name: str
    reconcile: Reconcile
    sources: Sequence[Source]
    rest: Callable[[float], float]
    queue: WorkQueue = field(default_factory=WorkQueue)
    busy_since: dict[Key, float] = field(default_factory=dict)

    def synced(self, namespace: str) -> bool:
        return all(cache.synced(namespace) for cache, _ in self.sources)


class Manager:
    """Runs every cache and every controller of one process until told to stop."""

    def __init__(
        self,
        api: Api,
        *,
        resync: timedelta = timedelta(seconds=30),
        workers: int = 1,
        metrics: ControllerMetrics | None = None,
    ) -> None:
        self._api = api
        self._resync = resync.total_seconds()
        self._workers = workers
        self._metrics = metrics or ControllerMetrics("operator")
        self._caches: dict[tuple[object, ...], Cache] = {}
        self._reflectors: list[Reflector] = []
        self._controllers: list[Controller] = []
        self._threads: list[threading.Thread] = []
        self._reported: dict[str, float] = {}
        api.on_write(self._offer)

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
        """The cache of a kind; asked twice with the same arguments it is the same cache, watched once.

        `optional`: a kind that is not served, or may not be read, counts as empty instead of holding everything up."""
        trim = trim or trim_for(kind)
        identity = (kind, tuple(sorted(namespaces)), label_selector, field_selector, trim, optional)
        if identity not in self._caches:
            cache = Cache(
                kind, namespaces=namespaces, label_selector=label_selector, field_selector=field_selector, trim=trim
            )
            self._caches[identity] = cache
            for namespace in cache.namespaces:
                reflector = Reflector(self._api, cache, namespace, optional=optional, failed=self._count_watch_failure)
                self._reflectors.append(reflector)
        return self._caches[identity]

    def controller(
        self, name: str, reconcile: Reconcile, *, sources: Sequence[Source], rest: Callable[[float], float] = no_rest
    ) -> WorkQueue:
        """Call `reconcile` for every key that a source's mapping names; never twice at once for one key.

        `rest` says, from how long a pass took, how long its key rests after a success however many events come."""
        controller = Controller(name=name, reconcile=reconcile, sources=sources, rest=rest)
        for cache, mapping in sources:
            cache.subscribe(_enqueuer(controller.queue, mapping))
        self._controllers.append(controller)
        return controller.queue

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. No pass begins before every cache it reads has its first list."""
        threads = [
            threading.Thread(target=r.run, args=(stop,), daemon=True, name=f"watch {r}") for r in self._reflectors
        ]
        threads += [
            threading.Thread(target=self._work, args=(controller, stop), daemon=True, name=controller.name)
            for controller in self._controllers
            for _ in range(self._workers)
        ]
        self._threads = threads
        for thread in threads:
            thread.start()
        self._resync_until(stop)
        self._threads = []
        for controller in self._controllers:
            controller.queue.close()
        for reflector in self._reflectors:
            reflector.interrupt()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(timeout=max(deadline - time.monotonic(), 0.0))

    def unsynced(self) -> list[str]:
        """Kinds whose first list is not in yet, though it could be."""
        return sorted({str(cache.kind) for cache in self._caches.values() if not cache.settled()})

    def stuck(self) -> list[str]:
        """What only a restart helps: passes that do not end, and threads that did."""
        limit = time.monotonic() - STUCK_SECONDS
        passes = [
            f"{c.name} {key}" for c in self._controllers for key, since in [*c.busy_since.items()] if since < limit
        ]
        return passes + [thread.name for thread in self._threads if thread.ident and not thread.is_alive()]

    def _work(self, controller: Controller, stop: threading.Event) -> None:
        while (key := controller.queue.take()) is not None:
            if not controller.synced(key.namespace):
                controller.queue.done(key, timedelta(seconds=UNSYNCED_SECONDS))
            elif not stop.is_set():
                self._pass(controller, key)

    def _pass(self, controller: Controller, key: Key) -> None:
        began = controller.busy_since[key] = time.monotonic()
        again_in, error = None, None
        try:
            again_in = controller.reconcile(key)
        except Exception as raised:
            error = raised
        took = time.monotonic() - began
        # Before the queue hears of it: from then on another worker may have the key.
        del controller.busy_since[key]
        self._metrics.passes.labels(controller.name).observe(took)
        self._settle(controller, key, again_in, error, took)

    def _settle(
        self, controller: Controller, key: Key, again_in: timedelta | None, error: Exception | None, took: float
    ) -> None:
        if error is None:
            controller.queue.done(key, again_in, controller.rest(took))
        elif isinstance(error, NotFound):
            # What the pass wanted to write to is gone: the event that says so brings the key back if need be.
            log.debug("gone during a pass", extra={"fields": {"key": str(key), "error": str(error)}})
            controller.queue.done(key)
        else:
            failures, delay = controller.queue.failed(key, error)
            self._metrics.failures.labels(controller.name, type(error).__name__).inc()
            self._report(controller, key, error, failures, delay)

    def _report(self, controller: Controller, key: Key, error: Exception, failures: int, delay: float) -> None:
        fields = {
            "controller": controller.name,
            "key": str(key),
            "error": str(error),
            "failures": failures,
            "retry_seconds": round(delay, 2),
        }
        if isinstance(error, NotLeader):
            return
        if isinstance(error, Conflict):
            log.debug("pass met a conflict", extra={"fields": fields})
        elif isinstance(error, Unavailable):
            if self._is_news(f"{controller.name} {type(error).__name__} {error.asked}"):
                log.warning(advice(error), extra={"fields": fields})
        else:
            # The traceback once; a key that keeps failing says so in one line each time.
            log.error("pass failed", extra={"fields": fields}, exc_info=error if failures == 1 else None)

    def _is_news(self, what: str) -> bool:
        """True once a minute: an apiserver that is away fails every key, and one line says it."""
        now = time.monotonic()
        if now - self._reported.get(what, float("-inf")) < REPORT_SECONDS:
            return False
        self._reported[what] = now
        return True

    def _resync_until(self, stop: threading.Event) -> None:
        """Bring every key back once per period, spread evenly: each second its share."""
        slots = max(int(self._resync), 1)
        shares: list[list[tuple[WorkQueue, Key]]] = []
        while not stop.wait(self._resync / slots):
            shares = shares or self._shares(slots)
            for queue, key in shares.pop():
                queue.add(key)
            self._count()

    def _shares(self, slots: int) -> list[list[tuple[WorkQueue, Key]]]:
        """Every key of every controller, by the second of the period in which it comes back: always the same one."""
        shares: list[list[tuple[WorkQueue, Key]]] = [[] for _ in range(slots)]
        for controller in self._controllers:
            for key in _keys_of(controller):
                shares[zlib.crc32(str(key).encode()) % slots].append((controller.queue, key))
        return shares

    def _count(self) -> None:
        for controller in self._controllers:
            self._metrics.queue.labels(controller.name).set(len(controller.queue))
        totals: dict[str, int] = {}
        for cache in self._caches.values():
            totals[str(cache.kind)] = totals.get(str(cache.kind), 0) + len(cache)
        for resource, total in totals.items():
            self._metrics.objects.labels(resource).set(total)

    def _count_watch_failure(self, kind: Kind, error: str) -> None:
        self._metrics.watch_failures.labels(str(kind), error).inc()

    def _offer(self, kind: Kind, obj: Manifest) -> None:
        for cache in self._caches.values():
            if cache.kind == kind:
                cache.offer(obj)


def _enqueuer(queue: WorkQueue, mapping: Mapping_) -> Callable[[Manifest | None, Manifest | None], None]:
    """Enqueue what the object named before the change as well as what it names now."""

    def enqueue(before: Manifest | None, after: Manifest | None) -> None:
        for key in dict.fromkeys(key for obj in (before, after) if obj is not None for key in mapping(obj)):
            queue.add(key)

    return enqueue


def _keys_of(controller: Controller) -> set[Key]:
    return {key for cache, mapping in controller.sources for obj in cache.list() for key in mapping(obj)}
