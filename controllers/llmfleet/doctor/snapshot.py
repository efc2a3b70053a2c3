"""What the checks look at: the objects of an install at one moment, and what could not be read.

In: manifests by kind, refusals, answers of routers. Out: `Snapshot` and small readings of manifests. A kind that could
not be read is unknown, which is not the same as empty: checks that need it do not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from llmfleet import names
from llmfleet.kube.refs import Kind, Manifest
from llmfleet.top.samples import RouterState

DEPLOYMENT = Kind(group="apps", version="v1", plural="deployments", kind="Deployment")
STORAGE_CLASS = Kind(
    group="storage.k8s.io", version="v1", plural="storageclasses", kind="StorageClass", namespaced=False
)


class Severity(StrEnum):
    """Whether something does not work, or may come to that."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault: where, what, and what to do."""

    check: str
    severity: Severity = Severity.ERROR
    where: str
    """Kind and name of the object."""
    problem: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An install at one moment."""

    objects: Mapping[str, Sequence[Manifest]]
    """By kind; one that is not there could not be read."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why, by kind."""
    routers: Sequence[RouterState] = ()
    now: datetime

    def of(self, kind: Kind) -> Sequence[Manifest]:
        return self.objects.get(kind.kind, ())

    def knows(self, *kinds: Kind) -> bool:
        return all(kind.kind in self.objects for kind in kinds)

    def labelled(self, kind: Kind, **labels: str) -> list[Manifest]:
        """Those of a kind with this component (and release)."""
        wanted = {LABELS[key]: value for key, value in labels.items()}
        return [obj for obj in self.of(kind) if wanted.items() <= labels_of(obj).items()]


LABELS = {
    "component": names.APP_COMPONENT_LABEL,
    "release": names.APP_INSTANCE_LABEL,
    "app": names.APP_NAME_LABEL,
}


def labels_of(obj: Manifest) -> Mapping[str, str]:
    return obj["metadata"].get("labels") or {}


def annotation(obj: Manifest, name: str) -> str:
    return str((obj["metadata"].get("annotations") or {}).get(name, ""))


def where_of(obj: Manifest) -> str:
    """Kind and name, as kubectl takes them."""
    metadata = obj["metadata"]
    place = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{obj['kind']} {place}{metadata['name']}"


def place_of(obj: Manifest) -> str:
    """The flag and the name that a kubectl command needs."""
    metadata = obj["metadata"]
    return f"-n {metadata.get('namespace', 'default')} {metadata['name']}"


def containers(pod: Manifest) -> Iterator[Mapping[str, Any]]:
    """States of every container of a pod, those of its start included."""
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def waiting(pod: Manifest) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    """Containers that do not run, with reason and message."""
    for container in containers(pod):
        state = (container.get("state") or {}).get("waiting")
        if state:
            yield container, str(state.get("reason", "")), str(state.get("message", ""))


def last_start(pod: Manifest) -> datetime | None:
    """When a container of it last started, if any ever did."""
    states = [container.get(state) or {} for container in containers(pod) for state in ("state", "lastState")]
    times = [(one.get(phase) or {}).get("startedAt") for one in states for phase in ("running", "terminated")]
    return max((found for one in times if (found := when(one))), default=None)


def pod_condition(pod: Manifest, kind: str) -> Mapping[str, Any]:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return next((item for item in conditions if item.get("type") == kind), {})


def when(text: object) -> datetime | None:
    """A time as Kubernetes writes it; one without a zone is UTC, as all of them are."""
    try:
        found = datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found and found.tzinfo is None else found
