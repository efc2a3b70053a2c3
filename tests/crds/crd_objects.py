"""Objects for the CRD tests: one valid LLMCluster, three valid autoscalers, and changes to them.

Pure: it builds dicts and talks to nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]
REMOVED = object()
CLUSTERS = "/apis/serving.ai/v1alpha1/namespaces/default/llmclusters"
AUTOSCALERS = "/apis/serving.ai/v1alpha1/namespaces/default/llmclusterautoscalers"
FLEET = {"serving.ai/fleet": "prod"}


def shape(**more: Any) -> Object:
    """The smallest spec that is accepted: two pods of four accelerators."""
    return {
        "model": "meta-llama/Llama-3.3-70B-Instruct",
        "replicas": 2,
        "gpusPerPod": 4,
        "tensorParallelSize": 8,
        "image": "vllm/vllm-openai:v0.33.0",
        **more,
    }


def cluster(changes: Mapping[str, Any] | None = None, *, name: str = "llama-a") -> Object:
    """A valid LLMCluster with changes laid over its spec."""
    return build("LLMCluster", name, shape(), changes)


def template(prefix: str, **spec: Any) -> Object:
    """An instance template that its fleet's selector covers."""
    return {"namePrefix": prefix, "labels": dict(FLEET), "spec": shape(**spec)}


def monolithic(changes: Mapping[str, Any] | None = None, *, name: str = "llama") -> Object:
    """A valid autoscaler of one fleet."""
    spec = {
        "mode": "monolithic",
        "scaleTargetRef": {"labelSelector": {"matchLabels": dict(FLEET)}},
        "minInstances": 2,
        "maxInstances": 10,
        "instanceTemplate": template("llama-"),
    }
    return build("LLMClusterAutoscaler", name, spec, changes)


def disaggregated(changes: Mapping[str, Any] | None = None, *, name: str = "llama-pd") -> Object:
    """A valid autoscaler of a prefill and a decode fleet."""
    spec = {
        "mode": "disaggregated",
        "scaleTargetRef": {"labelSelector": {"matchLabels": dict(FLEET)}},
        "prefill": role_fleet("prefill"),
        "decode": role_fleet("decode"),
    }
    return build("LLMClusterAutoscaler", name, spec, changes)


def role_fleet(role: str) -> Object:
    """One block of a disaggregated autoscaler."""
    return {"minInstances": 1, "maxInstances": 4, "instanceTemplate": template(f"llama-{role}-", role=role)}


def build(kind: str, name: str, spec: Object, changes: Mapping[str, Any] | None) -> Object:
    """A named object with changes laid over its spec."""
    spec = copy.deepcopy(spec)
    for path, value in (changes or {}).items():
        change(spec, path, value)
    return {"apiVersion": "serving.ai/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def change(spec: Object, path: str, value: Any) -> None:
    """Set (or with REMOVED drop) the field at a dotted path, making objects on the way."""
    *parents, last = path.split(".")
    node = spec
    for parent in parents:
        node = node.setdefault(parent, {})
    if value is REMOVED:
        node.pop(last, None)
    else:
        node[last] = value
