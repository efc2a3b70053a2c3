"""The Kubernetes API as the few calls this project makes, with raw JSON in and out.

In: references and manifests. Out: manifests, or one of the exceptions of `kube.errors`. Every write first asks whether
this process still leads. It never retries a write by itself: the work queue does, with back-off.
"""

from __future__ import annotations

from builtins import list as List
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import orjson

from llmfleet.kube.diff import stamped
from llmfleet.kube.errors import KubeError, NotLeader, Unavailable
from llmfleet.kube.plan import Propagation
from llmfleet.kube.refs import Kind, Manifest, Ref, ref_of
from llmfleet.kube.transport.answers import error_from_status
from llmfleet.kube.transport.client import READ_SECONDS, Streams, Transport

PAGE: Final = 250
LIST_SECONDS: Final = 60.0
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"

# What RBAC calls our writes.
RIGHTS: Final[Mapping[str, str]] = {"apply": "patch {}", "apply-status": "patch {}/status"}

OnWrite = Callable[[Kind, Manifest], None]
OnSent = Callable[[Kind, str, int], None]


class Api:
    """One component's view of the apiserver. Safe for many threads."""

    def __init__(
        self,
        transport: Transport,
        *,
        manager: str,
        may_write: Callable[[], bool] = lambda: True,
        on_sent: OnSent = lambda _kind, _verb, _code: None,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._transport = transport
        self._manager = manager
        self._may_write = may_write
        self._on_sent = on_sent
        self._read_seconds = read_seconds
        self._on_write: list[OnWrite] = []

    @property
    def manager(self) -> str:
        """Field manager of this component's server-side applies."""
        return self._manager

    def now(self) -> datetime:
        """The time by the apiserver's clock, which is the one that what we read was written by."""
        return self._transport.clock.now()

    def as_manager(self, manager: str) -> Api:
        """The same API under another field manager; caches see its writes too."""
        other = Api(
            self._transport,
            manager=manager,
            may_write=self._may_write,
            on_sent=self._on_sent,
            read_seconds=self._read_seconds,
        )
        other._on_write = self._on_write
        return other

    def on_write(self, listener: OnWrite) -> None:
        """Hear of every object the apiserver returned to a write."""
        self._on_write.append(listener)

    # Reads.

    def get(self, ref: Ref) -> Manifest:
        """Read one object from the apiserver itself."""
        return _typed(_object(self._transport.request("GET", ref.path, read_seconds=self._read_seconds)), ref.kind)

    def list(
        self, kind: Kind, *, namespace: str = "", label_selector: str = "", field_selector: str = ""
    ) -> tuple[List[Manifest], str]:
        """Every object that matches, and the resourceVersion to watch from."""
        items: List[Manifest] = []
        version = ""
        for page, version in self.pages(kind, namespace, label_selector, field_selector):  # noqa: B007 (the last one counts)
            items.extend(page)
        return items, version

    def pages(
        self, kind: Kind, namespace: str = "", label_selector: str = "", field_selector: str = ""
    ) -> Iterator[tuple[List[Manifest], str]]:
        """The same page by page, so that a caller can trim each before the next arrives."""
        query = {"limit": str(PAGE), **_selectors(label_selector, field_selector)}
        while True:
            body = self._transport.request("GET", kind.path(namespace), query=query, read_seconds=LIST_SECONDS)
            answer = _object(body)
            metadata = answer.get("metadata") or {}
            yield [_typed(item, kind) for item in answer.get("items") or ()], str(metadata.get("resourceVersion", ""))
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    def watch(
        self,
        kind: Kind,
        *,
        namespace: str,
        resource_version: str,
        label_selector: str,
        field_selector: str,
        seconds: int,
        read_seconds: float,
        streams: Streams,
    ) -> Iterator[tuple[str, Manifest]]:
        """Events after a resourceVersion until the server ends the watch. Raises Expired on 410."""
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
            **_selectors(label_selector, field_selector),
        }
        path = kind.path(namespace)
        for line in self._transport.lines(path, query, read_seconds=read_seconds, streams=streams):
            event = _object(line)
            kind_of_event, obj = event.get("type"), event.get("object")
            if kind_of_event == "ERROR" and isinstance(obj, dict):
                raise error_from_status(int(obj.get("code") or 500), obj, f"watch {path}")
            if not isinstance(obj, dict) or not isinstance(obj.get("metadata"), dict):
                raise Unavailable(f"watch {path}: an event without an object")
            yield str(kind_of_event), _typed(obj, kind)

    # Writes.

    def create(self, obj: Manifest) -> Manifest:
        """Create an object that must not exist yet."""
        ref = ref_of(obj)
        query = {"fieldManager": self._manager}
        return self._write(ref.kind, "create", "POST", ref.kind.path(ref.namespace), query, obj)

    def update(self, obj: Manifest) -> Manifest:
        """Replace an object as read, if nobody wrote since."""
        ref = ref_of(obj)
        return self._write(ref.kind, "update", "PUT", ref.path, {"fieldManager": self._manager}, obj)

    def apply(self, obj: Manifest, *, force: bool = True) -> Manifest:
        """Server-side apply, with a note of what was applied (see `kube.diff`)."""
        ref = ref_of(obj)
        query = {"fieldManager": self._manager, "force": str(force).lower()}
        return self._write(ref.kind, "apply", "PATCH", ref.path, query, stamped(obj, self._manager), APPLY)

    def apply_status(self, ref: Ref, status: Mapping[str, Any], *, resource_version: str | None = None) -> Manifest:
        """Server-side apply of the whole status subresource."""
        metadata = {"name": ref.name, "namespace": ref.namespace}
        if resource_version:
            metadata["resourceVersion"] = resource_version
        body = {
            "apiVersion": ref.kind.api_version,
            "kind": ref.kind.kind,
            "metadata": metadata,
            "status": status,
        }
        path = ref.kind.path(ref.namespace, ref.name, "status")
        query = {"fieldManager": self._manager, "force": "true"}
        return self._write(ref.kind, "apply-status", "PATCH", path, query, body, APPLY)

    def merge_patch(
        self, ref: Ref, body: Mapping[str, Any], *, resource_version: str | None = None, subresource: str | None = None
    ) -> Manifest:
        """JSON merge patch of an object that exists."""
        if resource_version:
            body = {**body, "metadata": {**(body.get("metadata") or {}), "resourceVersion": resource_version}}
        path = ref.kind.path(ref.namespace, ref.name, subresource or "")
        return self._write(ref.kind, "patch", "PATCH", path, {"fieldManager": self._manager}, body, MERGE)

    def delete(
        self, ref: Ref, uid: str, *, grace_seconds: int | None = None, propagation: Propagation | None = None
    ) -> str:
        """Delete the object with this UID. Conflict when another one has its name by now.

        Returns the resourceVersion of an object that stays behind a finalizer or a grace period, else nothing."""
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        if propagation is not None:
            body["propagationPolicy"] = propagation
        answer = _object(self._send(ref.kind, "delete", "DELETE", ref.path, {}, body, "application/json"))
        return str((answer.get("metadata") or {}).get("resourceVersion") or "")

    def _write(
        self,
        kind: Kind,
        verb: str,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any],
        content_type: str = "application/json",
    ) -> Manifest:
        obj = _typed(_object(self._send(kind, verb, method, path, query, body, content_type)), kind)
        for listener in self._on_write:
            listener(kind, obj)
        return obj

    def _send(
        self,
        kind: Kind,
        verb: str,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any],
        content_type: str,
    ) -> bytes:
        if not self._may_write():
            raise NotLeader(f"{verb} {path}: this process does not lead")
        try:
            answer = self._transport.request(
                method,
                path,
                query=query,
                body=orjson.dumps(body),
                content_type=content_type,
                read_seconds=self._read_seconds,
            )
        except KubeError as error:
            self._on_sent(kind, verb, error.code)
            error.asked = RIGHTS.get(verb, f"{verb} {{}}").format(kind)
            raise
        self._on_sent(kind, verb, 200)
        return answer


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    pairs = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: text for name, text in pairs.items() if text}


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Unavailable(f"the apiserver's answer is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise Unavailable("the apiserver's answer is not an object")
    return answer


def _typed(obj: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Items of a list come without apiVersion and kind; every manifest inside this project has them."""
    obj.setdefault("apiVersion", kind.api_version)
    obj.setdefault("kind", kind.kind)
    return obj
