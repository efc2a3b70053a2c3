"""Whom to ask: the engines of a fleet and the routers of its namespace.

In: instances, pods. Out: names and addresses. Only a pod that runs and has an address can be asked; only a router that
is Ready counts as missing when it does not answer. It asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmfleet import names
from llmfleet.scale.fleet import Fleet

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One process with a metrics page."""

    name: str
    """Of the instance, or of the router's pod."""
    pod: str
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Everybody to ask about one fleet."""

    namespace: str
    engines: tuple[Target, ...] = ()
    routers: tuple[Target, ...] = ()
    serving: tuple[str, ...] = ()
    routers_expected: int = 0
    routers_wanted: tuple[str, ...] = ()
    """Their pods: another's answer does not stand for theirs."""
    models: frozenset[str] = frozenset()
    queries: tuple[tuple[str, str], ...] = ()
    """What it is called, and the PromQL expression."""


def engine_targets(instances: Iterable[str], pods: Iterable[Manifest]) -> tuple[Target, ...]:
    """Rank 0 of each instance."""
    wanted = set(instances)
    found = []
    for pod in pods:
        labels = pod["metadata"].get("labels") or {}
        name = labels.get(names.CLUSTER_LABEL, "")
        address = address_of(pod)
        if name in wanted and labels.get(names.POD_INDEX_LABEL) == "0" and address:
            found.append(Target(name=name, pod=pod["metadata"]["name"], address=address, port=engine_port(pod)))
    return tuple(sorted(found, key=lambda target: target.name))


def router_targets(pods: Iterable[Manifest]) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Every router that can be asked, and which of them must answer."""
    found, ready = [], []
    for pod in pods:
        name, address = pod["metadata"]["name"], address_of(pod)
        if address:
            found.append(Target(name=name, pod=name, address=address, port=names.ADMIN_PORT))
            if is_ready(pod) and not pod["metadata"].get("deletionTimestamp"):
                ready.append(name)
    return tuple(sorted(found, key=lambda target: target.name)), tuple(sorted(ready))


def address_of(pod: Manifest) -> str:
    status = pod.get("status") or {}
    return str(status.get("podIP") or "") if status.get("phase") == "Running" else ""


def is_ready(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)


def engine_port(pod: Manifest) -> int:
    """The port called http of the engine's container."""
    for container in (pod.get("spec") or {}).get("containers") or ():
        for port in container.get("ports") or ():
            if container.get("name") == names.ENGINE_CONTAINER and port.get("name") == "http":
                return int(port["containerPort"])
    return names.ENGINE_PORT


def cluster_of(pod: Manifest) -> str:
    metadata = pod["metadata"]
    return f"{metadata.get('namespace', '')}/{(metadata.get('labels') or {}).get(names.CLUSTER_LABEL, '')}"


def gpu_query(namespace: str, fleet: Fleet) -> str:
    """Mean GPU utilisation of what serves, 0 to 1, as DCGM's exporter says it; nothing unless it knows every rank 0."""
    pods = "|".join(f"{name}-[0-9]+" for name in fleet.serving)
    leaders = "|".join(f"{name}-0" for name in fleet.serving)
    series = f'DCGM_FI_DEV_GPU_UTIL{{namespace="{namespace}",pod=~"%s"}}'
    whole = f"count(count by (pod) ({series % leaders})) >= {max(len(fleet.serving), 1)}"
    return f"avg({series % pods}) / 100 and {whole}"
