"""A small Kubernetes in memory: enough of it to drive the real LLMCluster controller through minutes of faults in
milliseconds.

In: LLMClusters, nodes, faults. Out: the same API calls answered as an apiserver would, pods that are placed,
started, probed, drained and killed as a StatefulSet controller, a scheduler and a kubelet would, engines that behave
as vLLM was measured to (a leader does not notice a dead follower, a new rank cannot join an old leader), routers
that follow the published endpoints.

What must never happen is checked as it happens and collected in `World.broken_rules`.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from llmfleet import names
from llmfleet.deploy.client import EngineLook
from llmfleet.deploy.controller import Caches, ClusterController
from llmfleet.deploy.objects.identity import TEMPLATE_ANNOTATION
from llmfleet.deploy.records import Figures, parse_records
from llmfleet.kube.diff import stamped
from llmfleet.kube.errors import Conflict, NotFound, Rejected
from llmfleet.kube.refs import (
    BUDGET,
    CLAIM,
    CONFIGMAP,
    CONTROLLER_REVISION,
    LLMCLUSTER,
    NAMESPACE,
    NODE,
    POD,
    SERVICE,
    STATEFULSET,
    Key,
    Kind,
    Manifest,
    Ref,
    kind_of,
)
from llmfleet.telemetry import OperatorMetrics

START = datetime(2026, 1, 1, tzinfo=UTC)
IDENTITY = "system/llmfleet"
LOAD_SECONDS = 20
# UIDs differ between worlds, as they do between clusters: events are gathered by UID for a whole process.
WORLDS = itertools.count()
Where = tuple[str, str, str]


class Crash(Exception):
    """The operator process died here."""


@dataclass(slots=True)
class Process:
    """What runs in one engine container."""

    uid: str
    stage: str = "gate"
    """gate | loading | serving | hung | parked (restarted in place)."""
    peers: frozenset[str] = frozenset()
    """UIDs of the pods that passed the gate together."""
    since: datetime = START
    requests: list[datetime] = field(default_factory=list)
    """When each request in flight ends."""
    stopping: datetime | None = None


@dataclass(slots=True)
class Node:
    devices: int
    alive: bool = True


class World:
    """The cluster. `tick` moves everything but the operator by one second; `settle` runs both."""

    def __init__(self, *, nodes: Mapping[str, int] | None = None, seed: int = 0) -> None:
        self.now = START
        self.number = next(WORLDS)
        self.random = random.Random(seed)
        self.objects: dict[Where, dict[str, Any]] = {}
        self.stale: dict[Where, dict[str, Any]] = {}
        """What a cache that lags behind still holds."""
        self.applied: dict[Where, dict[str, Any]] = {}
        self.nodes = {name: Node(devices) for name, devices in (nodes or {"n1": 64}).items()}
        self.processes: dict[str, Process] = {}
        self.broken_images: set[str] = set()
        self.missing_images: set[str] = set()
        self.broken_rules: list[str] = []
        self.events: list[tuple[str, str, str]] = []
        self.writes: list[str] = []
        self.crash_after: int | None = None
        self.hang_prober = False
        self.terminating_namespaces: set[str] = set()
        self.routers: list[dict[str, Any]] = []
        self.figures: dict[str, Figures] = {}
        self.offered: frozenset[str] = frozenset()
        self.routers_offered: frozenset[str] = frozenset()
        self.lost_requests = 0
        self.served_requests = 0
        self.traffic = False
        self.queue: list[Key] = []
        self.due: dict[Key, datetime] = {}
        self._seen = -1
        self._counter = 0
        self.restart_operator()

    # The operator under test.

    def restart_operator(self) -> None:
        caches = Caches(
            clusters=WorldCache(self, LLMCLUSTER),
            statefulsets=WorldCache(self, STATEFULSET),
            pods=WorldCache(self, POD),
            services=WorldCache(self, SERVICE),
            budgets=WorldCache(self, BUDGET),
            claims=WorldCache(self, CLAIM),
            backends=WorldCache(self, CONFIGMAP),
            routers=WorldCache(self, POD, routers=True),
        )
        self.metrics = OperatorMetrics()
        api: Any = WorldApi(self)
        self.controller = ClusterController(api, caches, IDENTITY, lambda: self.now, self.metrics)
        prober: Any = WorldProber(self)
        self.controller.start(prober, self.queue.append)

    def reconcile_all(self) -> None:
        """One pass over every LLMCluster, in random order; a crash starts a new operator."""
        keys = [Key(ns, name) for plural, ns, name in self.objects if plural == LLMCLUSTER.plural]
        keys += [key for key in self.due if key not in keys]
        self.random.shuffle(keys)
        changed = self._counter != self._seen
        self._seen = self._counter
        for key in keys:
            if changed or key in self.queue or self.due.get(key, self.now) <= self.now:
                self.reconcile(key)
        self.queue.clear()

    def reconcile(self, key: Key) -> None:
        """As the work queue does: at once after a change or an error, when asked for, and every 30 s."""
        again: timedelta | None = timedelta()
        try:
            again = self.controller.reconcile(key)
        except (Conflict, NotFound):
            self._seen = -1
        except Crash:
            self._seen = -1
            self.restart_operator()
        resync = timedelta(seconds=30)
        self.due[key] = self.now + min(resync if again is None else again, resync)

    def run(self, seconds: int, until: Callable[[], bool] | None = None) -> None:
        """Let operator and cluster work."""
        for _ in range(seconds):
            self.reconcile_all()
            self.tick()
            if until is not None and until():
                return
        if until is not None:
            raise AssertionError(f"not reached in {seconds} s: {self.describe()}")

    def describe(self) -> str:
        lines = [f"{self.now:%H:%M:%S}"]
        for (plural, _, name), obj in self.objects.items():
            if plural == LLMCLUSTER.plural:
                lines.append(f"{name}: {self.reason(name)} {self.message(name)}")
            if plural == POD.plural:
                process = self.processes.get(obj["metadata"]["uid"])
                lines.append(f"  {name} {obj['metadata']['uid']} {process.stage if process else '-'}")
        return "\n".join(lines)

    # People.

    def create(self, name: str, *, fleet: str = "", created: int = 0, **spec: Any) -> None:
        """Apply an LLMCluster, as a user or a chart would."""
        body: dict[str, Any] = {
            "model": "org/model",
            "replicas": 2,
            "gpusPerPod": 1,
            "tensorParallelSize": 2,
            "image": "engine:1",
            **spec,
        }
        body["tensorParallelSize"] = body["replicas"] * body["gpusPerPod"]
        metadata = {
            "name": name,
            "namespace": "d",
            "labels": {names.FLEET_LABEL: fleet} if fleet else {},
            "generation": 1,
        }
        manifest = {"apiVersion": names.API_VERSION, "kind": "LLMCluster", "metadata": metadata, "spec": body}
        obj = self.store(LLMCLUSTER, manifest)
        obj["metadata"]["creationTimestamp"] = stamp(self.now + timedelta(seconds=created))

    def edit(self, name: str, **spec: Any) -> None:
        cluster = self.cluster(name)
        cluster["spec"] = {**cluster["spec"], **spec}
        cluster["metadata"]["generation"] += 1
        self.touch(cluster)

    def delete(self, name: str) -> None:
        self.remove(LLMCLUSTER, "d", name)

    def measured(self, metric: str, reason: str) -> float:
        """A figure of the operator process that runs now."""
        labels = {"reason": reason}
        return self.metrics.registry.get_sample_value(f"llmfleet_operator_{metric}", labels) or 0.0

    def cluster(self, name: str) -> dict[str, Any]:
        return self.objects[(LLMCLUSTER.plural, "d", name)]

    def condition(self, name: str, kind: str = "Ready") -> Mapping[str, Any]:
        conditions = (self.cluster(name).get("status") or {}).get("conditions") or ()
        return next((item for item in conditions if item["type"] == kind), {})

    def reason(self, name: str) -> str:
        return str(self.condition(name).get("reason", ""))

    def message(self, name: str) -> str:
        return str(self.condition(name).get("message", ""))

    def ready(self, name: str) -> bool:
        return self.condition(name).get("status") == "True"

    def all_serving(self) -> bool:
        clusters = [name for plural, _, name in self.objects if plural == LLMCLUSTER.plural]
        return all(self.ready(name) and self.reason(name) == "Serving" for name in clusters)

    def all_ready(self, name: str) -> bool:
        """Every pod of the instance is ready, whatever the operator has made of it."""
        return all(condition_of(pod, "Ready") == "True" for pod in self.pods(name))

    def restarts(self, name: str) -> int:
        return int((self.cluster(name).get("status") or {}).get("restarts", 0))

    def pod(self, name: str, rank: int) -> dict[str, Any]:
        return self.objects[(POD.plural, "d", f"{name}-{rank}")]

    def pods(self, name: str) -> list[dict[str, Any]]:
        return [
            obj
            for (plural, _, _), obj in self.objects.items()
            if plural == POD.plural and obj["metadata"]["labels"].get(names.CLUSTER_LABEL) == name
        ]

    def images(self, name: str) -> set[str]:
        return {pod["spec"]["containers"][0]["image"] for pod in self.pods(name)}

    # Faults.

    def kill(self, name: str, rank: int, code: int = 137) -> None:
        """A container dies; the kubelet starts it again in place, unless its pod is leaving."""
        pod = self.pod(name, rank)
        if pod["metadata"].get("deletionTimestamp"):
            self.drop(pod)
        else:
            self.end_container(pod, code)

    def kill_pod(self, name: str, rank: int) -> None:
        """A pod is gone at once, as after a forced delete."""
        self.drop(self.pod(name, rank))

    def evict(self, name: str, rank: int) -> None:
        pod = self.pod(name, rank)
        self.remove(POD, "d", pod["metadata"]["name"], grace=340)

    # Objects.

    def fresh(self, prefix: str) -> str:
        self._counter += 1
        return f"{prefix}{self._counter}"

    def touch(self, obj: dict[str, Any]) -> None:
        self._counter += 1
        obj["metadata"]["resourceVersion"] = str(self._counter)

    def store(self, kind: Kind, manifest: Manifest) -> dict[str, Any]:
        obj = copy.deepcopy(dict(manifest))
        metadata = obj["metadata"]
        metadata.setdefault("uid", self.fresh(f"w{self.number}-u"))
        metadata.setdefault("creationTimestamp", stamp(self.now))
        self.objects[(kind.plural, metadata.get("namespace", ""), metadata["name"])] = obj
        self.touch(obj)
        return obj

    def remove(self, kind: Kind, namespace: str, name: str, grace: int | None = None) -> None:
        """What DELETE does: mark, and take away when nothing holds it."""
        obj = self.objects[(kind.plural, namespace, name)]
        metadata = obj["metadata"]
        if kind is POD:
            return self.terminate(obj, 340 if grace is None else grace)
        metadata.setdefault("deletionTimestamp", stamp(self.now))
        self.touch(obj)
        if not metadata.get("finalizers"):
            self.drop(obj)
        return None

    def terminate(self, pod: dict[str, Any], grace: int) -> None:
        end = self.now + timedelta(seconds=grace)
        held = pod["metadata"].get("deletionTimestamp")
        if held is None or datetime.fromisoformat(held) > end:
            pod["metadata"]["deletionTimestamp"] = stamp(end)
            self.touch(pod)
        process = self.processes.get(pod["metadata"]["uid"])
        if process and process.stopping is None:
            process.stopping = self.now
        if grace == 0 or process is None:
            self.drop(pod)

    def drop(self, obj: dict[str, Any]) -> None:
        """Take an object away, and what it owns."""
        metadata = obj["metadata"]
        where = (kind_of(obj).plural, metadata.get("namespace", ""), metadata["name"])
        self.objects.pop(where, None)
        self.applied.pop(where, None)
        if obj["kind"] == "Pod":
            self.lose(self.processes.pop(metadata["uid"], None))
        for other in list(self.objects.values()):
            owners = other["metadata"].get("ownerReferences")
            if owners and all(owner["uid"] == metadata["uid"] for owner in owners):
                found = kind_of(other)
                self.remove(found, other["metadata"].get("namespace", ""), other["metadata"]["name"])

    def lose(self, process: Process | None) -> None:
        if process is not None:
            self.lost_requests += len(process.requests)
            process.requests = []

    # Time.

    def tick(self) -> None:
        """One second of everybody else's work."""
        self.now += timedelta(seconds=1)
        self.run_statefulsets()
        self.run_scheduler()
        self.run_kubelets()
        self.run_engines()
        self.run_routers()
        self.check_rules()

    def run_statefulsets(self) -> None:
        for (plural, namespace, name), sts in list(self.objects.items()):
            if plural != STATEFULSET.plural:
                continue
            for ordinal in range(sts["spec"]["replicas"]):
                if (POD.plural, namespace, f"{name}-{ordinal}") not in self.objects:
                    self.make_pod(sts, ordinal)

    def make_pod(self, sts: dict[str, Any], ordinal: int) -> None:
        template = sts["spec"]["template"]
        metadata = {
            "name": f"{sts['metadata']['name']}-{ordinal}",
            "namespace": sts["metadata"]["namespace"],
            "labels": {**template["metadata"]["labels"], names.POD_INDEX_LABEL: str(ordinal)},
            "annotations": dict(template["metadata"].get("annotations") or {}),
            "ownerReferences": [{"uid": sts["metadata"]["uid"]}],
        }
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        pod = self.store(POD, manifest)
        pod["status"] = {"phase": "Pending", "conditions": []}

    def run_scheduler(self) -> None:
        waiting = [
            p for (kind, _, _), p in self.objects.items() if kind == POD.plural and not p["spec"].get("nodeName")
        ]
        for pod in sorted(waiting, key=lambda pod: pod["metadata"]["creationTimestamp"]):
            node = next((name for name, node in self.nodes.items() if node.alive and self.free(name) > 0), None)
            placed = node is not None
            before = condition_of(pod, "PodScheduled")
            set_condition(
                pod, "PodScheduled", placed, self.now, "" if placed else "Unschedulable", "no node has a free device"
            )
            if node is not None:
                pod["spec"]["nodeName"] = node
                set_condition(pod, "Initialized", True, self.now)
            if condition_of(pod, "PodScheduled") != before:
                self.touch(pod)

    def free(self, node: str) -> int:
        used = sum(
            pod["spec"].get("nodeName") == node for (kind, _, _), pod in self.objects.items() if kind == POD.plural
        )
        return self.nodes[node].devices - used

    def run_kubelets(self) -> None:
        for (plural, _, _), pod in list(self.objects.items()):
            if plural != POD.plural or not pod["spec"].get("nodeName") or not self.on_live_node(pod):
                continue
            process = self.processes.get(pod["metadata"]["uid"])
            if process is None:
                self.start_container(pod)
            elif process.stopping is not None:
                self.stop_pod(pod, process)

    def on_live_node(self, pod: dict[str, Any]) -> bool:
        node = self.nodes.get(pod["spec"]["nodeName"])
        return node is not None and node.alive

    def start_container(self, pod: dict[str, Any]) -> None:
        image = pod["spec"]["containers"][0]["image"]
        if pod["metadata"].get("deletionTimestamp"):
            return
        if image in self.missing_images:
            if pod["status"].get("containerStatuses"):
                return
            waiting = {"reason": "ImagePullBackOff", "message": f"no such image {image}"}
            pod["status"]["containerStatuses"] = [{"name": "engine", "restartCount": 0, "state": {"waiting": waiting}}]
            self.touch(pod)
            return
        self.processes[pod["metadata"]["uid"]] = Process(uid=pod["metadata"]["uid"], since=self.now)
        pod["status"] |= {"phase": "Running", "podIP": f"10.{self._counter}"}
        pod["status"]["containerStatuses"] = [self.running(0)]
        self.touch(pod)

    def running(self, restarts: int) -> dict[str, Any]:
        return {
            "name": "engine",
            "restartCount": restarts,
            "containerID": self.fresh("c"),
            "started": False,
            "state": {"running": {"startedAt": stamp(self.now)}},
        }

    def stop_pod(self, pod: dict[str, Any], process: Process) -> None:
        """preStop waits for an idle leader, then SIGTERM takes two seconds, and the grace period ends everything."""
        assert process.stopping is not None
        end = datetime.fromisoformat(pod["metadata"]["deletionTimestamp"])
        leader = self.leader_of(pod)
        busy = leader is not None and leader.stage == "serving" and bool(leader.requests)
        settled = self.now - process.stopping >= timedelta(seconds=3 if process.stage == "serving" else 1)
        if self.now >= end or (settled and not busy):
            self.drop(pod)

    def leader_of(self, pod: dict[str, Any]) -> Process | None:
        """The leader that this pod's process belongs to."""
        process = self.processes.get(pod["metadata"]["uid"])
        name = pod["metadata"]["labels"][names.CLUSTER_LABEL]
        leader = self.objects.get((POD.plural, "d", f"{name}-0"))
        if process is None or leader is None:
            return None
        uid = leader["metadata"]["uid"]
        return self.processes.get(uid) if uid in process.peers or uid == process.uid else None

    def end_container(self, pod: dict[str, Any], code: int) -> None:
        """The process ends and the kubelet restarts it in place, where a group's gate parks it."""
        process = self.processes[pod["metadata"]["uid"]]
        self.lose(process)
        ended = {"exitCode": code, "reason": "Error", "message": "last words"}
        status = pod["status"]["containerStatuses"][0]
        again = self.running(status["restartCount"] + 1)
        again["lastState"] = {"terminated": ended}
        pod["status"]["containerStatuses"] = [again]
        set_condition(pod, "Ready", False, self.now)
        grouped = self.size(pod) > 1
        parked = grouped and process.stage != "gate"
        again["started"] = parked
        self.processes[process.uid] = Process(uid=process.uid, stage="parked" if parked else "gate", since=self.now)
        self.touch(pod)

    def size(self, pod: dict[str, Any]) -> int:
        sts = self.objects.get((STATEFULSET.plural, "d", pod["metadata"]["labels"][names.CLUSTER_LABEL]))
        return int(sts["spec"]["replicas"]) if sts else 1

    def run_engines(self) -> None:
        for plural, _, name in list(self.objects):
            if plural == STATEFULSET.plural:
                self.run_gate(name)
        for (plural, _, _), pod in list(self.objects.items()):
            process = self.processes.get(pod["metadata"]["uid"]) if plural == POD.plural else None
            if process is not None and self.on_live_node(pod):
                self.run_engine(pod, process)

    def run_gate(self, name: str) -> None:
        """All ranks of one revision at the gate, none of them stopping: they pass together."""
        sts = self.objects[(STATEFULSET.plural, "d", name)]
        pods = [self.objects.get((POD.plural, "d", f"{name}-{rank}")) for rank in range(sts["spec"]["replicas"])]
        found = [self.processes.get(pod["metadata"]["uid"]) if pod else None for pod in pods]
        if any(process is None or process.stage != "gate" or process.stopping for process in found):
            return
        if len({pod["metadata"]["annotations"][TEMPLATE_ANNOTATION] for pod in pods if pod}) != 1:
            return
        peers = frozenset(process.uid for process in found if process)
        for pod, process in zip(pods, found, strict=True):
            assert pod is not None and process is not None
            process.stage, process.peers, process.since = "loading", peers, self.now
            pod["status"]["containerStatuses"][0]["started"] = True
            if pod["metadata"]["labels"][names.POD_INDEX_LABEL] != "0":
                set_condition(pod, "Ready", True, self.now)
            self.touch(pod)

    def run_engine(self, pod: dict[str, Any], process: Process) -> None:
        if pod["metadata"]["labels"][names.POD_INDEX_LABEL] != "0":
            return None
        if process.stage == "loading" and self.now - process.since >= timedelta(seconds=LOAD_SECONDS):
            if pod["spec"]["containers"][0]["image"] in self.broken_images:
                return self.end_container(pod, 1)
            if all(peer in self.processes for peer in process.peers):
                process.stage = "serving"
                set_condition(pod, "Ready", True, self.now)
                self.touch(pod)
        done = [end for end in process.requests if end <= self.now]
        self.served_requests += len(done)
        process.requests = [end for end in process.requests if end > self.now]
        return None

    def serve_routers(self, selector: str = "") -> None:
        """A release's router and its ConfigMap, for what asks routers by name."""
        annotations = {names.CLUSTER_SELECTOR_ANNOTATION: selector, names.ROUTER_SELECTOR_ANNOTATION: "app=router"}
        metadata = {"name": "backends", "namespace": "d", "annotations": annotations}
        self.store(CONFIGMAP, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
        pod = {"name": "router", "uid": "router", "labels": {"app": "router"}}
        self.routers = [{"metadata": pod, "status": {"phase": "Running", "podIP": "10.0.0.1"}}]

    # Routers, one second behind the route controller.

    def run_routers(self) -> None:
        self.routers_offered, self.offered = self.offered, frozenset(self.endpoints())
        if not self.traffic:
            return
        for uid in self.routers_offered:
            process = self.processes.get(uid)
            if process is not None and process.stage == "serving" and len(process.requests) < 4:
                process.requests.append(self.now + timedelta(seconds=self.random.randint(1, 15)))

    def endpoints(self) -> Iterable[str]:
        """UIDs of the leaders that the route controller would offer."""
        for (plural, _, name), cluster in list(self.objects.items()):
            leaving = cluster["metadata"].get("deletionTimestamp") or names.DRAINING_ANNOTATION in (
                cluster["metadata"].get("annotations") or {}
            )
            if plural != LLMCLUSTER.plural or leaving or not self.ready(name):
                continue
            pods = self.pods(name)
            if any(pod["metadata"].get("deletionTimestamp") for pod in pods):
                continue
            members = self.records(name).members
            if members and all(members.get(index_of(pod), "").startswith(pod["metadata"]["uid"] + "/") for pod in pods):
                leader = next((pod for pod in pods if index_of(pod) == "0"), None)
                if leader is not None and condition_of(leader, "Ready") == "True":
                    yield leader["metadata"]["uid"]

    def records(self, name: str) -> Any:
        sts = self.objects.get((STATEFULSET.plural, "d", name))
        return parse_records(sts["metadata"]["annotations"].get("serving.ai/group") if sts else None)

    # What must never happen.

    def check_rules(self) -> None:
        taken_down: dict[str, list[str]] = {}
        for (plural, _, name), obj in self.objects.items():
            if plural == STATEFULSET.plural:
                self.check_group(name, obj)
            if plural == LLMCLUSTER.plural and self.down_on_purpose(name):
                taken_down.setdefault(obj["metadata"]["labels"].get(names.FLEET_LABEL, name), []).append(name)
        for fleet, members in taken_down.items():
            if len(members) > 1:
                self.broken_rules.append(f"{fleet}: {members} are down on purpose at once")

    def down_on_purpose(self, name: str) -> bool:
        """Drained for an update, or on a template that has not served yet."""
        cluster = self.cluster(name)
        if cluster["metadata"].get("deletionTimestamp"):
            return False
        records = self.records(name)
        draining = names.DRAINING_ANNOTATION in (cluster["metadata"].get("annotations") or {})
        return draining or (bool(records.good) and records.good != self.template(name))

    def doomed(self, name: str) -> set[str]:
        """Pods of a broken group that are still there."""
        incident = self.records(name).incident
        return set(incident.doomed if incident else ()) & {pod["metadata"]["uid"] for pod in self.pods(name)}

    def template(self, name: str) -> str:
        sts = self.objects.get((STATEFULSET.plural, "d", name))
        return str(sts["metadata"]["annotations"][TEMPLATE_ANNOTATION]) if sts else ""

    def check_group(self, name: str, sts: dict[str, Any]) -> None:
        started = [p for p in self.pods(name) if self.stage(p) in ("loading", "serving")]
        revisions = {pod["metadata"]["annotations"][TEMPLATE_ANNOTATION] for pod in started}
        leader = next((pod for pod in started if index_of(pod) == "0"), None)
        if leader is not None:
            process = self.processes[leader["metadata"]["uid"]]
            strangers = [p for p in started if p["metadata"]["uid"] not in process.peers]
            if len(revisions) > 1 or any(self.processes[p["metadata"]["uid"]].peers & process.peers for p in strangers):
                self.broken_rules.append(f"{name}: a new rank beside an old leader")
        if sts["spec"]["replicas"] != self.cluster_size(name):
            self.broken_rules.append(f"{name}: the group changed its size")

    def check_order(self, pod: dict[str, Any]) -> None:
        """The operator deletes a follower only when the leader it started with is gone."""
        process = self.processes.get(pod["metadata"]["uid"])
        leader = self.leader_of(pod)
        if process is not None and leader is not None and leader is not process:
            self.broken_rules.append(f"{pod['metadata']['name']} was deleted before its leader was gone")

    def cluster_size(self, name: str) -> int:
        cluster = self.objects.get((LLMCLUSTER.plural, "d", name))
        sts = self.objects[(STATEFULSET.plural, "d", name)]
        return int(cluster["spec"]["replicas"]) if cluster else int(sts["spec"]["replicas"])

    def stage(self, pod: dict[str, Any]) -> str:
        process = self.processes.get(pod["metadata"]["uid"])
        return process.stage if process else ""


class WorldApi:
    """The apiserver as `kube.client.Api` shows it."""

    manager = names.OPERATOR_MANAGER

    def __init__(self, world: World) -> None:
        self.world = world

    def get(self, ref: Ref) -> Manifest:
        if ref.kind is NODE:
            return self.node(ref.name)
        if ref.kind is NAMESPACE:
            gone = {"deletionTimestamp": stamp(self.world.now)} if ref.name in self.world.terminating_namespaces else {}
            return {"metadata": {"name": ref.name, **gone}}
        found = self.world.objects.get((ref.kind.plural, ref.namespace, ref.name))
        if found is None:
            raise NotFound(str(ref))
        return copy.deepcopy(found)

    def node(self, name: str) -> Manifest:
        node = self.world.nodes.get(name)
        if node is None:
            raise NotFound(name)
        status = {"conditions": [{"type": "Ready", "status": "True" if node.alive else "Unknown"}]}
        return {"metadata": {"name": name}, "status": status}

    def list(self, kind: Kind, *, namespace: str = "", label_selector: str = "") -> tuple[list[Manifest], str]:
        wanted = dict(pair.split("=") for pair in label_selector.split(","))
        found = [
            copy.deepcopy(obj)
            for (plural, ns, _), obj in self.world.objects.items()
            if plural == kind.plural
            and ns == namespace
            and wanted.items() <= (obj["metadata"].get("labels") or {}).items()
        ]
        return found, ""

    def apply(self, obj: Manifest, *, force: bool = True) -> Manifest:
        kind = kind_of(obj)
        wanted = copy.deepcopy(dict(stamped(obj, self.manager)))
        where = (kind.plural, wanted["metadata"]["namespace"], wanted["metadata"]["name"])
        self.write(f"apply {kind.kind} {where[2]}")
        live = self.world.objects.get(where)
        self.check_preconditions(wanted["metadata"], live)
        if live is None:
            if kind is LLMCLUSTER:
                raise Rejected("spec: required")
            live = self.world.store(kind, wanted)
        else:
            self.check_immutable(kind, wanted, live)
            forget(live, self.world.applied.get(where) or {}, wanted)
            lay_over(live, wanted)
            self.world.touch(live)
        self.world.applied[where] = wanted
        if live["metadata"].get("deletionTimestamp") and not live["metadata"].get("finalizers") and kind is not POD:
            self.world.drop(live)
        self.wrote()
        return live

    def check_preconditions(self, metadata: Mapping[str, Any], live: Mapping[str, Any] | None) -> None:
        if metadata.get("uid") and (live is None or live["metadata"]["uid"] != metadata["uid"]):
            raise Conflict("uid")
        version = metadata.get("resourceVersion")
        if version and (live is None or live["metadata"]["resourceVersion"] != version):
            raise Conflict("resourceVersion")

    def check_immutable(self, kind: Kind, wanted: Mapping[str, Any], live: Mapping[str, Any]) -> None:
        if kind is CONTROLLER_REVISION and wanted["data"] != live["data"]:
            raise Rejected("data: immutable")
        if kind is STATEFULSET and wanted["spec"]["selector"] != live["spec"]["selector"]:
            raise Rejected("spec.selector: immutable")

    def apply_status(self, ref: Ref, status: Mapping[str, Any], *, resource_version: str | None = None) -> Manifest:
        self.write(f"status {ref.name} {next((c['reason'] for c in status['conditions']), '')}")
        found = self.world.objects.get((ref.kind.plural, ref.namespace, ref.name))
        if found is None:
            raise NotFound(str(ref))
        found["status"] = copy.deepcopy(dict(status))
        self.world.touch(found)
        self.wrote()
        return found

    def delete(self, ref: Ref, uid: str, *, grace_seconds: int | None = None, propagation: str | None = None) -> None:
        self.write(f"delete {ref.kind.kind} {ref.name} {grace_seconds}")
        found = self.world.objects.get((ref.kind.plural, ref.namespace, ref.name))
        if found is None:
            raise NotFound(str(ref))
        if found["metadata"]["uid"] != uid:
            raise Conflict("uid")
        if ref.kind is POD and grace_seconds:
            self.world.check_order(found)
        self.world.remove(ref.kind, ref.namespace, ref.name, grace_seconds)
        self.wrote()

    def create(self, obj: Manifest) -> Manifest:
        self.world.events.append((obj["regarding"]["name"], obj["reason"], obj["note"]))
        return obj

    def merge_patch(self, ref: Ref, body: Mapping[str, Any], **_: Any) -> Manifest:
        return {}

    def write(self, what: str) -> None:
        """An operator may die before any write ..."""
        if self.world.crash_after is not None and self.world.crash_after == 0:
            self.world.crash_after = None
            raise Crash
        self.world.writes.append(what)

    def wrote(self) -> None:
        """... or after it."""
        if self.world.crash_after is not None:
            self.world.crash_after -= 1


class WorldCache:
    """A cache that is always current, as one is that reads its own writes."""

    def __init__(self, world: World, kind: Kind, *, routers: bool = False) -> None:
        self.world, self.kind, self.routers = world, kind, routers
        self.indexes: dict[str, Callable[[Manifest], Iterable[str]]] = {}

    def get(self, namespace: str, name: str) -> Manifest | None:
        where = (self.kind.plural, namespace, name)
        return None if self.routers else self.world.stale.get(where) or self.world.objects.get(where)

    def list(self, namespace: str | None = None) -> list[Manifest]:
        if self.routers:
            return self.world.routers
        found = self.world.objects.items()
        return [obj for (plural, ns, _), obj in found if plural == self.kind.plural and namespace in (None, ns)]

    def add_index(self, name: str, values: Callable[[Manifest], Iterable[str]]) -> None:
        self.indexes[name] = values

    def by_index(self, name: str, value: str) -> list[Manifest]:
        return [obj for obj in self.list() if value in self.indexes[name](obj)]


class WorldProber:
    """Engines and routers answer at once, unless they hang."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.warm: set[str] = set()
        self.looks: dict[str, int] = {}

    def engine(self, key: Key, pod: str, address: str, port: int) -> EngineLook:
        process = self.world.processes.get(pod)
        if process is None or process.stage in ("gate", "parked", "loading"):
            return EngineLook(serving=False)
        idle = not process.requests and pod not in self.world.routers_offered
        self.looks[pod] = self.looks.get(pod, 0) + 1 if idle else 0
        return EngineLook(idle_looks=self.looks[pod])

    def forget_engine(self, pod: str) -> None:
        self.looks.pop(pod, None)

    def router(self, key: Key, pod: str, address: str) -> int | None:
        return 0

    def figures(self, key: Key, pod: str, address: str) -> Mapping[str, Figures] | None:
        return self.world.figures

    def warm_up(self, key: Key, container: str, address: str, port: int, body: Mapping[str, Any]) -> None:
        if not self.world.hang_prober:
            self.warm.add(container)

    def warmed(self, container: str) -> bool:
        return container in self.warm


def forget(live: dict[str, Any], before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Server-side apply removes what its manager applied before and does not any more."""
    for name, value in before.items():
        if name not in wanted:
            live.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(live.get(name), dict) and isinstance(wanted[name], Mapping):
            forget(live[name], value, wanted[name])


def lay_over(live: dict[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if name in ("uid", "resourceVersion"):
            continue
        if isinstance(value, Mapping) and isinstance(live.get(name), dict):
            lay_over(live[name], value)
        else:
            live[name] = copy.deepcopy(value)


def stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def index_of(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["labels"][names.POD_INDEX_LABEL])


def set_condition(
    pod: dict[str, Any], kind: str, true: bool, now: datetime, reason: str = "", message: str = ""
) -> None:
    status = "True" if true else "False"
    conditions = pod["status"]["conditions"]
    held = next((item for item in conditions if item["type"] == kind), None)
    if held is None:
        held = {"type": kind, "status": ""}
        conditions.append(held)
    if held["status"] != status:
        held |= {"status": status, "lastTransitionTime": stamp(now)}
    held |= {"reason": reason, "message": message}


def condition_of(pod: Mapping[str, Any], kind: str) -> str:
    return next((str(item["status"]) for item in pod["status"]["conditions"] if item["type"] == kind), "")
