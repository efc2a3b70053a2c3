"""A small Kubernetes in memory that drives the real autoscaler controller through hours in milliseconds.

In: autoscalers, load, faults. Out: the API calls answered as an apiserver would; instances that take their time to
become Ready, drain before they go, and count what they serve. What must never happen is checked at every moment and
collected in `broken_rules`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from llmfleet import names
from llmfleet.api.autoscaler import AutoscalerSpec
from llmfleet.kube.diff import stamped
from llmfleet.kube.errors import Conflict, NotFound, Rejected
from llmfleet.kube.refs import AUTOSCALER, LLMCLUSTER, POD, Key, Kind, Manifest, Ref, kind_of
from llmfleet.scale.controller import AutoscalerController, Caches
from llmfleet.scale.signals import EngineReading, Observation, RouterReading
from llmfleet.scale.targets import Targets
from llmfleet.settings import AutoscalerSettings
from llmfleet.telemetry import AutoscalerMetrics
from unit.deploy.world import forget, lay_over
from unit.scale.builders import PLAIN, Counters

IDENTITY = "system/llmfleet"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
Where = tuple[str, str, str]
# UIDs differ between worlds, as they do between clusters: events are gathered by UID for a whole process.
WORLDS = itertools.count()


class Crash(Exception):
    """The autoscaler process died here."""


class World:
    """The cluster and its one namespace `d`. `run` lets a second pass for everybody, again and again."""

    def __init__(self, *, load_seconds: float = 40, drain_seconds: float = 5) -> None:
        self.now, self.number = BEGIN, next(WORLDS)
        self.load_seconds, self.drain_seconds = load_seconds, drain_seconds
        self.objects: dict[Where, dict[str, Any]] = {}
        self.applied: dict[Where, dict[str, Any]] = {}
        self.counters: dict[str, Counters] = {}
        self.wrong = timedelta()
        """By how much the clock of the autoscaler's machine was set."""
        self.load: Callable[[str], float] = lambda role: 0.0
        self.queued = 0.0
        self.silent: set[str] = set()
        self.problem = ""
        self.broken: set[str] = set()
        """Images that never become ready."""
        self.refused_images: set[str] = set()
        self.writes: list[str] = []
        self.events: list[tuple[str, str, str, str]] = []
        self.broken_rules: list[str] = []
        self.crash_after: int | None = None
        self.crashes = 0
        self.due: dict[Key, datetime] = {}
        self.version = self.seen = 0
        self.checks: list[Callable[[], None]] = []
        self.restart()

    def restart(self) -> None:
        caches: Any = Caches(
            scalers=WorldCache(self, AUTOSCALER),  # type: ignore[arg-type]
            clusters=WorldCache(self, LLMCLUSTER),  # type: ignore[arg-type]
            engines=WorldCache(self, POD),  # type: ignore[arg-type]
            routers=WorldCache(self, POD),  # type: ignore[arg-type]
        )
        self.metrics = AutoscalerMetrics()
        api: Any = WorldApi(self)
        settings = AutoscalerSettings(identity=IDENTITY)
        self.controller = AutoscalerController(
            api, caches, settings, self.wall, self.metrics, self.source_of, lambda: self.now.timestamp()
        )

    def wall(self) -> float:
        """What the machine's own clock says."""
        return (self.now + self.wrong).timestamp()

    def source_of(self, spec: AutoscalerSpec, namespace: str) -> Any:
        return WorldSource(self)

    # People.

    def create(self, made: Mapping[str, Any], **metadata: Any) -> None:
        obj = copy.deepcopy(dict(made))
        obj["metadata"] = {**obj["metadata"], "namespace": "d", "generation": 1, **metadata}
        self.store(AUTOSCALER, obj)

    def edit(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        scaler = self.scaler(name)
        change(scaler["spec"])
        scaler["metadata"]["generation"] += 1
        self.touch(scaler)

    def scaler(self, name: str = "llama") -> dict[str, Any]:
        return self.objects[(AUTOSCALER.plural, "d", name)]

    def status(self, name: str = "llama") -> dict[str, Any]:
        return dict(self.scaler(name).get("status") or {})

    def reason(self, name: str = "llama") -> str:
        return str((self.status(name).get("decision") or {}).get("reason", ""))

    def condition(self, kind: str, name: str = "llama") -> dict[str, Any]:
        return next((item for item in self.status(name).get("conditions", ()) if item["type"] == kind), {})

    def clusters(self, role: str = "") -> list[dict[str, Any]]:
        found = [obj for (plural, _, _), obj in self.objects.items() if plural == LLMCLUSTER.plural]
        return [obj for obj in found if not role or obj["spec"].get("role", "both") == role]

    def names(self, *, staying: bool = True) -> list[str]:
        return sorted(
            obj["metadata"]["name"]
            for obj in self.clusters()
            if not (staying and obj["metadata"].get("deletionTimestamp"))
        )

    def ready(self, role: str = "") -> int:
        """Ready instances, leaving ones included: they still serve."""
        return sum(is_ready(obj) for obj in self.clusters(role))

    # Time.

    def run(self, seconds: int, until: Callable[[], bool] | None = None) -> None:
        for _ in range(seconds):
            self.reconcile_all()
            self.tick()
            for check in self.checks:
                check()
            if until is not None and until():
                return
        if until is not None:
            found = [obj.get("status") for (plural, _, _), obj in self.objects.items() if plural == AUTOSCALER.plural]
            raise AssertionError(f"not so after {seconds} s: {found} {self.names(staying=False)}")

    def reconcile_all(self) -> None:
        changed, self.seen = self.version != self.seen, self.version
        keys = [Key(ns, name) for plural, ns, name in list(self.objects) if plural == AUTOSCALER.plural]
        for key in {*keys, *self.due}:
            if changed or self.due.get(key, self.now) <= self.now:
                self.reconcile(key)

    def reconcile(self, key: Key) -> None:
        again: timedelta | None = timedelta(seconds=1)
        try:
            again = self.controller.reconcile(key)
        except Crash:
            self.crashes += 1
            self.restart()
        except (Conflict, NotFound, Rejected):
            pass
        self.due[key] = self.now + min(again or timedelta(seconds=30), timedelta(seconds=30))

    def tick(self) -> None:
        """A second passes: engines serve, start and drain."""
        self.now += timedelta(seconds=1)
        for obj in self.clusters():
            metadata = obj["metadata"]
            if metadata.get("deletionTimestamp"):
                if self.age(metadata["deletionTimestamp"]) >= (self.drain_seconds if is_ready(obj) else 0):
                    self.drop(obj)
            elif not is_ready(obj) and obj["spec"]["image"] not in self.broken:
                if self.age(metadata["creationTimestamp"]) >= self.load_seconds:
                    self.set_ready(obj)
            elif not is_ready(obj) and self.age(metadata["creationTimestamp"]) >= 60:
                self.set_failed(obj)
        for role in ("both", "prefill", "decode"):
            serving = [obj["metadata"]["name"] for obj in self.clusters(role) if is_ready(obj)]
            for name in serving:
                counters = self.counters.setdefault(name, Counters())
                counters.prefill += self.load(role) / len(serving) / PLAIN.c
                counters.finished += self.load(role) / len(serving) / PLAIN.c / 1000
                counters.steps += 50

    def age(self, text: str) -> float:
        return (self.now - datetime.fromisoformat(text)).total_seconds()

    def set_ready(self, obj: dict[str, Any]) -> None:
        self.set_condition(obj, "True", "Serving")
        obj["status"]["modelLoadSeconds"] = self.load_seconds

    def set_failed(self, obj: dict[str, Any]) -> None:
        if not obj.get("status"):
            self.set_condition(obj, "False", "StartupTimeout")

    def set_condition(self, obj: dict[str, Any], status: str, reason: str) -> None:
        obj["status"] = {"conditions": [{"type": "Ready", "status": status, "reason": reason}]}
        self.touch(obj)

    # Objects.

    def touch(self, obj: dict[str, Any]) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)

    def store(self, kind: Kind, manifest: Manifest) -> dict[str, Any]:
        obj = copy.deepcopy(dict(manifest))
        self.version += 1
        obj["metadata"].setdefault("uid", f"w{self.number}-{self.version}")
        obj["metadata"].setdefault("creationTimestamp", self.now.isoformat())
        self.objects[(kind.plural, "d", obj["metadata"]["name"])] = obj
        self.touch(obj)
        return obj

    def remove(self, obj: dict[str, Any]) -> None:
        obj["metadata"].setdefault("deletionTimestamp", self.now.isoformat())
        self.touch(obj)

    def drop(self, obj: dict[str, Any]) -> None:
        where = (kind_of(obj).plural, "d", obj["metadata"]["name"])
        self.objects.pop(where, None)
        self.applied.pop(where, None)
        self.counters.pop(obj["metadata"]["name"], None)
        self.version += 1


def is_ready(obj: Mapping[str, Any]) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


class WorldCache:
    """A cache that is always current, except that a deletion shows one pass later."""

    def __init__(self, world: World, kind: Kind) -> None:
        self.world, self.kind = world, kind

    def get(self, namespace: str, name: str) -> Manifest | None:
        return self.world.objects.get((self.kind.plural, namespace, name))

    def list(self, namespace: str | None = None) -> list[Manifest]:
        return [obj for (plural, _, _), obj in self.world.objects.items() if plural == self.kind.plural]

    def add_index(self, name: str, values: Callable[[Manifest], Iterable[str]]) -> None:
        """Pods are not part of this world: the source below answers for them."""

    def by_index(self, name: str, value: str) -> list[Manifest]:
        return []


class WorldSource:
    """Engines and routers that answer as they are."""

    def __init__(self, world: World) -> None:
        self.world = world

    def observe(self, targets: Targets) -> Observation:
        world, at = self.world, self.world.wall()
        readings = [
            EngineReading(
                instance=name,
                at=at,
                prefill=counters.prefill,
                steps=counters.steps,
                finished=counters.finished,
            )
            for name, counters in world.counters.items()
            if name not in world.silent and name in {obj["metadata"]["name"] for obj in world.clusters()}
        ]
        router = RouterReading(router="r", at=at, queued=world.queued)
        return Observation(
            engines=tuple(readings) if not world.problem else (),
            routers=(router,),
            serving=targets.serving,
            routers_expected=1,
            problem=world.problem,
        )


class WorldApi:
    """The apiserver as `kube.client.Api` shows it."""

    manager = names.AUTOSCALER_MANAGER

    def __init__(self, world: World) -> None:
        self.world = world

    def apply(self, obj: Manifest, *, force: bool = True) -> Manifest:
        world, kind = self.world, kind_of(obj)
        wanted = copy.deepcopy(dict(stamped(obj, self.manager)))
        where = (kind.plural, "d", wanted["metadata"]["name"])
        if wanted["spec"]["image"] in world.refused_images:
            raise Rejected(f"spec.image: {wanted['spec']['image']} is refused")
        live = world.objects.get(where)
        self.before(f"{'patch' if live else 'create'} {where[2]}")
        if live and not force and where not in world.applied and live["spec"] != wanted["spec"]:
            raise Conflict("another manager's fields")
        uid = wanted["metadata"].get("uid")
        if uid and (live is None or live["metadata"]["uid"] != uid):
            raise Conflict("uid")
        if live is None:
            live = world.store(kind, wanted)
        else:
            forget(live, world.applied.get(where) or {}, wanted)
            lay_over(live, wanted)
            world.touch(live)
        world.applied[where] = wanted
        self.after()
        return live

    def apply_status(self, ref: Ref, status: Mapping[str, Any], *, resource_version: str | None = None) -> Manifest:
        self.before(f"status {ref.name}")
        found = self.world.objects.get((ref.kind.plural, "d", ref.name))
        if found is None:
            raise NotFound(str(ref))
        found["status"] = copy.deepcopy(dict(status))
        self.world.touch(found)
        self.after()
        return found

    def delete(self, ref: Ref, uid: str, **_: Any) -> None:
        self.before(f"delete {ref.name}")
        found = self.world.objects.get((ref.kind.plural, "d", ref.name))
        if found is None:
            raise NotFound(str(ref))
        if found["metadata"]["uid"] != uid:
            raise Conflict("uid")
        if not any(owner for owner in found["metadata"].get("ownerReferences") or ()):
            self.world.broken_rules.append(f"{ref.name} was deleted and is nobody's")
        self.world.remove(found)
        self.after()

    def create(self, obj: Manifest) -> Manifest:
        self.world.events.append((obj["regarding"]["name"], obj["reason"], obj["action"], obj["note"]))
        return obj

    def merge_patch(self, ref: Ref, body: Mapping[str, Any], **_: Any) -> Manifest:
        return {}

    def before(self, what: str) -> None:
        """An autoscaler may die before any write ..."""
        if self.world.crash_after == 0:
            self.world.crash_after = None
            raise Crash
        self.world.writes.append(what)

    def after(self) -> None:
        """... or right after it."""
        if self.world.crash_after is not None:
            self.world.crash_after -= 1
            if self.world.crash_after < 0:
                self.world.crash_after = None
                raise Crash
