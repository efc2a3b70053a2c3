"""The Kubernetes API as the few calls this project makes, with raw JSON in and out.

In: references and manifests. Out: manifests, or one of the exceptions of `kube.errors`. Every write first asks whether
this process still leads. It never retries a write by itself: the work queue does, with back-off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from llmfleet.kube.plan import Propagation
from llmfleet.kube.refs import Kind, Manifest, Ref


class Api(Protocol):
    """What controllers may ask of the apiserver."""

    @property
    def manager(self) -> str:
        """Field manager of this component's server-side applies."""

    def get(self, ref: Ref) -> Manifest: ...

    def list(
        self, kind: Kind, *, namespace: str = "", label_selector: str = "", field_selector: str = ""
    ) -> tuple[list[Manifest], str]: ...

    def create(self, obj: Manifest) -> Manifest: ...

    def apply(self, obj: Manifest, *, force: bool = True) -> Manifest: ...

    def merge_patch(
        self, ref: Ref, body: Mapping[str, Any], *, resource_version: str | None = None, subresource: str | None = None
    ) -> Manifest: ...

    def apply_status(
        self, ref: Ref, status: Mapping[str, Any], *, resource_version: str | None = None
    ) -> Manifest: ...

    def delete(
        self, ref: Ref, uid: str, *, grace_seconds: int | None = None, propagation: Propagation | None = None
    ) -> None: ...
