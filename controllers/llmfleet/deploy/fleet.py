"""See a fleet as its turns see it: a few words for each instance.

In: LLMClusters and StatefulSets, and the hash of the template each instance is asked for. Out: `Peer` and `Holder`
values. Cheap enough to be done for a whole fleet in one pass; it never builds a template itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmfleet import names
from llmfleet.api.conditions import ConditionType, find_condition, is_true
from llmfleet.api.reasons import Reason
from llmfleet.deploy.objects.budget import Holder
from llmfleet.deploy.objects.identity import TEMPLATE_ANNOTATION
from llmfleet.deploy.records import RECORDS_ANNOTATION, parse_records
from llmfleet.deploy.update import Peer
from llmfleet.kube.refs import Manifest


def fleet_of(cluster: Manifest) -> str:
    """The fleet an LLMCluster belongs to; without a label it is its own."""
    metadata = cluster["metadata"]
    return str((metadata.get("labels") or {}).get(names.FLEET_LABEL) or metadata["name"])


def is_claimed(cluster: Manifest, manager: str) -> bool:
    """Ours, or nobody's yet."""
    holder = (cluster["metadata"].get("annotations") or {}).get(names.MANAGED_BY_ANNOTATION)
    return holder in (None, "", manager)


def build_peer(cluster: Manifest, statefulset: Manifest | None, wanted: str) -> Peer:
    """One instance, as far as turns go. `wanted` is empty when its spec is invalid: then it wants nothing."""
    metadata, spec = cluster["metadata"], cluster.get("spec") or {}
    held = (statefulset or {}).get("metadata", {}).get("annotations") or {}
    current, records = held.get(TEMPLATE_ANNOTATION, ""), parse_records(held.get(RECORDS_ANNOTATION))
    failed = bool(wanted) and records.failed is not None and records.failed.template == wanted
    draining = names.DRAINING_ANNOTATION in (metadata.get("annotations") or {})
    moved = bool(records.good) and current != records.good
    return Peer(
        name=metadata["name"],
        role=str(spec.get("role") or "both"),
        pending=bool(wanted and records.good) and current == records.good != wanted and not failed,
        in_flight=draining or moved,
        halted=failed,
        ready=is_true(cluster.get("status") or {}, ConditionType.READY),
        proven=bool(records.good),
        updated=bool(wanted) and records.good == current == wanted,
        paused=bool((spec.get("update") or {}).get("paused")),
    )


def build_holders(clusters: Iterable[Manifest]) -> tuple[Holder, ...]:
    """Who shares the fleet's budget: everybody who has none of their own and does not refuse one."""
    return tuple(
        Holder(name=cluster["metadata"]["name"], uid=cluster["metadata"]["uid"], max_unavailable=limit_of(cluster))
        for cluster in clusters
        if shares_budget(budget_of(cluster))
    )


def budget_of(cluster: Manifest) -> Mapping[str, Any]:
    budget = (cluster.get("spec") or {}).get("podDisruptionBudget")
    return budget if isinstance(budget, Mapping) else {}


def shares_budget(budget: Mapping[str, Any]) -> bool:
    return budget.get("enabled") is not False and budget.get("minAvailable") is None


def limit_of(cluster: Manifest) -> int | str | None:
    limit = budget_of(cluster).get("maxUnavailable")
    return limit if isinstance(limit, int | str) else None


def waits(cluster: Manifest) -> bool:
    """It said that it waits for another instance of its fleet."""
    return find_condition(cluster.get("status") or {}, ConditionType.READY).get("reason") == Reason.WAITING_FOR_TURN


def keeper_of(clusters: Sequence[Manifest]) -> str:
    """The instance that looks after what the whole fleet shares."""
    return min((str(cluster["metadata"]["name"]) for cluster in clusters), default="")
