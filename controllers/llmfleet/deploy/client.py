"""Talk to engines and routers, outside the reconcile thread.

In: what a pass wants to know. Out: what is known so far, at once; a question that is due is asked by a small pool of
threads with short time-outs, and the key is woken when the answer is there. One dead engine keeps one thread of the
pool for two seconds and nothing else. Answers are a cache: losing them costs asking again.
"""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from llmfleet import names
from llmfleet.deploy.records import Figures
from llmfleet.deploy.samples import engine_load, router_figures
from llmfleet.kube.refs import Key

log = logging.getLogger(__name__)

PROBE_THREADS: Final = 8
WARM_UP_THREADS: Final = 16
PROBE_SECONDS: Final = 2.0
WARM_UP_SECONDS: Final = 120.0
FRESH: Final = timedelta(milliseconds=900)
FIGURES_FRESH: Final = timedelta(seconds=5)
LONGEST_PAUSE: Final = timedelta(seconds=30)
FORGOTTEN_AFTER: Final = timedelta(minutes=10)

Clock = Callable[[], datetime]
Wake = Callable[[Key], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLook:
    """What an engine said while it was being drained."""

    idle_looks: int = 0
    serving: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The last answer to one question and when it came; `tries` counts failures in a row."""

    value: Any = None
    at: datetime | None = None
    asked: datetime
    busy: bool = False
    tries: int = 0


class Prober:
    """Questions by name, asked at most once at a time each."""

    def __init__(self, clock: Clock, wake: Wake) -> None:
        self._clock, self._wake = clock, wake
        self._answers: dict[tuple[str, str], Answer] = {}
        self._lock = threading.Lock()
        self._probes = ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="probe")
        self._warm_ups = ThreadPoolExecutor(WARM_UP_THREADS, thread_name_prefix="warm-up")

    def engine(self, key: Key, pod: str, address: str, port: int) -> EngineLook:
        """Idle looks in a row, at least a second apart."""
        question = ("engine", pod)
        self._ask(key, question, FRESH, lambda: self._look(question, address, port))
        look = self._value(question)
        return look if isinstance(look, EngineLook) else EngineLook()

    def forget_engine(self, pod: str) -> None:
        """Looks from before the routers let go prove nothing."""
        with self._lock:
            self._answers.pop(("engine", pod), None)

    def router(self, key: Key, pod: str, address: str) -> int | None:
        """The generation of the document that a router works with; None when it did not answer."""
        question = ("router", pod)
        self._ask(key, question, FRESH, lambda: fetch_generation(address))
        generation = self._value(question)
        return generation if isinstance(generation, int) else None

    def figures(self, key: Key, pod: str, address: str) -> Mapping[str, Figures] | None:
        """Counters of one router by instance."""
        question = ("figures", pod)
        self._ask(key, question, FIGURES_FRESH, lambda: router_figures(fetch(address, names.ADMIN_PORT, "/metrics")))
        figures = self._value(question)
        return figures if isinstance(figures, dict) else None

    def warm_up(self, key: Key, container: str, address: str, port: int, body: Mapping[str, Any]) -> None:
        """Send the warm-up request to the engine in this container, again and again until it answers."""
        question = ("warm-up", container)
        if not self.warmed(container):
            self._ask(key, question, self._pause(question), lambda: send_warm_up(address, port, body), self._warm_ups)

    def warmed(self, container: str) -> bool:
        """True once the engine in this container has answered the warm-up request."""
        return self._value(("warm-up", container)) is True

    def _look(self, question: tuple[str, str], address: str, port: int) -> EngineLook:
        before = self._value(question)
        looks = before.idle_looks if isinstance(before, EngineLook) else 0
        try:
            idle = engine_load(fetch(address, port, "/metrics")) <= 0
        except ConnectionRefusedError:
            return EngineLook(serving=False)
        except OSError:
            return EngineLook()
        return EngineLook(idle_looks=looks + 1 if idle else 0)

    def _pause(self, question: tuple[str, str]) -> timedelta:
        with self._lock:
            answer = self._answers.get(question)
        return min(timedelta(seconds=2 ** min(answer.tries if answer else 0, 10)), LONGEST_PAUSE)

    def _value(self, question: tuple[str, str]) -> Any:
        with self._lock:
            answer = self._answers.get(question)
            return answer.value if answer else None

    def _ask(
        self,
        key: Key,
        question: tuple[str, str],
        fresh: timedelta,
        work: Callable[[], Any],
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        now = self._clock()
        with self._lock:
            answer = self._answers.get(question)
            if answer and (answer.busy or (answer.at and timedelta(0) <= now - answer.at < fresh)):
                return
            self._answers[question] = replace(answer or Answer(asked=now), asked=now, busy=True)
            self._forget(now)
        (pool or self._probes).submit(self._work, key, question, work)

    def _work(self, key: Key, question: tuple[str, str], work: Callable[[], Any]) -> None:
        value: Any = None
        try:
            value = work()
        except (OSError, http.client.HTTPException, ValueError) as error:
            log.info("no answer", extra={"fields": {"question": question[0], "key": str(key), "error": str(error)}})
        except Exception:
            log.exception("asking failed", extra={"fields": {"question": question[0], "key": str(key)}})
        with self._lock:
            answer = self._answers.get(question)
            if answer is not None:
                tries = answer.tries + 1 if value in (None, False) else 0
                self._answers[question] = replace(answer, value=value, at=self._clock(), busy=False, tries=tries)
        self._wake(key)

    def _forget(self, now: datetime) -> None:
        """Answers nobody has asked for lately."""
        old = [q for q, answer in self._answers.items() if not answer.busy and now - answer.asked > FORGOTTEN_AFTER]
        for question in old:
            del self._answers[question]

    def close(self) -> None:
        """Let go of everything that waits; what is being asked ends by its own time-out."""
        self._probes.shutdown(wait=False, cancel_futures=True)
        self._warm_ups.shutdown(wait=False, cancel_futures=True)


def fetch(address: str, port: int, path: str) -> str:
    """GET a page that must answer 200."""
    connection = http.client.HTTPConnection(address, port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != http.client.OK:
            raise OSError(f"GET {path}: {answer.status}")
        return body.decode("utf-8", "replace")
    finally:
        connection.close()


def fetch_generation(address: str) -> int:
    """The generation a router reports on its admin port."""
    return int(json.loads(fetch(address, names.ADMIN_PORT, "/fleet"))["generation"])


def send_warm_up(address: str, port: int, body: Mapping[str, Any]) -> bool:
    """True when the engine answered at all: a model that refuses completions (embeddings) has been reached too."""
    connection = http.client.HTTPConnection(address, port, timeout=WARM_UP_SECONDS)
    try:
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status < http.client.INTERNAL_SERVER_ERROR
    finally:
        connection.close()


def sum_figures(
    readings: Iterator[Mapping[str, Figures]], instance: str, fleet: frozenset[str]
) -> tuple[Figures, Figures]:
    """Counters of one instance and of the rest of its fleet, over all routers."""
    own, rest = Figures(), Figures()
    for reading in readings:
        for name, figures in reading.items():
            if name == instance:
                own = added(own, figures)
            elif name in fleet:
                rest = added(rest, figures)
    return own, rest


def added(left: Figures, right: Figures) -> Figures:
    return Figures(
        requests=left.requests + right.requests,
        errors=left.errors + right.errors,
        ttft_sum=left.ttft_sum + right.ttft_sum,
        ttft_count=left.ttft_count + right.ttft_count,
    )
