"""What each ServiceAccount of a release may do, all bindings together: a golden, and who holds a token at all."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.rendering import PROFILES, Object, find, of_kind, pod_templates, render

pytestmark = pytest.mark.helm

GOLDEN = Path(__file__).with_name("accounts.yaml")
# Everything that adds an account or a right: each component, jobs, the update of the kinds, a token a model names.
SOURCE = {"type": "Prometheus", "prometheus": {"address": "http://p:9090", "bearerTokenSecretRef": {"name": "tok"}}}
EVERYTHING = {
    "crds": {"upgrade": {"enabled": True}},
    "fleet": {"models": {"tiny": {"autoscaling": {"source": SOURCE}}}},
}


def rights(objects: list[Object]) -> dict[str, list[str]]:
    """Each account's effective list: where it holds, what, which names, which verbs."""
    held: dict[str, set[str]] = {one["metadata"]["name"]: set() for one in of_kind(objects, "ServiceAccount")}
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        where = binding["metadata"]["namespace"] if binding["kind"] == "RoleBinding" else "every namespace"
        role = find(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for subject in binding["subjects"]:
            held[subject["name"]] |= {f"{where}: {line}" for rule in role["rules"] for line in lines(rule)}
    return {account: sorted(held[account]) for account in sorted(held)}


def lines(rule: dict[str, Any]) -> list[str]:
    names = f" named {', '.join(sorted(rule['resourceNames']))}" if "resourceNames" in rule else ""
    kinds = [f"{resource}.{group}".rstrip(".") for group in rule["apiGroups"] for resource in rule["resources"]]
    return [f"{kind}{names}: {' '.join(sorted(rule['verbs']))}" for kind in kinds]


def holds_a_token(pod: dict[str, Any]) -> bool:
    """Kubernetes mounts one unless told not to; a projected volume asks for one by name."""
    sources = [source for volume in pod.get("volumes", []) for source in volume.get("projected", {}).get("sources", [])]
    return pod.get("automountServiceAccountToken", True) or any("serviceAccountToken" in one for one in sources)


def test_what_each_account_may_do_is_golden(request: pytest.FixtureRequest) -> None:
    text = yaml.safe_dump(rights(render("autoscaling", EVERYTHING)), width=200)
    if request.config.getoption("--golden", default=False):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "look at the difference; `make golden` accepts it"


def test_a_router_that_was_taken_over_reads_one_configmap_and_nothing_else() -> None:
    pod = find(render("dev"), "Deployment", "demo-router")["spec"]["template"]["spec"]
    held = yaml.safe_load(GOLDEN.read_text())[pod["serviceAccountName"]]
    assert held == ["team-a: configmaps named demo-router-backends: list watch"]


@pytest.mark.parametrize("profile", PROFILES)
def test_only_who_speaks_to_the_api_holds_a_token_and_never_the_namespaces_default_one(profile: str) -> None:
    known = yaml.safe_load(GOLDEN.read_text())
    holders: dict[str, list[str]] = defaultdict(list)
    for title, template in pod_templates(render(profile)).items():
        if holds_a_token(template["spec"]):
            holders[template["spec"].get("serviceAccountName", "default")].append(title)
    assert {account for account in holders if not known.get(account)} == set(), holders
