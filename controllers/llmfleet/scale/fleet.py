"""The instances of one fleet as decisions see them.

In: LLMCluster manifests and what made them. Out: `Fleet` of `Instance`s of one role. It reads labels, owner
references, conditions and times, and never a pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llmfleet import names
from llmfleet.api.conditions import ConditionType, find_condition, is_true
from llmfleet.api.reasons import Reason
from llmfleet.api.types import Role

Manifest = Mapping[str, Any]

IMMUTABLE: Final[Mapping[str, Any]] = {
    "role": "both",
    "replicas": None,
    "gpusPerPod": None,
    "tensorParallelSize": None,
    "pipelineParallelSize": 1,
}
"""Fields whose change needs another instance, with their defaults."""
FAILED: Final = frozenset(
    {
        Reason.STARTUP_TIMEOUT,
        Reason.INVALID_SPEC,
        Reason.IMAGE_PULL_FAILED,
        Reason.MODEL_LOAD_FAILED,
        Reason.CRASH_LOOP,
    }
)
DEFAULT_COLD_START: Final = 120.0
DEFAULT_STARTUP_TIMEOUT: Final = 600
REPLACES_ANNOTATION: Final = "serving.ai/replaces"
"""Name of the instance that this one was made in place of: one of another shape, or one that did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One LLMCluster, as far as its fleet's size is concerned."""

    name: str
    uid: str
    ordinal: int | None
    """Its number, if its name is the template's prefix and a number."""
    created: float
    ready: bool
    leaving: bool = False
    ours: bool = True
    outdated: bool = False
    """Its shape is not the template's: it must be replaced."""
    failed: bool = False
    """It had its time to start and is not ready."""
    replaces: str = ""
    """The instance it was made in place of. One that was made so is not replaced again."""
    load: float = 0.0
    """Requests in it."""
    load_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The instances of one role."""

    role: Role
    instances: tuple[Instance, ...] = ()

    @property
    def staying(self) -> tuple[Instance, ...]:
        return tuple(one for one in self.instances if not one.leaving)

    @property
    def surge(self) -> frozenset[str]:
        """Instances beside those they replace: they are not part of the size until those leave."""
        return frozenset(one.name for one in self.staying if self.replaced_by(one))

    def replaced_by(self, new: Instance) -> Instance | None:
        """Whom an instance was made in place of, while that one stays. A younger one only has the name of the old."""
        found = (one for one in self.staying if one.name == new.replaces and one.created <= new.created)
        return next(found, None)

    @property
    def size(self) -> int:
        """Instances that stay, ready or not."""
        return len(self.staying) - len(self.surge)

    @property
    def ready(self) -> int:
        """Instances that answer and stay."""
        return sum(one.ready for one in self.staying)

    @property
    def serving(self) -> tuple[str, ...]:
        return tuple(sorted(one.name for one in self.staying if one.ready))

    @property
    def cold_start(self) -> float:
        """Seconds from creation to ready: the slow end of what this fleet showed."""
        seen = sorted(one.load_seconds for one in self.instances if one.load_seconds > 0)
        return seen[int(0.9 * (len(seen) - 1))] if seen else DEFAULT_COLD_START


def build_fleet(
    role: Role,
    clusters: Iterable[Manifest],
    *,
    owner: str,
    autoscaler: str,
    prefix: str,
    template: Mapping[str, Any],
    loads: Mapping[str, float],
    deleted: frozenset[str],
    now: float,
) -> Fleet:
    """The fleet of one role, by name."""
    mine = [cluster for cluster in clusters if role_of(cluster) is role]
    instances = (
        build_instance(
            cluster,
            owner=owner,
            autoscaler=autoscaler,
            prefix=prefix,
            template=template,
            load=loads.get(cluster["metadata"]["name"], 0.0),
            deleted=deleted,
            now=now,
        )
        for cluster in mine
    )
    return Fleet(role=role, instances=tuple(sorted(instances, key=lambda one: one.name)))


def build_instance(
    cluster: Manifest,
    *,
    owner: str,
    autoscaler: str,
    prefix: str,
    template: Mapping[str, Any],
    load: float,
    deleted: frozenset[str],
    now: float,
) -> Instance:
    metadata, status = cluster["metadata"], cluster.get("status") or {}
    created = seconds_of(metadata.get("creationTimestamp")) or now
    ready = is_true(status, ConditionType.READY)
    return Instance(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        ordinal=ordinal_of(metadata["name"], prefix),
        created=created,
        ready=ready,
        leaving=bool(metadata.get("deletionTimestamp")) or metadata.get("uid", "") in deleted,
        ours=is_ours(cluster, owner, autoscaler),
        outdated=shape_of(cluster.get("spec") or {}) != shape_of(template),
        failed=not ready and has_failed(cluster, status, now - created),
        replaces=str((metadata.get("annotations") or {}).get(REPLACES_ANNOTATION, "")),
        load=load,
        load_seconds=float(status.get("modelLoadSeconds") or 0.0),
    )


def role_of(cluster: Manifest) -> Role:
    try:
        return Role((cluster.get("spec") or {}).get("role") or Role.BOTH)
    except ValueError:
        return Role.BOTH


def is_ours(cluster: Manifest, owner: str, autoscaler: str) -> bool:
    """Made by this autoscaler, or by one of its name whose owner reference was orphaned."""
    references: Sequence[Mapping[str, Any]] = cluster["metadata"].get("ownerReferences") or ()
    if any(reference.get("uid") == owner for reference in references):
        return True
    labels = cluster["metadata"].get("labels") or {}
    return not references and labels.get(names.AUTOSCALER_LABEL) == autoscaler


def has_failed(cluster: Manifest, status: Mapping[str, Any], age: float) -> bool:
    """It says why it does not start, and its time is over."""
    lifecycle = (cluster.get("spec") or {}).get("lifecycle") or {}
    limit = float(lifecycle.get("startupTimeoutSeconds") or DEFAULT_STARTUP_TIMEOUT)
    reason = find_condition(status, ConditionType.READY).get("reason")
    return reason == Reason.STARTUP_TIMEOUT or (reason in FAILED and age > limit)


def shape_of(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """What cannot be changed in place."""
    return tuple(spec.get(name) if spec.get(name) is not None else default for name, default in IMMUTABLE.items())


def ordinal_of(name: str, prefix: str) -> int | None:
    """The number behind the prefix, written as this autoscaler writes it."""
    rest = name.removeprefix(prefix)
    return int(rest) if name.startswith(prefix) and rest.isdecimal() and str(int(rest)) == rest else None


def seconds_of(text: object) -> float:
    """An RFC 3339 time as seconds since the epoch; 0 when there is none."""
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else 0.0
    except ValueError:
        return 0.0
