"""Read from the Kubernetes API what `explain` needs.

In: an API, a namespace, a name. Out: manifests, or `KubeError`. It only reads. Events that may not be read are left
out, because an explanation without a past is still one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from llmfleet.api.autoscaler import selector_text
from llmfleet.kube.client import Api
from llmfleet.kube.errors import KubeError
from llmfleet.kube.refs import AUTOSCALER, EVENT, LLMCLUSTER, Manifest, Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One autoscaler with all that belongs to it."""

    scaler: Manifest
    clusters: list[Manifest]
    events: list[Manifest]


def read_all(api: Api, namespace: str, name: str | None) -> Iterator[Found]:
    """The one of that name, or every one of the namespace (of all, when it is empty)."""
    if name:
        scalers = [api.get(Ref(kind=AUTOSCALER, namespace=namespace, name=name))]
    else:
        scalers, _ = api.list(AUTOSCALER, namespace=namespace)
    for scaler in scalers:
        yield read_one(api, scaler)


def read_one(api: Api, scaler: Manifest) -> Found:
    metadata = scaler["metadata"]
    labels = (((scaler.get("spec") or {}).get("scaleTargetRef") or {}).get("labelSelector") or {}).get("matchLabels")
    clusters: list[Manifest] = []
    if labels:
        found, _ = api.list(LLMCLUSTER, namespace=metadata["namespace"], label_selector=selector_text(labels))
        clusters = list(found)
    return Found(scaler=scaler, clusters=clusters, events=events_of(api, scaler))


def events_of(api: Api, scaler: Manifest) -> list[Manifest]:
    metadata = scaler["metadata"]
    selector = f"regarding.kind={AUTOSCALER.kind},regarding.name={metadata['name']}"
    with suppress(KubeError):
        found, _ = api.list(EVENT, namespace=metadata["namespace"], field_selector=selector)
        return [one for one in found if (one.get("regarding") or {}).get("uid") in (None, metadata.get("uid"))]
    return []


def context_namespace(kubeconfig: str | None) -> str:
    """The namespace of the kubeconfig's current context, as kubectl takes it; `default` without one."""
    config: Any = import_module("kubernetes.config")
    try:
        _, active = config.list_kube_config_contexts(config_file=kubeconfig)
    except Exception:
        # The official client raises its own ConfigException and whatever a broken file makes YAML raise.
        return "default"
    return str((active.get("context") or {}).get("namespace") or "default")
