"""What has to be written so that a fleet becomes what was decided.

In: one role's fleet, its decision and template, the manifests as they are. Out: actions: patch own instances to the
template, create, delete; and what they are called in events. The shape of an instance is fixed, so scaling means whole
instances and never pods. A name follows from what exists, so a repeated pass creates nothing twice; only own instances
are ever written. It sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from llmfleet import names
from llmfleet.api.autoscaler import RoleFleet, Victim
from llmfleet.kube.diff import plan_apply
from llmfleet.kube.plan import Action, Apply, Delete
from llmfleet.kube.refs import LLMCLUSTER, Manifest, Ref, uid_of
from llmfleet.scale.fleet import REPLACES_ANNOTATION, Fleet, Instance
from llmfleet.scale.victim import victims


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Everything a plan for one role needs."""

    scaler: Manifest
    rules: RoleFleet
    fleet: Fleet
    target: int
    live: Mapping[str, Manifest]
    """Every LLMCluster of the namespace by name: theirs are names that are taken."""
    victim: Victim = Victim.LEAST_UTILIZED
    ready_may_go: int | None = None
    """Most ready instances that may be deleted now; None means any number."""
    more_may_come: int | None = None
    """Most instances that may be made now, beside those that leave too; None means any number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What a plan does, for the event and the status."""

    actions: tuple[Action, ...] = ()
    created: tuple[str, ...] = ()
    deleted: tuple[Instance, ...] = ()
    patched: tuple[str, ...] = ()
    replaced: tuple[str, ...] = field(default=())
    """Of those created: the ones that take another's place, which is no change of size."""

    @property
    def grew(self) -> bool:
        return len(self.created) > len(self.replaced)


def plan(ask: Ask) -> Moves:
    """The next writes; what has to wait for something waits for the next pass."""
    patches = template_patches(ask)
    missing = ask.target - ask.fleet.size
    if missing > 0:
        made = islice(free_names(ask), missing if ask.more_may_come is None else min(missing, ask.more_may_come))
        return moves(ask, patches, create=[(name, "") for name in made])
    if missing < 0:
        return moves(ask, patches, delete=surplus(ask, -missing))
    return replacement(ask, patches)


def surplus(ask: Ask, wanted: int) -> list[Instance]:
    """The instances that go now; ready ones only as far as the ratio allows."""
    candidates = [one for one in ask.fleet.staying if one.name not in ask.fleet.surge]
    chosen = victims(candidates, ask.victim, wanted)
    if ask.ready_may_go is None:
        return chosen
    ready = [one for one in chosen if one.ready][: ask.ready_may_go]
    return [one for one in chosen if not one.ready or one in ready]


def replacement(ask: Ask, patches: list[Action]) -> Moves:
    """One instance at a time: what did not start once more, then what has another shape."""
    staying = ask.fleet.staying
    if ask.fleet.surge:
        return moves(ask, patches, delete=list(islice(surge_ends(ask), 1)))
    failed = [one for one in staying if one.ours and one.failed and not one.replaces]
    if failed:
        name = next(free_names(ask))
        return moves(ask, patches, create=[(name, failed[0].name)], delete=failed[:1])
    return another_shape(ask, patches, list(staying))


def surge_ends(ask: Ask) -> Iterator[Instance]:
    """The one that leaves: the new one when the template went on meanwhile, else the old one once the new is ready."""
    for new in ask.fleet.staying:
        old = ask.fleet.replaced_by(new)
        leaves = new if new.outdated else old
        if old is None or leaves is None or not leaves.ours or not (new.outdated or new.ready):
            continue
        if not (leaves.ready and ask.ready_may_go == 0):
            yield leaves


def another_shape(ask: Ask, patches: list[Action], staying: list[Instance]) -> Moves:
    """Make the new one first, if a surge is allowed; never two at once, and none while one is still starting."""
    outdated = victims([one for one in staying if one.outdated], ask.victim, 1)
    if not outdated or any(not one.ready and not one.outdated for one in staying):
        return moves(ask, patches)
    beside = ask.rules.behavior.max_surge and ask.more_may_come != 0
    if beside and outdated[0].ready:
        return moves(ask, patches, create=[(next(free_names(ask)), outdated[0].name)])
    last = ask.rules.behavior.max_surge and ask.fleet.ready < 2
    if outdated[0].ready and (ask.ready_may_go == 0 or last):
        return moves(ask, patches)
    return moves(ask, patches, delete=outdated)


def moves(
    ask: Ask,
    patches: list[Action],
    *,
    create: list[tuple[str, str]] | None = None,
    delete: list[Instance] | None = None,
) -> Moves:
    """Patches first, then deletions, then creations."""
    create, delete = create or [], delete or []
    namespace = ask.scaler["metadata"]["namespace"]
    deletions = [Delete(ref=Ref(kind=LLMCLUSTER, namespace=namespace, name=one.name), uid=one.uid) for one in delete]
    # Not forced: who made an instance of that name a moment ago keeps it.
    creations = [Apply(obj=build_cluster(ask, name, replaces), force=False) for name, replaces in create]
    return Moves(
        actions=(*patches, *deletions, *creations),
        created=tuple(name for name, _ in create),
        deleted=tuple(delete),
        patched=tuple(patch.obj["metadata"]["name"] for patch in patches if isinstance(patch, Apply)),
        replaced=tuple(name for name, replaces in create if replaces),
    )


def narrowed(moves: Moves, done: Sequence[Action]) -> Moves:
    """The same moves, as far as they were done."""
    applied = {action.obj["metadata"]["name"] for action in done if isinstance(action, Apply)}
    gone = {action.uid for action in done if isinstance(action, Delete)}
    return Moves(
        actions=tuple(done),
        created=tuple(name for name in moves.created if name in applied),
        deleted=tuple(one for one in moves.deleted if one.uid in gone),
        patched=tuple(name for name in moves.patched if name in applied),
        replaced=tuple(name for name in moves.replaced if name in applied),
    )


def template_patches(ask: Ask) -> list[Action]:
    """Own instances that lack something of the template, or of our ownership; another shape needs another instance."""
    patches: list[Action] = []
    for one in ask.fleet.staying:
        if one.ours and not one.outdated:
            desired = build_cluster(ask, one.name, one.replaces)
            patches += plan_apply(desired, ask.live[one.name], names.AUTOSCALER_MANAGER)
    return patches


def free_names(ask: Ask) -> Any:
    """Lowest free number first; a name somebody else's instance has is not free."""
    prefix = ask.rules.instance_template.name_prefix
    return (name for name in (f"{prefix}{number}" for number in count()) if name not in ask.live)


def build_cluster(ask: Ask, name: str, replaces: str = "") -> Manifest:
    """An instance as the template says, and whose it is."""
    template, owner = ask.rules.instance_template, ask.scaler["metadata"]
    annotations = dict(template.annotations)
    managed_by = (owner.get("annotations") or {}).get(names.MANAGED_BY_ANNOTATION)
    if managed_by:
        annotations.setdefault(names.MANAGED_BY_ANNOTATION, managed_by)
    if replaces:
        annotations[REPLACES_ANNOTATION] = replaces
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": owner["namespace"],
        "labels": {**template.labels, names.AUTOSCALER_LABEL: owner["name"]},
        "ownerReferences": [build_owner(ask.scaler)],
    }
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.CLUSTER_KIND,
        "metadata": metadata,
        "spec": dict(template.spec),
    }


def build_owner(scaler: Manifest) -> dict[str, Any]:
    """Deleting the autoscaler deletes its instances, through their drain."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.AUTOSCALER_KIND,
        "name": scaler["metadata"]["name"],
        "uid": uid_of(scaler),
        "controller": True,
        "blockOwnerDeletion": False,
    }
