"""Take a snapshot of an install from the Kubernetes API and from its routers.

In: an API, a transport, a namespace or none for all. Out: a `Snapshot`. It only reads, and no Secret. A kind that may
not be read is noted with the reason, and the look goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from llmfleet import names
from llmfleet.doctor.snapshot import DEPLOYMENT, STORAGE_CLASS, Snapshot
from llmfleet.kube.client import Api
from llmfleet.kube.errors import KubeError, NotFound
from llmfleet.kube.refs import (
    AUTOSCALER,
    CLAIM,
    CONFIGMAP,
    CRD,
    EVENT,
    LEASE,
    LLMCLUSTER,
    NODE,
    POD,
    Kind,
    Manifest,
)
from llmfleet.kube.transport.client import Transport
from llmfleet.top.client import ask_pod, is_running
from llmfleet.top.samples import RouterState

COMPONENTS: Final = ("engine", "router", "operator", "autoscaler", "redis", "uninstall", "crds", "test")
OURS: Final = f"{names.APP_NAME_LABEL} in (llmfleet-operator,llmfleet-autoscaler)"
PODS: Final = f"{names.APP_NAME_LABEL} in ({','.join(f'llmfleet-{one}' for one in COMPONENTS)})"
# Selectors keep the look small in a large cluster; Leases of controllers carry no label, so all are listed.
LOOKS: Final[Sequence[tuple[Kind, str, str]]] = (
    (CRD, "", ""),
    (LLMCLUSTER, "", ""),
    (AUTOSCALER, "", ""),
    (DEPLOYMENT, OURS, ""),
    (LEASE, "", ""),
    (POD, PODS, ""),
    (CONFIGMAP, f"{names.BACKENDS_LABEL}=true", ""),
    (CLAIM, "", ""),
    (STORAGE_CLASS, "", ""),
    (NODE, "", ""),
    (EVENT, "", "reason=FailedMount"),
)
ELSEWHERE: Final = frozenset({DEPLOYMENT.kind, LEASE.kind})
"""Controllers usually live in a namespace of their own."""


def take_snapshot(api: Api, transport: Transport, namespace: str, now: datetime) -> Snapshot:
    """Everything the checks look at."""
    objects: dict[str, Sequence[Manifest]] = {}
    refused: dict[str, str] = {}
    for kind, labels, fields in LOOKS:
        where = namespace if kind.namespaced and kind.kind not in ELSEWHERE else ""
        try:
            objects[kind.kind], _ = api.list(kind, namespace=where, label_selector=labels, field_selector=fields)
        except NotFound:
            objects[kind.kind] = ()  # the kind itself is not installed
        except KubeError as error:
            refused[kind.kind] = error.message
    routers = ask_routers(transport, objects.get(POD.kind, ()))
    return Snapshot(objects=objects, refused=refused, routers=routers, now=now)


def ask_routers(transport: Transport, pods: Sequence[Manifest]) -> list[RouterState]:
    """Every router pod that runs."""
    return [
        ask_pod(transport, pod["metadata"]["namespace"], pod["metadata"]["name"])
        for pod in pods
        if is_router(pod["metadata"].get("labels") or {}) and is_running(pod)
    ]


def is_router(labels: Mapping[str, str]) -> bool:
    return labels.get(names.APP_NAME_LABEL) == f"llmfleet-{names.ROUTER_COMPONENT}"
