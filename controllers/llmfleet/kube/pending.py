"""The bookkeeping of a level-triggered work queue, without threads and without a clock.

In: keys that may have changed, what became of each pass, and `now` in seconds. Out: the next key to work on. A key is
held once however many events named it, is worked by one worker at a time, and is marked again when it changes
meanwhile. Nothing is lost: after `add` a pass always begins later than the call.
"""

from __future__ import annotations

import heapq
from typing import Final

from llmfleet.kube.refs import Key

EVENT_GAP: Final = 1.0
"""A key whose pass failed is not retried by events sooner than this: its own status write may be such an event."""


class PendingKeys:
    """Which keys wait, which are being worked on, and which come back later."""

    def __init__(self) -> None:
        self._ready: dict[Key, None] = {}
        self._working: set[Key] = set()
        self._changed: set[Key] = set()
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._failures: dict[Key, int] = {}
        self._not_before: dict[Key, float] = {}

    def add(self, key: Key, now: float) -> None:
        """The key may have changed: work on it as soon as possible."""
        if key in self._working:
            self._changed.add(key)
        elif self._not_before.get(key, now) > now:
            self._schedule(key, self._not_before[key])
        else:
            self._not_before.pop(key, None)
            self._ready.setdefault(key)

    def add_later(self, key: Key, at: float) -> None:
        """Work on the key at that time, or earlier if something else asks for it."""
        self._schedule(key, at)

    def take(self, now: float) -> Key | None:
        """The next key to work on, or None when nothing is due."""
        self._promote(now)
        for key in self._ready:
            del self._ready[key]
            self._working.add(key)
            return key
        return None

    def done(self, key: Key, now: float, again_in: float | None = None, rest: float = 0.0) -> None:
        """The pass succeeded. Whatever happens, the next one begins no sooner than after the rest."""
        self._failures.pop(key, None)
        self._release(key)
        if rest > 0:
            self._not_before[key] = now + rest
        if again_in is not None:
            self._schedule(key, now + again_in)
        if key in self._changed:
            self._changed.discard(key)
            self.add(key, now)

    def failed(self, key: Key, now: float, delay: float) -> None:
        """The pass failed: come back after the delay, events or not no sooner than the gap."""
        self._release(key)
        gap = min(delay, EVENT_GAP)
        self._not_before[key] = now + gap
        self._schedule(key, now + (gap if key in self._changed else delay))
        self._changed.discard(key)

    def count_failure(self, key: Key) -> int:
        """How many passes of the key failed in a row, this one included."""
        self._failures[key] = self._failures.get(key, 0) + 1
        return self._failures[key]

    def next_at(self) -> float | None:
        """When the earliest delayed key is due; None when no key is delayed."""
        self._forget_stale()
        return self._heap[0][0] if self._heap else None

    def __len__(self) -> int:
        """Keys that wait for a worker now."""
        return len(self._ready)

    def _release(self, key: Key) -> None:
        self._working.remove(key)

    def _schedule(self, key: Key, at: float) -> None:
        if self._due.get(key, at + 1) > at:
            self._due[key] = at
            heapq.heappush(self._heap, (at, key))

    def _promote(self, now: float) -> None:
        while (at := self.next_at()) is not None and at <= now:
            key = heapq.heappop(self._heap)[1]
            del self._due[key]
            self.add(key, now)

    def _forget_stale(self) -> None:
        """A heap entry is stale when an earlier time was set for its key, or that time has come."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
