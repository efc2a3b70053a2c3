"""`llmfleet doctor` against a real apiserver."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crds.crd_objects import cluster
from fakes.apiserver import Apiserver
from llmfleet.cli import main

pytestmark = pytest.mark.apiserver


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def test_an_instance_without_an_operator_is_found_and_the_exit_status_says_so(
    server: Apiserver, namespace: str
) -> None:
    obj = cluster()
    obj["metadata"]["namespace"] = namespace
    answer = server.call("POST", f"/apis/serving.ai/v1alpha1/namespaces/{namespace}/llmclusters", obj)
    assert answer.status == 201, answer.message
    found = run("-n", namespace, "--kubeconfig", str(server.kubeconfig))
    assert found.exit_code == 1, found.output
    assert "no operator is installed, so nobody acts on them" in found.output
    assert "a pod asks for 4 nvidia.com/gpu, the best node of 0 offers 0" in found.output
    assert f"LLMCluster {namespace}/llama-a" in found.output


def test_the_kinds_that_this_version_installs_are_not_old(server: Apiserver, namespace: str) -> None:
    found = json.loads(run("-n", namespace, "--json", "--kubeconfig", str(server.kubeconfig)).output)
    assert found["findings"] == []
    assert found["notRead"] == {}
    assert found["looked"]["CustomResourceDefinition"] == 2


def test_a_router_pod_that_cannot_be_reached_is_a_warning(server: Apiserver, namespace: str) -> None:
    labels = {"app.kubernetes.io/name": "llmfleet-router", "app.kubernetes.io/component": "router"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "r", "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "router", "image": "x"}]},
    }
    base = f"/api/v1/namespaces/{namespace}/pods"
    assert server.call("POST", base, pod).status == 201
    status = {"status": {"phase": "Running", "podIP": "127.0.0.9"}}
    answer = server.call("PATCH", f"{base}/r/status", status, content_type="application/merge-patch+json")
    assert answer.status == 200, answer.message
    found = run("-n", namespace, "--kubeconfig", str(server.kubeconfig))
    assert found.exit_code == 0, found.output
    assert f"warning  routers: Pod {namespace}/r" in found.output
    assert "could not be asked" in found.output


def test_no_cluster_is_one_line_and_another_status(tmp_path: Path) -> None:
    found = run("--kubeconfig", str(tmp_path / "none"))
    assert found.exit_code == 2
    assert "cannot log in to a cluster" in found.output
