"""What the apiserver fills into an LLMCluster, what it lets change, and what an update costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from crds.crd_objects import CLUSTERS, REMOVED, Object, cluster, shape
from fakes.apiserver import Apiserver

pytestmark = pytest.mark.apiserver

NAME = "changing"
PATH = f"{CLUSTERS}/{NAME}"
MERGE = "application/merge-patch+json"
DEFAULTS: Object = {
    "role": "both",
    "pipelineParallelSize": 1,
    "storage": {"modelCache": {"type": "emptyDir", "accessMode": "ReadWriteMany", "mountPath": "/models"}},
    "scheduling": {"colocation": "Preferred"},
    "router": {"enabled": True, "weight": 100, "maxConcurrency": 0, "tier": 0},
    "lifecycle": {
        "startupTimeoutSeconds": 600,
        "drainTimeoutSeconds": 300,
        "stallTimeoutSeconds": 60,
        "restartBackoffSeconds": 10,
        "warmup": {"enabled": True, "prompt": "Hello", "maxTokens": 1},
    },
    "update": {
        "paused": False,
        "canary": {
            "enabled": False,
            "weightPercent": 5,
            "analysisSeconds": 300,
            "maxErrorRatio": "0.01",
            "maxTTFTRatio": "1.5",
        },
    },
}
SHAPE_CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("role", {"role": "prefill"}),
    ("replicas", {"replicas": 4, "gpusPerPod": 2}),
    ("gpusPerPod", {"replicas": 1, "gpusPerPod": 8}),
    ("tensorParallelSize", {"tensorParallelSize": 4, "pipelineParallelSize": 2}),
    ("pipelineParallelSize", {"tensorParallelSize": 2, "pipelineParallelSize": 4}),
]
MUTABLE: list[dict[str, Any]] = [
    {"image": "vllm/vllm-openai:v0.34.0"},
    {"model": "org/other"},
    {"servedModelNames": ["other"]},
    {"inferenceArgs": {"maxNumSeqs": 128, "extraArgs": ["--max-log-len=0"]}},
    {"router": {"weight": 0}},
    {"lifecycle": {"drainTimeoutSeconds": 30}},
    {"update": {"paused": True}},
    {"resources": {"limits": {"memory": "128Gi"}}},
    {"scheduling": {"nodeSelector": {"zone": "b"}}},
]


@pytest.fixture
def stored(server: Apiserver) -> Iterator[Object]:
    """One LLMCluster that is there for the length of a test."""
    answer = server.call("POST", CLUSTERS, cluster(name=NAME))
    assert answer.status == 201, answer.message
    yield answer.body
    server.call("DELETE", PATH)


def test_exactly_the_documented_defaults_are_filled(server: Apiserver, stored: Object) -> None:
    assert stored["spec"] == {**shape(), **DEFAULTS}
    assert stored["status"] == {"observedGeneration": -1}


def test_a_partial_object_is_completed(server: Apiserver) -> None:
    changes = {"router.weight": 7, "lifecycle.warmup.prompt": "Hi", "storage.modelCache.size": "1Gi"}
    spec = server.call("POST", CLUSTERS, cluster(changes), params={"dryRun": "All"}).body["spec"]
    assert spec["router"] == {**DEFAULTS["router"], "weight": 7}
    assert spec["lifecycle"]["warmup"] == {"enabled": True, "prompt": "Hi", "maxTokens": 1}
    assert spec["storage"]["modelCache"] == {**DEFAULTS["storage"]["modelCache"], "size": "1Gi"}


@pytest.mark.parametrize(
    "parent", ["accelerator", "network", "security", "podDisruptionBudget", "inferenceArgs", "kvTransfer"]
)
def test_what_the_operator_decides_is_not_filled(server: Apiserver, parent: str) -> None:
    changes = {"role": "prefill", parent: {}}
    spec = server.call("POST", CLUSTERS, cluster(changes), params={"dryRun": "All"}).body["spec"]
    assert spec[parent] == {}


@pytest.mark.parametrize(("field", "changes"), SHAPE_CHANGES)
@pytest.mark.usefixtures("stored")
def test_the_shape_cannot_change(server: Apiserver, field: str, changes: dict[str, Any]) -> None:
    answer = server.call("PATCH", PATH, {"spec": changes}, content_type=MERGE)
    assert answer.status == 422, answer.body
    remedy = "is immutable: create a new LLMCluster with the other value, then delete this one"
    assert f"spec.{field}: Invalid value" in answer.message
    assert f"{field} {remedy}" in answer.message


def test_leaving_out_a_defaulted_shape_field_is_a_change_too(server: Apiserver) -> None:
    changes = {"tensorParallelSize": 4, "pipelineParallelSize": 2, "role": "decode"}
    server.call("POST", CLUSTERS, cluster(changes, name="piped"))
    plain = cluster({"tensorParallelSize": 8, "role": REMOVED}, name="piped")
    current = server.call("GET", f"{CLUSTERS}/piped").body
    plain["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"]
    answer = server.call("PUT", f"{CLUSTERS}/piped", plain)
    server.call("DELETE", f"{CLUSTERS}/piped")
    assert answer.status == 422
    assert "role is immutable" in answer.message
    assert "pipelineParallelSize is immutable" in answer.message


@pytest.mark.parametrize("changes", MUTABLE, ids=lambda changes: next(iter(changes)))
@pytest.mark.usefixtures("stored")
def test_everything_else_can_change(server: Apiserver, changes: dict[str, Any]) -> None:
    answer = server.call("PATCH", PATH, {"spec": changes}, content_type=MERGE)
    assert answer.status == 200, answer.message


def test_a_status_write_leaves_the_spec_and_a_spec_write_the_status(server: Apiserver, stored: Object) -> None:
    status = {"observedGeneration": 1, "ready": "2/2", "shape": "2x4 tp8", "modelLoadSeconds": 41.2}
    both = {"spec": {"image": "ignored"}, "status": {**status, "lastRestartTime": None}}
    answer = server.call("PATCH", f"{PATH}/status", both, content_type=MERGE)
    assert answer.status == 200, answer.message
    assert answer.body["spec"] == stored["spec"]
    later = server.call("PATCH", PATH, {"status": {"ready": "0/2"}}, content_type=MERGE).body
    assert later["status"]["ready"] == "2/2"
    assert later["metadata"]["generation"] == 1


@pytest.mark.usefixtures("stored")
def test_the_table_shows_what_kubectl_get_needs(server: Apiserver) -> None:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    condition = {**ready, "reason": "Serving", "message": "two pods of two are ready"}
    status = {
        "conditions": [condition],
        "ready": "2/2",
        "shape": "2x4 tp8",
        "url": "http://a:8000",
        "restarts": 3,
        "modelLoadSeconds": 41.2,
    }
    server.call("PATCH", f"{PATH}/status", {"status": status}, content_type=MERGE)
    columns = table(server, PATH)
    assert list(columns) == [
        "Name",
        "Model",
        "Role",
        "Shape",
        "Ready",
        "Status",
        "URL",
        "Age",
        "Image",
        "Restarts",
        "Load",
    ]
    assert {name for name, (_, priority) in columns.items() if priority} == {"Image", "Restarts", "Load"}
    shown = {name: cell for name, (cell, _) in columns.items()}
    assert (shown["Shape"], shown["Ready"], shown["Status"]) == ("2x4 tp8", "2/2", "Serving")
    assert (shown["Restarts"], shown["Load"], shown["URL"]) == (3, 41.2, "http://a:8000")


def table(server: Apiserver, path: str) -> dict[str, tuple[Any, int]]:
    """Column name -> cell and priority, as kubectl asks for it."""
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    body = server.session.get(server.url + path, headers=accept, timeout=10).json()
    cells = body["rows"][0]["cells"]
    return {c["name"]: (cell, c["priority"]) for c, cell in zip(body["columnDefinitions"], cells, strict=True)}
