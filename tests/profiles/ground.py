"""What the tests of the production profiles do to a cluster: prepare it, install, test, break, uninstall.

In: a kubeconfig. Out: what helm said. It installs a profile's own file; the one thing it says otherwise is what an
engine asks of processor and memory, because the machine below has neither eight cores nor 64 GiB for each.
"""

from __future__ import annotations

import base64
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from e2e.bed import GROUP, ROOT, eventually, has_ready, tool

CLUSTER_NAME = "profiles"
NAMESPACE = "llmfleet"
RELEASE = "llmfleet"
PATTERNS = ("single", "production-monolithic", "production-disaggregated")
# Each node is as large as two of eight GPUs: the largest of the three patterns asks for 24.
DEVICES = {"nvidia.com/gpu": "16", "rdma/hca": "16"}
SMALLER = "fleet.engine.resources.requests.cpu=20m,fleet.engine.resources.requests.memory=64Mi"
Manifest = dict[str, Any]


@dataclass
class Ground:
    """One cluster, one namespace, one release at a time."""

    kubeconfig: Path
    api: client.ApiClient = field(init=False)
    core: client.CoreV1Api = field(init=False)
    apps: client.AppsV1Api = field(init=False)
    custom: client.CustomObjectsApi = field(init=False)

    def __post_init__(self) -> None:
        self.api = config.new_client_from_config(str(self.kubeconfig))
        self.core = client.CoreV1Api(self.api)
        self.apps = client.AppsV1Api(self.api)
        self.custom = client.CustomObjectsApi(self.api)

    # -- what a cluster with GPUs has ----------------------------------------------------------------------------------

    def prepare(self, models: Path) -> None:
        """Devices and labels on the nodes, then namespace, claim and Secret."""
        for node in self.core.list_node().items:
            self.core.patch_node(node.metadata.name, {"metadata": {"labels": {"accelerator": "nvidia-a100"}}})
            self.core.patch_node_status(node.metadata.name, {"status": {"capacity": DEVICES, "allocatable": DEVICES}})
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.core.create_namespace({"metadata": {"name": NAMESPACE, "labels": labels}})
        self.core.create_persistent_volume(volume(models))
        self.core.create_namespaced_persistent_volume_claim(NAMESPACE, claim())
        secret = {"metadata": {"name": "hugging-face"}, "data": {"token": base64.b64encode(b"hf_none").decode()}}
        self.core.create_namespaced_secret(NAMESPACE, secret)

    # -- the commands of the documentation -----------------------------------------------------------------------------

    def helm(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One helm command; what it said, whatever came of it."""
        command = [tool("helm"), f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}", *words]
        return subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )

    def must(self, *words: str) -> str:
        """One helm command that has to end well."""
        done = self.helm(*words)
        assert done.returncode == 0, f"helm {' '.join(words)}\n{done.stdout}\n{self.why()}"
        return done.stdout

    def install(self, profile: str) -> None:
        """Install a profile's file."""
        values = ["--values", f"values/{profile}.yaml", "--set", SMALLER]
        self.must("install", RELEASE, "charts/llmfleet", *values, "--wait", "--timeout", "10m", "--hide-notes")

    def test(self, *words: str) -> tuple[int, dict[str, str], str]:
        """Run `helm test`: its status, the phase of every hook it says something of, and all it says."""
        done = self.helm("test", RELEASE, "--timeout", "10m", "--logs", *words)
        phases = re.findall(r"^TEST SUITE: +(\S+)\n(?:.*\n)*?Phase: +(\S+)$", done.stdout, re.MULTILINE)
        return done.returncode, dict(phases), done.stdout

    def uninstall(self) -> None:
        """Take the release away; no instance and no engine may be left."""
        self.must("uninstall", RELEASE, "--wait", "--timeout", "10m", "--ignore-not-found")
        eventually(lambda: not self.instances() and not self.pods(), 300, self.why)

    # -- breaking ------------------------------------------------------------------------------------------------------

    def stop_routers(self) -> None:
        """No router pod at all: none is what a HPA leaves alone."""
        self.apps.patch_namespaced_deployment_scale(f"{RELEASE}-router", NAMESPACE, {"spec": {"replicas": 0}})
        eventually(lambda: not self.pods("router"), 300, self.why)

    def delete_instances(self) -> None:
        """Every instance, drained and gone."""
        for one in self.instances():
            self.custom.delete_namespaced_custom_object(*GROUP, NAMESPACE, "llmclusters", name_of(one))
        eventually(lambda: not self.instances(), 300, self.why)

    # -- looking -------------------------------------------------------------------------------------------------------

    def instances(self) -> list[Manifest]:
        """Every LLMCluster, by name."""
        try:
            found = self.custom.list_namespaced_custom_object(*GROUP, NAMESPACE, "llmclusters")
        except ApiException as problem:
            if problem.status == 404:
                return []
            raise
        return sorted(found["items"], key=lambda item: str(item["metadata"]["name"]))

    def all_ready(self, count: int) -> bool:
        """Whether there are so many instances and each serves."""
        found = self.instances()
        return len(found) == count and all(map(has_ready, found))

    def pods(self, component: str = "") -> list[Manifest]:
        """Pods by component, by name."""
        selector = f"app.kubernetes.io/component={component}" if component else ""
        found = self.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items
        return sorted((self.api.sanitize_for_serialization(pod) for pod in found), key=lambda pod: name_of(pod))

    def asked_for(self, resource: str) -> dict[str, str]:
        """What each engine pod was given of a device."""
        found = {pod["metadata"]["name"]: pod["spec"]["containers"][0]["resources"] for pod in self.pods("engine")}
        return {name: resources["limits"][resource] for name, resources in found.items()}

    def why(self) -> str:
        """What the cluster says of itself, for the message of a failure."""
        lines = [f"{name_of(one)} {one.get('status')}" for one in self.instances()]
        lines += [f"{name_of(pod)} {pod['status']}" for pod in self.pods()]
        return "\n".join(lines)


def name_of(thing: Manifest) -> str:
    return str(thing["metadata"]["name"])


def volume(folder: Path) -> Manifest:
    """A folder of the nodes as a volume that many pods may read."""
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "models",
        "hostPath": {"path": str(folder), "type": "DirectoryOrCreate"},
    }
    return {"metadata": {"name": "models"}, "spec": spec}


def claim() -> Manifest:
    """The claim that the profiles expect."""
    spec = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "models",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    return {"metadata": {"name": "models"}, "spec": spec}
