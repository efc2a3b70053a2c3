"""Take a snapshot of an install from the Kubernetes API and from its routers.

In: an API, a transport, a namespace or none for all. Out: a `Snapshot`. It only reads, and no Secret. A kind that may
not be read is noted with the reason, and the look goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from urllib3 import BaseHTTPResponse

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
from llmfleet.kube.transport.client import Request, Transport
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


class ClockTransport(Transport):
    """A transport that notes the apiserver's clock from its first answer.

    Leases and creation times are written by the clocks of the cluster: measured by that of a laptop, which may be a
    minute off, a healthy Lease looks abandoned. The first answer is older than everything that is read after it.
    """

    server_time: datetime | None = None

    def _send(self, request: Request) -> BaseHTTPResponse:
        response = super()._send(request)
        if self.server_time is None:
            self.server_time = http_date(response.headers.get("Date", ""))
        return response


def http_date(text: str) -> datetime | None:
    """The moment of a Date header."""
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return None


def take_snapshot(api: Api, transport: ClockTransport, namespace: str, now: datetime) -> Snapshot:
    """Everything the checks look at, at the time of the apiserver; `now` counts when it does not say the time."""
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
    return Snapshot(objects=objects, refused=refused, routers=routers, now=transport.server_time or now)


def ask_routers(transport: Transport, pods: Sequence[Manifest]) -> list[RouterState]:
    """Every router pod that runs."""
    return [
        ask_pod(transport, pod["metadata"]["namespace"], pod["metadata"]["name"])
        for pod in pods
        if is_router(pod["metadata"].get("labels") or {}) and is_running(pod)
    ]


def is_router(labels: Mapping[str, str]) -> bool:
    return labels.get(names.APP_NAME_LABEL) == f"llmfleet-{names.ROUTER_COMPONENT}"
