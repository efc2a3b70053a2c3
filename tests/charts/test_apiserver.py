"""A real apiserver takes every object of every profile: types, unknown fields, CEL, restricted pods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from charts.rendering import (
    CHARTS,
    PROFILES,
    Object,
    collection,
    find,
    made_from,
    of_kind,
    pod_templates,
    render,
    title,
)
from fakes.apiserver import Answer, Apiserver, install_crds, running_apiserver
from fakes.scripted import eventually
from llmfleet.api.parse import parse_spec
from llmfleet.deploy.objects.identity import Identity
from llmfleet.deploy.objects.pod import build_template

pytestmark = [pytest.mark.helm, pytest.mark.apiserver]

NAMESPACE = "team-a"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apiserver]:
    """One apiserver with the CRDs and a namespace that enforces the restricted standard."""
    with running_apiserver(tmp_path_factory.mktemp("apiserver")) as running:
        install_crds(running, CHARTS / "llmfleet-crds" / "crds")
        labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
        answer = running.call("POST", "/api/v1/namespaces", body)
        assert answer.status == 201, answer.message
        yield running


def dry_run(server: Apiserver, thing: Object) -> Answer:
    """Create an object without storing it; unknown fields are errors."""
    return server.call("POST", collection(thing), thing, params={"dryRun": "All"})


@pytest.mark.parametrize("profile", PROFILES)
def test_the_apiserver_takes_every_object(server: Apiserver, profile: str) -> None:
    policies = {"networkPolicy": {"enabled": True, "defaultDeny": True}}
    extra = {"fleet": policies, "controllers": policies}
    for thing in render(profile, extra, namespace=NAMESPACE):
        answer = dry_run(server, thing)
        assert answer.status == 201, f"{title(thing)}: {answer.message}"


def admit(server: Apiserver, template: Object, claims: list[Object] | None = None) -> Answer:
    """Ask for a pod as its controller would, with a volume for each claim that a StatefulSet makes."""
    metadata = {"name": "probe", "namespace": NAMESPACE, "labels": template["metadata"].get("labels", {})}
    names = [claim["metadata"]["name"] for claim in claims or []]
    volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in names]
    spec = template["spec"] | {"volumes": template["spec"].get("volumes", []) + volumes}
    return dry_run(server, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


@pytest.mark.parametrize("profile", PROFILES)
def test_a_restricted_namespace_admits_every_pod(server: Apiserver, profile: str) -> None:
    objects = render(profile, namespace=NAMESPACE)
    claims = {title(o): o["spec"].get("volumeClaimTemplates") for o in of_kind(objects, "StatefulSet")}
    for name, template in pod_templates(objects).items():
        answer = admit(server, template, claims.get(name))
        assert answer.status == 201, f"{name}: {answer.message}"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_restricted_namespace_admits_every_engine_the_operator_makes_of_it(server: Apiserver, profile: str) -> None:
    objects = render(profile, namespace=NAMESPACE)
    specs = {title(o): o["spec"] for o in of_kind(objects, "LLMCluster")}
    specs |= {name: made["spec"] for name, made in made_from(objects).items()}
    assert specs
    for name, spec in specs.items():
        identity = Identity(namespace=NAMESPACE, name="probe", uid="u", fleet="probe", manager="a/b")
        answer = admit(server, dict(build_template(identity, parse_spec(spec)).manifest))
        # A directory of the node is the one thing a profile asks for that the standard forbids.
        if "hostPath" in spec["storage"]["modelCache"]:
            assert 'restricted volume type "hostPath"' in answer.message, name
        else:
            assert answer.status == 201, f"{name}: {answer.message}"


def test_the_apiserver_still_refuses_what_the_schema_cannot_see(server: Apiserver) -> None:
    cluster = of_kind(render("dev", namespace=NAMESPACE), "LLMCluster")[0]
    cluster["spec"]["inferenceArgs"] = {"extraArgs": ["--tensor-par=4"]}
    answer = dry_run(server, cluster)
    assert (answer.status, "extraArgs" in answer.message) == (422, True), answer.message


def test_the_labels_and_names_of_the_longest_release_are_taken(server: Apiserver) -> None:
    model = {"instances": 1, "model": "x", "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1}
    objects = render("dev", {"fleet": {"models": {"m" * 30: model}}}, release="r" * 53, namespace=NAMESPACE)
    for thing in objects:
        answer = dry_run(server, thing)
        assert answer.status == 201, f"{title(thing)}: {answer.message}"


def test_the_route_sync_role_reads_its_configmap_and_no_other(server: Apiserver) -> None:
    objects = render("dev", namespace=NAMESPACE)
    for kind, name in (("Role", "demo-router-sync"), ("RoleBinding", "demo-router-sync")):
        thing = find(objects, kind, name)
        assert server.apply(f"{collection(thing)}/{name}", thing).status in (200, 201)
    user = f"system:serviceaccount:{NAMESPACE}:demo-router"
    # The authorizer watches roles for itself: a new one is in force a moment after its write.
    eventually(lambda: may(server, user, "list", "", "configmaps", "demo-router-backends"))
    for verb, name, allowed in (
        ("watch", "demo-router-backends", True),
        ("list", "demo-router-settings", False),
        ("patch", "demo-router-backends", False),
        ("list", "", False),
    ):
        assert may(server, user, verb, "", "configmaps", name) is allowed, (verb, name)


def may(server: Apiserver, user: str, verb: str, group: str, resource: str, name: str) -> bool:
    """What `kubectl auth can-i` would say."""
    attributes = {"namespace": NAMESPACE, "verb": verb, "group": group, "resource": resource, "name": name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    answer = server.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer.body["status"]["allowed"])
