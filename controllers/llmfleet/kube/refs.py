"""Name things in the Kubernetes API: kinds, references and work-queue keys.

In: raw manifests. Out: `Kind`, `Ref`, `Key` values and URL paths. It never talks to anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import quote

Manifest = Mapping[str, Any]
"""A Kubernetes object as raw JSON. Treat it as frozen: caches hand out what they hold."""


class Key(NamedTuple):
    """What a work queue holds: one object by namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One resource type as the API spells it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """URL path of the collection, or of one object or subresource in it."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(quote(part, safe=":") for part in parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """One object: its kind, where it lives, what it is called."""

    kind: Kind
    namespace: str
    name: str

    @property
    def key(self) -> Key:
        return Key(self.namespace, self.name)

    @property
    def path(self) -> str:
        return self.kind.path(self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.kind.kind} {self.namespace}/{self.name}"


LLMCLUSTER: Final = Kind(group="serving.ai", version="v1alpha1", plural="llmclusters", kind="LLMCluster")
AUTOSCALER: Final = Kind(
    group="serving.ai", version="v1alpha1", plural="llmclusterautoscalers", kind="LLMClusterAutoscaler"
)
STATEFULSET: Final = Kind(group="apps", version="v1", plural="statefulsets", kind="StatefulSet")
CONTROLLER_REVISION: Final = Kind(group="apps", version="v1", plural="controllerrevisions", kind="ControllerRevision")
POD: Final = Kind(group="", version="v1", plural="pods", kind="Pod")
SERVICE: Final = Kind(group="", version="v1", plural="services", kind="Service")
CONFIGMAP: Final = Kind(group="", version="v1", plural="configmaps", kind="ConfigMap")
SECRET: Final = Kind(group="", version="v1", plural="secrets", kind="Secret")
CLAIM: Final = Kind(group="", version="v1", plural="persistentvolumeclaims", kind="PersistentVolumeClaim")
NODE: Final = Kind(group="", version="v1", plural="nodes", kind="Node", namespaced=False)
NAMESPACE: Final = Kind(group="", version="v1", plural="namespaces", kind="Namespace", namespaced=False)
BUDGET: Final = Kind(group="policy", version="v1", plural="poddisruptionbudgets", kind="PodDisruptionBudget")
LEASE: Final = Kind(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease")
EVENT: Final = Kind(group="events.k8s.io", version="v1", plural="events", kind="Event")
CRD: Final = Kind(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    namespaced=False,
)

KINDS: Final = (
    LLMCLUSTER,
    AUTOSCALER,
    STATEFULSET,
    CONTROLLER_REVISION,
    POD,
    SERVICE,
    CONFIGMAP,
    SECRET,
    CLAIM,
    NODE,
    NAMESPACE,
    BUDGET,
    LEASE,
    EVENT,
    CRD,
)
_BY_TYPE: Final = {(kind.api_version, kind.kind): kind for kind in KINDS}


def kind_of(manifest: Manifest) -> Kind:
    """The kind of a manifest that carries apiVersion and kind."""
    return _BY_TYPE[manifest["apiVersion"], manifest["kind"]]


def ref_of(manifest: Manifest) -> Ref:
    """The reference of a manifest that carries apiVersion and kind."""
    meta = manifest["metadata"]
    return Ref(kind=kind_of(manifest), namespace=meta.get("namespace", ""), name=meta["name"])


def key_of(manifest: Manifest) -> Key:
    """Namespace and name of a manifest."""
    meta = manifest["metadata"]
    return Key(meta.get("namespace", ""), meta["name"])


def uid_of(manifest: Manifest) -> str:
    """The UID the apiserver gave, or an empty string before it did."""
    return str(manifest["metadata"].get("uid", ""))


def version_of(manifest: Manifest) -> int:
    """The resourceVersion as a number, so that two versions of one object can be ordered; 0 when it has none."""
    text = manifest["metadata"].get("resourceVersion", "")
    return int(text) if text.isdecimal() else 0
