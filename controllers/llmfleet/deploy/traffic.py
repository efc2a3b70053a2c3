"""Which published documents concern an instance, and what they say about it.

In: backends ConfigMaps, router pods, labels. Out: matches and `offers`. It never asks a router: that is `client.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llmfleet import names
from llmfleet.api.document import Document, DocumentError, State, parse_document
from llmfleet.kube.refs import Manifest
from llmfleet.kube.selectors import SelectorError, parse_selector

OVER: frozenset[str] = frozenset({"Succeeded", "Failed"})


def concerned(configmaps: Iterable[Manifest], cluster: Manifest) -> Iterator[Manifest]:
    """ConfigMaps whose selector takes the instance in. One that cannot be read takes in nobody, as for the routers."""
    labels = cluster["metadata"].get("labels") or {}
    for configmap in configmaps:
        if matches(annotation(configmap, names.CLUSTER_SELECTOR_ANNOTATION), labels):
            yield configmap


def why_unrouted(configmaps: Sequence[Manifest], cluster: Manifest) -> str:
    """A sentence when there are routers in the namespace and none of them takes the instance in."""
    if not configmaps or any(concerned(configmaps, cluster)):
        return ""
    selectors = {each["metadata"]["name"]: annotation(each, names.CLUSTER_SELECTOR_ANNOTATION) for each in configmaps}
    asked = ", ".join(f"{name} asks for {selector}" for name, selector in sorted(selectors.items()))
    return f"no router serves it, because of its labels ({asked})"


def routers_of(configmap: Manifest, pods: Iterable[Manifest]) -> list[Manifest]:
    """Router pods that work with this ConfigMap and may still have requests."""
    selector = annotation(configmap, names.ROUTER_SELECTOR_ANNOTATION)
    return [
        pod
        for pod in pods
        if selector
        and matches(selector, pod["metadata"].get("labels") or {})
        and (pod.get("status") or {}).get("phase") not in OVER
        and (pod.get("status") or {}).get("podIP")
    ]


def annotation(manifest: Manifest, name: str) -> str:
    return str((manifest["metadata"].get("annotations") or {}).get(name, ""))


def matches(selector: str, labels: dict[str, str]) -> bool:
    try:
        return parse_selector(selector)(labels)
    except SelectorError:
        return False


def read_document(configmap: Manifest) -> Document | None:
    """The published document; None when there is none, or none that a router would take."""
    text = (configmap.get("data") or {}).get(names.BACKENDS_KEY)
    if not text:
        return None
    try:
        return parse_document(text.encode())
    except DocumentError:
        return None


def offers(document: Document | None, instance: str) -> bool:
    """The instance may still be given new requests."""
    if document is None:
        return False
    return any(
        endpoint.instance == instance and endpoint.state is State.READY
        for model in document.models.values()
        for endpoint in model.endpoints
    )
