"""The rights the charts give are the rights the code's own table asks for: no fewer, no more."""

from __future__ import annotations

import pytest

from charts.rendering import PROFILES, Object, find, of_kind, render, title
from llmfleet.kube.permissions import COMPONENTS, READ, Permission, Scope

pytestmark = pytest.mark.helm

Right = tuple[str, str, str]

# Checked by an admission plugin and not by a call of the operator's, so the table does not know it.
OWNER_REFERENCES: Right = ("serving.ai", "llmclusters/finalizers", "update")


def given(role: Object) -> set[Right]:
    """(group, resource, verb) of every rule, with names or without."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def asked(component: str, *scopes: Scope, named: bool | None = None) -> set[Right]:
    """(group, resource, verb) of a component's table."""
    permissions = [p for p in COMPONENTS[component] if p.scope in scopes and named in (None, p.named)]
    return {(p.group, p.resource, verb) for p in permissions for verb in p.verbs}


def reads(permissions: tuple[Permission, ...]) -> set[Right]:
    """What the table reads in a namespace, whatever it is called."""
    inside = [p for p in permissions if p.scope is Scope.NAMESPACE and not p.named]
    return {(p.group, p.resource, verb) for p in inside for verb in p.verbs if verb in READ}


def test_the_fleet_gives_the_operator_its_namespace() -> None:
    role = find(render("dev"), "Role", "demo-fleet-operator")
    assert given(role) == asked("operator", Scope.NAMESPACE) | {OWNER_REFERENCES}


def test_cluster_wide_the_operator_reads_and_nothing_else() -> None:
    role = find(render("dev"), "ClusterRole", "team-a-demo-operator")
    assert given(role) == reads(COMPONENTS["operator"]) | asked("operator", Scope.CLUSTER)
    assert {verb for _, _, verb in given(role)} <= set(READ)


def test_cluster_wide_writing_is_opt_in_and_the_same_table() -> None:
    role = find(
        render("dev", {"controllers": {"operator": {"rbac": {"clusterWide": True}}}}),
        "ClusterRole",
        "team-a-demo-operator",
    )
    assert given(role) == asked("operator", Scope.NAMESPACE, Scope.CLUSTER) | {OWNER_REFERENCES}


def test_the_operator_has_one_lease() -> None:
    role = find(render("dev"), "Role", "demo-operator-lease")
    unnamed, named = role["rules"]
    assert given({"rules": [unnamed]}) == asked("operator", Scope.OWN, named=False)
    assert given({"rules": [named]}) == asked("operator", Scope.OWN, named=True)
    assert named["resourceNames"] == ["demo-operator"]


def test_the_fleet_gives_the_autoscaler_its_namespace_where_a_model_scales() -> None:
    role = find(render("autoscaling"), "Role", "demo-fleet-autoscaler")
    assert given(role) == asked("autoscaler", Scope.NAMESPACE, named=False)
    assert not [
        o for o in of_kind(render("dev"), "Role", "RoleBinding") if o["metadata"]["name"].endswith("fleet-autoscaler")
    ]


def test_cluster_wide_the_autoscaler_reads_and_writes_only_when_told() -> None:
    role = find(render("dev"), "ClusterRole", "team-a-demo-autoscaler")
    assert given(role) == reads(COMPONENTS["autoscaler"])
    wide = render("dev", {"controllers": {"autoscaler": {"rbac": {"clusterWide": True}}}})
    role = find(wide, "ClusterRole", "team-a-demo-autoscaler")
    assert given(role) == asked("autoscaler", Scope.NAMESPACE, named=False)


def test_the_autoscaler_may_get_the_tokens_that_models_name_and_no_other_secret() -> None:
    source = {"type": "Prometheus", "prometheus": {"address": "http://p:9090", "bearerTokenSecretRef": {"name": "tok"}}}
    objects = render("autoscaling", {"fleet": {"models": {"tiny": {"autoscaling": {"source": source}}}}})
    *others, secrets = find(objects, "Role", "demo-fleet-autoscaler")["rules"]
    assert secrets == {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": ["tok"]}
    assert given({"rules": [secrets]}) == asked("autoscaler", Scope.NAMESPACE, named=True)
    assert given({"rules": others}) == asked("autoscaler", Scope.NAMESPACE, named=False)


def test_the_autoscaler_has_one_lease() -> None:
    unnamed, named = find(render("dev"), "Role", "demo-autoscaler-lease")["rules"]
    assert given({"rules": [unnamed]}) == asked("autoscaler", Scope.OWN, named=False)
    assert given({"rules": [named]}) == asked("autoscaler", Scope.OWN, named=True)
    assert named["resourceNames"] == ["demo-autoscaler"]


def test_route_sync_has_one_configmap() -> None:
    role = find(render("dev"), "Role", "demo-router-sync")
    assert given(role) == asked("route-sync", Scope.OWN)
    assert [rule["resourceNames"] for rule in role["rules"]] == [["demo-router-backends"]]


def test_the_clean_up_has_what_it_asks_for() -> None:
    assert given(find(render("dev"), "Role", "demo-uninstall")) == asked("uninstall", Scope.NAMESPACE)


def test_what_follows_the_operator_has_what_it_asks_for() -> None:
    objects = render("dev")
    assert given(find(objects, "ClusterRole", "team-a-demo-operator-uninstall")) == asked("leave", Scope.NAMESPACE)
    role = find(objects, "Role", "demo-operator-uninstall")
    assert given(role) == asked("leave", Scope.OWN)
    assert [rule.get("resourceNames") for rule in role["rules"]] == [None, ["demo-operator", "demo-autoscaler"]]


def test_what_follows_an_operator_of_some_namespaces_has_no_right_elsewhere() -> None:
    values = {"controllers": {"operator": {"watchNamespaces": ["team-a", "team-b"]}}}
    objects = render("dev", values)
    assert [role["metadata"]["name"] for role in of_kind(objects, "ClusterRole") if "uninstall" in title(role)] == []
    roles = [
        role for role in of_kind(objects, "Role") if role["metadata"]["name"] == "demo-operator-uninstall-finalizers"
    ]
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    assert all(given(role) == asked("leave", Scope.NAMESPACE) for role in roles)


def test_what_updates_the_crds_has_what_it_asks_for_and_only_when_asked_for() -> None:
    role = find(render("dev", {"crds": {"upgrade": {"enabled": True}}}), "ClusterRole", "team-a-demo-crds-upgrade")
    unnamed, named = role["rules"]
    assert given({"rules": [unnamed]}) == asked("apply-crds", Scope.CLUSTER, named=False)
    assert given({"rules": [named]}) == asked("apply-crds", Scope.CLUSTER, named=True)
    assert named["resourceNames"] == ["llmclusterautoscalers.serving.ai", "llmclusters.serving.ai"]
    assert not [title(obj) for obj in render("dev") if "crds-upgrade" in title(obj)]


@pytest.mark.parametrize("profile", PROFILES)
def test_nobody_gets_a_wildcard_or_a_secret(profile: str) -> None:
    for role in of_kind(render(profile), "Role", "ClusterRole"):
        words = {word for rule in role["rules"] for key in ("apiGroups", "resources", "verbs") for word in rule[key]}
        assert not words & {"*", "secrets", "escalate", "bind", "impersonate"}, title(role)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_binding_binds_a_role_and_an_account_of_the_release(profile: str) -> None:
    objects = render(profile)
    accounts = {(o["metadata"]["name"], o["metadata"]["namespace"]) for o in of_kind(objects, "ServiceAccount")}
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        find(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        assert {(s["name"], s["namespace"]) for s in binding["subjects"]} <= accounts, title(binding)
