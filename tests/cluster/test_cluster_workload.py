"""What a cluster is for: restricted pods on two nodes, names, Services, logs, exec, images, metrics, a dead node."""

import json
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from cluster_driver import PROBE_IMAGE, Cluster, eventually
from llmfleet_cluster import cgroups, network, store

pytestmark = pytest.mark.cluster

NAMESPACE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": "probe", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
}
SELECTOR = {"app": "group"}
# Ready pods are in the Service's rules, in DNS and in a log a moment later: each of them watches for itself.
SOON = 120


def service(name: str, **spec: object) -> dict[str, object]:
    port = {"port": 80, "targetPort": 8080}
    metadata = {"name": name, "namespace": "probe"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": SELECTOR, "ports": [port], **spec},
    }


def group() -> dict[str, object]:
    container = {
        "name": "probe",
        "image": PROBE_IMAGE,
        "imagePullPolicy": "Never",
        "args": ["serve", ":8080"],
        "resources": {
            "requests": {"cpu": "10m", "memory": "16Mi", "ephemeral-storage": "1Mi"},
            "limits": {"memory": "64Mi"},
        },
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    pod = {
        "terminationGracePeriodSeconds": 2,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 2000, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [{**spread, "labelSelector": {"matchLabels": SELECTOR}}],
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "group", "namespace": "probe"},
        "spec": {
            "replicas": 2,
            "serviceName": "ranks",
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": SELECTOR},
            "template": {"metadata": {"labels": SELECTOR}, "spec": pod},
        },
    }


def ready_group(cluster: Cluster) -> None:
    cluster.kubectl("-n", "probe", "rollout", "status", "statefulset/group", "--timeout=300s")


@pytest.fixture(scope="module")
def workload(running: Cluster) -> Cluster:
    """A group of two ranks and its Services."""
    headless = service("ranks", clusterIP="None", publishNotReadyAddresses=True)
    objects = [NAMESPACE, headless, service("front"), group()]
    running.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    ready_group(running)
    return running


def fetch(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
        return str(answer.read().decode()).strip()


def answers(address: str, times: int) -> set[str]:
    """Ask several times; an answer that does not come is an empty one."""
    found = set()
    for _ in range(times):
        try:
            found.add(fetch(address))
        except OSError:
            found.add("")
    return found


def pod_address(cluster: Cluster, pod: str) -> str:
    return cluster.kubectl("-n", "probe", "get", "pod", pod, "-o", "jsonpath={.status.podIP}")


def names_resolve_to(cluster: Cluster, name: str) -> list[str]:
    """The addresses of a name as a pod sees them; none while it is not known yet."""
    return sorted(cluster.try_kubectl("-n", "probe", "exec", "group-0", "--", "/probe", "resolve", name).stdout.split())


def test_a_restricted_group_runs_on_two_nodes(workload: Cluster) -> None:
    nodes = workload.kubectl("-n", "probe", "get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}")
    assert sorted(nodes.split()) == ["node-0", "node-1"]


def test_a_pod_that_is_not_restricted_is_refused(workload: Cluster) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "loose", "namespace": "probe"},
        "spec": {"containers": [{"name": "probe", "image": PROBE_IMAGE}]},
    }
    result = workload.try_kubectl("create", "-f", "-", stdin=json.dumps(pod))
    assert (result.returncode, "violates PodSecurity" in result.stderr) == (1, True)


def test_names_resolve_within_a_pod(workload: Cluster) -> None:
    both = sorted([pod_address(workload, "group-0"), pod_address(workload, "group-1")])
    front = workload.kubectl("-n", "probe", "get", "service", "front", "-o", "jsonpath={.spec.clusterIP}")
    right = {
        "ranks.probe.svc.cluster.local": both,
        "group-1.ranks": [pod_address(workload, "group-1")],
        "front": [front],
    }
    for name, addresses in right.items():
        eventually(lambda name=name, wanted=addresses: names_resolve_to(workload, name) == wanted, SOON, name)


def test_a_name_outside_the_cluster_is_denied_not_left_hanging(workload: Cluster) -> None:
    result = workload.try_kubectl("-n", "probe", "exec", "group-0", "--", "/probe", "resolve", "example.com")
    assert (result.returncode, "no such host" in result.stderr) == (1, True)


def test_pods_and_services_answer_the_host(workload: Cluster) -> None:
    for pod in ("group-0", "group-1"):
        assert fetch(f"{pod_address(workload, pod)}:8080") == pod
    front = workload.kubectl("-n", "probe", "get", "service", "front", "-o", "jsonpath={.spec.clusterIP}")
    eventually(lambda: answers(front, 20) == {"group-0", "group-1"}, SOON, "both pods answer for the Service")


def test_a_pod_reaches_a_service_on_its_own_node_too(workload: Cluster) -> None:
    for pod in ("group-0", "group-1"):
        eventually(lambda pod=pod: gathered(workload, pod) == ["group-0", "group-1"], SOON, f"{pod} reaches both")


def gathered(cluster: Cluster, pod: str) -> list[str]:
    """Who answers a pod that asks the Service."""
    command = ("exec", pod, "--", "/probe", "gather", "http://front/")
    return sorted(cluster.try_kubectl("-n", "probe", *command).stdout.split())


def test_logs_and_exec_work_on_both_nodes(workload: Cluster) -> None:
    for pod in ("group-0", "group-1"):
        logs = partial(workload.kubectl, "-n", "probe", "logs", pod)
        eventually(lambda logs=logs: logs(), SOON, f"{pod} has a log")
        assert logs() == f"serving {pod}\n"
        assert (
            workload.kubectl("-n", "probe", "exec", pod, "--", "/probe", "get", "http://127.0.0.1:8080/") == f"{pod}\n"
        )


def test_loading_an_image_twice_loads_it_once(running: Cluster, probe: Path) -> None:
    assert "every node has it" in running.run("load", str(probe))


@pytest.mark.parametrize(("name", "content"), [("absent.tar", None), ("text.tar", "not an archive")])
def test_what_is_not_an_image_is_refused(running: Cluster, tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    ended, _, said = running.attempt("load", str(tmp_path / name))
    assert (ended, name in said) == (1, True)
    assert "Traceback" not in said


def test_component_logs_are_listed_and_printed(running: Cluster) -> None:
    assert "kubelet.node-1" in running.run("logs")
    assert running.run("logs", "kube-apiserver", "--tail", "3").count("\n") == 3
    ended, _, said = running.attempt("logs", "no-such")
    assert (ended, "there are" in said) == (1, True)


def test_metrics_server_measures_pods(workload: Cluster) -> None:
    def measured() -> bool:
        result = workload.try_kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/probe/pods")
        return result.returncode == 0 and len(json.loads(result.stdout)["items"]) == 2

    eventually(measured, 300, "figures of both pods")


def test_a_node_without_power_falls_silent_and_comes_back(workload: Cluster) -> None:
    address = pod_address(workload, "group-0")
    assert fetch(f"{address}:8080") == "group-0", "the host now remembers the node's hardware address"
    node = workload.kubectl("-n", "probe", "get", "pod", "group-0", "-o", "jsonpath={.spec.nodeName}")
    workload.run("node-kill", node)
    with pytest.raises((urllib.error.URLError, TimeoutError)):
        fetch(f"{address}:8080")
    eventually(lambda: not node_is_ready(workload, node), 180, f"{node} counts as dead")
    reason = 'jsonpath={.status.conditions[?(@.type=="Ready")].reason}'
    said = workload.kubectl("get", "node", node, "-o", reason)
    assert said == "NodeStatusUnknown", "nobody told the apiserver: it finds out by silence"
    front = workload.kubectl("-n", "probe", "get", "service", "front", "-o", "jsonpath={.spec.clusterIP}")
    eventually(lambda: answers(front, 5) == {"group-1"}, SOON, "the Service leaves the dead pod out")
    workload.run("node-start", node)
    ready_group(workload)
    eventually(lambda: answering(workload), SOON, "both ranks serve again")


def node_is_ready(cluster: Cluster, node: str) -> bool:
    query = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
    return cluster.kubectl("get", "node", node, "-o", query) == "True"


def test_a_cluster_goes_on_after_the_machine_lost_its_power(workload: Cluster) -> None:
    kept = workload.kubectl("-n", "probe", "get", "statefulset", "group", "-o", "jsonpath={.metadata.uid}")
    forget_everything_but_files(workload.name)
    assert workload.status()["healthy"] is False
    workload.run("up")
    assert workload.kubectl("-n", "probe", "get", "statefulset", "group", "-o", "jsonpath={.metadata.uid}") == kept
    eventually(lambda: answering(workload), 300, "both ranks serve again")


def forget_everything_but_files(name: str) -> None:
    """Do what a power loss does: processes, mounts, links and control groups are gone, files are not."""
    layout = store.layout_of(name, store.read_record(name))
    cgroups.kill(layout.cgroup)
    network.remove(layout)
    cgroups.remove(layout.cgroup)


def answering(cluster: Cluster) -> bool:
    """Tell whether both ranks answer the host by their own address."""
    pods = ("group-0", "group-1")
    return all(answers(f"{pod_address(cluster, pod)}:8080", 1) == {pod} for pod in pods)
