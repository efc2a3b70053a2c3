"""What a deleted operator held: its instances stay and can be deleted, another operator's are not touched."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from fakes.apiserver import Apiserver
from fakes.scripted import Reset, ScriptedApiserver
from llmfleet.kube.client import Api
from llmfleet.kube.refs import LEASE, LLMCLUSTER, POD, Ref, uid_of
from llmfleet.kube.transport.client import Anonymous, Transport
from llmfleet.uninstall.client import Release

SPEC = {"model": "m", "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1, "image": "i:1"}
LABELS = {"app.kubernetes.io/instance": "rel", "app.kubernetes.io/component": "operator"}


def instance(api: Api, namespace: str, name: str, *, holder: str, finalizers: Sequence[str] = ()) -> Ref:
    metadata = {
        "name": name,
        "namespace": namespace,
        "annotations": {"serving.ai/managed-by": holder},
        "finalizers": ["serving.ai/drain", *finalizers],
    }
    api.create({"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": metadata, "spec": SPEC})
    return Ref(kind=LLMCLUSTER, namespace=namespace, name=name)


def lease(api: Api, namespace: str) -> Ref:
    metadata = {"name": "rel-operator", "namespace": namespace}
    spec = {"holderIdentity": "somebody", "leaseDurationSeconds": 17}
    api.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec})
    return Ref(kind=LEASE, namespace=namespace, name="rel-operator")


def operator_pod(api: Api, namespace: str) -> Ref:
    metadata = {"name": "rel-operator-0", "namespace": namespace, "labels": LABELS}
    spec = {"containers": [{"name": "operator", "image": "i:1"}], "automountServiceAccountToken": False}
    api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return Ref(kind=POD, namespace=namespace, name="rel-operator-0")


def let_go(api: Api, namespace: str, *, timeout: float = 30.0, watched: Sequence[str] = ("",)) -> list[str]:
    lines: list[str] = []
    namespaces = [name or namespace for name in watched]
    Release(
        api,
        f"{namespace}/rel",
        namespaces=namespaces,
        leases=["rel-operator"],
        timeout=timeout,
        say=lines.append,
        look_seconds=0.02,
    ).run()
    return lines


def finalizers(api: Api, ref: Ref) -> Any:
    return api.get(ref)["metadata"].get("finalizers")


def test_a_hand_made_instance_stays_without_its_finalizer_and_the_log_says_why(api: Api, namespace: str) -> None:
    ref = instance(api, namespace, "by-hand", holder=f"{namespace}/rel", finalizers=["example.com/backup"])
    (line,) = let_go(api, namespace)
    assert finalizers(api, ref) == ["example.com/backup"]
    assert line.startswith(f"took the finalizer off LLMCluster {namespace}/by-hand: its operator {namespace}/rel goes")


def test_an_instance_that_was_waiting_to_be_deleted_is_gone(api: Api, namespace: str) -> None:
    ref = instance(api, namespace, "a", holder=f"{namespace}/rel")
    api.delete(ref, uid_of(api.get(ref)))
    let_go(api, namespace)
    assert api.list(LLMCLUSTER, namespace=namespace)[0] == []


@pytest.mark.parametrize("holder", ["elsewhere/rel", "", "{namespace}/other"])
def test_an_instance_of_another_operator_is_never_touched(api: Api, namespace: str, holder: str) -> None:
    ref = instance(api, namespace, "theirs", holder=holder.format(namespace=namespace))
    before = api.get(ref)["metadata"]["resourceVersion"]
    assert let_go(api, namespace) == []
    assert api.get(ref)["metadata"]["resourceVersion"] == before


def test_the_lease_goes_so_that_the_next_operator_need_not_wait(api: Api, namespace: str) -> None:
    lease(api, namespace)
    assert let_go(api, namespace) == [f"deleted Lease {namespace}/rel-operator"]
    assert api.list(LEASE, namespace=namespace)[0] == []


def test_nothing_is_taken_from_an_operator_that_still_runs(api: Api, namespace: str) -> None:
    ref = instance(api, namespace, "a", holder=f"{namespace}/rel")
    pod = operator_pod(api, namespace)
    working = threading.Thread(target=let_go, args=(api, namespace), daemon=True)
    working.start()
    working.join(0.5)
    assert finalizers(api, ref) == ["serving.ai/drain"]
    api.delete(pod, uid_of(api.get(pod)), grace_seconds=0)
    working.join(30)
    assert not finalizers(api, ref)


def test_an_operator_that_never_ends_does_not_hold_up_the_release(api: Api, namespace: str) -> None:
    ref = instance(api, namespace, "a", holder=f"{namespace}/rel")
    operator_pod(api, namespace)
    lines = let_go(api, namespace, timeout=0.3)
    assert lines[0] == "going on although 1 pods of the operator have not ended"
    assert not finalizers(api, ref)


def test_a_namespace_that_is_gone_does_not_hide_the_next(api: Api, namespace: str) -> None:
    ref = instance(api, namespace, "a", holder=f"{namespace}/rel")
    let_go(api, namespace, watched=("never-was", ""))
    assert not finalizers(api, ref)


def test_an_apiserver_that_never_answers_ends_with_the_time_limit(fake: ScriptedApiserver) -> None:
    fake.always(Reset())
    lines = let_go(Api(Transport(Anonymous(fake.url), user_agent="t"), manager="t"), "ns", timeout=0.3)
    assert [line for line in lines if line.startswith("LLMClusters of namespace ns: giving up")]


def test_the_command_ends_with_success(server: Apiserver, api: Api, namespace: str) -> None:
    ref = instance(api, namespace, "a", holder=f"{namespace}/rel")
    done = run(server, "--operator", f"{namespace}/rel", "--namespace", namespace, "--lease", "rel-operator")
    assert done.returncode == 0, done.stderr
    assert "took the finalizer off" in done.stdout
    assert not finalizers(api, ref)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "write --release NAME, or --operator NS/RELEASE"),
        (("--release", "r"), "--release NAME needs one --namespace NS"),
        (("--release", "r", "--operator", "n/r", "--namespace", "n"), "and not both"),
        (("--operator", "rel"), "is not NS/RELEASE"),
    ],
)
def test_a_wrong_choice_says_what_to_write(server: Apiserver, arguments: Sequence[str], message: str) -> None:
    done = run(server, *arguments)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def run(server: Apiserver, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmfleet", "uninstall", *arguments, "--timeout", "5"]
    command += ["--kubeconfig", str(server.kubeconfig)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
