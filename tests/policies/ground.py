"""A cluster on which policies count, the release on it, and who stands around: every place of the list as a pod.

In: a kubeconfig and the folder of the cluster's state. Out: what came of every connection, under whatever policies the
cluster has at that moment. Parts are the installed ones; a hook's pod, which is there for a moment only, and everybody
around the release are pods with the labels of the list that do nothing. Where no program of a pod listens, a socket of
the test's own in the pod's network does.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Any

from kubernetes import client, config
from llmfleet_cluster import enforcer, policies
from llmfleet_cluster.layout import CONTROL_PLANE, Layout

from charts.matrix import NAMESPACE, PORTS, Cell, cells, world
from charts.rendering import Object
from e2e.bed import GROUP, ROOT, eventually, has_ready, tool
from policies.wires import OPEN, Try, drain, listen, outcomes

CLUSTER_NAME = "policies"
PAUSE = "localhost/llmfleet/pause:1"
# The parts whose pods the chart's own objects make.
INSTALLED = ("router", "operator", "autoscaler", "redis", "engine")
# A part's first start, on a machine that does other things.
STARTS = 600.0
# Every node watches for itself.
COUNTS = 120.0


@dataclass(frozen=True, slots=True)
class Spot:
    """One network of a place, open as a file, and its address."""

    network: int
    address: str


@dataclass
class Ground:
    """One cluster, one release."""

    kubeconfig: Path
    layout: Layout
    nodes: Sequence[str]
    spots: dict[str, list[Spot]] = field(default_factory=dict)
    listeners: list[socket] = field(default_factory=list)
    closing: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.api = config.new_client_from_config(str(self.kubeconfig))
        self.core = client.CoreV1Api(self.api)
        self.networking = client.NetworkingV1Api(self.api)
        self.custom = client.CustomObjectsApi(self.api)

    # -- what stands there ---------------------------------------------------------------------------------------------

    def helm(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """One helm command; what it said, whatever came of it."""
        command = [tool("helm"), f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}", *words]
        return subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )

    def must(self, *words: str | Path) -> str:
        """One helm command that has to end well."""
        done = self.helm(*words)
        assert done.returncode == 0, f"helm {' '.join(map(str, words))}\n{done.stdout}\n{self.why()}"
        return done.stdout

    def settle_places(self) -> None:
        """Make those who stand around, wait for everybody, and open every network."""
        others = {name: place for name, place in world()[0].items() if name not in INSTALLED and place.namespace}
        for namespace in {place.namespace for place in others.values()} - {NAMESPACE}:
            self.core.create_namespace({"metadata": {"name": namespace}})
            # No pod is admitted before its service account is there, which is made a little later.
            eventually(lambda here=namespace: self.core.list_namespaced_service_account(here).items, STARTS, self.why)
        for number, (name, place) in enumerate(others.items()):
            node = self.nodes[number % len(self.nodes)]
            self.core.create_namespaced_pod(place.namespace, stand_in(name, place.labels, node))
        eventually(lambda: all(has_ready(one) for one in self.instances()) and self.instances(), STARTS, self.why)
        for name in world()[0]:
            pods = eventually(lambda name=name: self.pods_of(name), STARTS, self.why)
            self.spots[name] = [self.spot(pod) for pod in pods] if name != "anywhere" else [self.outside()]
        self.listen()

    def pods_of(self, name: str) -> list[Object] | bool:
        """The pods of a place once all of them run; for the outside there is nothing to wait for."""
        place = world()[0][name]
        if not place.namespace:
            return True
        own = [f"{key}={place.labels[key]}" for key in SELECTED if key in place.labels]
        selector = ",".join([*own, "!place"]) if name in INSTALLED else f"place={slug(name)}"
        found = self.sane(self.core.list_namespaced_pod(place.namespace, label_selector=selector).items)
        running = all(pod["status"]["phase"] == "Running" and pod["status"].get("podIP") for pod in found)
        return found if found and running else False

    def spot(self, pod: Object) -> Spot:
        """The network of a running pod."""
        return self.kept(f"/proc/{process_of(pod['metadata']['uid'])}/ns/net", pod["status"]["podIP"])

    def outside(self) -> Spot:
        """A machine that is no pod: the control plane's, where apiserver and resolver are."""
        return self.kept(str(self.layout.namespace(CONTROL_PLANE)), self.layout.address(CONTROL_PLANE))

    def kept(self, path: str, address: str) -> Spot:
        network = os.open(path, os.O_RDONLY)
        self.closing.callback(os.close, network)
        return Spot(network, address)

    def listen(self) -> None:
        """Somebody listens on every port of the list."""
        for name, spots in self.spots.items():
            for spot in spots:
                for port in PORTS[name]:
                    if own := listen(spot.network, spot.address, port):
                        self.closing.enter_context(own)
                        self.listeners.append(own)

    # -- policies ------------------------------------------------------------------------------------------------------

    def policies(self) -> list[Object]:
        """The release's policies as the apiserver has them, without what it adds."""
        found = self.sane(self.networking.list_namespaced_network_policy(NAMESPACE).items)
        kept = ("name", "namespace", "labels", "annotations")
        return [
            {"metadata": {key: one["metadata"][key] for key in kept if key in one["metadata"]}, "spec": one["spec"]}
            for one in found
        ]

    @contextmanager
    def under(self, others: Sequence[Object]) -> Iterator[None]:
        """Other policies in the release's place, for a while."""
        before = self.policies()
        try:
            self.replace(others)
            yield
        finally:
            self.replace(before)

    def replace(self, wanted: Sequence[Object]) -> None:
        """Make the namespace's policies these, and wait until they count."""
        there = {one["metadata"]["name"]: one for one in self.policies()}
        names = {one["metadata"]["name"] for one in wanted}
        for name in there.keys() - names:
            self.networking.delete_namespaced_network_policy(name, NAMESPACE)
        for one in wanted:
            name = one["metadata"]["name"]
            if name not in there:
                self.networking.create_namespaced_network_policy(NAMESPACE, one)
            elif there[name]["spec"] != one["spec"]:
                self.networking.replace_namespaced_network_policy(name, NAMESPACE, one)
        self.wait_until_they_count()

    def wait_until_they_count(self) -> None:
        """Every node's packet filter was made from what the apiserver has now."""
        eventually(
            self.they_count, COUNTS, lambda: "\n".join(map(str, [self.there(), *map(self.in_force, self.nodes)]))
        )

    def they_count(self) -> bool:
        """Whether all nodes hold the same as the apiserver."""
        there = self.there()
        return all(self.in_force(node) == there for node in self.nodes)

    def there(self) -> Mapping[str, Mapping[str, str]]:
        """What a packet filter that is up to date was made from."""
        return enforcer.in_force(
            policies.World(
                pods=self.sane(self.core.list_pod_for_all_namespaces().items),
                namespaces=self.sane(self.core.list_namespace().items),
                policies=self.sane(self.networking.list_network_policy_for_all_namespaces().items),
            )
        )

    def in_force(self, node: str) -> Any:
        """What a node's packet filter was made from."""
        return json.loads(self.layout.policies_in_force(node).read_text())

    # -- connections ---------------------------------------------------------------------------------------------------

    def tries(self) -> list[tuple[Cell, Try]]:
        """Every pair of pods of every pair of places, but a pod and itself."""
        return [
            (cell, Try(source.network, target.address, cell[2], cell[3]))
            for cell in cells(self.spots)
            for source in self.spots[cell[0]]
            for target in self.spots[cell[1]]
            if source != target
        ]

    def outcomes(self) -> dict[Cell, set[str]]:
        """What came of every connection; between two places there may be several."""
        tries = self.tries()
        found: dict[Cell, set[str]] = {}
        for (cell, _), outcome in zip(tries, outcomes([one for _, one in tries]), strict=True):
            found.setdefault(cell, set()).add(outcome)
        for listener in self.listeners:
            drain(listener)
        return found

    def reach(self, source: str, address: str, port: int, count: int) -> set[str]:
        """What comes of many connections from every pod of a place to an address."""
        tries = [Try(spot.network, address, port) for spot in self.spots[source] for _ in range(count)]
        return set(outcomes(tries))

    def cluster_ip(self, service: str, namespace: str = NAMESPACE) -> str:
        """The address of a Service."""
        return str(self.core.read_namespaced_service(service, namespace).spec.cluster_ip)

    # -- looking -------------------------------------------------------------------------------------------------------

    def instances(self) -> list[Object]:
        """Every LLMCluster."""
        found = self.custom.list_namespaced_custom_object(*GROUP, NAMESPACE, "llmclusters")
        return list(found["items"])

    def sane(self, things: Any) -> list[Object]:
        found: list[Object] = self.api.sanitize_for_serialization(things)
        return found

    def why(self) -> str:
        """What the cluster says of itself, for the message of a failure."""
        pods = self.sane(self.core.list_pod_for_all_namespaces().items)
        lines = [f"{policies.title(one)} {one.get('status')}" for one in [*self.instances(), *pods]]
        return "\n".join(lines)


# Which of its labels a part's own pods are found by; an instance of the list has another name.
SELECTED = ("app.kubernetes.io/name", "app.kubernetes.io/component", "serving.ai/fleet")


def stand_in(name: str, labels: Mapping[str, str], node: str) -> Object:
    """A pod that does nothing, with the labels of a place."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "pause", "image": PAUSE, "imagePullPolicy": "Never", "securityContext": security}
    return {
        "metadata": {"name": f"place-{slug(name)}", "labels": {**labels, "place": slug(name)}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [container],
        },
    }


def slug(name: str) -> str:
    return name.replace(" ", "-")


def process_of(pod_uid: str) -> int:
    """The process that holds a pod's network, found by the pod's control group."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                ours = f"pod{pod_uid}" in (folder / "cgroup").read_text()
                if ours and (folder / "cmdline").read_bytes().startswith(b"/pause"):
                    return int(folder.name)
    raise AssertionError(f"nothing holds the network of pod {pod_uid}")


def opened(found: Mapping[Cell, set[str]]) -> set[Cell]:
    """The cells in which every connection came about."""
    return {cell for cell, outcome in found.items() if outcome == {OPEN}}
