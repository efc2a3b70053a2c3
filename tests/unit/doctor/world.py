"""A healthy install as manifests, for tests to break one thing of."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from llmfleet.api.document import Document, Endpoint, Model, render
from llmfleet.doctor.examine import examine
from llmfleet.doctor.snapshot import Finding, Snapshot
from llmfleet.top.samples import RouterState, parse_metrics

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GENERATION = int((NOW - timedelta(hours=1)).timestamp() * 1000)
CRDS = Path(__file__).resolve().parents[3] / "charts/llmfleet-crds/crds"
Object = dict[str, Any]


@cache
def crd_texts() -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8") for path in sorted(CRDS.glob("*.yaml")))


@cache
def crds_once() -> tuple[Object, ...]:
    return tuple(yaml.load(text, Loader=yaml.CSafeLoader) for text in crd_texts())


def crds() -> list[Object]:
    established = {"conditions": [{"type": "Established", "status": "True"}]}
    return [{**copy.deepcopy(one), "status": established} for one in crds_once()]


def stamp(seconds_ago: float) -> str:
    return (NOW - timedelta(seconds=seconds_ago)).isoformat()


def labels(component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": f"llmfleet-{component}",
        "app.kubernetes.io/instance": "prod",
        "app.kubernetes.io/component": component,
    }


def controller(component: str) -> Object:
    arguments = [component, "--identity=system/prod", f"--lease-name=prod-{component}"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"prod-{component}", "namespace": "system", "labels": labels(component)},
        "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": component, "args": arguments}]}}},
        "status": {"readyReplicas": 2},
    }


def lease(component: str) -> Object:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": f"prod-{component}", "namespace": "system"},
        "spec": {"leaseDurationSeconds": 17, "renewTime": stamp(3), "holderIdentity": "x"},
    }


def instance(name: str = "llama-0", reason: str = "Serving", message: str = "", **spec: Any) -> Object:
    status = "True" if reason == "Serving" else "False"
    return {
        "apiVersion": "serving.ai/v1alpha1",
        "kind": "LLMCluster",
        "metadata": {
            "name": name,
            "namespace": "d",
            "labels": {"serving.ai/fleet": "llama"},
            "annotations": {"serving.ai/managed-by": "system/prod"},
        },
        "spec": {"model": "org/llama", "gpusPerPod": 4, **spec},
        "status": {"conditions": [{"type": "Ready", "status": status, "reason": reason, "message": message}]},
    }


def scaler(reason: str = "OnTarget", message: str = "") -> Object:
    return {
        "apiVersion": "serving.ai/v1alpha1",
        "kind": "LLMClusterAutoscaler",
        "metadata": {"name": "llama", "namespace": "d"},
        "spec": {},
        "status": {"decision": {"reason": reason, "message": message}},
    }


def pod(name: str, component: str, **status: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "d", "labels": labels(component)},
        "spec": {},
        "status": {"phase": "Running", **status},
    }


def waiting(container: str, reason: str, message: str = "", image: str = "") -> Object:
    return {"name": container, "image": image, "state": {"waiting": {"reason": reason, "message": message}}}


def document(generation: int = GENERATION, models: Mapping[str, Model] | None = None) -> Object:
    served = {"llama": Model(endpoints=(Endpoint(instance="llama-0", address="10.0.0.1:8000", pod_uid="u"),))}
    text = render(Document(generation=generation, models=served if models is None else models)).decode()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "prod-backends",
            "namespace": "d",
            "labels": {"serving.ai/backends": "true"},
            "annotations": {
                "serving.ai/managed-by": "system/prod",
                "serving.ai/cluster-selector": "serving.ai/fleet=llama",
                "serving.ai/router-selector": "app.kubernetes.io/instance=prod,app.kubernetes.io/component=router",
            },
        },
        "data": {"backends.json": text},
    }


def node(gpus: int = 8) -> Object:
    allocatable = {"cpu": "64", "nvidia.com/gpu": str(gpus)} if gpus else {"cpu": "64"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"allocatable": allocatable}}


def claim(**spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": "llama-0-models",
            "namespace": "d",
            "labels": {"serving.ai/cluster": "llama-0"},
            "creationTimestamp": stamp(600),
        },
        "spec": spec,
        "status": {"phase": "Pending"},
    }


def storage_class(name: str, *, default: bool = False, mode: str = "Immediate") -> Object:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "annotations": annotations},
        "volumeBindingMode": mode,
    }


def router(metrics: str = "", generation: int = GENERATION, problem: str = "", **fleet: Any) -> RouterState:
    fleet = {"generation": generation, "models": {}, **fleet}
    return RouterState(namespace="d", pod="prod-router-1", fleet=fleet, samples=parse_metrics(metrics), problem=problem)


def healthy() -> dict[str, list[Object]]:
    return {
        "CustomResourceDefinition": crds(),
        "LLMCluster": [instance()],
        "LLMClusterAutoscaler": [scaler()],
        "Deployment": [controller("operator"), controller("autoscaler")],
        "Lease": [lease("operator"), lease("autoscaler")],
        "Pod": [pod("llama-0-0", "engine"), pod("prod-router-1", "router")],
        "ConfigMap": [document()],
        "PersistentVolumeClaim": [],
        "StorageClass": [storage_class("fast", default=True)],
        "Node": [node()],
        "Event": [],
    }


def snapshot(
    changes: Mapping[str, list[Object]] | None = None,
    *,
    routers: Sequence[RouterState] | None = None,
    without: Sequence[str] = (),
    refused: Mapping[str, str] | None = None,
) -> Snapshot:
    objects = {kind: found for kind, found in {**healthy(), **(changes or {})}.items() if kind not in without}
    return Snapshot(objects=objects, refused=refused or {}, routers=[router()] if routers is None else routers, now=NOW)


def findings(changes: Mapping[str, list[Object]] | None = None, **more: Any) -> list[Finding]:
    return examine(snapshot(changes, **more))


def one(changes: Mapping[str, list[Object]] | None = None, **more: Any) -> Finding:
    """The only finding."""
    found = findings(changes, **more)
    assert len(found) == 1, found
    return found[0]
