"""Hold a Lease for as long as this process leads.

In: an API, the lease's place, our name. Out: `is_leader()`, true only while the last renewal is younger than the renew
deadline on our monotonic clock, so a process that was paused finds out before its next write. It calls `on_lost` once
when leadership ends without being asked to; the process should leave then.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from llmfleet.kube.client import Api
from llmfleet.kube.election.decide import (
    TIMING,
    Move,
    Observed,
    Timing,
    build_lease,
    build_released,
    decide,
    observe,
    record_of,
)
from llmfleet.kube.errors import KubeError, NotFound
from llmfleet.kube.refs import Manifest, Ref

log = logging.getLogger(__name__)


class Election:
    """Our side of one Lease. `api` must not be fenced by this election, and must time out well within the deadline."""

    def __init__(self, api: Api, ref: Ref, me: str, *, timing: Timing = TIMING) -> None:
        self._api, self._ref, self._me, self._timing = api, ref, me, timing
        self._observed: Observed | None = None
        self._lease: Manifest | None = None
        self._renewed_at = float("-inf")
        self._led = False
        self._failing = False

    def is_leader(self) -> bool:
        """True while nobody else may lead. Cheap: asked before every write."""
        return self._led and time.monotonic() - self._renewed_at < self._timing.renew_deadline

    def run(self, stop: threading.Event, on_won: Callable[[], None], on_lost: Callable[[], None]) -> None:
        """Stand for election until told to stop; then release the lease."""
        while not stop.is_set():
            self._attempt()
            if self._led and not self.is_leader():
                self._led = False
                log.error("the lease was lost", extra={"fields": {"lease": str(self._ref)}})
                on_lost()
                return
            if not self._led and self._is_ours():
                self._led = True
                log.info("the lease was won", extra={"fields": {"lease": str(self._ref), "holder": self._me}})
                on_won()
            stop.wait(self._pause())

    def release(self) -> None:
        """Give the lease up, if it is ours. Call it after the last write."""
        if not self._led:
            return
        self._led = False
        try:
            lease = self._api.get(self._ref)
            if record_of(lease)[0] == self._me:
                self._api.update(build_released(lease, self._api.now()))
        except KubeError as error:
            log.warning("the lease could not be released", extra={"fields": {"error": str(error)}})

    def _pause(self) -> float:
        """Renew on the beat; after a failure try sooner, because the deadline does not wait."""
        seconds = self._timing.retry / 3 if self._failing else self._timing.retry
        return seconds * random.uniform(0.8, 1.0)

    def _is_ours(self) -> bool:
        return time.monotonic() - self._renewed_at < self._timing.renew_deadline

    def _attempt(self) -> None:
        """Look once and act; an error changes nothing but the time that passes."""
        asked_at = time.monotonic()
        try:
            self._look(asked_at)
            self._failing = False
        except KubeError as error:
            self._failing = True
            log.warning(
                "cannot renew the lease" if self._led else "cannot read or take the lease",
                extra={"fields": {"lease": str(self._ref), "error": str(error)}},
            )

    def _look(self, asked_at: float) -> None:
        try:
            lease: Manifest | None = self._api.get(self._ref)
        except NotFound:
            lease = None
        self._observed = observe(lease, self._observed, asked_at)
        move = decide(lease, self._observed, self._me, asked_at, self._timing)
        if move is Move.WAIT:
            self._stand_down()
            return
        wanted = build_lease(self._ref, lease, self._me, self._api.now(), self._timing)
        written = self._api.update(wanted) if lease is not None else self._api.create(wanted)
        self._observed = observe(written, self._observed, asked_at)
        self._renewed_at = asked_at

    def _stand_down(self) -> None:
        """Somebody else holds it: whatever we believed is over now, not at the deadline."""
        self._renewed_at = float("-inf")
