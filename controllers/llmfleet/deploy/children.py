"""Plan the objects around the StatefulSet: Services, disruption budgets, the model claim.

In: the live objects and the specs they follow from. Out: applies and deletes, none when all is as it should be. An
object of the same name that somebody else made is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmfleet import names
from llmfleet.deploy.objects.budget import Holder, build_fleet_budget, build_own_budget
from llmfleet.deploy.objects.claim import build_claim
from llmfleet.deploy.objects.identity import is_ours
from llmfleet.deploy.objects.services import build_group_service, build_service
from llmfleet.deploy.observe import Instance
from llmfleet.kube.diff import plan_apply, quantity
from llmfleet.kube.plan import Action, Delete
from llmfleet.kube.refs import Manifest, ref_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """The live objects, None where there is none.

    The fleet's budget is the business of one of its instances, the keeper: only for the keeper are `holders` and
    `fleet_budget` filled in. A keeper without holders drops the budget."""

    group_service: Manifest | None = None
    service: Manifest | None = None
    fleet_budget: Manifest | None = None
    own_budget: Manifest | None = None
    claim: Manifest | None = None
    holders: Sequence[Holder] = ()


def plan_children(children: Children, instance: Instance, cluster: Manifest) -> tuple[Action, ...]:
    """Everything but the StatefulSet. Without a readable spec nothing changes."""
    spec = instance.spec
    if spec is None:
        return ()
    identity = instance.identity
    fleet = build_fleet_budget(identity, children.holders) if children.holders else None
    pairs: tuple[tuple[Mapping[str, Any] | None, Manifest | None], ...] = (
        (build_group_service(identity, spec), children.group_service),
        (build_service(identity, spec), children.service),
        (fleet, children.fleet_budget),
        (build_own_budget(identity, spec), children.own_budget),
    )
    wanted = (action for desired, live in pairs for action in plan_child(desired, live, identity.manager))
    return (*wanted, *plan_claim(children, instance))


def plan_child(desired: Mapping[str, Any] | None, live: Manifest | None, manager: str) -> Iterator[Action]:
    """Apply what is wanted, delete what is ours and no longer wanted."""
    if live is not None and not is_ours(live, manager):
        return
    if desired is not None:
        yield from plan_apply(desired, live, names.OPERATOR_MANAGER)
    elif live is not None:
        yield Delete(ref=ref_of(live), uid=live["metadata"]["uid"])


def plan_claim(children: Children, instance: Instance) -> Iterator[Action]:
    """A claim is made once; later only its owner and a larger size change."""
    assert instance.spec is not None
    desired, live = build_claim(instance.identity, instance.spec), children.claim
    if desired is None or (live is not None and not is_ours(live, instance.identity.manager)):
        return
    if live is not None:
        desired = {**desired, "spec": grown(desired["spec"], live["spec"])}
    yield from plan_apply(desired, live, names.OPERATOR_MANAGER)


def grown(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """The live claim with the larger of both sizes; the rest of a claim cannot change."""
    asked, held = (spec["resources"]["requests"]["storage"] for spec in (wanted, live))
    size = asked if (quantity(asked) or 0) > (quantity(held) or 0) else held
    spec: dict[str, Any] = {"accessModes": live["accessModes"], "resources": {"requests": {"storage": size}}}
    if "storageClassName" in live:
        spec["storageClassName"] = live["storageClassName"]
    return spec
