"""The three components do their work under exactly the rights of the table, on an apiserver that enforces them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from fakes.apiserver import Apiserver, free_ports, kubeconfig_content
from fakes.scripted import eventually
from llmfleet.kube.client import Api
from llmfleet.kube.permissions import COMPONENTS, Permission, Scope
from llmfleet.kube.refs import CLAIM, CONFIGMAP, LEASE, LLMCLUSTER, POD, STATEFULSET, Ref

RBAC = "/apis/rbac.authorization.k8s.io/v1"
CONFIGMAP_NAME = "rel-router-backends"
NAMES = {
    "leases": ["llmfleet-operator"],
    "configmaps": [CONFIGMAP_NAME],
    "customresourcedefinitions": ["llmclusters.serving.ai", "llmclusterautoscalers.serving.ai"],
}


def rule(permission: Permission) -> dict[str, Any]:
    found: dict[str, Any] = {
        "apiGroups": [permission.group],
        "resources": [permission.resource],
        "verbs": list(permission.verbs),
    }
    return found | ({"resourceNames": NAMES[permission.resource]} if permission.named else {})


def account(server: Apiserver, namespace: str, component: str, tmp_path: Path) -> Path:
    """A service account with the component's rights and nothing else; returns its kubeconfig."""

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = server.call("POST", path, body)
        assert answer.status in (200, 201), answer.message
        return answer.body

    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    post(accounts, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": component}})
    subject = {"kind": "ServiceAccount", "name": component, "namespace": namespace}
    permissions = COMPONENTS[component]
    for kind, path, chosen in (
        ("Role", f"{RBAC}/namespaces/{namespace}", [p for p in permissions if p.scope is not Scope.CLUSTER]),
        ("ClusterRole", RBAC, [p for p in permissions if p.scope is Scope.CLUSTER]),
    ):
        name = f"{namespace}-{component}"
        head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
        post(f"{path}/{kind.lower()}s", {**head, "kind": kind, "rules": [rule(p) for p in chosen]})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        binding = {**head, "kind": f"{kind}Binding", "roleRef": role, "subjects": [subject]}
        post(f"{path}/{kind.lower()}bindings", binding)
        for permission in chosen[-1:]:  # the authorizer watches roles for itself, and knows a new one a moment later
            eventually(lambda one=permission: may(server, namespace, component, one))
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    token = post(f"{accounts}/{component}/token", request)["status"]["token"]
    kubeconfig = tmp_path / f"{component}.kubeconfig"
    kubeconfig.write_text(json.dumps(kubeconfig_content(server.url, token, server.ca_file)))
    return kubeconfig


def may(server: Apiserver, namespace: str, component: str, permission: Permission) -> bool:
    """Whether the apiserver lets the account do what a permission says."""
    resource, _, subresource = permission.resource.partition("/")
    attributes = {"verb": permission.verbs[0], "group": permission.group, "resource": resource}
    attributes |= {"subresource": subresource} if subresource else {}
    attributes |= {"name": NAMES[permission.resource][0]} if permission.named else {}
    attributes |= {"namespace": namespace} if permission.scope is not Scope.CLUSTER else {}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:{namespace}:{component}", "resourceAttributes": attributes},
    }
    answer = server.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer.body["status"]["allowed"])


def cluster(namespace: str) -> dict[str, Any]:
    spec = {
        "model": "org/m",
        "servedModelNames": ["m"],
        "replicas": 1,
        "gpusPerPod": 1,
        "tensorParallelSize": 1,
        "image": "i:1",
        "lifecycle": {"warmup": {"enabled": False}, "drainTimeoutSeconds": 1},
        "storage": {"modelCache": {"type": "persistentVolumeClaim", "size": "1Gi"}},
    }
    metadata = {"name": "a", "namespace": namespace, "labels": {"app.kubernetes.io/instance": "rel"}}
    return {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": metadata, "spec": spec}


def backends(namespace: str) -> dict[str, Any]:
    annotations = {"serving.ai/cluster-selector": "app.kubernetes.io/instance=rel", "serving.ai/router-selector": "x=y"}
    metadata = {
        "name": CONFIGMAP_NAME,
        "namespace": namespace,
        "labels": {"serving.ai/backends": "true"},
        "annotations": annotations,
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def run_pod(api: Api, namespace: str) -> None:
    """Do what the StatefulSet controller and a kubelet would."""
    template = api.get(Ref(kind=STATEFULSET, namespace=namespace, name="a"))["spec"]["template"]
    container = {key: template["spec"]["containers"][0][key] for key in ("name", "image", "args", "ports")}
    metadata = {**template["metadata"], "name": "a-0", "namespace": namespace, "creationTimestamp": None}
    spec = {"containers": [container], "automountServiceAccountToken": False}
    api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    engine = {
        "name": "engine",
        "image": "i:1",
        "imageID": "x",
        "containerID": "containerd://1",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": now}},
    }
    status = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}],
        "startTime": now,
        "conditions": [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds],
        "containerStatuses": [engine],
    }
    api.merge_patch(Ref(kind=POD, namespace=namespace, name="a-0"), {"status": status}, subresource="status")


def ready(api: Api, namespace: str) -> bool:
    found = api.get(Ref(kind=LLMCLUSTER, namespace=namespace, name="a"))
    conditions = (found.get("status") or {}).get("conditions") or ()
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def document(api: Api, namespace: str) -> str:
    found = api.get(Ref(kind=CONFIGMAP, namespace=namespace, name=CONFIGMAP_NAME))
    return str((found.get("data") or {}).get("backends.json", ""))


def test_a_whole_life_needs_no_right_that_is_not_in_the_table(
    api: Api, server: Apiserver, namespace: str, tmp_path: Path
) -> None:
    """Operator and route-sync from the first pod to the last; then uninstall."""
    operator_config = account(server, namespace, "operator", tmp_path)
    sync_config = account(server, namespace, "route-sync", tmp_path)
    metrics, health, sync_health = free_ports(3)
    log, sync_log, output = tmp_path / "operator.log", tmp_path / "sync.log", tmp_path / "backends.json"
    operator = [
        sys.executable,
        "-m",
        "llmfleet",
        "operator",
        "--kubeconfig",
        str(operator_config),
        "--namespace",
        namespace,
    ]
    operator += ["--identity", "sys/rel", "--lease-namespace", namespace, "--metrics-port", str(metrics)]
    operator += ["--health-port", str(health)]
    sync = [sys.executable, "-m", "llmfleet", "route-sync", "--kubeconfig", str(sync_config), "--namespace", namespace]
    sync += ["--configmap", CONFIGMAP_NAME, "--output", str(output), "--health-port", str(sync_health)]
    api.create(backends(namespace))
    with log.open("wb") as first, sync_log.open("wb") as second:
        processes = [subprocess.Popen(operator, stderr=first), subprocess.Popen(sync, stderr=second)]
    try:
        api.create(cluster(namespace))
        eventually(lambda: server.call("GET", STATEFULSET.path(namespace, "a")).status == 200, seconds=240)
        run_pod(api, namespace)
        eventually(lambda: ready(api, namespace), seconds=240)
        eventually(lambda: '"address":"10.0.0.1:8000"' in document(api, namespace), seconds=240)
        eventually(lambda: output.exists() and b"10.0.0.1:8000" in output.read_bytes(), seconds=240)
        # A crash makes a group restart, an edit an update, a deletion a drain.
        patch = {"spec": {"image": "i:2"}}
        server.call("PATCH", LLMCLUSTER.path(namespace, "a"), patch, content_type="application/merge-patch+json")
        eventually(lambda: deleted_by_the_operator(server, namespace), seconds=240)
        uninstall_config = account(server, namespace, "uninstall", tmp_path)
        uninstall = [sys.executable, "-m", "llmfleet", "uninstall", "--kubeconfig", str(uninstall_config)]
        uninstall += ["--namespace", namespace, "--release", "rel", "--timeout", "60"]
        done = subprocess.run(uninstall, capture_output=True, text=True, timeout=120)
        text = requests.get(f"http://127.0.0.1:{metrics}/metrics", timeout=10).text
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(180)
    assert done.returncode == 0, done.stderr
    assert "kept: PersistentVolumeClaim a-models (model files)" in done.stdout
    assert "all 1 llmclusters are gone" in done.stdout
    assert "cannot" not in done.stdout
    assert server.call("GET", CLAIM.path(namespace, "a-models")).status == 200
    for written in (log.read_text(), sync_log.read_text()):
        assert "forbidden" not in written.lower()
    assert 'code="403"' not in text
    assert "Forbidden" not in text


def test_what_follows_a_deleted_operator_needs_its_own_rights_only(
    server: Apiserver, namespace: str, tmp_path: Path
) -> None:
    manifest = cluster(namespace)
    manifest["metadata"] |= {"annotations": {"serving.ai/managed-by": f"{namespace}/rel"}}
    manifest["metadata"] |= {"finalizers": ["serving.ai/drain"]}
    server.call("POST", LLMCLUSTER.path(namespace), manifest)
    lease = {"metadata": {"name": "llmfleet-operator"}, "apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    server.call("POST", LEASE.path(namespace), lease)
    command = [sys.executable, "-m", "llmfleet", "uninstall", "--operator", f"{namespace}/rel"]
    command += ["--namespace", namespace, "--lease", "llmfleet-operator"]
    command += ["--kubeconfig", str(account(server, namespace, "leave", tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "took the finalizer off" in done.stdout
    assert "deleted Lease" in done.stdout
    assert "forbidden" not in done.stdout.lower()


def deleted_by_the_operator(server: Apiserver, namespace: str) -> bool:
    """The old pod was deleted for the update; without a kubelet it stays Terminating until we finish it."""
    answer = server.call("GET", POD.path(namespace, "a-0"))
    if answer.status == 200 and answer.body["metadata"].get("deletionTimestamp"):
        server.call("DELETE", POD.path(namespace, "a-0"), {"gracePeriodSeconds": 0})
    return answer.status == 404


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_table_names_no_wildcard_no_secret_and_nothing_twice(component: str) -> None:
    rights = [(p.group, p.resource, p.scope, p.named, verb) for p in COMPONENTS[component] for verb in p.verbs]
    assert len(rights) == len(set(rights))
    # One exception, and only by its name: a token for Prometheus.
    token = ("", "secrets", Scope.NAMESPACE, True, "get")
    found = [right for right in rights if "*" in right or right[1] in ("secrets", "clusterroles", "roles")]
    assert found == ([token] if component == "autoscaler" else [])
