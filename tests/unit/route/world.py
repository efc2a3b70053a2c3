"""A small world of instances and pods, as caches would hold it."""

from __future__ import annotations

import json
from typing import Any

NS = "ns"


def cluster(name: str = "a", *, ready: bool = True, reason: str = "Serving", **spec: Any) -> dict[str, Any]:
    """An LLMCluster with a status."""
    conditions = [{"type": "Ready", "status": "True" if ready else "False", "reason": reason}]
    return {
        "apiVersion": "serving.ai/v1alpha1",
        "kind": "LLMCluster",
        "metadata": {
            "name": name,
            "namespace": NS,
            "uid": f"c-{name}",
            "labels": {"app.kubernetes.io/instance": "rel"},
        },
        "spec": {"model": "org/m", "servedModelNames": ["m"], "replicas": 2, "role": "both", **spec},
        "status": {"engineRevision": "rev", "conditions": conditions},
    }


def deleted(obj: dict[str, Any]) -> dict[str, Any]:
    obj["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    return obj


def annotated(obj: dict[str, Any], **annotations: str) -> dict[str, Any]:
    names = {key.replace("_", "-"): value for key, value in annotations.items()}
    obj["metadata"]["annotations"] = {f"serving.ai/{key}": value for key, value in names.items()}
    return obj


def pod(
    name: str = "a", rank: int = 0, *, uid: str | None = None, ready: bool = True, args: Any = None, **status: Any
) -> dict[str, Any]:
    """One rank of an instance."""
    default = ["vllm", "serve", "org/m", "--port", "8000", "--served-model-name", "m", "--tensor-parallel-size", "2"]
    engine = {
        "name": "engine",
        "args": default if args is None else args,
        "ports": [{"name": "http", "containerPort": 8000}],
    }
    return {
        "metadata": {
            "name": f"{name}-{rank}",
            "namespace": NS,
            "uid": uid or f"{name}-{rank}-uid",
            "labels": {"serving.ai/cluster": name, "apps.kubernetes.io/pod-index": str(rank)},
        },
        "spec": {"containers": [{"name": "sidecar"}, engine]},
        "status": {
            "phase": "Running",
            "podIP": f"10.0.{rank}.{sum(map(ord, name)) % 250}",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            **status,
        },
    }


def statefulset(name: str = "a", members: dict[str, str] | None = None, ranks: int = 2) -> dict[str, Any]:
    """The StatefulSet with its memory of who started together."""
    members = {str(rank): f"{name}-{rank}-uid/0" for rank in range(ranks)} if members is None else members
    return {
        "metadata": {
            "name": name,
            "namespace": NS,
            "annotations": {"serving.ai/group": json.dumps({"members": members})},
        }
    }


def router(name: str, ip: str = "10.1.0.1", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": NS}, "status": {"phase": "Running", "podIP": ip, **status}}
