"""Policies with one thing missing or one thing too wide: what a test of policies must notice.

In: policies. Out: each mutant by a name that says what was done. Whole policies removed or opened wide, and single
rules, peers, ports, selectors and labels taken away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from charts.rendering import Object

Policies = Sequence[Object]
Mutants = Iterator[tuple[str, list[Object]]]
Path = tuple[Any, ...]
PART = ("app.kubernetes.io/name", "app.kubernetes.io/component")
SIDES = (("ingress", "from"), ("egress", "to"))


def coarse(policies: Policies) -> Mutants:
    """Each policy gone, and each one letting everybody and everything through in the directions that it speaks of."""
    for number, policy in enumerate(policies):
        name = policy["metadata"]["name"]
        yield f"{name} gone", [*policies[:number], *policies[number + 1 :]]
        sides = {kind.lower(): [{}] for kind in policy["spec"]["policyTypes"]}
        yield f"{name} wide open", replaced(policies, number, policy["spec"] | sides)


def fine(policies: Policies) -> Mutants:
    """Each policy without one of the things that it lists, or that its rules and selectors ask for."""
    for number, policy in enumerate(policies):
        for paths in removable(policy["spec"]):
            spec = without(policy["spec"], paths)
            yield f"{policy['metadata']['name']} without {dotted(paths[0])}", replaced(policies, number, spec)


def replaced(policies: Policies, number: int, spec: Any) -> list[Object]:
    """The policies with another spec in one of them."""
    return [*policies[:number], {**policies[number], "spec": spec}, *policies[number + 1 :]]


def removable(spec: Any) -> Iterator[list[Path]]:
    """Where something stands that can be taken away: types, rules, peers, ports, selectors, labels."""
    yield from ([("policyTypes", row)] for row in range(len(spec["policyTypes"])))
    yield from labels(spec["podSelector"], ("podSelector",))
    for side, peers in SIDES:
        for row, rule in enumerate(spec.get(side) or []):
            yield [(side, row)]
            for key in rule:
                yield [(side, row, key)]
                yield from ([(side, row, key, entry)] for entry in range(len(rule[key])) if len(rule[key]) > 1)
            for entry, peer in enumerate(rule.get(peers) or []):
                yield from of_peer(peer, (side, row, peers, entry))


def of_peer(peer: Any, path: Path) -> Iterator[list[Path]]:
    """What one peer asks for."""
    for selector in peer:
        if len(peer) > 1:
            yield [(*path, selector)]
        yield from labels(peer[selector], (*path, selector))


def labels(selector: Any, path: Path) -> Iterator[list[Path]]:
    """Each label that a selector asks for; the two that name a part say the same, so they go together."""
    found = list(selector.get("matchLabels", {}))
    groups = [[key for key in found if key in PART], *([key] for key in found if key not in PART)]
    yield from ([(*path, "matchLabels", key) for key in group] for group in groups if group)
    for row, expression in enumerate(selector.get("matchExpressions", [])):
        yield from ([(*path, "matchExpressions", row, "values", one)] for one in range(len(expression["values"])))


def without(spec: Any, paths: Sequence[Path]) -> Any:
    """A copy without what stands there."""
    copy = deepcopy(spec)
    for path in paths:
        parent = copy
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
    return copy


def dotted(path: Path) -> str:
    return ".".join(map(str, path))
