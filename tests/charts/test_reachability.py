"""Who reaches whom: every connection that a release needs is open, and the others are closed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from charts.reachability import Place, may_connect, policies_of
from charts.rendering import Object, of_kind, pod_templates, render
from llmfleet.api.parse import parse_spec
from llmfleet.deploy.objects.identity import Identity, pod_labels

pytestmark = pytest.mark.helm

GATEWAY = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}}]
PROMETHEUS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
DENY: dict[str, Any] = {"enabled": True, "metricsFrom": PROMETHEUS, "defaultDeny": True}
VALUES = {
    "fleet": {"networkPolicy": DENY | {"clientsFrom": GATEWAY}},
    "controllers": {
        "networkPolicy": DENY | {"egress": {"autoscaler": [{"to": PROMETHEUS, "ports": [{"port": 9090}]}]}}
    },
}
OUTSIDE = {
    "gateway": Place(namespace="gateway", labels={"app": "gateway"}),
    "prometheus": Place(namespace="monitoring", labels={"app": "prometheus"}, ports={"web": 9090}),
    "stranger": Place(namespace="team-a", labels={"app": "notebook"}, ports={"http": 80}),
    "anywhere": Place(),
}


def place(template: Object, namespace: str = "team-a") -> Place:
    """The pod that a template makes."""
    containers = template["spec"]["containers"]
    ports = {p["name"]: p["containerPort"] for c in containers for p in c.get("ports", [])}
    return Place(namespace=namespace, labels=template["metadata"]["labels"], ports=ports)


def engine(cluster: Object) -> Place:
    """Rank 0 of an instance."""
    metadata = cluster["metadata"]
    fleet = metadata["labels"]["serving.ai/fleet"]
    identity = Identity(namespace=metadata["namespace"], name=metadata["name"], uid="u", fleet=fleet, manager="a/b")
    return Place(
        namespace=metadata["namespace"], labels=pod_labels(identity, parse_spec(cluster["spec"])), ports={"http": 8000}
    )


@cache
def world(release: str = "demo") -> tuple[dict[str, Place], tuple[Object, ...]]:
    """The pods of a release, those around it, and its policies."""
    values = VALUES | {"monitoring": {"enabled": False}}
    objects = render("autoscaling", values, release=release)
    fixed = render("dev", values, release=release)
    templates = pod_templates(objects)
    names = {
        "router": f"Deployment/{release}-router",
        "operator": f"Deployment/{release}-operator",
        "autoscaler": f"Deployment/{release}-autoscaler",
        "redis": f"StatefulSet/{release}-redis",
        "test": f"Pod/{release}-test-chat",
        "uninstall": f"Job/{release}-uninstall",
    }
    pods = {name: place(templates[title]) for name, title in names.items()}
    pods["engine"] = engine(of_kind(fixed, "LLMCluster")[0])
    return pods | OUTSIDE, tuple(policies_of(objects))


OPEN = [
    *[("gateway", "router", 8080), ("test", "router", 8080), ("test", "router", 9090)],
    *[("router", "engine", 8000), ("router", "router", 9090), ("router", "redis", 6379), ("router", "anywhere", 6443)],
    *[("operator", "engine", 8000), ("operator", "router", 9090), ("operator", "anywhere", 443)],
    *[("autoscaler", "engine", 8000), ("autoscaler", "router", 9090), ("autoscaler", "prometheus", 9090)],
    *[("autoscaler", "anywhere", 6443), ("engine", "engine", 29500), ("uninstall", "anywhere", 443)],
    *[("prometheus", "router", 9090), ("prometheus", "engine", 8000), ("prometheus", "operator", 9090)],
    ("prometheus", "autoscaler", 9090),
]
CLOSED = [
    *[("stranger", "router", 8080), ("stranger", "router", 9090), ("stranger", "engine", 8000)],
    *[("stranger", "redis", 6379), ("gateway", "router", 9090), ("gateway", "engine", 8000)],
    *[("gateway", "redis", 6379), ("engine", "redis", 6379), ("engine", "router", 8080), ("engine", "router", 9090)],
    *[("engine", "anywhere", 443), ("engine", "stranger", 80), ("router", "anywhere", 80), ("router", "stranger", 80)],
    *[("redis", "anywhere", 443), ("redis", "router", 8080), ("test", "engine", 8000), ("test", "redis", 6379)],
    *[("test", "anywhere", 443), ("uninstall", "router", 8080), ("operator", "redis", 6379)],
    *[("operator", "prometheus", 9090), ("autoscaler", "redis", 6379), ("prometheus", "redis", 6379)],
    ("stranger", "operator", 9090),
]


@pytest.mark.parametrize(("source", "target", "port"), OPEN)
def test_what_a_release_needs_is_open(source: str, target: str, port: int) -> None:
    pods, policies = world()
    assert may_connect(policies, pods[source], pods[target], port)


@pytest.mark.parametrize(("source", "target", "port"), CLOSED)
def test_what_nobody_needs_is_closed(source: str, target: str, port: int) -> None:
    pods, policies = world()
    assert not may_connect(policies, pods[source], pods[target], port)


@pytest.mark.parametrize("name", ["router", "engine", "operator", "autoscaler", "test", "uninstall"])
def test_every_part_that_calls_by_name_may_ask_for_names(name: str) -> None:
    pods, policies = world()
    assert may_connect(policies, pods[name], pods["anywhere"], 53, "UDP")
    assert may_connect(policies, pods[name], pods["anywhere"], 53, "TCP")


@pytest.mark.parametrize(
    ("source", "target", "port"), [("router", "redis", 6379), ("router", "router", 9090), ("test", "router", 8080)]
)
def test_the_parts_of_another_release_in_the_namespace_are_strangers(source: str, target: str, port: int) -> None:
    (own, policies), (others, others_policies) = world(), world("other")
    assert not may_connect([*policies, *others_policies], own[source], others[target], port)


def test_without_default_deny_who_calls_out_is_not_asked() -> None:
    pods, _ = world()
    on = {"enabled": True}
    policies = policies_of(render("dev", {"fleet": {"networkPolicy": on}, "controllers": {"networkPolicy": on}}))
    assert all(policy["spec"]["policyTypes"] == ["Ingress"] for policy in policies)
    assert may_connect(policies, pods["engine"], pods["anywhere"], 443)
    assert may_connect(policies, pods["stranger"], pods["router"], 8080), "clients are everybody unless they are named"
    assert not may_connect(policies, pods["stranger"], pods["redis"], 6379)


def test_an_apiserver_on_another_port_is_open_by_that_port_alone() -> None:
    pods, _ = world()
    policy = {**DENY, "egress": {"apiserverPorts": [16443]}}
    policies = policies_of(render("dev", {part: {"networkPolicy": policy} for part in ("fleet", "controllers")}))
    for name in ("router", "operator", "autoscaler", "uninstall"):
        assert may_connect(policies, pods[name], pods["anywhere"], 16443), name
        assert not any(may_connect(policies, pods[name], pods["anywhere"], port) for port in (443, 6443)), name


def test_an_external_redis_is_open_by_its_port() -> None:
    redis = {"enabled": False, "external": {"url": "rediss://cache.example.com:6380/2"}}
    values = {"fleet": {"networkPolicy": DENY, "redis": redis}}
    policies = policies_of(render("dev", values))
    pods, _ = world()
    assert may_connect(policies, pods["router"], pods["anywhere"], 6380)
    assert not may_connect(policies, pods["router"], pods["anywhere"], 6379)


def test_engines_reach_a_model_hub_when_they_are_told() -> None:
    values = {"fleet": {"networkPolicy": DENY | {"egress": {"engines": [{"ports": [{"port": 443}]}]}}}}
    policies = policies_of(render("dev", values))
    pods, _ = world()
    assert may_connect(policies, pods["engine"], pods["anywhere"], 443)


def test_without_a_router_the_checks_and_the_clients_reach_the_engines() -> None:
    values = {"fleet": {"networkPolicy": DENY | {"clientsFrom": GATEWAY}, "router": {"enabled": False}}}
    objects = render("single", values)
    cluster = engine(of_kind(objects, "LLMCluster")[0])
    check = place(pod_templates(objects)["Pod/demo-test-chat"])
    policies = policies_of(objects)
    assert may_connect(policies, check, cluster, 8000)
    assert may_connect(policies, OUTSIDE["gateway"], cluster, 8000)
    assert not may_connect(policies, OUTSIDE["stranger"], cluster, 8000)
