"""Source Prometheus: the same readings as from the processes themselves, out of one server.

In: targets, an address. Out: an `Observation` whose readings have the age of their samples. Prometheus down, slow,
empty or odd is a problem that is said, never a fleet without load. The address is a tenant's word: an answer has one
moment to be whole by and a size, however it comes, and is read as it was sent.
"""

from __future__ import annotations

import functools
import http.client
import json
import logging
import math
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlencode

from llmfleet import names
from llmfleet.prometheus.query import (
    PartialAnswer,
    QueryError,
    Sample,
    error_of,
    may_have_token,
    one_of,
    quoted,
    read_vector,
    select,
    server_of,
)
from llmfleet.scale.client import exchange
from llmfleet.scale.samples import ENGINE_NAMES, ROUTER_NAMES, RUNNING, build_engine, build_router
from llmfleet.scale.signals import EngineReading, Observation, RouterReading
from llmfleet.scale.targets import Targets
from llmfleet.telemetry import AutoscalerMetrics

log = logging.getLogger(__name__)

ASK_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 15.0
"""For all questions about one fleet: a server that takes its time must not keep a worker."""
MAX_ANSWER: Final = 8 * 1024 * 1024
"""The series of some 400 engines; read, they take ten times as much memory."""
FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}
ALIVE: Final = "llmfleet_router_connections"
"""Every router exports it, also one that has served nothing."""


class Prometheus:
    """One server."""

    def __init__(
        self,
        address: str,
        clock: Callable[[], float],
        metrics: AutoscalerMetrics,
        token: Callable[[], str] | None = None,
    ) -> None:
        self._address, self._clock, self._metrics, self._token = address, clock, metrics, token

    def observe(self, targets: Targets) -> Observation:
        """Ask for engines, routers and queries; whatever cannot be had is missing."""
        until = time.monotonic() + LOOK_SECONDS
        try:
            return Observation(
                engines=self._engines(targets, until),
                routers=self._routers(targets, until),
                serving=targets.serving,
                routers_expected=targets.routers_expected,
                routers_wanted=targets.routers_wanted,
                external=self._external(targets, until),
            )
        except (http.client.HTTPException, OSError, ValueError) as error:
            self._metrics.scrapes.labels("prometheus", "failed").inc()
            # The words of a server that speaks something else are in the error, and are for nobody.
            said = "no HTTP" if isinstance(error, http.client.HTTPException) else str(error)
            problem = f"Prometheus does not answer: {said}"[:300]
            return Observation(serving=targets.serving, routers_expected=targets.routers_expected, problem=problem)

    def _engines(self, targets: Targets, until: float) -> tuple[EngineReading, ...]:
        pods = {names.rank_pod(target.name, 0): target.name for target in targets.engines}
        if not pods:
            return ()
        ages = self._times(f"{RUNNING}{{namespace={quoted(targets.namespace)},pod=~{one_of(pods)}}}", until)
        by_pod = self._grouped(select(ENGINE_NAMES, targets.namespace, pod=pods), until)
        found = (
            build_engine(by_pod[pod], instance, ages[pod])
            for pod, instance in sorted(pods.items())
            if pod in by_pod and pod in ages
        )
        return tuple(reading for reading in found if reading is not None)

    def _routers(self, targets: Targets, until: float) -> tuple[RouterReading, ...]:
        ages = self._times(f"{ALIVE}{{namespace={quoted(targets.namespace)}}}", until)
        selector = select(ROUTER_NAMES, targets.namespace, model=targets.models)
        by_pod = self._grouped(selector, until) if ages else {}
        found = (build_router(by_pod.get(pod, ()), pod, targets.models, at) for pod, at in sorted(ages.items()))
        return tuple(reading for reading in found if reading is not None)

    def _external(self, targets: Targets, until: float) -> Mapping[str, float]:
        """A query that has no single, finite, whole answer has none."""
        values: dict[str, float] = {}
        for name, query in targets.queries:
            try:
                samples = [value for _, _, value in self._ask(query, until)]
            except PartialAnswer:
                continue
            if len(samples) == 1 and math.isfinite(samples[0]):
                values[name] = samples[0]
        return values

    def _times(self, selector: str, until: float) -> dict[str, float]:
        """When each pod's series was scraped last."""
        found = self._ask(f"max by (pod) (timestamp({selector}))", until)
        return {labels.get("pod", ""): value for _, labels, value in found}

    def _grouped(self, selector: str, until: float) -> dict[str, list[Sample]]:
        by_pod: dict[str, list[Sample]] = {}
        for name, labels, value in self._ask(selector, until):
            by_pod.setdefault(labels.get("pod", ""), []).append((name, labels, value))
        return by_pod

    def _ask(self, query: str, until: float) -> list[Sample]:
        status, body = self._post(query, min(until, time.monotonic() + ASK_SECONDS))
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if status != http.client.OK:
            # The address is a tenant's word: what another server says there is not repeated in a status.
            raise QueryError(f"{status} {error_of(answer)}".strip())
        if answer is None:
            raise QueryError("no JSON")
        samples = list(read_vector(answer))
        if answer.get("warnings"):
            raise PartialAnswer("with warnings: the answer may be partial")
        self._metrics.scrapes.labels("prometheus", "ok").inc()
        return samples

    def _post(self, query: str, deadline: float) -> tuple[int, bytes]:
        """Nothing is followed or unpacked: the token is for this server alone, and so is the size."""
        server = server_of(self._address)
        if self._token and not may_have_token(server):
            raise QueryError("a token goes over https only, or to http://<Service>.<namespace>.svc of this cluster")
        made: http.client.HTTPConnection
        if server.secure:
            made = http.client.HTTPSConnection(server.host, server.port, context=trusted())
        else:
            made = http.client.HTTPConnection(server.host, server.port)
        return exchange(
            made,
            "POST",
            server.path + "/api/v1/query",
            deadline=deadline,
            body=urlencode({"query": query}).encode(),
            headers=FORM | ({"Authorization": f"Bearer {self._token()}"} if self._token else {}),
            secured=trusted() if server.secure else None,
            most=MAX_ANSWER,
        )


@functools.cache
def trusted() -> ssl.SSLContext:
    """Whom the machine trusts; reading that takes longer than a question."""
    return ssl.create_default_context()
