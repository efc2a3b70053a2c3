"""Decide what to write into a backends ConfigMap.

In: the ConfigMap as cached, the document that should be in it, `now`. Out: the merge patch, or nothing when it says so
already. Pure. The generation never goes back: not when the old document cannot be read, and not when a clock does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

import orjson

from llmfleet import names
from llmfleet.api.document import Document, content_hash, parse_document, render, with_generation
from llmfleet.kube.plan import MergePatch
from llmfleet.kube.refs import CONFIGMAP, Manifest, Ref

GENERATION_ANNOTATION: Final = "serving.ai/generation"
"""The newest generation written, also outside the document: it survives a document that was damaged by hand."""
MAX_DIGITS: Final = 19
MAX_GENERATION: Final = 1 << 61
"""No document with a higher one can have been adopted by a router, so none has to be surpassed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A patch to send, and the generation it carries."""

    patch: MergePatch
    generation: int


def plan_publication(configmap: Manifest, document: Document, now: datetime) -> Publication | None:
    """The patch that makes the ConfigMap say `document`, or None."""
    text = (configmap.get("data") or {}).get(names.BACKENDS_KEY)
    if text is not None and written_hash(text) == content_hash(document):
        return None
    next_document = with_generation(
        document, previous=last_generation(configmap, text), now_ms=int(now.timestamp() * 1000)
    )
    data = render(next_document)
    parse_document(data)
    metadata = configmap["metadata"]
    ref = Ref(kind=CONFIGMAP, namespace=metadata["namespace"], name=metadata["name"])
    body = {
        "metadata": {"annotations": {GENERATION_ANNOTATION: str(next_document.generation)}},
        "data": {names.BACKENDS_KEY: data.decode()},
    }
    patch = MergePatch(ref=ref, body=body, resource_version=metadata["resourceVersion"])
    return Publication(patch=patch, generation=next_document.generation)


@lru_cache(maxsize=8)
def written_hash(text: str) -> str | None:
    """Hash of the content that is there, computed from the content itself; None when it is not a valid document."""
    try:
        return content_hash(parse_document(text.encode()))
    except ValueError:
        return None


def last_generation(configmap: Manifest, text: str | None) -> int:
    """The highest generation this ConfigMap is known to have had."""
    noted = str((configmap["metadata"].get("annotations") or {}).get(GENERATION_ANNOTATION, ""))
    believed = int(noted) if noted.isdecimal() and len(noted) <= MAX_DIGITS else 0
    return max(believed if believed < MAX_GENERATION else 0, generation_in(text or ""))


def generation_in(text: str) -> int:
    """The generation of a document that may otherwise be unusable."""
    try:
        found = orjson.loads(text).get("generation")
    except (orjson.JSONDecodeError, AttributeError):
        return 0
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < MAX_GENERATION else 0
