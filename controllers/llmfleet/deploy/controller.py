"""Gather the facts of one instance from the caches, let `decide` think, carry its plan out. All waiting of deploy/
happens here.

In: caches, the API, answers of engines and routers. Out: writes, one log line for each change of state. A pass
touches the caches by name and by index only, so its cost does not grow with the number of instances.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from llmfleet import names
from llmfleet.api.parse import SpecError, parse_spec
from llmfleet.api.types import Spec
from llmfleet.deploy import fleet as fleets
from llmfleet.deploy import restart, traffic
from llmfleet.deploy.children import Children
from llmfleet.deploy.client import Prober, sum_figures
from llmfleet.deploy.decide import Facts, Good, Outcome, decide
from llmfleet.deploy.drain import DrainFacts, Published
from llmfleet.deploy.objects.budget import budget_name, own_budget_name
from llmfleet.deploy.objects.identity import Identity, identify, is_ours
from llmfleet.deploy.objects.pod import Template, build_template
from llmfleet.deploy.objects.revision import REVISION_COMPONENT, revision_name
from llmfleet.deploy.observe import Instance, observe
from llmfleet.deploy.records import Figures
from llmfleet.deploy.update import Peer
from llmfleet.kube import selections
from llmfleet.kube.client import Api
from llmfleet.kube.errors import KubeError, NotFound, Rejected
from llmfleet.kube.execute import execute
from llmfleet.kube.plan import ApplyStatus
from llmfleet.kube.refs import (
    BUDGET,
    CLAIM,
    CONTROLLER_REVISION,
    NAMESPACE,
    NODE,
    SERVICE,
    Key,
    Manifest,
    Ref,
    key_of,
    uid_of,
)
from llmfleet.kube.watch.client import Cache
from llmfleet.kube.workqueue import Manager
from llmfleet.settings import OperatorSettings
from llmfleet.telemetry import OperatorMetrics

log = logging.getLogger(__name__)

Clock = Callable[[], datetime]
Keys = Iterable[Key]

BY_CLUSTER: Final = "cluster"
BY_FLEET: Final = "fleet"
UNSCHEDULABLE: Final = "unschedulable"
FLEET_LOCKS: Final = 64
KEPT_REVISIONS: Final = 128
NAMESPACE_FRESH: Final = timedelta(seconds=5)


def install(
    manager: Manager, api: Api, settings: OperatorSettings, clock: Clock, metrics: OperatorMetrics | None = None
) -> None:
    """Register the LLMCluster controller."""
    namespaces = settings.namespaces
    caches = Caches(
        clusters=selections.clusters(manager, namespaces),
        statefulsets=selections.statefulsets(manager, namespaces),
        pods=selections.engine_pods(manager, namespaces),
        services=manager.cache(SERVICE, namespaces=namespaces, label_selector=names.CLUSTER_LABEL),
        budgets=manager.cache(BUDGET, namespaces=namespaces, label_selector=names.FLEET_LABEL),
        claims=manager.cache(CLAIM, namespaces=namespaces, label_selector=names.CLUSTER_LABEL),
        backends=selections.backends(manager, namespaces),
        routers=selections.router_pods(manager, namespaces),
    )
    controller = ClusterController(
        api.as_manager(names.OPERATOR_MANAGER), caches, settings.identity, clock, metrics or OperatorMetrics()
    )
    queue = manager.controller("deploy", controller.reconcile, sources=controller.sources())
    controller.start(Prober(clock, queue.add), queue.add)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caches:
    """Every cache a pass reads."""

    clusters: Cache
    statefulsets: Cache
    pods: Cache
    services: Cache
    budgets: Cache
    claims: Cache
    backends: Cache
    routers: Cache


class ClusterController:
    """One pass per LLMCluster. What it keeps between passes is a cache."""

    def __init__(self, api: Api, caches: Caches, identity: str, clock: Clock, metrics: OperatorMetrics) -> None:
        self._api, self._caches, self._identity, self._clock, self._metrics = api, caches, identity, clock, metrics
        self._hashes: dict[Key, tuple[Any, str]] = {}
        self._refused: dict[Key, tuple[str, str]] = {}
        self._revisions: OrderedDict[tuple[str, str, str], Manifest] = OrderedDict()
        self._namespaces: dict[str, tuple[datetime, bool]] = {}
        self._announced: dict[Key, str] = {}
        self._reported: dict[Key, datetime] = {}
        # Updates of one fleet are decided one after another, so that two workers never see the same turn as free.
        self._turns = [threading.Lock() for _ in range(FLEET_LOCKS)]
        caches.pods.add_index(BY_CLUSTER, lambda pod: [cluster_of(pod)])
        caches.pods.add_index(UNSCHEDULABLE, lambda pod: [UNSCHEDULABLE] if is_unschedulable(pod) else [])
        caches.clusters.add_index(BY_FLEET, lambda cluster: [fleet_key(cluster)])

    def start(self, prober: Prober, wake: Callable[[Key], None]) -> None:
        """Questions and wake-ups go through these from now on."""
        self._prober, self._wake = prober, wake

    def sources(self) -> list[tuple[Cache, Callable[[Manifest], Keys]]]:
        """What makes an instance worth another look."""
        caches = self._caches
        return [
            (caches.clusters, self._of_cluster),
            (caches.statefulsets, self._of_child),
            (caches.pods, self._of_child),
            (caches.services, self._of_child),
            (caches.claims, self._of_child),
            (caches.budgets, self._of_budget),
            (caches.backends, lambda _: ()),
            (caches.routers, lambda _: ()),
        ]

    def _of_cluster(self, cluster: Manifest) -> Keys:
        keeper = fleets.keeper_of(self._fleet(cluster))
        return {key_of(cluster), Key(cluster["metadata"]["namespace"], keeper)} if keeper else {key_of(cluster)}

    def _of_child(self, child: Manifest) -> Keys:
        name = (child["metadata"].get("labels") or {}).get(names.CLUSTER_LABEL)
        return [Key(child["metadata"]["namespace"], name)] if name else []

    def _of_budget(self, budget: Manifest) -> Keys:
        labels, namespace = budget["metadata"].get("labels") or {}, budget["metadata"]["namespace"]
        if names.CLUSTER_LABEL in labels:
            return [Key(namespace, labels[names.CLUSTER_LABEL])]
        keeper = fleets.keeper_of(self._members(namespace, labels.get(names.FLEET_LABEL, "")))
        return [Key(namespace, keeper)] if keeper else []

    # One pass.

    def reconcile(self, key: Key) -> timedelta | None:
        """Look at one instance and do what is due; returns when to look again."""
        cluster = self._caches.clusters.get(*key)
        if cluster is None or not fleets.is_claimed(cluster, self._identity):
            self._forget(key)
            return None
        facts = self._gather(key, cluster)
        if not wants_turn(facts.instance):
            return self._carry_out(key, facts)
        with self._turns[hash(fleet_key(cluster)) % FLEET_LOCKS]:
            return self._carry_out(key, self._gather(key, self._caches.clusters.get(*key) or cluster))

    def _carry_out(self, key: Key, facts: Facts) -> timedelta | None:
        outcome = decide(facts, self._clock())
        try:
            execute(outcome.plan, self._api)
        except Rejected as error:
            outcome = self._refuse(facts, error)
        if any(isinstance(action, ApplyStatus) for action in outcome.plan):
            self._reported[key] = self._clock()
        self._follow_up(key, facts, outcome)
        return outcome.again

    def _refuse(self, facts: Facts, error: Rejected) -> Outcome:
        """The API server does not take what this spec asks for: that is the spec's fault, and what runs stays."""
        instance = facts.instance
        if instance.wanted is None:
            raise error
        message = f"the API server refuses it: {error.message}"
        self._refused[key_of(facts.cluster)] = (instance.wanted.hash, message)
        refused = replace(facts, instance=replace(instance, wanted=None, error=message))
        outcome = decide(refused, self._clock())
        execute(outcome.plan, self._api)
        return outcome

    def _follow_up(self, key: Key, facts: Facts, outcome: Outcome) -> None:
        """Log what changed, send the warm-up request, wake those who wait for this instance."""
        if outcome.warm_up:
            self._warm_up(key, facts.instance)
        if outcome.state is None:
            return
        reason = str(outcome.state.reason)
        if self._announced.get(key) != reason:
            self._count(key, reason)
            fields = {"llmcluster": str(key), "reason": reason, "why": outcome.state.message}
            log.info("instance changed state", extra={"fields": fields})
            self._wake_waiting(facts.cluster)

    def _count(self, key: Key, reason: str) -> None:
        before = self._announced.get(key)
        if before is not None:
            self._metrics.instances.labels(before).dec()
        self._announced[key] = reason
        self._metrics.instances.labels(reason).inc()
        self._metrics.transitions.labels(reason).inc()

    def _forget(self, key: Key) -> None:
        """The instance is gone, or somebody else's."""
        if key in self._announced:
            self._metrics.instances.labels(self._announced.pop(key)).dec()
        for kept in (self._hashes, self._refused, self._reported):
            kept.pop(key, None)

    def _wake_waiting(self, cluster: Manifest) -> None:
        for other in self._fleet(cluster):
            if fleets.waits(other):
                self._wake(key_of(other))

    # Facts.

    def _gather(self, key: Key, cluster: Manifest) -> Facts:
        identity = identify(cluster, self._identity)
        spec, template, error = self._template(identity, cluster)
        statefulset = self._caches.statefulsets.get(*key)
        if statefulset is not None and not is_ours(statefulset, self._identity):
            error = f"StatefulSet {key.name} exists and belongs to somebody else: delete it or rename the LLMCluster"
            statefulset, template = None, None
        pods = self._caches.pods.by_index(BY_CLUSTER, str(key))
        instance = observe(
            cluster,
            identity=identity,
            spec=spec,
            wanted=template,
            error=error,
            statefulset=statefulset,
            pods=pods,
        )
        turn = wants_turn(instance)
        return Facts(
            cluster=cluster,
            instance=instance,
            children=self._children(identity, cluster),
            fleet=self._peers(cluster) if turn else (),
            drain=self._drain(key, cluster, instance),
            good=self._good(instance),
            superseded=self._superseded(instance),
            dead_nodes=self._dead_nodes(instance),
            rivals=self._rivals(key) if restart.half_placed(instance) else frozenset(),
            warmed=self._warmed(instance),
            figures=self._figures(key, cluster, instance) if turn and instance.serves else None,
            unrouted=self._unrouted(cluster, spec) if instance.all_ready else "",
            namespace_gone=instance.deleting is not None and self._namespace_gone(key.namespace),
            reported=self._reported.get(key),
        )

    def _template(self, identity: Identity, cluster: Manifest) -> tuple[Spec | None, Template | None, str]:
        """The spec and the template it asks for, or what is wrong with it."""
        try:
            spec = parse_spec(cluster.get("spec"))
            template = build_template(identity, spec)
        except SpecError as error:
            return None, None, str(error)
        refused = self._refused.get(key_of(cluster))
        if refused and refused[0] == template.hash:
            return spec, None, refused[1]
        self._hashes[key_of(cluster)] = (asked(cluster), template.hash)
        return spec, template, ""

    def _children(self, identity: Identity, cluster: Manifest) -> Children:
        caches, namespace, name = self._caches, identity.namespace, identity.name
        fleet = self._fleet(cluster)
        keeps = fleets.keeper_of(fleet) == name
        return Children(
            group_service=caches.services.get(namespace, names.group_service(name)),
            service=caches.services.get(namespace, name),
            own_budget=caches.budgets.get(namespace, own_budget_name(identity)),
            claim=caches.claims.get(namespace, names.models_claim(name)),
            fleet_budget=caches.budgets.get(namespace, budget_name(identity.fleet)) if keeps else None,
            holders=fleets.build_holders(fleet) if keeps else (),
        )

    def _fleet(self, cluster: Manifest) -> list[Manifest]:
        return self._members(cluster["metadata"]["namespace"], fleets.fleet_of(cluster))

    def _members(self, namespace: str, fleet: str) -> list[Manifest]:
        """Living instances of a fleet that are ours."""
        return [
            cluster
            for cluster in self._caches.clusters.by_index(BY_FLEET, f"{namespace}/{fleet}")
            if fleets.is_claimed(cluster, self._identity) and not cluster["metadata"].get("deletionTimestamp")
        ]

    def _peers(self, cluster: Manifest) -> tuple[Peer, ...]:
        return tuple(
            fleets.build_peer(member, self._caches.statefulsets.get(*key_of(member)), self._wanted_hash(member))
            for member in self._fleet(cluster)
        )

    def _wanted_hash(self, cluster: Manifest) -> str:
        """Hash of the template an instance is asked for; empty when it cannot be built."""
        key = key_of(cluster)
        known = self._hashes.get(key)
        if known is None or known[0] != asked(cluster):
            _, template, _ = self._template(identify(cluster, self._identity), cluster)
            known = self._hashes[key] = (asked(cluster), template.hash if template else "")
        return known[1]

    def _good(self, instance: Instance) -> Good | None:
        """The last good template, asked for only when the StatefulSet has not just that one."""
        identity, records = instance.identity, instance.records
        if instance.statefulset is None:
            kept = self._find_revision(identity) if instance.status.get("engineRevision") else None
            return Good(manifest=kept) if kept else None
        wanted = instance.wanted.hash if instance.wanted else ""
        if not records.good or records.good == instance.current == wanted:
            return None
        kept = self._revision(identity, records.good)
        return Good(manifest=kept) if kept else None

    def _revision(self, identity: Identity, template_hash: str) -> Manifest | None:
        question = (identity.uid, identity.name, template_hash)
        if question not in self._revisions:
            try:
                found = self._api.get(revision_ref(identity, template_hash))
            except NotFound:
                return None
            self._revisions[question] = found
            if len(self._revisions) > KEPT_REVISIONS:
                self._revisions.popitem(last=False)
        return self._revisions[question]

    def _find_revision(self, identity: Identity) -> Manifest | None:
        """The StatefulSet is gone and its memory with it; the newest kept template is the last good one."""
        selector = f"{names.CLUSTER_LABEL}={identity.name},{names.APP_COMPONENT_LABEL}={REVISION_COMPONENT}"
        found, _ = self._api.list(CONTROLLER_REVISION, namespace=identity.namespace, label_selector=selector)
        return max(found, key=lambda item: int(item.get("revision") or 0), default=None)

    def _superseded(self, instance: Instance) -> Manifest | None:
        """Asked for anew: a template that comes back is kept under the same name with another UID."""
        identity, records = instance.identity, instance.records
        if records.superseded in ("", records.good, instance.current):
            return None
        try:
            return self._api.get(revision_ref(identity, records.superseded))
        except NotFound:
            return None

    def _dead_nodes(self, instance: Instance) -> frozenset[str]:
        """Nodes of overdue pods that are gone or not ready. A node we may not read counts as alive."""
        return frozenset(rank.node for rank in restart.overdue(instance, self._clock()) if self._is_dead(rank.node))

    def _is_dead(self, node: str) -> bool:
        try:
            found = self._api.get(Ref(kind=NODE, namespace="", name=node))
        except NotFound:
            return True
        except KubeError:
            return False
        conditions = (found.get("status") or {}).get("conditions") or ()
        return not any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)

    def _rivals(self, key: Key) -> frozenset[tuple[datetime, str]]:
        """Age of the other groups that have found only some of their places."""
        waiting = {cluster_of(pod) for pod in self._caches.pods.by_index(UNSCHEDULABLE, UNSCHEDULABLE)} - {str(key)}
        others = (self._half_placed(Key(*other.split("/", 1))) for other in waiting)
        return frozenset(age for age in others if age is not None)

    def _half_placed(self, key: Key) -> tuple[datetime, str] | None:
        cluster = self._caches.clusters.get(*key)
        if cluster is None:
            return None
        instance = observe(
            cluster,
            identity=identify(cluster, self._identity),
            spec=None,
            wanted=None,
            error="",
            statefulset=self._caches.statefulsets.get(*key),
            pods=self._caches.pods.by_index(BY_CLUSTER, str(key)),
        )
        return restart.age_order(instance) if restart.half_placed(instance) else None

    def _namespace_gone(self, namespace: str) -> bool:
        now = self._clock()
        known = self._namespaces.get(namespace)
        if known is None or not timedelta(0) <= now - known[0] <= NAMESPACE_FRESH:
            try:
                found = self._api.get(Ref(kind=NAMESPACE, namespace=namespace, name=namespace))
                gone = bool(found["metadata"].get("deletionTimestamp"))
            except NotFound:
                gone = True
            except KubeError:
                gone = False
            known = self._namespaces[namespace] = (now, gone)
        return known[1]

    # Questions to engines and routers.

    def _warm_up(self, key: Key, instance: Instance) -> None:
        leader, spec = instance.leader, instance.spec
        if leader is None or spec is None or not leader.address:
            return
        warmup = spec.lifecycle.warmup
        body = {"model": spec.names[0], "prompt": warmup.prompt, "max_tokens": warmup.max_tokens}
        self._prober.warm_up(key, leader.container, leader.address, spec.network.base_port, body)

    def _warmed(self, instance: Instance) -> str:
        leader = instance.leader
        return leader.container if leader and leader.container and self._prober.warmed(leader.container) else ""

    def _drain(self, key: Key, cluster: Manifest, instance: Instance) -> DrainFacts | None:
        """How far documents, routers and the engine are. Each is asked only when the one before has let go."""
        leader = instance.leader
        since = instance.deleting or instance.draining
        if since is None or leader is None:
            return None
        configmaps = traffic.concerned(self._caches.backends.list(key.namespace), cluster)
        published = tuple(self._published(key, configmap) for configmap in configmaps)
        facts = DrainFacts(since=since, timeout=timedelta(), serving=True, idle_looks=0, published=published)
        waiting = any(item.offers or item.behind for item in published)
        if waiting or not leader.address:
            self._prober.forget_engine(leader.uid)
            return facts
        port = instance.spec.network.base_port if instance.spec else names.ENGINE_PORT
        look = self._prober.engine(key, leader.uid, leader.address, port)
        return replace(facts, serving=look.serving, idle_looks=look.idle_looks)

    def _unrouted(self, cluster: Manifest, spec: Spec | None) -> str:
        if spec is None or not spec.router.enabled:
            return ""
        return traffic.why_unrouted(self._caches.backends.list(cluster["metadata"]["namespace"]), cluster)

    def _published(self, key: Key, configmap: Manifest) -> Published:
        document = traffic.read_document(configmap)
        offered = traffic.offers(document, key.name)
        routers: dict[str, int | None] = {}
        if not offered:
            pods = traffic.routers_of(configmap, self._caches.routers.list(key.namespace))
            routers = {
                pod["metadata"]["name"]: self._prober.router(key, uid_of(pod), pod["status"]["podIP"]) for pod in pods
            }
        generation = document.generation if document else 0
        return Published(name=configmap["metadata"]["name"], offers=offered, generation=generation, routers=routers)

    def _figures(self, key: Key, cluster: Manifest, instance: Instance) -> tuple[Figures, Figures] | None:
        """Counters of all routers, for an instance that may be on trial; None until every router has answered."""
        if instance.spec is None or not instance.spec.update.canary.enabled:
            return None
        pods = [
            pod
            for configmap in traffic.concerned(self._caches.backends.list(key.namespace), cluster)
            for pod in traffic.routers_of(configmap, self._caches.routers.list(key.namespace))
        ]
        readings = [self._prober.figures(key, uid_of(pod), pod["status"]["podIP"]) for pod in pods]
        if not readings or any(reading is None for reading in readings):
            return None
        members = frozenset(member["metadata"]["name"] for member in self._fleet(cluster))
        return sum_figures((reading for reading in readings if reading is not None), key.name, members)


def wants_turn(instance: Instance) -> bool:
    """It has served, and is asked for another template than the one it served with."""
    return instance.wanted is not None and instance.records.good not in ("", instance.wanted.hash)


def revision_ref(identity: Identity, template_hash: str) -> Ref:
    name = revision_name(identity, template_hash)
    return Ref(kind=CONTROLLER_REVISION, namespace=identity.namespace, name=name)


def asked(cluster: Manifest) -> tuple[Any, ...]:
    """What a template depends on: which object it is, its spec's generation, its fleet label."""
    metadata = cluster["metadata"]
    return metadata.get("uid"), metadata.get("generation"), fleets.fleet_of(cluster)


def cluster_of(pod: Manifest) -> str:
    metadata = pod["metadata"]
    return f"{metadata['namespace']}/{(metadata.get('labels') or {}).get(names.CLUSTER_LABEL, '')}"


def fleet_key(cluster: Manifest) -> str:
    return f"{cluster['metadata']['namespace']}/{fleets.fleet_of(cluster)}"


def is_unschedulable(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(item.get("type") == "PodScheduled" and item.get("reason") == "Unschedulable" for item in conditions)
