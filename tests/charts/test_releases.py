"""Releases on a real apiserver: side by side, upgraded, rolled back, taken over from Helm 3, and gone without a trace.

No controller runs there, so hooks are left out; what they do is tested with the controllers.
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

import pytest
import yaml

from charts.rendering import CHARTS, VALUES, Object, collection, render, run
from fakes.apiserver import Apiserver, running_apiserver

pytestmark = [pytest.mark.helm, pytest.mark.apiserver]

DEV = f"--values={VALUES / 'dev.yaml'}"
DEBUG = "--set=fleet.router.settings.logLevel=debug"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apiserver]:
    with running_apiserver(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


@pytest.fixture
def namespace(server: Apiserver, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    name = f"n-{crc32(request.node.name.encode()):08x}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    assert server.call("POST", "/api/v1/namespaces", body).status == 201
    return name


class Release:
    """One release, by the commands that people type."""

    def __init__(self, server: Apiserver, name: str, namespace: str) -> None:
        self.server, self.name, self.namespace = server, name, namespace

    def helm(self, verb: str, *arguments: str, binary: str = "helm") -> str:
        where = [f"--namespace={self.namespace}", f"--kubeconfig={self.server.kubeconfig}", "--no-hooks"]
        return run([verb, self.name, *arguments, *where], binary=binary)

    def install(self, *arguments: str, binary: str = "helm") -> None:
        # The first release of the server brings the kinds; a later one finds them there.
        self.helm("install", str(CHARTS / "llmfleet"), DEV, *arguments, binary=binary)

    def upgrade(self, *arguments: str) -> None:
        self.helm("upgrade", str(CHARTS / "llmfleet"), DEV, *arguments)

    def objects(self) -> set[str]:
        """Every object that is there of those the chart renders, hooks apart, as kind/name."""
        wanted = [o for o in render("dev", release=self.name, namespace=self.namespace) if not is_hook(o)]
        found = {collection(o): self.server.call("GET", collection(o)).body["items"] for o in wanted}
        there = {(path, item["metadata"]["name"]) for path, items in found.items() for item in items}
        return {
            f"{o['kind']}/{o['metadata']['name']}" for o in wanted if (collection(o), o["metadata"]["name"]) in there
        }

    def expected(self) -> set[str]:
        objects = render("dev", release=self.name, namespace=self.namespace)
        return {f"{o['kind']}/{o['metadata']['name']}" for o in objects if not is_hook(o)}

    def log_level(self) -> str:
        path = f"/api/v1/namespaces/{self.namespace}/configmaps/{self.name}-router-settings"
        text = self.server.call("GET", path).body["data"]["settings.yaml"]
        return str(yaml.safe_load(text).get("logLevel", "info"))

    @property
    def router(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.name}-router"


def is_hook(thing: Object) -> bool:
    return "helm.sh/hook" in thing["metadata"].get("annotations", {})


def test_two_releases_in_one_namespace_come_and_go_without_touching_each_other(
    server: Apiserver, namespace: str
) -> None:
    one, two = Release(server, "one", namespace), Release(server, "two", namespace)
    one.install()
    two.install("--set=crds.enabled=false")
    assert (one.objects(), two.objects()) == (one.expected(), two.expected())
    two.helm("uninstall")
    assert (one.objects(), two.objects()) == (one.expected(), set())
    one.helm("uninstall")
    assert one.objects() == set()
    kinds = server.call("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions").body["items"]
    assert {kind["metadata"]["name"] for kind in kinds} >= {"llmclusters.serving.ai"}, "the kinds stay"


@pytest.mark.parametrize("binary", ["helm", "helm3"])
def test_an_upgrade_and_the_way_back_keep_what_the_autoscaler_and_the_operator_wrote(
    server: Apiserver, namespace: str, binary: str
) -> None:
    release = Release(server, "llmfleet", namespace)
    release.install(binary=binary)
    scaled = server.apply(
        release.router,
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "llmfleet-router"},
            "spec": {"replicas": 7},
        },
        manager="horizontal-pod-autoscaler",
    )
    assert scaled.status == 200, scaled.message
    backends = f"/api/v1/namespaces/{namespace}/configmaps/llmfleet-router-backends"
    written = server.call("PATCH", backends, {"data": {"a": "b"}}, content_type="application/merge-patch+json")
    assert written.status == 200, written.message
    release.upgrade(DEBUG)
    assert release.log_level() == "debug"
    assert server.call("GET", release.router).body["spec"]["replicas"] == 7
    assert server.call("GET", backends).body["data"] == {"a": "b"}
    release.helm("rollback", "1")
    assert release.log_level() == "info"
    assert server.call("GET", release.router).body["spec"]["replicas"] == 7
    assert server.call("GET", backends).body["data"] == {"a": "b"}
