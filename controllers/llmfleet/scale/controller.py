"""Look at one fleet, ask `replay.step`, carry the plan out. All waiting of scale/ happens here.

In: caches, answers of engines and routers. Out: whole LLMClusters created, patched and deleted; status, events, one
log line for each decision that is news. A decision is made once per interval; between two of them a pass only goes on
with the last one, so that an event brings its consequence at once and no figure is used twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from llmfleet import names
from llmfleet.api.autoscaler import FROM_PROMETHEUS, AutoscalerSpec, parse_autoscaler, parse_template
from llmfleet.api.parse import SpecError
from llmfleet.api.types import Role
from llmfleet.kube import selections
from llmfleet.kube.client import Api
from llmfleet.kube.errors import Rejected
from llmfleet.kube.execute import execute
from llmfleet.kube.plan import Action, ApplyStatus
from llmfleet.kube.refs import AUTOSCALER, Key, Manifest, Ref, key_of, uid_of
from llmfleet.kube.watch.client import Cache
from llmfleet.kube.workqueue import Manager
from llmfleet.scale.client import Source
from llmfleet.scale.events import build_events, build_failure
from llmfleet.scale.fleet import Fleet, build_fleet
from llmfleet.scale.memory import Memory
from llmfleet.scale.plan import Ask, Moves, narrowed, plan
from llmfleet.scale.replay import Step, acted, capacities, first_memory, headroom, room, spare, step
from llmfleet.scale.rivals import counts, elder
from llmfleet.scale.signals import Observation
from llmfleet.scale.sources.client import Sources
from llmfleet.scale.status import Facts, derive_status, essence, refused_status
from llmfleet.scale.targets import Targets, cluster_of, engine_targets, gpu_query, router_targets
from llmfleet.settings import AutoscalerSettings
from llmfleet.telemetry import AutoscalerMetrics

log = logging.getLogger(__name__)

ASLEEP_SECONDS: Final = 2.0
"""An empty fleet is asked about often: somebody may be waiting for it."""
FIRST_SECONDS: Final = 5.0
"""One look at a counter says nothing: a process that has just begun takes its second soon."""
STATUS_SECONDS: Final = 60.0
"""Figures alone are not worth a write more often than this."""
REFUSED_AGAIN: Final = timedelta(seconds=60)
SELECTOR: Final = "spec.scaleTargetRef.labelSelector"
RIVAL: Final = "is older and sizes the same instances: delete one of the two, or give each a label of its own"
BY_CLUSTER: Final = "scaled-cluster"

Clock = Callable[[], float]
Keys = Iterable[Key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caches:
    """Every cache a pass reads."""

    scalers: Cache
    clusters: Cache
    engines: Cache
    routers: Cache


@dataclass(slots=True, kw_only=True)
class Known:
    """What is kept of one autoscaler between passes. Losing it costs patience, never a wrong move."""

    uid: str
    memories: Mapping[Role, Memory] = field(default_factory=dict)
    last: Step | None = None
    looks: int = 0
    looked: float = float("-inf")
    """By a clock that nobody sets, as `reported` is: one that is set back must not keep a fleet as it is."""
    generation: int = -1
    parsed: tuple[int, AutoscalerSpec] | None = None
    """The spec of a generation: reading it costs more than a decision."""
    reported: float = float("-inf")
    deleted: frozenset[str] = frozenset()
    """Instances whose deletion was asked for and is not in the cache yet."""
    announced: Mapping[Role, tuple[int, str]] = field(default_factory=dict)


def install(manager: Manager, api: Api, settings: AutoscalerSettings, clock: Clock, metrics: AutoscalerMetrics) -> None:
    """Register the LLMClusterAutoscaler controller."""
    namespaces = settings.namespaces
    caches = Caches(
        scalers=manager.cache(AUTOSCALER, namespaces=namespaces),
        clusters=selections.clusters(manager, namespaces),
        engines=selections.engine_pods(manager, namespaces),
        routers=selections.router_pods(manager, namespaces),
    )
    sources = Sources(api, clock, metrics)
    controller = AutoscalerController(api, caches, settings, clock, metrics, sources.of)
    manager.controller("scale", controller.reconcile, sources=controller.sources())


class AutoscalerController:
    """One pass per LLMClusterAutoscaler."""

    def __init__(
        self,
        api: Api,
        caches: Caches,
        settings: AutoscalerSettings,
        clock: Clock,
        metrics: AutoscalerMetrics,
        source_of: Callable[[AutoscalerSpec, str], Source],
        pace: Clock = time.monotonic,
    ) -> None:
        self._api, self._caches, self._settings = api, caches, settings
        self._clock, self._metrics, self._source_of, self._pace = clock, metrics, source_of, pace
        self._known: dict[Key, Known] = {}
        self._waiting: set[Key] = set()
        """Those that another one is in the way of: a change of any may set them free."""
        caches.engines.add_index(BY_CLUSTER, lambda pod: [cluster_of(pod)])

    def sources(self) -> list[tuple[Cache, Callable[[Manifest], Keys]]]:
        """What makes a fleet worth a pass: its autoscaler and its instances. Pods are only looked up."""
        caches = self._caches
        return [
            (caches.scalers, lambda scaler: [key_of(scaler), *self._waiting.copy()]),
            (caches.clusters, self._of_cluster),
            (caches.engines, lambda _: ()),
            (caches.routers, lambda _: ()),
        ]

    def _of_cluster(self, cluster: Manifest) -> Keys:
        """Every autoscaler of the namespace that counts this instance."""
        labels = cluster["metadata"].get("labels") or {}
        namespace = cluster["metadata"].get("namespace", "")
        return [key_of(scaler) for scaler in self._caches.scalers.list(namespace) if counts(scaler, labels)]

    def reconcile(self, key: Key) -> timedelta | None:
        """One pass; returns when to look again."""
        scaler = self._caches.scalers.get(*key)
        if scaler is None or scaler["metadata"].get("deletionTimestamp") or not self._is_ours(scaler):
            self._forget(key)
            return None
        known = self._known.get(key)
        if known is None or known.uid != uid_of(scaler):
            known = self._known[key] = Known(uid=uid_of(scaler))
        try:
            spec = spec_of(scaler, known)
        except SpecError as error:
            self._refuse(key, scaler, known, str(error))
            return REFUSED_AGAIN
        first = elder(scaler, self._caches.scalers.list(key.namespace), self._is_able)
        if first is not None:
            self._refuse(key, scaler, known, f"{SELECTOR}: {first['metadata']['name']} {RIVAL}")
            self._waiting.add(key)
            return REFUSED_AGAIN
        self._waiting.discard(key)
        return self._pass(key, scaler, spec, known)

    def _is_able(self, scaler: Manifest) -> bool:
        """Whether another autoscaler is this process' to act on, and its spec can be used."""
        known = self._known.get(key_of(scaler))
        try:
            spec_of(scaler, known if known and known.uid == uid_of(scaler) else Known(uid=uid_of(scaler)))
        except SpecError:
            return False
        return self._is_ours(scaler)

    def _is_ours(self, scaler: Manifest) -> bool:
        claimed = (scaler["metadata"].get("annotations") or {}).get(names.MANAGED_BY_ANNOTATION)
        return claimed in (None, self._settings.identity)

    def _pass(self, key: Key, scaler: Manifest, spec: AutoscalerSpec, known: Known) -> timedelta:
        now = self._clock()
        live = {cluster["metadata"]["name"]: cluster for cluster in self._caches.clusters.list(key.namespace)}
        known.deleted &= frozenset(map(uid_of, live.values()))
        fleets = self._fleets(scaler, spec, known, live, now)
        pause = self._pause(spec, fleets, known)
        generation = int(scaler["metadata"].get("generation", 0))
        if known.last is None or generation != known.generation or self._pace() - known.looked >= pause - 0.05:
            looked = self._pace()
            self._decide(key, scaler, spec, known, fleets, now)
            known.looked, known.looks, known.generation = looked, known.looks + 1, generation
            pause = self._pause(spec, fleets, known)
        assert known.last is not None
        moved = {} if spec.paused or spec.dry_run else self._moves(scaler, spec, known.last, fleets, live)
        self._carry_out(key, scaler, spec, known, fleets, moved, now)
        return timedelta(seconds=max(known.looked + pause - self._pace(), 0.05))

    def _pause(self, spec: AutoscalerSpec, fleets: Mapping[Role, Fleet], known: Known) -> float:
        asleep = any(fleet.size == 0 for fleet in fleets.values()) and not spec.paused
        soon = ASLEEP_SECONDS if asleep else FIRST_SECONDS if known.looks < 2 else self._settings.interval
        return min(soon, self._settings.interval)

    # Facts.

    def _fleets(
        self, scaler: Manifest, spec: AutoscalerSpec, known: Known, live: Mapping[str, Manifest], now: float
    ) -> dict[Role, Fleet]:
        selected = [
            cluster
            for cluster in live.values()
            if spec.selector.items() <= (cluster["metadata"].get("labels") or {}).items()
        ]
        fleets = {}
        for role, rules in spec.fleets().items():
            memory = known.memories.get(role)
            readings = memory.engines.values() if memory else ()
            fleets[role] = build_fleet(
                role,
                selected,
                owner=uid_of(scaler),
                autoscaler=scaler["metadata"]["name"],
                prefix=rules.instance_template.name_prefix,
                template=rules.instance_template.spec,
                loads={reading.instance: reading.running + reading.waiting for reading in readings},
                deleted=known.deleted,
                now=now,
            )
        return fleets

    def _decide(
        self,
        key: Key,
        scaler: Manifest,
        spec: AutoscalerSpec,
        known: Known,
        fleets: Mapping[Role, Fleet],
        now: float,
    ) -> None:
        """Ask everybody, then decide."""
        source = self._source_of(spec, key.namespace)
        seen = {role: self._observe(source, spec, role, fleet, key.namespace) for role, fleet in fleets.items()}
        memories = {role: known.memories.get(role) or first_memory(scaler, role, self._clock()) for role in fleets}
        found = step(spec, fleets, seen, capacities(spec), memories, max(now, self._clock()))
        known.last, known.memories = found, found.memories
        self._announce(key, known, fleets, found)

    def _observe(self, source: Source, spec: AutoscalerSpec, role: Role, fleet: Fleet, namespace: str) -> Observation:
        pods = [
            pod
            for one in fleet.instances
            for pod in self._caches.engines.by_index(BY_CLUSTER, f"{namespace}/{one.name}")
        ]
        routers, wanted = router_targets(self._caches.routers.list(namespace))
        rules = spec.fleets()[role]
        return source.observe(
            Targets(
                namespace=namespace,
                engines=engine_targets([one.name for one in fleet.instances], pods),
                routers=routers,
                serving=fleet.serving,
                routers_expected=len(wanted),
                routers_wanted=wanted,
                models=frozenset(parse_template(rules.instance_template, "spec").names),
                queries=tuple(
                    (rule.query or str(rule.type), rule.query or gpu_query(namespace, fleet))
                    for rule in rules.metrics
                    if rule.type in FROM_PROMETHEUS
                ),
            )
        )

    # Writes.

    def _moves(
        self,
        scaler: Manifest,
        spec: AutoscalerSpec,
        last: Step,
        fleets: Mapping[Role, Fleet],
        live: Mapping[str, Manifest],
    ) -> dict[Role, Moves]:
        """Decode before prefill, which needs it."""
        # The ratio as the fleets are now, not as they were when it was decided.
        may_go, may_come = spare(spec, fleets), room(spec, fleets, last.decisions)
        return {
            role: plan(
                Ask(
                    scaler=scaler,
                    rules=spec.fleets()[role],
                    fleet=fleets[role],
                    target=last.decisions[role].instances,
                    live=live,
                    victim=spec.victim,
                    ready_may_go=may_go.get(role),
                    more_may_come=may_come.get(role),
                )
            )
            for role in sorted(fleets)
        }

    def _carry_out(
        self,
        key: Key,
        scaler: Manifest,
        spec: AutoscalerSpec,
        known: Known,
        fleets: Mapping[Role, Fleet],
        moved: Mapping[Role, Moves],
        now: float,
    ) -> None:
        assert known.last is not None
        scaled, refusals = "", list[Rejected]()
        for role, moves in moved.items():
            scaled = self._move(scaler, known, fleets[role], role, moves, refusals) or scaled
        facts = Facts(
            generation=int(scaler["metadata"].get("generation", 0)),
            before=scaler.get("status") or {},
            now=now,
            scaled=scaled,
        )
        status = derive_status(spec, fleets, known.last, facts)
        self._write_status(key, scaler, known, status)
        if refusals:
            raise refusals[0]

    def _move(
        self, scaler: Manifest, known: Known, fleet: Fleet, role: Role, moves: Moves, refusals: list[Rejected]
    ) -> str:
        """Carry one role's moves out and tell people; returns what it was, if it changed the size."""
        if not moves.actions:
            return ""
        assert known.last is not None
        decision = known.last.decisions[role]
        moves, found = self._attempt(moves)
        if found:
            refusals += found
            execute((build_failure(scaler, str(decision.reason), found[0].message),), self._api)
        known.deleted |= {one.uid for one in moves.deleted}
        grew, shrank = moves.grew, bool(moves.deleted) and not moves.created
        memory = acted(known.memories[role], grew=grew, shrank=shrank, now=self._clock())
        known.memories = {**known.memories, role: memory}
        execute(tuple(build_events(scaler, fleet, moves, str(decision.reason), decision.message)), self._api)
        return "ScaleUp" if grew else "ScaleDown" if shrank else ""

    def _attempt(self, moves: Moves) -> tuple[Moves, list[Rejected]]:
        """What was done of the moves, and what was refused: a template nobody takes must not keep a fleet's size."""
        done, refused = list[Action](), list[Rejected]()
        for action in moves.actions:
            try:
                execute((action,), self._api)
                done.append(action)
            except Rejected as error:
                refused.append(error)
        return narrowed(moves, done), refused

    def _write_status(self, key: Key, scaler: Manifest, known: Known, status: dict[str, Any]) -> None:
        """Counts, reasons and conditions at once; figures that only drift now and then."""
        before, now = scaler.get("status") or {}, self._pace()
        if essence(status) == essence(before) and now - known.reported < STATUS_SECONDS:
            return
        ref = Ref(kind=AUTOSCALER, namespace=key.namespace, name=key.name)
        execute((ApplyStatus(ref=ref, status=status),), self._api)
        known.reported = now

    def _refuse(self, key: Key, scaler: Manifest, known: Known, error: str) -> None:
        """A spec nobody can use changes nothing that runs; its condition says what to write."""
        facts = Facts(
            generation=int(scaler["metadata"].get("generation", 0)),
            before=scaler.get("status") or {},
            now=self._clock(),
        )
        self._write_status(key, scaler, known, refused_status(error, facts))

    # What people and Prometheus see.

    def _announce(self, key: Key, known: Known, fleets: Mapping[Role, Fleet], found: Step) -> None:
        """Figures always, a log line when the decision is news."""
        for role, decision in found.decisions.items():
            fleet, labels, view = fleets[role], (str(key), str(role)), found.views[role]
            verb = (
                "grow" if decision.instances > fleet.size else "shrink" if decision.instances < fleet.size else "hold"
            )
            base, factor = headroom(found.memories[role], view)
            self._metrics.decisions.labels(*labels, verb, str(decision.reason)).inc()
            self._metrics.desired.labels(*labels).set(decision.instances)
            self._metrics.current.labels(*labels).set(fleet.size)
            self._metrics.ready.labels(*labels).set(fleet.ready)
            self._metrics.load.labels(*labels).set(base / view.capacity.rho)
            self._metrics.headroom.labels(*labels).set(factor)
            self._metrics.age.labels(*labels).set(view.age)
            news = (decision.instances, str(decision.reason))
            if known.announced.get(role) != news:
                fields = {
                    "fleet": str(key),
                    "role": str(role),
                    "decision": verb,
                    "reason": str(decision.reason),
                    "current": fleet.size,
                    "desired": decision.instances,
                    "why": decision.message,
                }
                log.info("fleet decided", extra={"fields": fields})
                known.announced = {**known.announced, role: news}

    def _forget(self, key: Key) -> None:
        self._waiting.discard(key)
        if self._known.pop(key, None) is not None:
            self._metrics.forget(str(key))


def spec_of(scaler: Manifest, known: Known) -> AutoscalerSpec:
    """The spec, read once for each generation."""
    generation = int(scaler["metadata"].get("generation", 0))
    if known.parsed is None or known.parsed[0] != generation:
        known.parsed = (generation, parse_autoscaler(scaler.get("spec")))
    return known.parsed[1]
