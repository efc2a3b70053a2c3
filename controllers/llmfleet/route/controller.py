"""Keep every backends ConfigMap equal to what its namespace's instances and routers are.

In: caches. Out: one merge patch per change, never a creation. One pass reads the caches, builds the whole document and
compares; all waiting and all writing of route/ happens here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

from llmfleet import names
from llmfleet.api.document import Document, State
from llmfleet.kube import selections
from llmfleet.kube.client import Api
from llmfleet.kube.errors import Conflict, KubeError
from llmfleet.kube.execute import execute
from llmfleet.kube.refs import AUTOSCALER, Key, Manifest, key_of
from llmfleet.kube.selectors import SelectorError, parse_selector
from llmfleet.kube.watch.client import Cache
from llmfleet.kube.workqueue import Manager
from llmfleet.route.fleet import NOTHING, Entries, build_document, build_entries, promised_models
from llmfleet.route.publish import Publication, plan_publication
from llmfleet.settings import OperatorSettings
from llmfleet.telemetry import OperatorMetrics

log = logging.getLogger(__name__)

Clock = Callable[[], datetime]

# The first change is published at once. While changes keep coming, a pass that took t is followed by a rest of
# REST_FACTOR * t, so that a large namespace costs a bounded share of the process and of the apiserver.
REST_FACTOR: Final = 8.0
SHORTEST_REST: Final = 0.02
LONGEST_REST: Final = 2.0


def install(
    manager: Manager, api: Api, settings: OperatorSettings, clock: Clock, metrics: OperatorMetrics | None = None
) -> None:
    """Register the route controller."""
    namespaces = settings.namespaces
    route = RouteController(
        api=api.as_manager(names.ROUTE_MANAGER),
        identity=settings.identity,
        clock=clock,
        metrics=metrics or OperatorMetrics(),
        backends=selections.backends(manager, namespaces),
        clusters=selections.clusters(manager, namespaces),
        statefulsets=selections.statefulsets(manager, namespaces),
        engines=selections.engine_pods(manager, namespaces),
        routers=selections.router_pods(manager, namespaces),
        scalers=manager.cache(AUTOSCALER, namespaces=namespaces, optional=True),
    )
    own = (route.backends, lambda configmap: [key_of(configmap)])
    watched = (route.clusters, route.statefulsets, route.engines, route.routers, route.scalers)
    others = [(cache, route.affected) for cache in watched]
    manager.controller("route", route.reconcile, sources=[own, *others], rest=rest_after)


def rest_after(took: float) -> float:
    """Seconds to rest after a pass that took so long."""
    return min(max(REST_FACTOR * took, SHORTEST_REST), LONGEST_REST)


class RouteController:
    """The caches that a pass reads, and when each ConfigMap was written last."""

    def __init__(
        self,
        *,
        api: Api,
        identity: str,
        clock: Clock,
        metrics: OperatorMetrics,
        backends: Cache,
        clusters: Cache,
        statefulsets: Cache,
        engines: Cache,
        routers: Cache,
        scalers: Cache,
    ) -> None:
        self._api, self._identity, self._clock, self._metrics = api, identity, clock, metrics
        self.backends = backends
        self.clusters, self.statefulsets, self.engines, self.routers = clusters, statefulsets, engines, routers
        self.scalers = scalers
        self._entries: dict[Key, Entries] = {}

    def affected(self, obj: Manifest) -> Iterable[Key]:
        """Any change in a namespace may matter to each of its ConfigMaps."""
        return [key_of(configmap) for configmap in self.backends.list(obj["metadata"].get("namespace", ""))]

    def reconcile(self, key: Key) -> None:
        """One pass for one ConfigMap."""
        configmap = self.backends.get(*key)
        if configmap is None or not self._is_ours(configmap):
            self._entries.pop(key, None)
            return
        self._publish(key, configmap)

    def _publish(self, key: Key, configmap: Manifest) -> None:
        document = self._document(key, configmap)
        publication = plan_publication(configmap, document, self._clock())
        if publication is not None:
            self._write(key, publication, document)

    def _document(self, key: Key, configmap: Manifest) -> Document:
        annotations = configmap["metadata"].get("annotations") or {}
        clusters = annotations.get(names.CLUSTER_SELECTOR_ANNOTATION, "")
        routers = annotations.get(names.ROUTER_SELECTOR_ANNOTATION)
        try:
            entries = self._entries[key] = build_entries(
                clusters=select(self.clusters.list(key.namespace), clusters),
                statefulsets=self.statefulsets.list(key.namespace),
                pods=self.engines.list(key.namespace),
                known=self._entries.get(key, NOTHING),
            )
            # No selector means no peers, not every router of the namespace.
            found = select(self.routers.list(key.namespace), routers) if routers else ()
            promised = promised_models(self.scalers.list(key.namespace), parse_selector(clusters))
            return build_document(entries, found, promised)
        except SelectorError as error:
            raise SelectorError(f"ConfigMap {key}: {error}") from None

    def _write(self, key: Key, publication: Publication, document: Document) -> None:
        try:
            execute((publication.patch,), self._api)
        except KubeError as error:
            self._metrics.publishes.labels("conflict" if isinstance(error, Conflict) else "failed").inc()
            raise
        self._metrics.publishes.labels("published").inc()
        self._metrics.generation.labels(*key).set(publication.generation)
        counts = count_states(document)
        for state, count in counts.items():
            self._metrics.endpoints.labels(*key, state).set(count)
        fields = {"configmap": str(key), "generation": publication.generation, **counts}
        log.info("backends published", extra={"fields": fields})

    def _is_ours(self, configmap: Manifest) -> bool:
        """Nobody else has claimed it."""
        annotations = configmap["metadata"].get("annotations") or {}
        return bool(annotations.get(names.MANAGED_BY_ANNOTATION, self._identity) == self._identity)


def select(objects: Sequence[Manifest], selector: str) -> list[Manifest]:
    """The objects whose labels match."""
    matches = parse_selector(selector)
    return [obj for obj in objects if matches(obj["metadata"].get("labels") or {})]


def count_states(document: Document) -> dict[str, int]:
    """Distinct endpoints by state; one engine may serve several models."""
    states = {endpoint.address: endpoint.state for model in document.models.values() for endpoint in model.endpoints}
    return {str(state): sum(found is state for found in states.values()) for state in State}
