"""What the end-to-end tests stand on: the local cluster with the chart installed, and short words to ask it things.

In: a kubeconfig. Out: plain dicts of what the apiserver says. It talks to the apiserver with the official client, which
shares no code with the operator's own, so a fault there cannot hide itself here.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from e2e.beside import beside
from e2e.lanes import NAMESPACE, marks

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "llmfleet"
SIM = "localhost/llmfleet/engine-sim:0.1.0"
NEXT_SIM = "localhost/llmfleet/engine-sim:0.1.0-next"
GROUP = ("serving.ai", "v1alpha1")
Manifest = dict[str, Any]


def tool(name: str) -> str:
    """Path of a pinned tool."""
    return run([ROOT / "ci/tools/tool", name]).strip()


def run(command: list[str | Path], **options: Any) -> str:
    """Run a command and return what it prints; its words are in the error when it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    if done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def renamed_archive(archive: Path, reference: str, folder: Path) -> Path:
    """Copy an image archive under another name: the same image as its `next version`."""
    target = folder / f"{reference.rsplit(':', 1)[1]}.tar"
    with tarfile.open(archive) as source, tarfile.open(target, "w") as copy:
        for member in source:
            content = source.extractfile(member)
            if member.name == "index.json" and content:
                content, member = renamed_index(content.read(), member, reference)
            copy.addfile(member, content)
    return target


def renamed_index(raw: bytes, member: tarfile.TarInfo, reference: str) -> tuple[Any, tarfile.TarInfo]:
    """Name every image of an OCI index anew."""
    index = json.loads(raw)
    for manifest in index["manifests"]:
        manifest["annotations"] = {
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference.rsplit(":", 1)[1],
        }
    text = json.dumps(index).encode()
    member.size = len(text)
    content = tempfile.TemporaryFile()  # noqa: SIM115  (tarfile reads and then drops it)
    content.write(text)
    content.seek(0)
    return content, member


@dataclass
class Bed:
    """The cluster as the tests see it: one namespace, one release, one router Service."""

    kubeconfig: Path
    namespace: str = NAMESPACE
    api: client.ApiClient = field(init=False)
    core: client.CoreV1Api = field(init=False)
    custom: client.CustomObjectsApi = field(init=False)

    def __post_init__(self) -> None:
        self.api = config.new_client_from_config(str(self.kubeconfig))
        self.core = client.CoreV1Api(self.api)
        self.custom = client.CustomObjectsApi(self.api)

    # -- instances ---------------------------------------------------------------------------------------------------

    def create(self, name: str, spec: Mapping[str, Any], *, fleet: str) -> None:
        """Create one instance as a person would, by hand, labelled so that this release's router serves it."""
        labels = {"serving.ai/fleet": fleet, "app.kubernetes.io/instance": RELEASE}
        body = {
            "apiVersion": "/".join(GROUP),
            "kind": "LLMCluster",
            "metadata": {"name": name, "labels": labels, "annotations": marks(RELEASE)},
            "spec": spec,
        }
        self.custom.create_namespaced_custom_object(*GROUP, self.namespace, "llmclusters", body)

    def patch(self, name: str, spec: Mapping[str, Any]) -> None:
        """Merge-patch the spec of one instance."""
        self.custom.patch_namespaced_custom_object(*GROUP, self.namespace, "llmclusters", name, {"spec": spec})

    def delete(self, name: str) -> None:
        """Ask for an instance to go; its finalizer drains it first."""
        try:
            self.custom.delete_namespaced_custom_object(*GROUP, self.namespace, "llmclusters", name)
        except ApiException as problem:
            if problem.status != 404:
                raise

    def instance(self, name: str) -> Manifest | None:
        """One LLMCluster, or None when it is gone."""
        try:
            return self.custom.get_namespaced_custom_object(*GROUP, self.namespace, "llmclusters", name)
        except ApiException as problem:
            if problem.status == 404:
                return None
            raise

    def instances(self, fleet: str) -> list[Manifest]:
        """Every instance of a fleet, by name."""
        found = self.custom.list_namespaced_custom_object(
            *GROUP, self.namespace, "llmclusters", label_selector=f"serving.ai/fleet={fleet}"
        )
        return sorted(found["items"], key=lambda item: item["metadata"]["name"])

    def condition(self, name: str, type_: str = "Ready") -> Manifest:
        """One condition of an instance; empty when it has none yet."""
        instance = self.instance(name) or {}
        conditions = instance.get("status", {}).get("conditions", [])
        return next((item for item in conditions if item["type"] == type_), {})

    def is_ready(self, name: str) -> bool:
        """Ready for the spec it has now."""
        instance = self.instance(name) or {}
        status = instance.get("status", {})
        if status.get("observedGeneration") != instance.get("metadata", {}).get("generation"):
            return False
        words = {item["type"]: item["status"] for item in status.get("conditions", [])}
        return words.get("Ready") == "True" and words.get("Reconciling", "False") == "False"

    # -- pods --------------------------------------------------------------------------------------------------------

    def pods(self, selector: str) -> list[Manifest]:
        """Pods by label selector, by name."""
        found = self.core.list_namespaced_pod(self.namespace, label_selector=selector)
        items = [self.api.sanitize_for_serialization(pod) for pod in found.items]
        return sorted(items, key=lambda pod: pod["metadata"]["name"])

    def ranks(self, name: str) -> list[Manifest]:
        """The pods of one instance, rank by rank."""
        return self.pods(f"serving.ai/cluster={name}")

    def uids(self, name: str) -> set[str]:
        """UIDs of the pods of one instance."""
        return {pod["metadata"]["uid"] for pod in self.ranks(name)}

    def images(self, name: str) -> set[str]:
        """Images the pods of one instance were made from."""
        return {pod["spec"]["containers"][0]["image"] for pod in self.ranks(name)}

    def evict(self, pod: str) -> None:
        """Evict through the eviction API, as a node drain does: again while the budget does not allow it yet."""
        body = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod, namespace=self.namespace))
        eventually(lambda: allowed(lambda: self.core.create_namespaced_pod_eviction(pod, self.namespace, body)), 120)

    def execute(self, pod: str, *command: str) -> str:
        """Run a command in a pod's first container."""
        base = [tool("kubectl"), f"--kubeconfig={self.kubeconfig}", "--namespace", self.namespace]
        return run([*base, "exec", pod, "--", *command])

    def logs(self, pod: str, **options: Any) -> str:
        """Log of a pod's first container."""
        return self.core.read_namespaced_pod_log(pod, self.namespace, **options)

    def said(self, name: str) -> set[tuple[str, str]]:
        """What the events about one object say: pairs of action and reason."""
        return {(event.get("action", ""), event["reason"]) for event in self.events(name)}

    def events(self, name: str) -> list[Manifest]:
        """Events about one object, oldest first."""
        found = self.custom.list_namespaced_custom_object("events.k8s.io", "v1", self.namespace, "events")
        mine = [item for item in found["items"] if item.get("regarding", {}).get("name") == name]
        return sorted(mine, key=lambda item: item["metadata"]["creationTimestamp"])

    # -- the way in --------------------------------------------------------------------------------------------------

    def router_url(self) -> str:
        """Address of the client Service; routed from this machine on the local cluster."""
        service = self.core.read_namespaced_service(f"{RELEASE}-router", self.namespace)
        return f"http://{service.spec.cluster_ip}:8080"

    @contextmanager
    def fleet(self, name: str, count: int, spec: Mapping[str, Any], *, wait: float = 300) -> Iterator[list[str]]:
        """A fleet of this test's own: made, waited for, and gone afterwards."""
        names = [f"{name}-{ordinal}" for ordinal in range(count)]
        try:
            for instance in names:
                self.create(instance, spec, fleet=name)
            for instance in names:
                eventually(lambda instance=instance: self.is_ready(instance), wait, lambda: self.why(name))
            yield names
        finally:
            for instance in self.instances(name):
                self.delete(instance["metadata"]["name"])
            eventually(lambda: not self.instances(name), 300, lambda: self.why(name))

    def why(self, fleet: str) -> str:
        """What stands in the way of a fleet, for the message of a failed wait."""
        lines = []
        for item in self.instances(fleet):
            lines.append(json.dumps({"name": item["metadata"]["name"], "status": item.get("status")}))
            for pod in self.ranks(item["metadata"]["name"]):
                states = pod["status"].get("containerStatuses")
                lines.append(json.dumps({"pod": pod["metadata"]["name"], "states": states}))
        return "\n".join(lines)


def allowed(request: Callable[[], Any]) -> bool:
    """Whether a request was taken now: 429 says that it may be later."""
    try:
        request()
    except ApiException as problem:
        if problem.status != 429:
            raise
        return False
    return True


def has_ready(instance: Manifest) -> bool:
    """Whether an instance says that it serves."""
    conditions = instance.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def stays(instance: Manifest) -> bool:
    """Whether nobody asked an instance to go."""
    return not instance["metadata"].get("deletionTimestamp")


def eventually(check: Callable[[], Any], seconds: float, why: Callable[[], str] = lambda: "") -> Any:
    """Ask again until the answer is truthy; a wait that does not end is a failure with its reason, never a hang."""
    end, problem = time.monotonic() + seconds, ""
    while True:
        try:
            if answer := check():
                return answer
        except (ApiException, HTTPError) as error:
            if not transient(error):
                raise
            problem = str(error)
        if time.monotonic() > end:
            raise AssertionError(f"not so after {seconds:.0f} s: {check.__qualname__}\n{problem}\n{why()}")
        time.sleep(0.2)


def transient(error: Exception) -> bool:
    """Whether only an apiserver that is too busy, or the way to it, was in the way: ask again."""
    return isinstance(error, HTTPError) or (
        isinstance(error, ApiException) and (error.status == 429 or (error.status or 0) >= 500)
    )


@contextmanager
def sampling(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Look again and again while the block runs; a look that fails is an error at the end of the block."""
    problems: list[Exception] = []

    def run(over: threading.Event) -> None:
        while not problems and not over.wait(seconds):
            try:
                look()
            except Exception as error:
                problems.extend([] if transient(error) else [error])

    with beside(run):
        yield
    if problems:
        raise problems[0]


def engine_spec(model: str, **changes: Any) -> Manifest:
    """A group of two simulator pods that answers as `model`; a token takes 50 ms, whatever the load."""
    lifecycle = {"startupTimeoutSeconds": 180, "drainTimeoutSeconds": 60, "restartBackoffSeconds": 1}
    spec: Manifest = {
        "model": "tiny",
        "servedModelNames": [model],
        "replicas": 2,
        "gpusPerPod": 1,
        "tensorParallelSize": 2,
        "image": SIM,
        "accelerator": {"resourceName": ""},
        "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "256Mi"}},
        "storage": {"shmSize": "16Mi", "modelCache": {"type": "none"}},
        "inferenceArgs": {
            "maxModelLen": 8192,
            "extraArgs": ["--sim-step-a=50", "--sim-step-b=0", "--sim-step-c=0", "--sim-step-d=0"],
        },
        "lifecycle": lifecycle,
    }
    spec["lifecycle"] = lifecycle | changes.pop("lifecycle", {})
    return spec | changes
