"""Source Prometheus: the same readings as from the processes themselves, out of one server.

In: targets, an address. Out: an `Observation` whose readings have the age of their samples. Prometheus down, slow,
empty or odd is a problem that is said, never a fleet without load.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Final

import urllib3
from urllib3.exceptions import HTTPError

from llmfleet import names
from llmfleet.prometheus.query import PartialAnswer, QueryError, Sample, error_of, one_of, quoted, read_vector, select
from llmfleet.scale.samples import ENGINE_NAMES, ROUTER_NAMES, RUNNING, build_engine, build_router
from llmfleet.scale.signals import EngineReading, Observation, RouterReading
from llmfleet.scale.targets import Targets
from llmfleet.telemetry import AutoscalerMetrics

log = logging.getLogger(__name__)

ASK_SECONDS: Final = 5.0
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
        self._url = address.rstrip("/") + "/api/v1/query"
        self._clock, self._metrics, self._token = clock, metrics, token
        timeout = urllib3.Timeout(total=ASK_SECONDS)
        self._http = urllib3.PoolManager(timeout=timeout, retries=False, maxsize=8)

    def observe(self, targets: Targets) -> Observation:
        """Ask for engines, routers and queries; whatever cannot be had is missing."""
        try:
            return Observation(
                engines=self._engines(targets),
                routers=self._routers(targets),
                serving=targets.serving,
                routers_expected=targets.routers_expected,
                routers_wanted=targets.routers_wanted,
                external=self._external(targets),
            )
        except (HTTPError, QueryError, OSError) as error:
            self._metrics.scrapes.labels("prometheus", "failed").inc()
            problem = f"Prometheus does not answer: {error}"[:300]
            return Observation(serving=targets.serving, routers_expected=targets.routers_expected, problem=problem)

    def _engines(self, targets: Targets) -> tuple[EngineReading, ...]:
        pods = {names.rank_pod(target.name, 0): target.name for target in targets.engines}
        if not pods:
            return ()
        ages = self._times(f"{RUNNING}{{namespace={quoted(targets.namespace)},pod=~{one_of(pods)}}}")
        by_pod = self._grouped(select(ENGINE_NAMES, targets.namespace, pod=pods))
        found = (
            build_engine(by_pod[pod], instance, ages[pod])
            for pod, instance in sorted(pods.items())
            if pod in by_pod and pod in ages
        )
        return tuple(reading for reading in found if reading is not None)

    def _routers(self, targets: Targets) -> tuple[RouterReading, ...]:
        ages = self._times(f"{ALIVE}{{namespace={quoted(targets.namespace)}}}")
        by_pod = self._grouped(select(ROUTER_NAMES, targets.namespace, model=targets.models)) if ages else {}
        found = (build_router(by_pod.get(pod, ()), pod, targets.models, at) for pod, at in sorted(ages.items()))
        return tuple(reading for reading in found if reading is not None)

    def _external(self, targets: Targets) -> Mapping[str, float]:
        """A query that has no single, finite, whole answer has none."""
        values: dict[str, float] = {}
        for name, query in targets.queries:
            try:
                samples = [value for _, _, value in self._ask(query)]
            except PartialAnswer:
                continue
            if len(samples) == 1 and math.isfinite(samples[0]):
                values[name] = samples[0]
        return values

    def _times(self, selector: str) -> dict[str, float]:
        """When each pod's series was scraped last."""
        return {labels.get("pod", ""): value for _, labels, value in self._ask(f"max by (pod) (timestamp({selector}))")}

    def _grouped(self, selector: str) -> dict[str, list[Sample]]:
        by_pod: dict[str, list[Sample]] = {}
        for name, labels, value in self._ask(selector):
            by_pod.setdefault(labels.get("pod", ""), []).append((name, labels, value))
        return by_pod

    def _ask(self, query: str) -> list[Sample]:
        # A redirect is not followed: the token is for this server alone.
        headers = {"Authorization": f"Bearer {self._token()}"} if self._token else None
        fields = {"query": query}
        answer = self._http.request("POST", self._url, fields=fields, encode_multipart=False, headers=headers)
        try:
            body = json.loads(answer.data)
        except ValueError:
            body = None
        if answer.status != 200:
            # The address is a tenant's word: what another server says there is not repeated in a status.
            raise QueryError(f"{answer.status} {error_of(body)}".strip())
        if body is None:
            raise QueryError("no JSON")
        samples = list(read_vector(body))
        if body.get("warnings"):
            raise PartialAnswer("with warnings: the answer may be partial")
        self._metrics.scrapes.labels("prometheus", "ok").inc()
        return samples
