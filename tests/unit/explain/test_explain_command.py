"""`llmfleet explain` against a real apiserver."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crds.crd_objects import cluster, monolithic
from fakes.apiserver import Apiserver
from llmfleet.cli import main

pytestmark = pytest.mark.apiserver


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", *arguments])


@pytest.fixture
def fleet(server: Apiserver, namespace: str) -> str:
    """An autoscaler with a status, one instance and one event."""
    base = f"/apis/serving.ai/v1alpha1/namespaces/{namespace}"
    scaler = monolithic()
    scaler["metadata"]["namespace"] = namespace
    made = server.call("POST", f"{base}/llmclusterautoscalers", scaler)
    assert made.status == 201, made.message
    status = {
        "currentInstances": 1,
        "readyInstances": 0,
        "desiredInstances": 2,
        "observedGeneration": 1,
        "decision": {"reason": "AtMinimum", "message": "load now 0.00 instances -> 0; bounds 2..10"},
        "observedMetrics": [{"name": "offeredLoad", "value": "0.40", "unit": "instances", "ageSeconds": 3}],
    }
    path = f"{base}/llmclusterautoscalers/llama/status"
    answer = server.call("PATCH", path, {"status": status}, content_type="application/merge-patch+json")
    assert answer.status == 200, answer.message
    obj = cluster()
    obj["metadata"] |= {"namespace": namespace, "labels": {"serving.ai/fleet": "prod"}}
    answer = server.call("POST", f"{base}/llmclusters", obj)
    assert answer.status == 201, answer.message
    for name, uid in (("llama", made.body["metadata"]["uid"]), ("other", "u")):
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.1", "namespace": namespace},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "serving.ai/autoscaler",
            "reportingInstance": "test",
            "type": "Normal",
            "reason": "AtMinimum",
            "action": "ScaledUp",
            "note": f"0 -> 1 of {name}",
            "regarding": {"kind": "LLMClusterAutoscaler", "name": name, "namespace": namespace, "uid": uid},
        }
        answer = server.call("POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", event)
        assert answer.status == 201, answer.message
    return namespace


def test_one_fleet_is_read_and_explained(server: Apiserver, fleet: str) -> None:
    found = run("llama", "-n", fleet, "--kubeconfig", str(server.kubeconfig))
    assert found.exit_code == 0, found.output
    assert f"{fleet}/llama  monolithic, policy WorkBudget" in found.output
    assert "why     AtMinimum: the load asks for no more than minInstances" in found.output
    assert "llama-a  both     Pending" in found.output
    assert "ScaledUp     AtMinimum: 0 -> 1 of llama" in found.output
    assert "of other" not in found.output


def test_json_is_a_list_of_all(server: Apiserver, fleet: str) -> None:
    found = json.loads(run("-n", fleet, "--json", "--kubeconfig", str(server.kubeconfig)).output)
    assert [one["name"] for one in found] == ["llama"]
    assert found[0]["instances"][0]["name"] == "llama-a"


def test_one_that_is_not_there_ends_with_one_line(server: Apiserver, namespace: str) -> None:
    found = run("nobody", "-n", namespace, "--kubeconfig", str(server.kubeconfig))
    assert found.exit_code == 1
    assert f"no LLMClusterAutoscaler {namespace}/nobody" in found.output


def test_an_empty_namespace_says_where_to_look(server: Apiserver, namespace: str) -> None:
    found = run("-n", namespace, "--kubeconfig", str(server.kubeconfig))
    assert found.exit_code == 1
    assert "try --all-namespaces" in found.output


def test_a_cluster_that_cannot_be_logged_in_to_is_one_line(tmp_path: Path) -> None:
    found = run("--kubeconfig", str(tmp_path / "none"))
    assert found.exit_code == 2
    assert "cannot log in to a cluster" in found.output
    assert "Traceback" not in found.output


def test_all_namespaces_and_a_name_exclude_each_other() -> None:
    assert run("llama", "-A").exit_code == 2
