"""Uninstalling with a living, a dead and a slow operator, against a real apiserver."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fakes.apiserver import Apiserver
from fakes.scripted import Reset, ScriptedApiserver, Status
from llmfleet.kube.client import Api
from llmfleet.kube.errors import KubeError
from llmfleet.kube.refs import AUTOSCALER, CLAIM, LLMCLUSTER, Kind, Ref
from llmfleet.kube.transport.client import Anonymous, Transport
from llmfleet.uninstall.main import Uninstall
from llmfleet.uninstall.progress import Deleted, Wait, overdue, plan_strip, shows_life

SPEC = {"model": "m", "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1, "image": "i:1"}
FLEET = {"serving.ai/fleet": "f"}


def instance(api: Api, namespace: str, name: str, *, release: str = "rel", **metadata: Any) -> str:
    made = api.create(
        {
            "apiVersion": "serving.ai/v1alpha1",
            "kind": "LLMCluster",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"app.kubernetes.io/instance": release},
                "finalizers": ["serving.ai/drain"],
                **metadata,
            },
            "spec": SPEC,
        }
    )
    return str(made["metadata"]["uid"])


def autoscaler(api: Api, namespace: str) -> str:
    template = {"namePrefix": "f-", "labels": FLEET, "spec": SPEC}
    spec = {
        "mode": "monolithic",
        "scaleTargetRef": {"labelSelector": {"matchLabels": FLEET}},
        "minInstances": 1,
        "maxInstances": 2,
        "instanceTemplate": template,
        "policy": "WorkBudget",
    }
    metadata = {"name": "scaler", "namespace": namespace, "labels": {"app.kubernetes.io/instance": "rel"}}
    made = api.create(
        {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMClusterAutoscaler", "metadata": metadata, "spec": spec}
    )
    return str(made["metadata"]["uid"])


def left(api: Api, namespace: str, kind: Kind = LLMCLUSTER) -> list[str]:
    return [obj["metadata"]["name"] for obj in api.list(kind, namespace=namespace)[0]]


def uninstall(api: Api, namespace: str, *, timeout: float = 60.0) -> tuple[list[str], float]:
    lines: list[str] = []
    began = time.monotonic()
    Uninstall(api, namespace, "rel", timeout, say=lines.append, look_seconds=0.05).run()
    return lines, time.monotonic() - began


@contextmanager
def operator(api: Api, namespace: str, *, seconds: float) -> Iterator[list[str]]:
    """Says Draining at once, and drops the finalizer after `seconds`, one instance after the other."""
    stop, drained = threading.Event(), []

    def work() -> None:
        while not stop.wait(0.02):
            for obj in api.list(LLMCLUSTER, namespace=namespace)[0]:
                if not obj["metadata"].get("deletionTimestamp"):
                    continue
                ref = Ref(kind=LLMCLUSTER, namespace=namespace, name=obj["metadata"]["name"])
                condition = {
                    "type": "Ready",
                    "status": "False",
                    "reason": "Draining",
                    "message": "3 requests in flight",
                }
                condition["lastTransitionTime"] = "2026-11-21T12:00:00Z"
                try:
                    api.apply_status(ref, {"observedGeneration": 1, "conditions": [condition]})
                    stop.wait(seconds)
                    api.merge_patch(ref, {"metadata": {"finalizers": None}})
                    drained.append(ref.name)
                except KubeError:
                    continue

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield drained
    finally:
        stop.set()
        thread.join(60)


def test_a_living_operator_drains_everything_and_nobody_strips(api: Api, namespace: str) -> None:
    for name in ("a", "b", "c"):
        instance(api, namespace, name)
    with operator(api, namespace, seconds=0.3) as drained:
        lines, _ = uninstall(api, namespace)
    assert sorted(drained) == ["a", "b", "c"]
    assert left(api, namespace) == []
    assert not any("took the finalizer" in line for line in lines)
    assert "all 3 llmclusters are gone" in lines
    assert any("Draining: 3 requests in flight" in line for line in lines)


def test_an_operator_that_answers_before_we_look_again_counts_as_alive(api: Api, namespace: str) -> None:
    """Its first write may land between our deletion and our next list."""
    instance(api, namespace, "a")
    run = Uninstall(api, namespace, "rel", 60.0, say=lambda _line: None)
    deleted: dict[str, Deleted] = {}
    run._delete_new(run._find(LLMCLUSTER), deleted)
    assert not shows_life(run._find(LLMCLUSTER), deleted)
    api.merge_patch(
        Ref(kind=LLMCLUSTER, namespace=namespace, name="a"), {"metadata": {"annotations": {"serving.ai/x": "y"}}}
    )
    assert shows_life(run._find(LLMCLUSTER), deleted)


def test_what_we_ended_ourselves_is_no_sign_of_an_operator() -> None:
    left: list[dict[str, Any]] = [{"metadata": {"uid": "b", "deletionTimestamp": "now", "resourceVersion": "7"}}]
    deleted = {"a": Deleted(version="5", at=0.0), "b": Deleted(version="7", at=0.3)}
    assert shows_life(left, deleted)
    assert not shows_life(left, deleted, {"a"})


def test_a_dead_operator_is_noticed_and_the_finalizers_go(
    api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmfleet.uninstall.progress.SILENCE", 0.5)
    for name in ("a", "b"):
        instance(api, namespace, name)
    lines, seconds = uninstall(api, namespace)
    assert left(api, namespace) == []
    assert sum("no operator answers" in line for line in lines) == 2
    assert seconds >= 0.5


def test_instances_already_terminating_behind_a_dead_operator_go_too(
    api: Api, namespace: str, server: Apiserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmfleet.uninstall.progress.SILENCE", 0.3)
    instance(api, namespace, "a")
    server.call("DELETE", LLMCLUSTER.path(namespace, "a"))
    uninstall(api, namespace)
    assert left(api, namespace) == []


def test_an_operator_that_dies_in_mid_drain_costs_the_drain_deadline_and_no_more(
    api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmfleet.uninstall.progress.AFTER_DRAIN", 0.3)
    monkeypatch.setattr("llmfleet.uninstall.progress.drain_seconds", lambda _obj: 0.5)
    instance(api, namespace, "a")
    with operator(api, namespace, seconds=600):
        lines, seconds = uninstall(api, namespace)
    assert left(api, namespace) == []
    assert any("its drain deadline passed" in line for line in lines)
    assert seconds >= 0.8


def test_the_time_limit_ends_every_drain(api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfleet.uninstall.progress.Wait.silence", property(lambda _wait: 60.0))
    instance(api, namespace, "a")
    with operator(api, namespace, seconds=600):
        lines, _ = uninstall(api, namespace, timeout=4.0)
    assert left(api, namespace) == []
    assert any("the time limit of 4 s is over" in line for line in lines)


def test_an_autoscaler_goes_first_and_its_instances_with_it(api: Api, namespace: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("llmfleet.uninstall.progress.SILENCE", 0.3)
    uid = autoscaler(api, namespace)
    owner = {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMClusterAutoscaler", "name": "scaler", "uid": uid}
    instance(api, namespace, "f-0", release="", ownerReferences=[owner])
    lines, _ = uninstall(api, namespace)
    assert left(api, namespace, AUTOSCALER) == []
    assert left(api, namespace) == []
    deletions = [line for line in lines if line.startswith("deleting")]
    assert [line.split()[1] for line in deletions] == ["LLMClusterAutoscaler", "LLMCluster"]


def test_what_is_not_of_the_release_stays_and_is_named(api: Api, namespace: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("llmfleet.uninstall.progress.SILENCE", 0.3)
    instance(api, namespace, "mine")
    instance(api, namespace, "theirs", release="other")
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    labels = {"serving.ai/cluster": "mine"}
    metadata = {"name": "mine-models", "namespace": namespace, "labels": labels}
    api.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim})
    lines, _ = uninstall(api, namespace)
    assert left(api, namespace) == ["theirs"]
    assert left(api, namespace, CLAIM) == ["mine-models"]
    assert "kept: PersistentVolumeClaim mine-models (model files)" in lines
    assert "left alone: LLMCluster theirs (not of release rel)" in lines


def test_finalizers_of_others_are_not_ours_to_take(api: Api, namespace: str) -> None:
    instance(api, namespace, "a", finalizers=["serving.ai/drain", "example.com/backup"])
    obj = api.get(Ref(kind=LLMCLUSTER, namespace=namespace, name="a"))
    assert plan_strip(obj).body == {"metadata": {"finalizers": ["example.com/backup"]}}


def test_an_empty_namespace_is_done_at_once(api: Api, namespace: str) -> None:
    lines, _ = uninstall(api, namespace)
    assert lines == []


@pytest.mark.parametrize("fault", [Status(code=404), Status(code=403)])
def test_missing_kinds_or_rights_never_block(fake: ScriptedApiserver, fault: Any) -> None:
    fake.always(fault)
    lines, _ = uninstall(Api(Transport(Anonymous(fake.url), user_agent="t"), manager="t"), "ns")
    assert any("kubectl get pvc" in line for line in lines)


def test_an_apiserver_that_never_answers_ends_with_the_time_limit(
    fake: ScriptedApiserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmfleet.uninstall.main.RETRY_SECONDS", 0.1)
    fake.always(Reset())
    lines, _ = uninstall(Api(Transport(Anonymous(fake.url), user_agent="t"), manager="t"), "ns", timeout=0.5)
    assert any("giving up" in line for line in lines)


def test_the_command_ends_with_success(server: Apiserver, api: Api, namespace: str) -> None:
    instance(api, namespace, "a")
    command = [sys.executable, "-m", "llmfleet", "uninstall", "--namespace", namespace, "--release", "rel"]
    command += ["--timeout", "4", "--kubeconfig", str(server.kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "took the finalizer off LLMCluster" in done.stdout
    assert left(api, namespace) == []


@pytest.mark.parametrize(
    ("case", "alive", "waited", "reason"),
    [
        ("a young deletion is given time", False, 29.0, ""),
        ("silence ends the wait", False, 30.0, "no operator answers"),
        ("a living operator has the drain deadline", True, 359.0, ""),
        ("and no longer", True, 360.0, "its drain deadline passed 60 s ago"),
        ("the time limit is above all", True, 600.0, "the time limit of 600 s is over"),
    ],
)
def test_when_a_finalizer_is_taken(case: str, alive: bool, waited: float, reason: str) -> None:
    obj = {"metadata": {"name": "a", "uid": "u", "finalizers": ["serving.ai/drain"]}, "spec": {}}
    wait = Wait(began=0.0, timeout=600.0, alive=alive)
    found = overdue([obj], {"u": Deleted(version="1", at=0.0)}, wait, waited)
    assert [why for _, why in found] == ([reason] if reason else []), case
