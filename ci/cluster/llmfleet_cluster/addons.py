"""Objects a cluster starts with: what CoreDNS and who enforces policies may read, and metrics-server's API.

Pure: manifests and the paths they are applied to. CoreDNS and metrics-server run beside the apiserver, not in pods, so
a node's loss takes neither names nor figures away.
"""

import base64
from typing import Any

from . import pki
from .controlplane import METRICS_PORT
from .layout import CONTROL_PLANE, Layout

RBAC = "rbac.authorization.k8s.io"
ROLES = f"/apis/{RBAC}/v1/clusterroles"
BINDINGS = f"/apis/{RBAC}/v1/clusterrolebindings"
SYSTEM = "/namespaces/kube-system"


def manifests(layout: Layout) -> list[tuple[str, dict[str, Any]]]:
    """Return (API path, object) in the order in which they are applied."""
    return [*coredns_access(), *policies_access(), *metrics_access(), *metrics_service(layout), metrics_api(layout)]


def coredns_access() -> list[tuple[str, dict[str, Any]]]:
    """Let CoreDNS read what names are made of."""
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    return [role("system:coredns", rules), binding("system:coredns", "system:coredns")]


def policies_access() -> list[tuple[str, dict[str, Any]]]:
    """Let the nodes' enforcers read what policies speak of; none runs unless `up --policies` asked for it."""
    rules = [
        {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"]},
    ]
    return [role("system:policies", rules), binding("system:policies", "system:policies")]


def metrics_access() -> list[tuple[str, dict[str, Any]]]:
    """Let metrics-server read kubelets and check its callers."""
    rules = [
        {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]},
    ]
    reader = [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}]
    aggregated = {f"{RBAC}/aggregate-to-{name}": "true" for name in ("view", "edit", "admin")}
    return [
        role("system:metrics-server", rules),
        binding("system:metrics-server", "system:metrics-server"),
        binding("system:metrics-server:auth", "system:auth-delegator", user="system:metrics-server"),
        role("system:aggregated-metrics-reader", reader, labels=aggregated),
    ]


def role(name: str, rules: list[dict[str, Any]], labels: dict[str, str] | None = None) -> tuple[str, dict[str, Any]]:
    metadata = {"name": name, "labels": labels or {}}
    body = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules}
    return f"{ROLES}/{name}", body


def binding(name: str, role_name: str, user: str = "") -> tuple[str, dict[str, Any]]:
    body = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role_name},
        "subjects": [{"apiGroup": RBAC, "kind": "User", "name": user or name}],
    }
    return f"{BINDINGS}/{name}", body


def metrics_service(layout: Layout) -> list[tuple[str, dict[str, Any]]]:
    """Give metrics-server a Service whose one endpoint is the control plane's address."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "metrics-server", "namespace": "kube-system"},
        "spec": {"ports": [{"name": "https", "port": 443, "targetPort": METRICS_PORT, "protocol": "TCP"}]},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "metrics-server",
            "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "metrics-server"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [layout.address(CONTROL_PLANE)], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": METRICS_PORT, "protocol": "TCP"}],
    }
    slices = f"/apis/discovery.k8s.io/v1{SYSTEM}/endpointslices/metrics-server"
    return [(f"/api/v1{SYSTEM}/services/metrics-server", service), (slices, endpoints)]


def metrics_api(layout: Layout) -> tuple[str, dict[str, Any]]:
    """Register metrics.k8s.io, on which `kubectl top` and HorizontalPodAutoscaler stand."""
    authority = base64.b64encode(pki.certificate(layout, "ca").read_bytes()).decode()
    body = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "group": "metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": authority,
            "service": {"name": "metrics-server", "namespace": "kube-system", "port": 443},
        },
    }
    return "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io", body
