"""Turn the raw objects of one instance into the few facts that decisions need.

In: manifests as the caches hold them. Out: `Rank` for each pod and `Instance` for the whole. It derives only what is
visible; what must be remembered is in `records.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from llmfleet import names
from llmfleet.api.types import Spec
from llmfleet.deploy.objects.identity import TEMPLATE_ANNOTATION, Identity
from llmfleet.deploy.objects.pod import Template
from llmfleet.deploy.records import RECORDS_ANNOTATION, Records, parse_records
from llmfleet.kube.refs import Manifest

PULL_PROBLEMS: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
IDLE_WAITS: Final = frozenset({"", "PodInitializing", "ContainerCreating"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container ended."""

    code: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One pod of the group, as last seen."""

    index: int
    name: str
    uid: str
    created: datetime
    phase: str
    template: str
    node: str = ""
    address: str = ""
    deleting: datetime | None = None
    """When its grace period ends."""
    scheduled: datetime | None = None
    unschedulable: str = ""
    prepared: datetime | None = None
    """When its init containers were done."""
    started: bool = False
    """Past the start gate (a single pod: its container runs)."""
    ready: bool = False
    ready_since: datetime | None = None
    running_since: datetime | None = None
    restarts: int = 0
    container: str = ""
    waiting: str = ""
    waiting_message: str = ""
    exit: Exit | None = None
    """The end of the running or the previous container, if one ended."""
    exited: bool = False
    """No container of this pod runs any more, or it is being restarted in place."""

    @property
    def identity(self) -> str:
        """Changes when the pod is replaced and when its container restarts in place."""
        return f"{self.uid}/{self.restarts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One LLMCluster with everything known about it."""

    identity: Identity
    generation: int
    created: datetime
    deleting: datetime | None
    draining: datetime | None
    spec: Spec | None
    error: str
    """Why there is no spec or no template; empty when both are fine."""
    wanted: Template | None
    size: int
    statefulset: Manifest | None
    current: str
    """Hash of the template that the StatefulSet has."""
    records: Records
    ranks: Mapping[int, Rank]
    status: Mapping[str, Any]

    @property
    def leader(self) -> Rank | None:
        return self.ranks.get(0)

    @property
    def complete(self) -> bool:
        """Every rank is there and none of them is leaving."""
        return len(self.ranks) == self.size and all(rank.deleting is None for rank in self.ranks.values())

    @property
    def all_ready(self) -> bool:
        return self.complete and all(rank.ready and not rank.exited for rank in self.ranks.values())

    @property
    def warmed(self) -> bool:
        """Rank 0 answered the warm-up request, or need not."""
        leader = self.leader
        if leader is None or self.spec is None:
            return leader is not None
        return not self.spec.lifecycle.warmup.enabled or self.records.warmed == leader.container

    @property
    def whole(self) -> bool:
        """All ranks are ready and passed the start gate together, and no recreation is under way."""
        return (
            self.all_ready and self.records.incident is None and members_of(self.ranks.values()) == self.records.members
        )

    @property
    def serves(self) -> bool:
        return self.whole and self.warmed

    @property
    def updated(self) -> int:
        """Pods that have the newest template."""
        wanted = self.wanted.hash if self.wanted else self.current
        return sum(rank.template == wanted for rank in self.ranks.values())


def members_of(ranks: Iterable[Rank]) -> dict[str, str]:
    return {str(rank.index): rank.identity for rank in ranks}


def observe(
    cluster: Manifest,
    *,
    identity: Identity,
    spec: Spec | None,
    wanted: Template | None,
    error: str,
    statefulset: Manifest | None,
    pods: Iterable[Manifest],
) -> Instance:
    """Assemble an instance from its objects."""
    metadata = cluster["metadata"]
    annotations = metadata.get("annotations") or {}
    held = (statefulset or {}).get("metadata", {}).get("annotations") or {}
    size = spec.replicas if spec else int((statefulset or {}).get("spec", {}).get("replicas") or 0)
    ranks = (observe_rank(pod, names.ENGINE_CONTAINER) for pod in pods)
    return Instance(
        identity=identity,
        generation=metadata.get("generation", 0),
        created=instant(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
        deleting=instant(metadata.get("deletionTimestamp")),
        draining=instant(annotations.get(names.DRAINING_ANNOTATION)),
        spec=spec,
        error=error,
        wanted=wanted,
        size=size,
        statefulset=statefulset,
        current=held.get(TEMPLATE_ANNOTATION, ""),
        records=parse_records(held.get(RECORDS_ANNOTATION)),
        ranks={rank.index: rank for rank in sorted(ranks, key=lambda rank: rank.index)},
        status=cluster.get("status") or {},
    )


def observe_rank(pod: Manifest, container_name: str) -> Rank:
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or ()}
    scheduled, ready = conditions.get("PodScheduled", {}), conditions.get("Ready", {})
    initialized = conditions.get("Initialized", {})
    placed = scheduled.get("status") == "True"
    containers = status.get("containerStatuses") or ()
    container: Mapping[str, Any] = next((c for c in containers if c.get("name") == container_name), {})
    return Rank(
        index=rank_index(metadata),
        name=metadata["name"],
        uid=metadata["uid"],
        created=instant(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
        phase=status.get("phase", "Pending"),
        template=(metadata.get("annotations") or {}).get(TEMPLATE_ANNOTATION, ""),
        node=(pod.get("spec") or {}).get("nodeName", ""),
        address=status.get("podIP", ""),
        deleting=instant(metadata.get("deletionTimestamp")),
        scheduled=instant(scheduled.get("lastTransitionTime")) if placed else None,
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" and not placed else "",
        prepared=instant(initialized.get("lastTransitionTime")) if initialized.get("status") == "True" else None,
        ready=ready.get("status") == "True",
        ready_since=instant(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None,
        **container_facts(container, status.get("phase", "")),
    )


def container_facts(container: Mapping[str, Any], phase: str) -> dict[str, Any]:
    """What the kubelet says about the engine container."""
    state = container.get("state") or {}
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    waiting = state.get("waiting") or {}
    restarts = int(container.get("restartCount") or 0)
    crashed = (bool(waiting) and restarts > 0) or waiting.get("reason") == "CrashLoopBackOff"
    return {
        "started": bool(container.get("started")),
        "running_since": instant((state.get("running") or {}).get("startedAt")),
        "restarts": restarts,
        "container": container.get("containerID", ""),
        "waiting": waiting.get("reason", ""),
        "waiting_message": waiting.get("message", ""),
        "exit": exit_of(ended) if ended else None,
        "exited": "terminated" in state or crashed or phase in ("Failed", "Succeeded"),
    }


def exit_of(ended: Mapping[str, Any]) -> Exit:
    message = str(ended.get("message") or "").strip()
    return Exit(code=int(ended.get("exitCode") or 0), reason=str(ended.get("reason") or ""), message=message)


def rank_index(metadata: Mapping[str, Any]) -> int:
    """The pod's ordinal: its label, or the end of its name on clusters that do not set the label."""
    label = (metadata.get("labels") or {}).get(names.POD_INDEX_LABEL)
    return int(label if label is not None else metadata["name"].rpartition("-")[2])


def instant(text: str | None) -> datetime | None:
    """An RFC 3339 time; None for none, or for text that is no time."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
