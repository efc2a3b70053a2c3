"""The Kubernetes layer against a real apiserver: what no fake can vouch for."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from fakes.apiserver import Apiserver
from fakes.scripted import eventually
from llmfleet.kube.client import Api
from llmfleet.kube.diff import needs_apply, plan_apply
from llmfleet.kube.errors import Conflict, NamespaceGone, NotFound, NotLeader, Rejected
from llmfleet.kube.execute import execute
from llmfleet.kube.plan import Apply, ApplyStatus, CreateEvent, Delete, MergePatch
from llmfleet.kube.refs import CONFIGMAP, EVENT, LLMCLUSTER, NAMESPACE, SERVICE, STATEFULSET, Key, Ref, uid_of
from llmfleet.kube.trim import trim_metadata
from llmfleet.kube.watch.client import Cache, Reflector
from llmfleet.kube.workqueue import Manager

MANAGER = "llmfleet-operator"


def statefulset(namespace: str, name: str = "one") -> dict[str, Any]:
    """Everything that the apiserver rewrites: quantities, ports, probes, empty maps, defaults."""
    labels = {"app": name}
    container = {
        "name": "engine",
        "image": "localhost/engine:1",
        "args": ["serve", "m", "--port", "8000"],
        "command": ["vllm"],
        "env": [{"name": "A", "value": ""}, {"name": "R", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "ports": [{"name": "http", "containerPort": 8000, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "0.5", "memory": "1024Mi"}, "limits": {"memory": "2048Mi", "x.y/gpu": 2}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "enableServiceLinks": False,
        "hostNetwork": False,
        "nodeSelector": {},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "containers": [container],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1024Mi"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels), "annotations": {}},
        "spec": {
            "serviceName": name,
            "replicas": 2,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def service(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "one", "namespace": namespace},
        "spec": {"selector": {"app": "one"}, "ports": [{"name": "http", "port": 8000, "targetPort": "http"}]},
    }


def cluster(namespace: str, name: str = "llama") -> dict[str, Any]:
    spec = {"model": "m", "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1, "image": "localhost/engine:1"}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("build", [statefulset, service])
def test_an_applied_object_needs_no_second_apply(api: Api, namespace: str, build: Any) -> None:
    desired = build(namespace)
    live = api.apply(desired)
    assert plan_apply(desired, live, MANAGER) == ()
    assert plan_apply(desired, trim_metadata(live), MANAGER) == ()


EDITS = {
    "a changed image": [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "evil:1"}],
    "a removed label": [{"op": "remove", "path": "/metadata/labels/app"}],
    "a removed environment variable": [{"op": "remove", "path": "/spec/template/spec/containers/0/env/1"}],
    "another number of replicas": [{"op": "replace", "path": "/spec/replicas", "value": 5}],
    "another quantity": [
        {"op": "replace", "path": "/spec/template/spec/containers/0/resources/requests/memory", "value": "1500Mi"}
    ],
    "an argument more": [{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--evil"}],
    "another update strategy": [{"op": "replace", "path": "/spec/updateStrategy/type", "value": "RollingUpdate"}],
}


@pytest.mark.parametrize("name", EDITS)
def test_a_hand_edit_of_an_owned_field_heals_with_one_apply(
    api: Api, server: Apiserver, namespace: str, name: str
) -> None:
    desired = statefulset(namespace)
    api.apply(desired)
    path = STATEFULSET.path(namespace, "one")
    answer = server.call("PATCH", path, EDITS[name], content_type="application/json-patch+json")
    assert answer.status == 200, answer.message
    plan = plan_apply(desired, answer.body, MANAGER)
    assert len(plan) == 1
    (healed,) = execute(plan, api)
    assert healed is not None
    assert plan_apply(desired, healed, MANAGER) == ()


def test_fields_of_others_are_left_alone(api: Api, server: Apiserver, namespace: str) -> None:
    desired = statefulset(namespace)
    api.apply(desired)
    body = {"metadata": {"labels": {"team": "x"}, "annotations": {"note": "y"}}}
    answer = server.call("PATCH", STATEFULSET.path(namespace, "one"), body, content_type="application/merge-patch+json")
    assert not needs_apply(desired, answer.body, MANAGER)


def test_a_field_no_longer_wanted_goes_away(api: Api, namespace: str) -> None:
    desired = statefulset(namespace)
    live = api.apply(desired)
    less = statefulset(namespace)
    less["spec"]["template"]["spec"]["tolerations"] = []
    less["spec"]["template"]["spec"]["containers"][0]["env"].pop()
    (after,) = execute(plan_apply(less, live, MANAGER), api)
    assert after is not None
    assert "tolerations" not in after["spec"]["template"]["spec"]
    assert [env["name"] for env in after["spec"]["template"]["spec"]["containers"][0]["env"]] == ["A"]


def test_a_late_apply_does_not_recreate_a_deleted_object(api: Api, namespace: str) -> None:
    desired = statefulset(namespace)
    live = api.apply(desired)
    changed = statefulset(namespace)
    changed["metadata"]["labels"]["new"] = "label"
    plan = plan_apply(changed, live, MANAGER)
    ref = Ref(kind=STATEFULSET, namespace=namespace, name="one")
    api.delete(ref, uid_of(live))
    with pytest.raises(Conflict):
        execute(plan, api)
    with pytest.raises(NotFound):
        api.get(ref)


def test_an_old_resource_version_in_an_apply_is_a_conflict(api: Api, namespace: str) -> None:
    live = api.apply(statefulset(namespace))
    desired = statefulset(namespace)
    desired["metadata"]["labels"]["a"] = "1"
    desired["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    api.apply(desired)
    desired["metadata"]["labels"]["a"] = "2"
    with pytest.raises(Conflict):
        api.apply(desired)


def test_a_delete_hits_only_the_object_it_was_meant_for(api: Api, namespace: str) -> None:
    first = api.apply(service(namespace))
    ref = Ref(kind=SERVICE, namespace=namespace, name="one")
    execute((Delete(ref=ref, uid=uid_of(first)),), api)
    second = api.apply(service(namespace))
    with pytest.raises(Conflict):
        execute((Delete(ref=ref, uid=uid_of(first)),), api)
    assert uid_of(api.get(ref)) == uid_of(second)


def test_deleting_what_is_gone_is_success(api: Api, namespace: str) -> None:
    execute((Delete(ref=Ref(kind=SERVICE, namespace=namespace, name="never"), uid="x"),), api)


def test_status_is_replaced_as_a_whole(api: Api, namespace: str) -> None:
    api.create(cluster(namespace))
    ref = Ref(kind=LLMCLUSTER, namespace=namespace, name="llama")
    execute((ApplyStatus(ref=ref, status={"observedGeneration": 1, "url": "http://x", "restarts": 1}),), api)
    (after,) = execute((ApplyStatus(ref=ref, status={"observedGeneration": 2, "restarts": 2}),), api)
    assert after is not None
    assert "url" not in after["status"]
    assert after["status"]["restarts"] == 2


def test_a_status_for_a_deleted_object_is_not_found(api: Api, namespace: str) -> None:
    ref = Ref(kind=LLMCLUSTER, namespace=namespace, name="never")
    with pytest.raises(NotFound):
        api.apply_status(ref, {"observedGeneration": 1})


def test_a_merge_patch_never_creates_and_respects_versions(api: Api, namespace: str) -> None:
    ref = Ref(kind=CONFIGMAP, namespace=namespace, name="backends")
    with pytest.raises(NotFound):
        execute((MergePatch(ref=ref, body={"data": {"a": "1"}}),), api)
    old = api.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "backends", "namespace": namespace}}
    )
    version = old["metadata"]["resourceVersion"]
    execute((MergePatch(ref=ref, body={"data": {"a": "1"}}, resource_version=version),), api)
    with pytest.raises(Conflict):
        execute((MergePatch(ref=ref, body={"data": {"a": "2"}}, resource_version=version),), api)
    assert api.get(ref)["data"] == {"a": "1"}


def test_a_spec_the_apiserver_refuses_is_rejected_with_its_message(api: Api, namespace: str) -> None:
    bad = cluster(namespace)
    bad["spec"]["replicas"] = 0
    with pytest.raises(Rejected, match="replicas"):
        api.apply(bad)


def test_a_create_that_exists_already_is_a_conflict(api: Api, namespace: str) -> None:
    api.create(cluster(namespace))
    with pytest.raises(Conflict):
        api.create(cluster(namespace))


def test_a_terminating_namespace_takes_nothing_new(api: Api, server: Apiserver, namespace: str) -> None:
    server.call("DELETE", NAMESPACE.path("", namespace))
    with pytest.raises(NamespaceGone):
        api.apply(service(namespace))


def test_an_event_is_written_once_and_not_for_every_repetition(api: Api, namespace: str) -> None:
    live = api.create(cluster(namespace))
    event = CreateEvent(regarding=live, type_="Normal", reason="Serving", action="None", message="serves")
    execute((event, event, event), api)
    events, _ = api.list(EVENT, namespace=namespace)
    assert [(e["reason"], e["note"], e["regarding"]["name"], e["type"]) for e in events] == [
        ("Serving", "serves", "llama", "Normal")
    ]


def test_a_plan_stops_without_the_lease_before_anything_is_sent(server: Apiserver, api: Api, namespace: str) -> None:
    fenced = Api(api._transport, manager=MANAGER, may_write=lambda: False)
    with pytest.raises(NotLeader):
        execute((Apply(obj=service(namespace)),), fenced)
    with pytest.raises(NotFound):
        api.get(Ref(kind=SERVICE, namespace=namespace, name="one"))


def test_a_cache_follows_the_apiserver_page_by_page(
    api: Api, server: Apiserver, namespace: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("llmfleet.kube.client.PAGE", 3)
    names = [f"c{n}" for n in range(8)]
    for name in names:
        api.create(cluster(namespace, name))
    cache = Cache(LLMCLUSTER, namespaces=(namespace,), trim=trim_metadata)
    cache.add_index("model", lambda obj: [obj["spec"]["model"]])
    reflector = Reflector(api, cache, namespace)
    stop = threading.Event()
    thread = threading.Thread(target=reflector.run, args=(stop,), daemon=True)
    thread.start()
    eventually(lambda: cache.synced(namespace))
    assert sorted(obj["metadata"]["name"] for obj in cache.list(namespace)) == names
    server.call("DELETE", LLMCLUSTER.path(namespace, "c3"))
    patch = {"spec": {"servedModelNames": ["x"]}}
    server.call("PATCH", LLMCLUSTER.path(namespace, "c4"), patch, content_type="application/merge-patch+json")
    eventually(lambda: len(cache.list(namespace)) == 7 and "servedModelNames" in cache.get(namespace, "c4")["spec"])
    assert len(cache.by_index("model", "m")) == 7
    assert "managedFields" not in cache.get(namespace, "c4")["metadata"]
    stop.set()
    reflector.interrupt()
    thread.join(60)
    assert not thread.is_alive()


def test_a_controller_settles_and_then_writes_nothing(api: Api, server: Apiserver, namespace: str) -> None:
    """Read-your-writes: the passes right after a write must not write again."""
    manager = Manager(api, workers=2)
    clusters = manager.cache(LLMCLUSTER, namespaces=(namespace,))
    services = manager.cache(SERVICE, namespaces=(namespace,))
    passes: list[Key] = []

    def reconcile(key: Key) -> None:
        passes.append(key)
        if clusters.get(*key) is None:
            return
        desired = service(key.namespace)
        desired["metadata"]["name"] = key.name
        execute(plan_apply(desired, services.get(*key), MANAGER), api)

    here = lambda obj: [Key(obj["metadata"]["namespace"], obj["metadata"]["name"])]  # noqa: E731
    manager.controller("test", reconcile, sources=[(clusters, here), (services, here)])
    stop = threading.Event()
    thread = threading.Thread(target=manager.run, args=(stop,), daemon=True)
    thread.start()
    for n in range(5):
        api.create(cluster(namespace, f"c{n}"))
    eventually(lambda: len(services.list(namespace)) == 5)
    time.sleep(0.3)
    versions = {obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in services.list(namespace)}
    server.call("DELETE", SERVICE.path(namespace, "c1"))
    eventually(
        lambda: (
            len(passes) > 0
            and services.get(namespace, "c1") is not None
            and services.get(namespace, "c1")["metadata"]["resourceVersion"] != versions["c1"]
        )
    )
    time.sleep(0.3)
    stop.set()
    thread.join(60)
    after = {
        obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in api.list(SERVICE, namespace=namespace)[0]
    }
    assert {name for name in versions if after[name] != versions[name]} == {"c1"}
    assert not thread.is_alive()
