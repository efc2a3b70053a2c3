"""What the long fault runs break: a cluster of their own with the chart in it, and words for where everything stands.

In: nothing but the repository. Out: a running cluster called `long` of three nodes, routers and controllers on the
first two, so that the third holds nothing but engines. What a scenario left behind is mended before the next one.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import requests

from e2e.bed import RELEASE, ROOT, Bed, Manifest, engine_spec, eventually, run, tool
from faults.ground import Ground
from faults_long.packets import clear

NAMESPACE = "llmfleet-long"
NODES = ("node-0", "node-1", "node-2")
ROUTERS = "app.kubernetes.io/component=router"
REDIS = "app.kubernetes.io/component=redis"
DISK_NODE = "node-1"
# Half a minute instead of a minute, so that black holes end within a scenario.
SETTINGS = (
    "--set=fleet.router.settings.timeouts.stallSeconds=30",
    "--set=fleet.router.autoscaling.minReplicas=2,fleet.router.autoscaling.maxReplicas=2",
    "--set-string=fleet.router.nodeSelector.front=yes",
    # Scenarios make autoscalers themselves; the right to follow them comes with a model that has one, or with this.
    "--set=controllers.autoscaler.rbac.clusterWide=true",
    # The prompts here are short, and are to be split all the same where there are two roles.
    "--set=fleet.router.settings.disaggregation.bypassPrefill.minPromptTokens=0",
    # Four real engines on two cores while a fifth starts: a first event took longer than the default of 5 s.
    "--set=fleet.router.settings.disaggregation.kvTimeoutSeconds=15",
)


@dataclass
class World:
    """The cluster, the release in it, and what a scenario may ask of both."""

    say: Callable[[str], None]
    ground: Ground
    random: random.Random = field(default_factory=random.Random)
    options: Mapping[str, Any] = field(default_factory=dict)
    bed: Bed = field(init=False)

    # -- its life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Bring the cluster up, or what of it is down, and the release on it."""
        self.say("cluster and chart")
        self.ground.up()
        self.take_a_share()
        lines = run([ROOT / "ci/images/build", "llmfleet", "sim", "redis"]).splitlines()
        self.ground.load([line.split(" ", 1)[1] for line in lines])
        self.disk()
        self.kubectl("label", "node", "node-0", "node-1", "front=yes", "--overwrite")
        self.kubectl("cordon", "node-2")
        try:
            self.install()
        finally:
            self.kubectl("uncordon", "node-2")
        self.bed = Bed(self.ground.kubeconfig, NAMESPACE)

    def take_a_share(self) -> None:
        """Count as many processes, not as one, beside whatever else runs on this machine; else nodes die of hunger."""
        for file, value in (("cpu/{}/cpu.shares", "20480"), ("{}/cpu.weight", "2000")):
            path = Path("/sys/fs/cgroup") / file.format(f"llmfleet-{self.ground.name}")
            if path.exists():
                path.write_text(value)

    def install(self, *more: str) -> None:
        """Install the chart, or change it: `more` are flags of helm."""
        helm = [tool("helm"), f"--kubeconfig={self.ground.kubeconfig}", "--namespace", NAMESPACE]
        values = ["--values", "values/dev.yaml", "--set", "fleet.models=null", *SETTINGS]
        disk = ["--set", "fleet.redis.persistence.enabled=true,fleet.redis.persistence.size=24Mi"]
        disk += ["--set", "fleet.redis.persistence.storageClassName=small"]
        command = [*helm, "upgrade", RELEASE, "charts/llmfleet", "--install", "--create-namespace", *values, *disk]
        run([*command, *more, "--wait", "--timeout", "4m"])

    def mend(self) -> None:
        """Bring back what a scenario may have left broken, also one that was killed."""
        self.ground.up()
        self.disk()
        for node in NODES:
            clear(self.network_of(node))
        self.kubectl("delete", "llmclusters,llmclusterautoscalers", "--all", "--namespace", NAMESPACE, "--timeout=180s")
        for pod in self.bed.pods(""):
            if pod["metadata"].get("deletionTimestamp"):
                self.remove(pod, "--force", "--grace-period=0")
        eventually(self.whole, 240, self.why_not_whole)
        crowded = [pod for pod in self.bed.pods(ROUTERS) if pod["spec"]["nodeName"] != "node-0"]
        for pod in crowded[1:]:
            self.remove(pod)
        eventually(self.whole, 240, self.why_not_whole)

    def remove(self, pod: Manifest, *how: str) -> None:
        """Delete a pod."""
        self.kubectl("delete", "pod", "--namespace", NAMESPACE, pod["metadata"]["name"], "--ignore-not-found", *how)

    def close(self) -> None:
        """Take the cluster away."""
        self.ground.down()

    def whole(self) -> bool:
        """Whether every pod of the release is ready."""
        pods = self.bed.pods(f"app.kubernetes.io/instance={RELEASE}")
        return len(pods) >= 5 and all(is_ready(pod) for pod in pods)

    def why_not_whole(self) -> str:
        """Which pods are not ready."""
        pods = self.bed.pods(f"app.kubernetes.io/instance={RELEASE}")
        return str([(pod["metadata"]["name"], pod["status"]["phase"]) for pod in pods if not is_ready(pod)])

    def disk(self) -> None:
        """A disk of 24 MiB on one node, which a claim can have: full at once when somebody fills it."""
        path = f"{self.folder}/small-disk"
        made = f"mkdir -p {path}; mountpoint -q {path} || mount -t tmpfs -o size=24m,mode=777 small {path}"
        self.on_node(DISK_NODE, "sh", "-c", made)
        objects = {"apiVersion": "v1", "kind": "List", "items": small_disk(path)}
        self.kubectl("apply", "--filename=-", stdin=json.dumps(objects))

    # -- the machine below -------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where the cluster keeps its things."""
        return self.ground.kubeconfig.parent

    def network_of(self, member: str) -> tuple[str, ...]:
        """The prefix of a command that runs in a node's network."""
        return ("nsenter", f"--net={self.folder}/namespaces/{member}")

    def on_node(self, node: str, *command: str) -> str:
        """Run a command in a node's mounts and network."""
        pid = json.loads((self.folder / f"processes/containerd.{node}.json").read_text())["pid"]
        return run(["nsenter", f"--target={pid}", "--mount", "--net", *command])

    def cluster(self, *words: str) -> str:
        """Ask the cluster tool."""
        return run([ROOT / "ci/cluster/cluster", *words, "--name", self.ground.name])

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Ask kubectl."""
        return run([tool("kubectl"), f"--kubeconfig={self.ground.kubeconfig}", *words], input=stdin)

    @property
    def kubernetes(self) -> str:
        """Its version; empty while the apiserver is away."""
        command = [tool("kubectl"), f"--kubeconfig={self.ground.kubeconfig}", "version", "--output=json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return str(json.loads(done.stdout or "{}").get("serverVersion", {}).get("gitVersion", ""))

    # -- who stands where --------------------------------------------------------------------------------------------

    def pods_on(self, node: str) -> list[str]:
        """Names of the namespace's pods on a node."""
        return [pod["metadata"]["name"] for pod in self.bed.pods("") if pod["spec"].get("nodeName") == node]

    def router_on(self, node: str) -> Manifest:
        """The router pod of a node."""
        return next(pod for pod in self.bed.pods(ROUTERS) if pod["spec"]["nodeName"] == node)

    def spread_spec(self, model: str, nodes: tuple[str, ...], **changes: Any) -> Manifest:
        """A group of two pods, never on one node, on these nodes as long as they are there."""
        constraint = {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"serving.ai/fleet": model}},
            "matchLabelKeys": ["serving.ai/cluster"],
        }
        preferred = [{"weight": 100, "preference": among(nodes)}]
        affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
        pod = {"spec": {"affinity": affinity, "topologySpreadConstraints": [constraint]}}
        return engine_spec(model, **changes) | {"podTemplate": pod}

    def single_spec(self, model: str, node: str) -> Manifest:
        """An engine of one pod on one node and no other."""
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [among((node,))]}}
        pod = {"spec": {"affinity": {"nodeAffinity": required}}}
        return engine_spec(model, replicas=1, tensorParallelSize=1) | {"podTemplate": pod}

    @contextmanager
    def instances(self, fleet: str, specs: Mapping[str, Manifest], wait: float = 180) -> Iterator[list[str]]:
        """Instances of one fleet, each as it is to be: made, waited for, and gone afterwards."""
        try:
            for name, spec in specs.items():
                self.bed.create(name, spec, fleet=fleet)
            for name in specs:
                eventually(partial(self.bed.is_ready, name), wait, lambda: self.bed.why(fleet))
            yield list(specs)
        finally:
            for name in specs:
                self.bed.delete(name)
            eventually(lambda: not self.bed.instances(fleet), 180, lambda: self.bed.why(fleet))

    def view(self, router: Manifest) -> Mapping[str, Mapping[str, Any]]:
        """What a router says of its engines, by instance; empty when it does not answer."""
        try:
            said = requests.get(f"http://{router['status']['podIP']}:9090/fleet", timeout=2).json()
        except requests.RequestException:
            return {}
        found: dict[str, Mapping[str, Any]] = {}
        for model in said["models"].values():
            for one in model["endpoints"]:
                found[one["instance"].rpartition("/")[2]] = one
        return found

    def offers(self, router: Manifest, instance: str) -> bool:
        """Whether a router would send a request to an instance now."""
        one = self.view(router).get(instance, {"out": "not listed"})
        return not one["out"] and one["state"] == "ready"

    def restarts(self) -> dict[str, int]:
        """Restarts of every container of the release that is no engine, by pod and container."""
        counts = {}
        for pod in self.bed.pods(f"app.kubernetes.io/instance={RELEASE}"):
            for state in pod["status"].get("containerStatuses", ()):
                counts[f"{pod['metadata']['name']}/{state['name']}"] = state["restartCount"]
        return counts

    def group_restarts(self, instance: str) -> int:
        """How often the operator says it restarted a group."""
        return int((self.bed.instance(instance) or {}).get("status", {}).get("restarts", 0))

    @contextmanager
    def node_without_power(self, node: str) -> Iterator[None]:
        """Cut a node's power; it has it back when the block ends."""
        try:
            self.cluster("node-kill", node)
            yield
        finally:
            self.cluster("node-start", node)


def among(nodes: tuple[str, ...]) -> Manifest:
    """The term of an affinity to nodes."""
    return {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}]}


def is_ready(pod: Manifest) -> bool:
    """Whether a pod is ready, or has done its work."""
    if pod["status"].get("phase") == "Succeeded":
        return True
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))


def settled(seconds: float) -> None:
    """Let a load run for a while: a part of a scenario, not a way to wait for something."""
    time.sleep(seconds)


def small_disk(path: str) -> list[Manifest]:
    """A storage class and its one volume: a folder of one node."""
    volume = {
        "capacity": {"storage": "24Mi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "small",
        "local": {"path": path},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [among((DISK_NODE,))]}},
    }
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "small"},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "small"}, "spec": volume},
    ]
