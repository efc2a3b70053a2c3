"""Who may connect to whom under rendered NetworkPolicies, by the rules of the Kubernetes API.

In: rendered objects, and pods that stand for what runs. Out: yes or no for one connection. No network plug-in is asked:
this says what the policies mean, not that a cluster enforces them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from charts.rendering import Object, of_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A pod, or with no namespace an address outside of all of them."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)


def may_connect(policies: Sequence[Object], source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
    """Both sides must allow it: a pod that no policy selects for a direction is open in it."""
    return _allows(policies, "Egress", source, target, target, port, protocol) and _allows(
        policies, "Ingress", target, source, target, port, protocol
    )


def policies_of(objects: Sequence[Object]) -> list[Object]:
    return of_kind(objects, "NetworkPolicy")


def _allows(
    policies: Sequence[Object], kind: str, own: Place, other: Place, target: Place, port: int, protocol: str
) -> bool:
    mine = [p for p in policies if kind in p["spec"]["policyTypes"] and _selects(p, own)]
    if not mine:
        return True
    side, peers = kind.lower(), "to" if kind == "Egress" else "from"
    rules = [(p["metadata"]["namespace"], rule) for p in mine for rule in p["spec"].get(side) or []]
    return any(
        _peer(namespace, rule.get(peers), other) and _port(rule.get("ports"), target, port, protocol)
        for namespace, rule in rules
    )


def _selects(policy: Object, place: Place) -> bool:
    return policy["metadata"]["namespace"] == place.namespace and matches(policy["spec"]["podSelector"], place.labels)


def _peer(namespace: str, peers: Sequence[Mapping[str, Any]] | None, other: Place) -> bool:
    if not peers:
        return True
    return any(_is(namespace, peer, other) for peer in peers)


def _is(namespace: str, peer: Mapping[str, Any], other: Place) -> bool:
    if not other.namespace:
        return "ipBlock" in peer
    if "namespaceSelector" in peer:
        inside = matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        inside = other.namespace == namespace
    return inside and "ipBlock" not in peer and matches(peer.get("podSelector", {}), other.labels)


def _port(ports: Sequence[Mapping[str, Any]] | None, target: Place, port: int, protocol: str) -> bool:
    if not ports:
        return True
    numbers = [(target.ports.get(p["port"], p["port"]), p.get("protocol", "TCP")) for p in ports]
    return (port, protocol) in numbers


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """matchLabels, and of matchExpressions the one operator the charts use."""
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In":
            raise AssertionError(f"this reader does not know {expression['operator']}")
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()
