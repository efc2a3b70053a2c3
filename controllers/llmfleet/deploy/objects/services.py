"""Build the two Services of an instance: one that gives every rank a DNS name, one that reaches the serving rank.

In: an `Identity` and a `Spec`. Out: manifests.
"""

from __future__ import annotations

from typing import Any

from llmfleet import names
from llmfleet.api.types import Spec
from llmfleet.deploy.objects.identity import Identity, object_metadata, selector


def build_group_service(identity: Identity, spec: Spec) -> dict[str, Any]:
    """Headless; ranks must find each other before any of them is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": object_metadata(identity, names.group_service(identity.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector(identity),
            "ports": [{"name": "http", "port": names.ENGINE_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def build_service(identity: Identity, spec: Spec) -> dict[str, Any]:
    """Rank 0 only: the other ranks answer nothing."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": object_metadata(identity, identity.name),
        "spec": {
            "selector": {**selector(identity), names.POD_INDEX_LABEL: "0"},
            "ports": [{"name": "http", "port": names.ENGINE_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def url(identity: Identity) -> str:
    """Where the instance's API answers inside the cluster."""
    return f"http://{identity.name}.{identity.namespace}.svc:{names.ENGINE_PORT}"
