"""Build the claim that holds an instance's model files, when it asks for one of its own.

In: an `Identity`, a `Spec`, the size the live claim has. Out: a manifest or None. A claim never shrinks: the API
server refuses it, and the files are in it.
"""

from __future__ import annotations

from typing import Any, Final

from llmfleet import names
from llmfleet.api.types import CacheType, Spec
from llmfleet.deploy.objects.identity import Identity, object_metadata

DEFAULT_SIZE: Final = "200Gi"


def build_claim(identity: Identity, spec: Spec) -> dict[str, Any] | None:
    """The claim, owned by the instance only when it is to be deleted with it."""
    cache = spec.storage.model_cache
    if cache.type is not CacheType.CLAIM or cache.claim_name:
        return None
    claim: dict[str, Any] = {
        "accessModes": [cache.access_mode],
        "resources": {"requests": {"storage": cache.size or DEFAULT_SIZE}},
    }
    if cache.storage_class_name:
        claim["storageClassName"] = cache.storage_class_name
    name = names.models_claim(identity.name)
    metadata = object_metadata(identity, name, owned=cache.delete_with_instance)
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}
