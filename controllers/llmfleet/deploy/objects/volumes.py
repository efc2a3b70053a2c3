"""Volumes and mounts of an engine pod: scratch space, shared memory, the gate's notes and the model files.

In: an `Identity` and a `Spec`. Out: lists in a fixed order.
"""

from __future__ import annotations

from typing import Any, Final

from llmfleet import names
from llmfleet.api.types import CacheType, Spec
from llmfleet.deploy.flags import MODEL_CLAIM_MOUNT, MODEL_IMAGE_MOUNT
from llmfleet.deploy.objects.identity import Identity

RUN_MOUNT: Final = "/run/llmfleet"


def build_volumes(identity: Identity, spec: Spec) -> list[dict[str, Any]]:
    shm: dict[str, Any] = {"medium": "Memory"}
    if spec.storage.shm_size:
        shm["sizeLimit"] = spec.storage.shm_size
    return [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": shm},
        # Outlives a container, so that the gate knows a restart in place from a first start.
        {"name": "run", "emptyDir": {"sizeLimit": "1Mi"}},
        *models_volume(identity, spec),
        *reference_volume(spec),
    ]


def models_volume(identity: Identity, spec: Spec) -> list[dict[str, Any]]:
    cache = spec.storage.model_cache
    if cache.type is CacheType.NONE:
        return []
    if cache.type is CacheType.HOST_PATH:
        return [{"name": "models", "hostPath": {"path": cache.host_path or cache.mount_path}}]
    if cache.type is CacheType.CLAIM:
        claim = cache.claim_name or names.models_claim(identity.name)
        return [{"name": "models", "persistentVolumeClaim": {"claimName": claim}}]
    return [{"name": "models", "emptyDir": {"sizeLimit": cache.size} if cache.size else {}}]


def reference_volume(spec: Spec) -> list[dict[str, Any]]:
    """Where the files of an oci:// or pvc:// model come from."""
    scheme, _, rest = spec.model.partition("://")
    if scheme == "oci":
        return [{"name": "model-image", "image": {"reference": rest}}]
    if scheme == "pvc":
        return [
            {"name": "model-claim", "persistentVolumeClaim": {"claimName": rest.partition("/")[0], "readOnly": True}}
        ]
    return []


def build_mounts(spec: Spec) -> list[dict[str, Any]]:
    return [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "run", "mountPath": RUN_MOUNT},
        *models_mount(spec),
        *reference_mount(spec),
    ]


def models_mount(spec: Spec) -> list[dict[str, Any]]:
    cache = spec.storage.model_cache
    if cache.type is CacheType.NONE:
        return []
    mount: dict[str, Any] = {"name": "models", "mountPath": cache.mount_path}
    return [{**mount, "readOnly": True}] if cache.read_only else [mount]


def reference_mount(spec: Spec) -> list[dict[str, Any]]:
    scheme = spec.model.partition("://")[0]
    if scheme == "oci":
        return [{"name": "model-image", "mountPath": MODEL_IMAGE_MOUNT, "readOnly": True}]
    if scheme == "pvc":
        return [{"name": "model-claim", "mountPath": MODEL_CLAIM_MOUNT, "readOnly": True}]
    return []
