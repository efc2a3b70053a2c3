"""The route controller and route-sync together on a real apiserver."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fakes.apiserver import Apiserver
from fakes.scripted import eventually
from llmfleet.api.document import Document, parse_document
from llmfleet.kube.client import Api
from llmfleet.kube.refs import CONFIGMAP, LLMCLUSTER, POD, STATEFULSET, Ref
from llmfleet.kube.transport.client import KubeconfigCredentials
from llmfleet.kube.workqueue import Manager
from llmfleet.route import controller
from llmfleet.route.sync.main import build_sync
from llmfleet.settings import OperatorSettings

BACKENDS = "rel-router-backends"


@contextmanager
def routing(api: Api, namespace: str) -> Iterator[None]:
    manager = Manager(api)
    settings = OperatorSettings(identity="sys/rel", namespaces=(namespace,))
    controller.install(manager, api, settings, lambda: datetime.now(UTC))
    stop = threading.Event()
    thread = threading.Thread(target=manager.run, args=(stop,), daemon=True)
    thread.start()
    eventually(lambda: not manager.unsynced())
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


class World:
    """Objects of one namespace, written as their owners would."""

    def __init__(self, api: Api, server: Apiserver, namespace: str) -> None:
        self.api, self.server, self.namespace = api, server, namespace

    def configmap(self, **annotations: str) -> None:
        defaults = {
            "serving.ai/cluster-selector": "app.kubernetes.io/instance=rel",
            "serving.ai/router-selector": "app.kubernetes.io/instance=rel,app.kubernetes.io/component=router",
        }
        labels = {"serving.ai/backends": "true"}
        metadata = {
            "name": BACKENDS,
            "namespace": self.namespace,
            "labels": labels,
            "annotations": {**defaults, **annotations},
        }
        self.api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})

    def instance(self, name: str, *, release: str = "rel") -> None:
        spec = {
            "model": "org/m",
            "servedModelNames": ["m"],
            "replicas": 1,
            "gpusPerPod": 1,
            "tensorParallelSize": 1,
            "image": "i:1",
        }
        metadata = {"name": name, "namespace": self.namespace, "labels": {"app.kubernetes.io/instance": release}}
        self.api.create({"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": metadata, "spec": spec})
        uid = self.pod(f"{name}-0", {"app.kubernetes.io/name": "llmfleet-engine", "serving.ai/cluster": name})
        self.statefulset(name, uid)

    def pod(self, name: str, labels: dict[str, str], ip: str = "10.0.0.1") -> str:
        container = {"name": "engine", "image": "i:1", "args": ["serve", "--served-model-name", "m"]}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": labels},
        }
        made = self.api.create({**pod, "spec": {"containers": [container], "automountServiceAccountToken": False}})
        status = {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        ref = Ref(kind=POD, namespace=self.namespace, name=name)
        self.api.merge_patch(ref, {"status": status}, subresource="status")
        return str(made["metadata"]["uid"])

    def statefulset(self, name: str, uid: str) -> None:
        labels = {"serving.ai/cluster": name}
        group = json.dumps({"members": {"0": f"{uid}/0"}})
        spec = {
            "serviceName": name,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "engine", "image": "i:1"}]}},
        }
        metadata = {
            "name": name,
            "namespace": self.namespace,
            "labels": labels,
            "annotations": {"serving.ai/group": group},
        }
        self.api.create({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec})

    def ready(self, name: str, value: str = "True") -> None:
        condition = {
            "type": "Ready",
            "status": value,
            "reason": "Serving",
            "message": "",
            "lastTransitionTime": "2026-11-21T12:00:00Z",
        }
        ref = Ref(kind=LLMCLUSTER, namespace=self.namespace, name=name)
        self.api.apply_status(ref, {"observedGeneration": 1, "conditions": [condition]})

    def live(self) -> dict[str, Any]:
        return dict(self.api.get(Ref(kind=CONFIGMAP, namespace=self.namespace, name=BACKENDS)))

    def document(self) -> Document | None:
        text = (self.live().get("data") or {}).get("backends.json")
        return parse_document(text.encode()) if text else None

    def instances(self, model: str = "m") -> list[str] | None:
        found = self.document()
        if found is None:
            return None
        return [e.instance for e in found.models[model].endpoints] if model in found.models else []


@pytest.fixture
def world(api: Api, server: Apiserver, namespace: str) -> World:
    return World(api, server, namespace)


def test_instances_come_and_go_in_the_document(api: Api, world: World) -> None:
    world.configmap()
    with routing(api, world.namespace):
        eventually(lambda: world.instances() == [])
        world.instance("a")
        world.instance("stranger", release="other")
        world.ready("a")
        world.ready("stranger")
        eventually(lambda: world.instances() == ["a"])
        world.pod("r-1", {"app.kubernetes.io/instance": "rel", "app.kubernetes.io/component": "router"}, "10.1.0.1")
        eventually(lambda: [p.name for p in (world.document() or Document(models={})).peers] == ["r-1"])
        world.ready("a", "False")
        eventually(lambda: world.instances() == [])


def test_a_resting_namespace_is_not_written_and_a_damaged_document_heals(api: Api, world: World) -> None:
    world.configmap()
    world.instance("a")
    world.ready("a")
    with routing(api, world.namespace):
        eventually(lambda: world.instances() == ["a"])
        version, generation = world.live()["metadata"]["resourceVersion"], world.document().generation
        time.sleep(1.0)
        assert world.live()["metadata"]["resourceVersion"] == version
        ref = Ref(kind=CONFIGMAP, namespace=world.namespace, name=BACKENDS)
        api.merge_patch(ref, {"data": {"backends.json": "damaged by hand"}})
        eventually(lambda: (world.live()["data"]["backends.json"]).startswith("{"))
        assert world.document().generation > generation
        assert world.instances() == ["a"]


def test_a_deleted_configmap_is_not_created_again(api: Api, world: World) -> None:
    world.configmap()
    world.instance("a")
    with routing(api, world.namespace):
        eventually(lambda: world.document() is not None)
        world.server.call("DELETE", CONFIGMAP.path(world.namespace, BACKENDS))
        world.ready("a")
        time.sleep(0.5)
        assert world.server.call("GET", CONFIGMAP.path(world.namespace, BACKENDS)).status == 404


def test_a_selector_that_is_none_says_so_and_hurts_nobody_else(
    api: Api, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.configmap(**{"serving.ai/cluster-selector": "a b c"})
    with routing(api, world.namespace):
        eventually(lambda: any("is no label selector" in str(getattr(r, "fields", "")) for r in caplog.records))
    assert world.document() is None


def test_what_another_operator_claimed_is_left_alone(api: Api, world: World) -> None:
    world.configmap(**{"serving.ai/managed-by": "elsewhere/other"})
    with routing(api, world.namespace):
        time.sleep(0.5)
    assert world.document() is None


def test_a_ready_instance_reaches_the_file(api: Api, world: World, server: Apiserver, tmp_path: Path) -> None:
    """End to end; how fast is measured by a benchmark, not asserted here."""
    output = tmp_path / "backends.json"
    world.configmap()
    world.instance("a")
    sync = build_sync(KubeconfigCredentials(str(server.kubeconfig)), world.namespace, BACKENDS, output)
    thread = threading.Thread(target=sync.run, daemon=True)
    thread.start()
    with routing(api, world.namespace):
        eventually(lambda: output.exists())
        began = time.monotonic()
        world.ready("a")
        eventually(lambda: b'"instance":"a"' in output.read_bytes())
        print(f"Ready -> file: {1000 * (time.monotonic() - began):.0f} ms")
    sync.end()
    thread.join(60)
    assert not thread.is_alive()


def test_the_statefulset_kind_is_the_one_whose_memory_is_read(api: Api, world: World) -> None:
    """Without the StatefulSet nobody knows the group, and the endpoint goes."""
    world.configmap()
    world.instance("a")
    world.ready("a")
    with routing(api, world.namespace):
        eventually(lambda: world.instances() == ["a"])
        world.server.call("DELETE", STATEFULSET.path(world.namespace, "a"))
        eventually(lambda: world.instances() == [])
