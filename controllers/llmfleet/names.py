"""Every label, annotation, port, file and object name that crosses a module or the Helm/Python line.

In: nothing. Out: constants and the few functions that build a name from another. It never looks anything up:
objects are found by label, never by rebuilding a name, except where a name is part of the contract (see below).
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"

API_GROUP: Final = "serving.ai"
API_VERSION: Final = "serving.ai/v1alpha1"
CLUSTER_KIND: Final = "LLMCluster"
AUTOSCALER_KIND: Final = "LLMClusterAutoscaler"

# Labels.
CLUSTER_LABEL: Final = "serving.ai/cluster"
FLEET_LABEL: Final = "serving.ai/fleet"
ROLE_LABEL: Final = "serving.ai/role"
AUTOSCALER_LABEL: Final = "serving.ai/autoscaler"
REVISION_LABEL: Final = "serving.ai/revision"
OWN_BUDGET_LABEL: Final = "serving.ai/own-budget"
BACKENDS_LABEL: Final = "serving.ai/backends"
APP_NAME_LABEL: Final = "app.kubernetes.io/name"
APP_INSTANCE_LABEL: Final = "app.kubernetes.io/instance"
APP_COMPONENT_LABEL: Final = "app.kubernetes.io/component"
POD_INDEX_LABEL: Final = "apps.kubernetes.io/pod-index"

# Annotations.
MANAGED_BY_ANNOTATION: Final = "serving.ai/managed-by"
CLUSTER_SELECTOR_ANNOTATION: Final = "serving.ai/cluster-selector"
ROUTER_SELECTOR_ANNOTATION: Final = "serving.ai/router-selector"
DRAINING_ANNOTATION: Final = "serving.ai/draining"
GROUP_ANNOTATION: Final = "serving.ai/group"  # on the StatefulSet: JSON whose `members` started together
CANARY_WEIGHT_ANNOTATION: Final = "serving.ai/canary-weight"  # on the LLMCluster while its new template is on trial

# Finalizer and field managers.
DRAIN_FINALIZER: Final = "serving.ai/drain"
OPERATOR_MANAGER: Final = "llmfleet-operator"
ROUTE_MANAGER: Final = "llmfleet-route"
AUTOSCALER_MANAGER: Final = "llmfleet-autoscaler"

# app.kubernetes.io/name of the pods we look for.
ENGINE_APP: Final = "llmfleet-engine"
ENGINE_COMPONENT: Final = "engine"
ENGINE_CONTAINER: Final = "engine"
ROUTER_COMPONENT: Final = "router"

# Ports.
ENGINE_PORT: Final = 8000
ROUTER_PORT: Final = 8080
ADMIN_PORT: Final = 9090
METRICS_PORT: Final = 9090
HEALTH_PORT: Final = 8081

# Backends document inside its ConfigMap.
BACKENDS_KEY: Final = "backends.json"


def group_service(cluster: str) -> str:
    """Name of the headless Service that gives each rank of an instance its DNS name."""
    return f"{cluster}-group"


def rank_pod(cluster: str, rank: int) -> str:
    """Name of one rank's pod; a StatefulSet names its pods by ordinal, and the ordinal is the rank."""
    return f"{cluster}-{rank}"


def models_claim(cluster: str) -> str:
    """Name of the PersistentVolumeClaim that holds an instance's model files."""
    return f"{cluster}-models"
