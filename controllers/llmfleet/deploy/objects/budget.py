"""Build disruption budgets: one for a whole fleet, or one for an instance that asks for its own.

In: the identities and specs of a fleet. Out: manifests. One budget per instance would let one pod of every instance
be evicted at once; two budgets on one pod make evictions fail. So a pod has exactly one: its fleet's, unless it
carries the label that the fleet's budget leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmfleet import names
from llmfleet.api.types import Spec
from llmfleet.deploy.objects.identity import Identity, object_metadata, owner_reference, selector
from llmfleet.deploy.objects.revision import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """An instance whose pods the fleet's budget covers."""

    name: str
    uid: str
    max_unavailable: int | str | None = None


def budget_name(fleet: str) -> str:
    """A fleet is a label value, which may hold more than an object's name may."""
    plain = re.sub(r"[^a-z0-9.-]", "-", fleet.lower())
    return fleet if plain == fleet else f"{plain.strip('-.')}-{digest(fleet)}"


def build_fleet_budget(identity: Identity, holders: Sequence[Holder]) -> dict[str, Any]:
    """Owned by every instance it covers, so that it goes with the last one."""
    ordered = sorted(holders, key=lambda holder: holder.name)
    limits = [holder.max_unavailable for holder in ordered if holder.max_unavailable is not None]
    metadata = object_metadata(identity, budget_name(identity.fleet), owned=False)
    del metadata["labels"][names.CLUSTER_LABEL]
    metadata["ownerReferences"] = [owner_reference(holder.name, holder.uid, controller=False) for holder in ordered]
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata,
        "spec": {
            "maxUnavailable": limits[0] if limits else 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {
                "matchLabels": {names.APP_NAME_LABEL: names.ENGINE_APP, names.FLEET_LABEL: identity.fleet},
                "matchExpressions": [{"key": names.OWN_BUDGET_LABEL, "operator": "DoesNotExist"}],
            },
        },
    }


def own_budget_name(identity: Identity) -> str:
    """Never the name of a fleet's budget, also when the fleet is called like the instance."""
    return f"{identity.name}-own"


def build_own_budget(identity: Identity, spec: Spec) -> dict[str, Any] | None:
    """Only for an instance that says how many of its pods must stay."""
    budget = spec.pod_disruption_budget
    if not budget.enabled or budget.min_available is None:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": object_metadata(identity, own_budget_name(identity)),
        "spec": {
            "minAvailable": budget.min_available,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(identity)},
        },
    }
