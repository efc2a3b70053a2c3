"""Who an instance is: the names, labels and metadata that all its objects share.

In: the LLMCluster's metadata. Out: `Identity` and metadata mappings. Selector labels are the only labels on pod
templates, so that a chart or operator upgrade that changes other labels restarts no pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmfleet import names
from llmfleet.api.types import Spec
from llmfleet.kube.refs import Manifest

TEMPLATE_ANNOTATION: Final = "serving.ai/template"
"""Hash of the pod template, on the template itself and on the StatefulSet."""
ENGINE_ANNOTATION: Final = "serving.ai/engine-revision"
"""Hash of what prefill and decode instances must share, on the pod template."""
OWN_BUDGET: Final = "true"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Where an instance lives and what it belongs to."""

    namespace: str
    name: str
    uid: str
    fleet: str
    manager: str


def identify(cluster: Manifest, manager: str) -> Identity:
    """Read the identity of an LLMCluster; without a fleet label an instance is its own fleet."""
    metadata = cluster["metadata"]
    labels = metadata.get("labels") or {}
    return Identity(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        fleet=labels.get(names.FLEET_LABEL) or metadata["name"],
        manager=manager,
    )


def selector(identity: Identity) -> dict[str, str]:
    """Labels that find the pods of this instance; a StatefulSet cannot change them later."""
    return {
        names.APP_NAME_LABEL: names.ENGINE_APP,
        names.APP_INSTANCE_LABEL: identity.name,
        names.APP_COMPONENT_LABEL: names.ENGINE_COMPONENT,
    }


def pod_labels(identity: Identity, spec: Spec) -> dict[str, str]:
    """Everything somebody selects engine pods by."""
    labels = {
        **selector(identity),
        names.CLUSTER_LABEL: identity.name,
        names.FLEET_LABEL: identity.fleet,
        names.ROLE_LABEL: str(spec.role),
    }
    if has_own_budget(spec):
        labels[names.OWN_BUDGET_LABEL] = OWN_BUDGET
    return labels


def has_own_budget(spec: Spec) -> bool:
    """True when the fleet's budget must leave this instance out: it has its own, or wants none."""
    budget = spec.pod_disruption_budget
    return not budget.enabled or budget.min_available is not None


def object_metadata(identity: Identity, name: str, *, owned: bool = True) -> dict[str, Any]:
    """Metadata of an object of this instance, claimed by this operator."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": identity.namespace,
        "labels": {names.CLUSTER_LABEL: identity.name, names.FLEET_LABEL: identity.fleet},
        "annotations": {names.MANAGED_BY_ANNOTATION: identity.manager},
    }
    if owned:
        metadata["ownerReferences"] = [owner_reference(identity.name, identity.uid, controller=True)]
    return metadata


def owner_reference(name: str, uid: str, *, controller: bool) -> dict[str, Any]:
    reference: dict[str, Any] = {
        "apiVersion": names.API_VERSION,
        "kind": names.CLUSTER_KIND,
        "name": name,
        "uid": uid,
    }
    if controller:
        reference |= {"controller": True, "blockOwnerDeletion": True}
    return reference


def is_ours(manifest: Manifest, manager: str) -> bool:
    """True when this operator has claimed the object."""
    annotations: Mapping[str, str] = manifest["metadata"].get("annotations") or {}
    return annotations.get(names.MANAGED_BY_ANNOTATION) == manager
