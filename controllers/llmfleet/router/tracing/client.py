"""Sends spans to a collector: OTLP over HTTP, JSON, from a thread of its own.

In: spans that are over. Out: POSTs of at most a few hundred spans each. The queue is bounded; what finds it full is
dropped and counted. A collector that is slow, away or hostile costs requests nothing: the event loop only appends to a
deque. What failed for a passing reason is sent again a few times, then it is dropped too.

OpenTelemetry's own SDK and exporter were measured before this was written: importing them takes 0.24 s of CPU and
14 MiB, and ten distributions (protobuf among them) would join what is pinned and audited. What is used of them is one
fixed JSON document and one POST, so that is what is here. Ids, sampling and fields follow the same specifications.
"""

from __future__ import annotations

import http.client
import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from llmfleet.router.tracing.spans import Span, Value, encode
from llmfleet.telemetry import RouterMetrics

log = logging.getLogger(__name__)

BATCH: Final = 256
FLUSH_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 5.0  # for a collector to connect, and to answer
RETRIES_SECONDS: Final = (0.5, 1.0, 2.0, 4.0)
MAX_RETRY_AFTER: Final = 10.0
MAX_ANSWER: Final = 65536
FAREWELL_SECONDS: Final = 2.0
PASSING: Final = frozenset({429, 502, 503, 504})  # the ones that OTLP says to try again
PATH: Final = "/v1/traces"
# The thread lets the event loop go first after so many spans: it writes a span in some 10 us.
SLICE: Final = 16


class Rejected(Exception):
    """The collector does not take a batch; `passing` if it may later, after so many seconds if it said so."""

    def __init__(self, reason: str, *, passing: bool, after: float | None = None) -> None:
        super().__init__(reason)
        self.passing, self.after = passing, after


class Exporter:
    """Takes spans on the event loop and sends them beside it."""

    def __init__(
        self,
        endpoint: str,
        metrics: RouterMetrics,
        resource: Mapping[str, Value],
        version: str,
        *,
        max_queue: int,
        retries: tuple[float, ...] = RETRIES_SECONDS,
    ) -> None:
        url = urlsplit(endpoint)
        self._secure, self._host, self._port = url.scheme == "https", url.hostname or "", url.port
        self._path = url.path if url.path.strip("/") else PATH
        self._metrics, self._resource, self._version = metrics, dict(resource), version
        self._max_queue, self._retries = max_queue, retries
        self._queue: deque[Span] = deque()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)

    # ---- on the event loop ----

    def start(self) -> None:
        """Start the thread; nothing waits for it."""
        self._thread.start()

    def offer(self, spans: list[Span]) -> None:
        """Take the spans of a request, or drop them."""
        queue = self._queue
        if len(queue) + len(spans) > self._max_queue:
            self._metrics.spans["dropped"] += len(spans)
            return
        queue.extend(spans)
        if len(queue) >= BATCH and not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Send what there is, for a while; called beside the event loop."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(FAREWELL_SECONDS)
        if self._queue:
            self._metrics.spans["dropped"] += len(self._queue)

    # ---- on the thread ----

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            self._flush()
        self._flush()  # what came while it was told to stop
        self._hang_up()

    def _flush(self) -> None:
        queue = self._queue
        while queue:
            batch = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
            try:
                body = self._written(batch)
                result = "sent" if self._deliver(body) else "failed"
            except Exception:  # one batch that cannot be written must not be the last
                log.exception("spans could not be sent")
                result = "failed"
            self._metrics.spans[result] += len(batch)

    def _written(self, batch: list[Span]) -> bytes:
        return encode(batch, self._resource, self._version, pause=lambda: time.sleep(0), every=SLICE)

    def _deliver(self, body: bytes) -> bool:
        """Send a batch, also again; while the process stops, once."""
        for pause in (*self._retries, None):
            try:
                self._post(body)
            except Rejected as error:
                self._complain(str(error))
                if not error.passing or pause is None or self._stop.is_set():
                    return False
                self._stop.wait(min(error.after if error.after is not None else pause, MAX_RETRY_AFTER))
            else:
                self._complained = False
                return True
        return False

    def _post(self, body: bytes) -> None:
        try:
            connection = self._connected()
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read(MAX_ANSWER + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._hang_up()
            raise Rejected(f"not reached: {type(error).__name__}", passing=True) from None
        if answer.will_close or len(text) > MAX_ANSWER:
            self._hang_up()
        if answer.status != 200:
            after = answer.getheader("Retry-After", "")
            seconds = float(after) if after.isdigit() and len(after) < 6 else None
            raise Rejected(f"status {answer.status}", passing=answer.status in PASSING, after=seconds)
        self._look_at(text)

    def _look_at(self, text: bytes) -> None:
        """A collector may take a part of a batch; that is never sent again."""
        rejected = rejected_of(text)
        if rejected:
            self._metrics.spans["rejected"] += rejected
            self._complain(f"{rejected} spans were rejected")

    def _connected(self) -> http.client.HTTPConnection:
        connection = self._connection
        if connection is None:
            if self._secure:
                context = ssl.create_default_context()
                connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=ANSWER_SECONDS, context=context
                )
            else:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_SECONDS)
            self._connection = connection
        return connection

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _complain(self, reason: str) -> None:
        """Say once why the collector is no use, until it is again."""
        if not self._complained:
            self._complained = True
            log.warning("spans are not taken", extra={"fields": {"collector": self._host, "reason": reason}})


def rejected_of(text: bytes) -> int:
    """Read how many spans of a batch a collector did not take; what cannot be read says nothing."""
    try:
        document: Any = orjson.loads(text)
        return max(0, int(document["partialSuccess"]["rejectedSpans"]))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return 0
