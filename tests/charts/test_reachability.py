"""Who reaches whom: every connection that a release needs is open, and the others are closed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from charts.matrix import DENY, GATEWAY, Cell, cells, engine, is_open, place, world
from charts.mutants import coarse, fine
from charts.reachability import may_connect, policies_of
from charts.rendering import Object, of_kind, pod_templates, render

pytestmark = pytest.mark.helm

# Taken away alone these change nothing, because the same is denied once more elsewhere.
DENIED_TWICE = {
    # Router and Redis have policies of their own for both directions, the hooks for what they call.
    *[f"demo-fleet-default-deny without podSelector.matchExpressions.0.values.{entry}" for entry in (0, 1)],
    *[f"{name} without policyTypes.1" for name in ("demo-fleet-default-deny", "demo-redis")],
    # The other end opens one port only.
    *["demo-redis without ingress.0.ports", "demo-test without egress.1.ports"],
    *["demo-router without egress.3.ports", "demo-router without egress.4.ports"],
    # The controllers are in this very namespace.
    *[f"demo-router without ingress.1.from.{peer}.namespaceSelector" for peer in (0, 1)],
    *[f"demo-tiny-engine without ingress.1.from.{peer}.namespaceSelector" for peer in (1, 2)],
}


def opened(policies: Sequence[Object]) -> set[Cell]:
    """Every connection that policies allow."""
    pods, _ = world()
    return {cell for cell in cells(pods) if may_connect(policies, pods[cell[0]], pods[cell[1]], cell[2], cell[3])}


def test_what_a_release_needs_is_open_and_everything_else_is_closed() -> None:
    pods, policies = world()
    assert opened(policies) == {cell for cell in cells(pods) if is_open(cell)}


def test_the_list_is_missed_when_a_policy_is_gone_or_wide_open() -> None:
    _, policies = world()
    usual = opened(policies)
    assert [name for name, mutant in coarse(policies) if opened(mutant) == usual] == []


def test_the_list_is_missed_when_anything_that_a_policy_says_is_taken_away() -> None:
    _, policies = world()
    usual = opened(policies)
    assert {name for name, mutant in fine(policies) if opened(mutant) == usual} == DENIED_TWICE


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
    (pods, _), policies = world(), policies_of(objects)
    assert may_connect(policies, check, cluster, 8000)
    assert may_connect(policies, pods["gateway"], cluster, 8000)
    assert not may_connect(policies, pods["stranger"], cluster, 8000)
