"""Hashes of an instance, and the ControllerRevision that keeps its last good pod template.

In: templates and specs. Out: short hashes and one manifest. A revision's data never changes (the API server refuses
it), so the hash is part of its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from llmfleet import names
from llmfleet.api.types import Spec
from llmfleet.deploy.objects.identity import Identity, object_metadata

TEMPLATE_KEY: Final = "template"
REVISION_COMPONENT: Final = "good-template"


def digest(content: Any) -> str:
    """A short hash of JSON content, the same for the same meaning."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def engine_revision(spec: Spec, image: str) -> str:
    """Hash of what a prefill and a decode instance must share for a KV hand-off; the role is not in it."""
    args = spec.inference_args
    shared: Mapping[str, Any] = {
        "image": image,
        "model": spec.model,
        "dtype": args.dtype,
        "kvCacheDtype": args.kv_cache_dtype,
        "quantization": args.quantization,
        "blockSize": args.block_size,
        "connector": spec.kv_transfer.connector if spec.kv_transfer else None,
        "speculation": speculation(spec),
    }
    return digest(shared)


def speculation(spec: Spec) -> Mapping[str, Any] | None:
    decoding = spec.inference_args.speculative_decoding
    if not decoding.enabled:
        return None
    return {"method": decoding.method, "model": decoding.model, "tokens": decoding.num_speculative_tokens}


def revision_name(identity: Identity, template_hash: str) -> str:
    return f"{identity.name}-{template_hash}"


def build_revision(
    identity: Identity, template_hash: str, template: Mapping[str, Any], *, generation: int
) -> dict[str, Any]:
    """The last good template, owned by the LLMCluster, so that hand-deleting the StatefulSet does not lose it.

    The generation of the spec that it served for orders revisions: a template that came back keeps its old age.
    """
    metadata = object_metadata(identity, revision_name(identity, template_hash))
    metadata["labels"][names.APP_COMPONENT_LABEL] = REVISION_COMPONENT
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": metadata,
        "data": {TEMPLATE_KEY: template},
        "revision": generation,
    }
