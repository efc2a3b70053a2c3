"""Build the StatefulSet that keeps the pods of one group in existence.

In: an `Identity`, a `Spec`, the pod template that shall hold now (not always the newest one), the records. Out: a
manifest. Its size never changes after creation, it starts all ranks at once, and it never replaces a pod by itself:
only the operator knows when the whole group may go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmfleet import names
from llmfleet.deploy.objects.identity import TEMPLATE_ANNOTATION, Identity, object_metadata, selector

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"


def build_statefulset(
    identity: Identity,
    *,
    replicas: int,
    template: Mapping[str, Any],
    template_hash: str,
    annotations: Mapping[str, str],
    queue: str = "",
) -> dict[str, Any]:
    metadata = object_metadata(identity, identity.name)
    metadata["annotations"] |= {TEMPLATE_ANNOTATION: template_hash, **annotations}
    if queue:
        metadata["labels"][QUEUE_LABEL] = queue
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata,
        "spec": {
            "serviceName": names.group_service(identity.name),
            "replicas": replicas,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": selector(identity)},
            "template": template,
        },
    }
