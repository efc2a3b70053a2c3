"""Writes to the Kubernetes API as data.

In: what a controller decided. Out: actions, in the order they must happen. Building one sends nothing; `kube.execute`
carries them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmfleet.kube.refs import Manifest, Ref

Propagation = Literal["Background", "Foreground", "Orphan"]
EventType = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Server-side apply of every field in `obj`. With metadata.uid it never re-creates a deleted object."""

    obj: Manifest
    force: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePatch:
    """JSON merge patch of an existing object; never creates. With a resource version: only if nobody wrote since."""

    ref: Ref
    body: Mapping[str, Any]
    resource_version: str | None = None
    subresource: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyStatus:
    """Server-side apply of the whole status; a field that is no longer in `status` goes away."""

    ref: Ref
    status: Mapping[str, Any]
    resource_version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete the object that has this UID, and no later one of the same name."""

    ref: Ref
    uid: str
    grace_seconds: int | None = None
    propagation: Propagation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateEvent:
    """Tell people: one word (`reason`), what was done (`action`), one sentence (`message`)."""

    regarding: Manifest
    type_: EventType
    reason: str
    action: str
    message: str


Action = Apply | MergePatch | ApplyStatus | Delete | CreateEvent
Plan = tuple[Action, ...]
