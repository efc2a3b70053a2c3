"""Every permission the code needs, once: the chart's Roles are compared with this table.

In: nothing. Out: rules by component. A call that is not covered here fails with 403 on a cluster whose Roles were made
from it; a test runs the components under exactly these rights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    """Where a permission is needed."""

    NAMESPACE = "namespace"
    """In every namespace with instances."""
    OWN = "own"
    """In the component's own namespace."""
    CLUSTER = "cluster"
    """Cluster-wide; optional: without it one feature is missing, as `why` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """Verbs on one resource."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str
    scope: Scope = Scope.NAMESPACE
    named: bool = False
    """Only on objects whose names the chart knows (resourceNames)."""


READ: Final = ("get", "list", "watch")

ELECTION: Final = (
    Permission(
        group="coordination.k8s.io", resource="leases", verbs=("create",), scope=Scope.OWN, why="leader election"
    ),
    Permission(
        group="coordination.k8s.io",
        resource="leases",
        verbs=("get", "update"),
        scope=Scope.OWN,
        named=True,
        why="leader election",
    ),
)

OPERATOR: Final = (
    Permission(
        group="serving.ai", resource="llmclusters", verbs=(*READ, "patch"), why="read specs; finalizer, annotations"
    ),
    Permission(group="serving.ai", resource="llmclusters/status", verbs=("patch",), why="status"),
    Permission(group="serving.ai", resource="llmclusterautoscalers", verbs=READ, why="models that sleep"),
    Permission(group="apps", resource="statefulsets", verbs=(*READ, "create", "patch"), why="the group"),
    Permission(
        group="apps",
        resource="controllerrevisions",
        verbs=("get", "list", "create", "patch", "delete"),
        why="the last good template",
    ),
    Permission(group="", resource="services", verbs=(*READ, "create", "patch"), why="the group's and rank 0's names"),
    Permission(group="", resource="persistentvolumeclaims", verbs=(*READ, "create", "patch"), why="model files"),
    Permission(group="", resource="pods", verbs=(*READ, "delete"), why="ranks; routers; group restarts"),
    Permission(group="", resource="configmaps", verbs=(*READ, "patch"), why="backends documents"),
    Permission(
        group="policy", resource="poddisruptionbudgets", verbs=(*READ, "create", "patch", "delete"), why="evictions"
    ),
    Permission(group="events.k8s.io", resource="events", verbs=("create", "patch"), why="tell people"),
    Permission(group="", resource="namespaces", verbs=("get",), why="a namespace that ends needs no drain"),
    Permission(
        group="", resource="nodes", verbs=("get",), scope=Scope.CLUSTER, why="pods on dead nodes are deleted by force"
    ),
    *ELECTION,
)
AUTOSCALER: Final = (
    Permission(group="serving.ai", resource="llmclusterautoscalers", verbs=READ, why="what is asked for"),
    Permission(group="serving.ai", resource="llmclusterautoscalers/status", verbs=("patch",), why="status"),
    Permission(
        group="serving.ai",
        resource="llmclusters",
        verbs=(*READ, "create", "patch", "delete"),
        why="make, update and take away whole instances",
    ),
    Permission(group="", resource="pods", verbs=READ, why="addresses of engines and routers to ask"),
    Permission(group="", resource="secrets", verbs=("get",), named=True, why="tokens for Prometheus, each by its name"),
    Permission(group="events.k8s.io", resource="events", verbs=("create", "patch"), why="tell people"),
    *ELECTION,
)
ROUTE_SYNC: Final = (
    Permission(group="", resource="configmaps", verbs=("list", "watch"), scope=Scope.OWN, named=True, why="backends"),
)
UNINSTALL: Final = (
    Permission(group="serving.ai", resource="llmclusters", verbs=("list", "patch", "delete"), why="drain, then delete"),
    Permission(group="serving.ai", resource="llmclusterautoscalers", verbs=("list", "patch", "delete"), why="go first"),
    Permission(group="", resource="persistentvolumeclaims", verbs=("list",), why="say which model files stay"),
)
LEAVE: Final = (
    Permission(
        group="serving.ai", resource="llmclusters", verbs=("list", "patch"), why="finalizers of a deleted operator"
    ),
    Permission(group="", resource="pods", verbs=("list",), scope=Scope.OWN, why="wait until the operator has ended"),
    Permission(
        group="coordination.k8s.io",
        resource="leases",
        verbs=("get", "delete"),
        scope=Scope.OWN,
        named=True,
        why="the next operator leads at once",
    ),
)
APPLY_CRDS: Final = (
    Permission(
        group="apiextensions.k8s.io",
        resource="customresourcedefinitions",
        verbs=("create",),
        scope=Scope.CLUSTER,
        why="a kind that a later version adds",
    ),
    Permission(
        group="apiextensions.k8s.io",
        resource="customresourcedefinitions",
        verbs=("get", "patch"),
        scope=Scope.CLUSTER,
        named=True,
        why="our kinds",
    ),
)
COMPONENTS: Final[Mapping[str, tuple[Permission, ...]]] = {
    "operator": OPERATOR,
    "autoscaler": AUTOSCALER,
    "route-sync": ROUTE_SYNC,
    "uninstall": UNINSTALL,
    "leave": LEAVE,
    "apply-crds": APPLY_CRDS,
}


def granted(component: str) -> Iterator[tuple[str, str, str]]:
    """Every (group, resource, verb) of a component."""
    for permission in COMPONENTS[component]:
        for verb in permission.verbs:
            yield permission.group, permission.resource, verb
