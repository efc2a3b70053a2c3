"""Two autoscalers that count each other's instances: only the elder may act.

In: the LLMClusterAutoscalers of a namespace. Out: who stands in whose way. Two that size one fleet would each take the
other's instances for its own surplus, and create and delete without end. One that is paused, only says what it would
do, is leaving, cannot be parsed, is another operator's or is itself held back acts on nothing and disturbs nobody. It
reads manifests as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from llmfleet.kube.refs import Manifest, uid_of

LONGEST: Final = 50
"""Of a chain in which each holds the next one back; the first of a longer one is taken to act."""


def selector_of(scaler: Manifest) -> Mapping[str, str]:
    """The labels an autoscaler counts by; none when it does not say."""
    target = ((scaler.get("spec") or {}).get("scaleTargetRef") or {}).get("labelSelector") or {}
    return target.get("matchLabels") or {}


def counts(scaler: Manifest, labels: Mapping[str, str]) -> bool:
    """Whether an instance with these labels is of its fleet."""
    selector = selector_of(scaler)
    return bool(selector) and selector.items() <= labels.items()


def elder(
    scaler: Manifest, others: Iterable[Manifest], able: Callable[[Manifest], bool] = lambda other: True
) -> Manifest | None:
    """The oldest autoscaler that sizes the same instances, was there first, and acts: `able` says who else can."""
    if not acts(scaler):
        return None
    return before(scaler, [other for other in others if acts(other)], able, {}, LONGEST)


def before(
    scaler: Manifest,
    acting: Sequence[Manifest],
    able: Callable[[Manifest], bool],
    held: dict[tuple[str, str], bool],
    deep: int,
) -> Manifest | None:
    """Who is in the way of one; whoever is held back by an elder of its own is not."""
    found = sorted((other for other in acting if age(other) < age(scaler) and meet(scaler, other)), key=age)
    for other in found:
        if age(other) not in held:
            held[age(other)] = not able(other) or (deep > 0 and before(other, acting, able, held, deep - 1) is not None)
        if not held[age(other)]:
            return other
    return None


def acts(scaler: Manifest) -> bool:
    spec = scaler.get("spec") or {}
    return not (scaler["metadata"].get("deletionTimestamp") or spec.get("paused") or spec.get("dryRun"))


def age(scaler: Manifest) -> tuple[str, str]:
    return str(scaler["metadata"].get("creationTimestamp", "")), uid_of(scaler)


def meet(left: Manifest, right: Manifest) -> bool:
    """Whether one counts what the other makes, in the same role."""
    return any(
        mine == theirs and (counts(left, made) or counts(right, labels))
        for mine, labels in makes(left)
        for theirs, made in makes(right)
    )


def makes(scaler: Manifest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Roles and labels of the instances it creates."""
    spec = scaler.get("spec") or {}
    for role, block in (("both", spec), ("prefill", spec.get("prefill")), ("decode", spec.get("decode"))):
        template = (block or {}).get("instanceTemplate")
        if template:
            yield role, template.get("labels") or {}
