"""Which bytes belong into the backends file.

In: the ConfigMap as cached, the bytes written last. Out: new bytes, or why the old ones stay. Pure. It never replaces
a good document by a worse one: absent, unreadable or invalid content changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmfleet import names
from llmfleet.api.document import DocumentError, parse_document
from llmfleet.kube.refs import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do with the file: `data` is written when there is any; `reason` is for people."""

    data: bytes | None
    generation: int
    reason: str


def next_step(configmap: Manifest | None, written: bytes | None) -> Step:
    """Compare what is there with what was written."""
    if configmap is None:
        return Step(data=None, generation=0, reason="the ConfigMap is not there")
    text = (configmap.get("data") or {}).get(names.BACKENDS_KEY)
    if text is None:
        return Step(data=None, generation=0, reason=f"the ConfigMap has no {names.BACKENDS_KEY} yet")
    data = text.encode()
    try:
        generation = parse_document(data).generation
    except DocumentError as error:
        return Step(data=None, generation=0, reason=f"the document is not valid: {error}")
    if data == written:
        return Step(data=None, generation=generation, reason="current")
    return Step(data=data, generation=generation, reason="changed")
