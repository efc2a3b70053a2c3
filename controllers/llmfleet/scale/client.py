"""Ask engines and routers for their metrics, all at once and never for long.

In: targets. Out: an `Observation`. Whoever does not answer whole within `ASK_SECONDS` is missing from it; a page that
drips is as dead as one that does not come. A router's page serves every fleet of its namespace, so it is asked once in
`SHARED_SECONDS`.
"""

from __future__ import annotations

import http.client
import io
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from llmfleet.scale.samples import ROUTER_NAMES, Sample, build_router, engine_from_text, read_text
from llmfleet.scale.signals import EngineReading, Observation, RouterReading
from llmfleet.scale.targets import Target, Targets
from llmfleet.telemetry import AutoscalerMetrics

log = logging.getLogger(__name__)

THREADS: Final = 64
"""Most of them wait for an engine that is busy with tokens: a thousand engines at 0.5 s each, every 15 s, need 33."""
ASK_SECONDS: Final = 2.0
GATHER_SECONDS: Final = 5.0
SHARED_SECONDS: Final = 2.0
MAX_PAGE: Final = 4 * 1024 * 1024

Clock = Callable[[], float]
T = TypeVar("T")


class Source(Protocol):
    """Whoever can say how a fleet does."""

    def observe(self, targets: Targets) -> Observation: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What one router said, and when."""

    at: float
    samples: tuple[Sample, ...]


class Direct:
    """Source Direct: the processes themselves."""

    def __init__(self, clock: Clock, metrics: AutoscalerMetrics) -> None:
        self._clock, self._metrics = clock, metrics
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ask")
        self._pages: dict[tuple[str, str, int], Page] = {}
        self._lock = threading.Lock()

    def observe(self, targets: Targets) -> Observation:
        """One look at everybody; blocks for `GATHER_SECONDS` at most."""
        engines = [self._pool.submit(self._engine, target) for target in targets.engines]
        routers = [self._pool.submit(self._router, target, targets.models) for target in targets.routers]
        asked: list[Future[Any]] = [*engines, *routers]
        wait(asked, timeout=GATHER_SECONDS)
        for late in asked:
            # Nobody waits for it any more; left in the queue it would delay the next look, and the one after that more.
            late.cancel()
        return Observation(
            engines=tuple(one for one in map(answer_of, engines) if one is not None),
            routers=tuple(one for one in map(answer_of, routers) if one is not None),
            serving=targets.serving,
            routers_expected=targets.routers_expected,
            routers_wanted=targets.routers_wanted,
        )

    def _engine(self, target: Target) -> EngineReading | None:
        text = self._ask("engine", target)
        return engine_from_text(text, target.name, self._clock()) if text is not None else None

    def _router(self, target: Target, models: frozenset[str]) -> RouterReading | None:
        page = self._page(target)
        return build_router(page.samples, target.name, models, page.at) if page else None

    def _page(self, target: Target) -> Page | None:
        # Pods of two namespaces may have the same name.
        now, asked = self._clock(), (target.pod, target.address, target.port)
        with self._lock:
            held = self._pages.get(asked)
            if held and 0 <= now - held.at < SHARED_SECONDS:
                return held
        text = self._ask("router", target)
        if text is None:
            return None
        page = Page(at=self._clock(), samples=tuple(read_text(text, ROUTER_NAMES)))
        with self._lock:
            self._pages[asked] = page
            for pod in [pod for pod, old in self._pages.items() if page.at - old.at > 60 * SHARED_SECONDS]:
                del self._pages[pod]
        return page

    def _ask(self, kind: str, target: Target) -> str | None:
        try:
            text = fetch(target.address, target.port, "/metrics")
        except (OSError, http.client.HTTPException) as error:
            self._metrics.scrapes.labels(kind, "failed").inc()
            fields = {"target": target.pod, "address": target.address, "error": str(error)}
            log.debug("no answer", extra={"fields": fields})
            return None
        self._metrics.scrapes.labels(kind, "ok").inc()
        return text


def answer_of(future: Future[T]) -> T | None:
    """What came back in time."""
    return future.result() if future.done() and not future.cancelled() and not future.exception() else None


class Hurried(io.RawIOBase):
    """What a socket receives until a moment. Its own timeout begins anew with every byte."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        super().__init__()
        self._socket, self._deadline = connected, deadline
        self._raw = connected.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def fetch(address: str, port: int, path: str) -> str:
    """GET a page that must answer 200 and be whole within `ASK_SECONDS`."""
    connection = http.client.HTTPConnection(address, port)
    status, body = exchange(connection, "GET", path, deadline=time.monotonic() + ASK_SECONDS)
    if status != http.client.OK:
        raise OSError(f"GET {path}: {status}")
    return body.decode("utf-8", "replace")


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    *,
    deadline: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    secured: ssl.SSLContext | None = None,
    most: int = MAX_PAGE,
) -> tuple[int, bytes]:
    """One question and the whole answer, by one moment and within one size; as it was sent, never unpacked."""
    answer: http.client.HTTPResponse | None = None
    try:
        connection.sock = reach(connection.host, connection.port, deadline)
        if secured is not None:
            connection.sock.settimeout(left(deadline))
            connection.sock = secured.wrap_socket(connection.sock, server_hostname=connection.host)
        connection.sock.settimeout(left(deadline))
        connection.request(method, path, body=body, headers=headers or {})
        answer = http.client.HTTPResponse(connection.sock, method=method)
        answer.fp.close()
        answer.fp = io.BufferedReader(Hurried(connection.sock, deadline), 65536)
        answer.begin()
        return answer.status, whole(answer, f"{method} {path}", most)
    finally:
        if answer is not None:
            answer.close()
        connection.close()


def reach(host: str, port: int, deadline: float) -> socket.socket:
    """A connection to the first address of a name that answers; all of them share the time."""
    failed: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(left(deadline))
            made.connect(address)
        except OSError as error:
            made.close()
            failed = error
            continue
        return made
    raise failed


def whole(answer: http.client.HTTPResponse, asked: str, most: int) -> bytes:
    """Everything that was sent, unless that is too much."""
    parts, size = [], 0
    while part := answer.read1(65536):
        parts.append(part)
        size += len(part)
        if size > most:
            raise OSError(f"{asked}: too long after {size} bytes")
    return b"".join(parts)


def left(deadline: float) -> float:
    """Seconds until a moment that is not over."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("too slow")
    return seconds
