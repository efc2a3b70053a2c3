"""Turn LLMClusters and pods into what routers must know: which endpoint serves which model.

In: manifests of one namespace as the caches hold them. Out: a `Document` without a generation. Pure, and it prefers
silence to a guess: an endpoint is listed only when the group that runs now is the one that was found ready.

* ready: Ready is True, every rank is the one that started with this group, rank 0 is Ready, nothing is leaving.
* draining: the instance is being deleted or taken down on purpose; rank 0 still runs and no rank is Terminating.
* otherwise there is no endpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from llmfleet import names
from llmfleet.api.document import MAX_SLOTS, MAX_TIER, MAX_WEIGHT, Document, Endpoint, Model, ModelState, Peer, State
from llmfleet.api.reasons import Reason
from llmfleet.kube.refs import Manifest, uid_of, version_of
from llmfleet.route.served import (
    DEFAULT_SLOTS,
    Routing,
    Served,
    asked_by,
    routing_of,
    served_by,
    served_revision,
    whole,
)

GROUP_ANNOTATION: Final = names.GROUP_ANNOTATION
"""On the StatefulSet, written by deploy/: JSON whose `members` says which pods started together."""
RESTARTING: Final = frozenset({Reason.GROUP_RESTARTING, Reason.CRASH_LOOP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One LLMCluster with its StatefulSet and its pods by rank."""

    cluster: Manifest
    routing: Routing
    members: Mapping[str, str]
    ranks: Mapping[int, Manifest]

    @property
    def name(self) -> str:
        return str(self.cluster["metadata"]["name"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one instance means for the document, and the versions of the objects that say so."""

    versions: tuple[int, ...]
    models: tuple[str, ...]
    state: ModelState
    endpoint: Endpoint | None


Entries = Mapping[str, Entry]
NOTHING: Final[Entries] = {}


def build_entries(
    *,
    clusters: Iterable[Manifest],
    statefulsets: Iterable[Manifest],
    pods: Iterable[Manifest],
    known: Entries = NOTHING,
) -> dict[str, Entry]:
    """One entry per instance, by name. An instance is looked at again only when one of its objects has changed."""
    sets = {item["metadata"]["name"]: item for item in statefulsets}
    ranks = group_ranks(pods)
    entries = {}
    for cluster in clusters:
        name = cluster["metadata"]["name"]
        own, held = ranks.get(name, {}), sets.get(name)
        versions = (version_of(cluster), version_of(held) if held else 0, *map(version_of, own.values()))
        entry = known.get(name)
        if entry is None or entry.versions != versions or 0 in versions[2:] or not versions[0]:
            entry = build_entry(build_instance(cluster, held, own), versions)
        entries[name] = entry
    return entries


def group_ranks(pods: Iterable[Manifest]) -> dict[str, dict[int, Manifest]]:
    """The pods of each instance, by rank."""
    ranks: dict[str, dict[int, Manifest]] = {}
    for pod in pods:
        labels = pod["metadata"].get("labels") or {}
        ranks.setdefault(labels.get(names.CLUSTER_LABEL, ""), {})[rank_of(pod)] = pod
    return ranks


def build_instance(cluster: Manifest, statefulset: Manifest | None, ranks: Mapping[int, Manifest]) -> Instance:
    return Instance(cluster=cluster, routing=routing_of(cluster), members=parse_members(statefulset), ranks=dict(ranks))


def build_entry(instance: Instance, versions: tuple[int, ...]) -> Entry:
    endpoint = build_endpoint(instance)
    return Entry(versions=versions, models=model_names(instance), state=state_of(instance, endpoint), endpoint=endpoint)


def promised_models(scalers: Iterable[Manifest], selects: Callable[[Mapping[str, str]], bool]) -> tuple[str, ...]:
    """Models that autoscalers would make instances of, for routers that would serve those: known also while asleep.

    One that leaves, is paused or only says what it would do wakes nobody: a request would wait for it in vain."""
    names: dict[str, None] = {}
    for scaler in filter(can_wake, scalers):
        spec = scaler.get("spec") or {}
        blocks = (spec, spec.get("prefill") or {}, spec.get("decode") or {})
        for template in (block.get("instanceTemplate") or {} for block in blocks):
            promised = {"spec": template.get("spec")}
            if selects(template.get("labels") or {}) and routing_of(promised).enabled:
                names |= dict.fromkeys(asked_by(promised).models)
    return tuple(sorted(names))


def can_wake(scaler: Manifest) -> bool:
    spec = scaler.get("spec") or {}
    leaving = (scaler.get("metadata") or {}).get("deletionTimestamp")
    return not (leaving or spec.get("paused") or spec.get("dryRun"))


def build_document(entries: Entries, routers: Iterable[Manifest], promised: Iterable[str] = ()) -> Document:
    """The whole document for one release's routers: every model that an instance serves or will serve."""
    endpoints: dict[str, list[Endpoint]] = {}
    states: dict[str, list[ModelState]] = {}
    for _, entry in sorted(unambiguous(entries).items()):
        for model in entry.models:
            endpoints.setdefault(model, []).extend([entry.endpoint] if entry.endpoint else [])
            states.setdefault(model, []).append(entry.state)
    for model in promised:
        endpoints.setdefault(model, [])
        states.setdefault(model, [ModelState.ASLEEP])
    models = {
        model: Model(state=best_state(states[model]), endpoints=tuple(endpoints[model])) for model in sorted(endpoints)
    }
    return Document(peers=build_peers(routers), models=models)


def unambiguous(entries: Entries) -> Entries:
    """Without endpoints whose address another pod claims too: one of them is stale, and nobody can say which."""
    counts = Counter(entry.endpoint.address for entry in entries.values() if entry.endpoint)
    return {
        name: replace(entry, endpoint=None, state=ModelState.WAKING)
        if entry.endpoint and counts[entry.endpoint.address] > 1
        else entry
        for name, entry in entries.items()
    }


def state_of(instance: Instance, endpoint: Endpoint | None) -> ModelState:
    """What this one instance means for its models."""
    if endpoint is not None and endpoint.state is State.READY:
        return ModelState.SERVING
    if is_leaving(instance) and not is_coming_back(instance):
        return ModelState.ASLEEP
    return ModelState.RESTARTING if ready_reason(instance) in RESTARTING else ModelState.WAKING


def best_state(states: Iterable[ModelState]) -> ModelState:
    """A model is in the best state any of its instances is in."""
    order = (ModelState.SERVING, ModelState.WAKING, ModelState.RESTARTING, ModelState.ASLEEP)
    return min(states, key=order.index, default=ModelState.ASLEEP)


def build_endpoint(instance: Instance) -> Endpoint | None:
    """Rank 0 of the instance, or None while it must get nothing."""
    leader, routing = instance.ranks.get(0), instance.routing
    if leader is None or not routing.enabled or not is_whole(instance):
        return None
    host = (leader.get("status") or {}).get("podIP")
    if not host or (leader.get("status") or {}).get("phase") != "Running":
        return None
    draining = is_leaving(instance)
    if not draining and not (is_ready(instance) and pod_is_ready(leader) and is_unbroken(instance)):
        return None
    served = served_by(leader)
    return Endpoint(
        instance=instance.name,
        address=address(host, served.port),
        pod_uid=uid_of(leader),
        role=routing.role,
        tier=min(routing.tier, MAX_TIER),
        weight=min(weight_of(instance), MAX_WEIGHT),
        slots=min(routing.max_concurrency or served.max_num_seqs or DEFAULT_SLOTS, MAX_SLOTS),
        engine_revision=str((instance.cluster.get("status") or {}).get("engineRevision") or ""),
        served_revision=served_revision(leader, instance.name),
        state=State.DRAINING if draining else State.READY,
    )


def is_whole(instance: Instance) -> bool:
    """Every rank of the group that started together is there, is that very pod, and none is leaving."""
    if not instance.members or len(instance.ranks) != len(instance.members):
        return False
    return all(
        instance.members.get(str(rank), "").partition("/")[0] == uid_of(pod)
        and not pod["metadata"].get("deletionTimestamp")
        for rank, pod in instance.ranks.items()
    )


def is_unbroken(instance: Instance) -> bool:
    """No container of the group was restarted in place since the group started: the others would hang on it."""
    return all(
        instance.members.get(str(rank)) == f"{uid_of(pod)}/{restarts_of(pod)}" for rank, pod in instance.ranks.items()
    )


def restarts_of(pod: Manifest) -> int:
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    engine = (item for item in containers if item.get("name") == names.ENGINE_CONTAINER)
    return next((int(item.get("restartCount") or 0) for item in engine), 0)


def is_leaving(instance: Instance) -> bool:
    """Being deleted, or drained for an update or a restart on purpose."""
    metadata = instance.cluster["metadata"]
    return bool(metadata.get("deletionTimestamp") or (metadata.get("annotations") or {}).get(names.DRAINING_ANNOTATION))


def is_coming_back(instance: Instance) -> bool:
    """Drained for an update or restart, not for good."""
    return not instance.cluster["metadata"].get("deletionTimestamp")


def is_ready(instance: Instance) -> bool:
    return ready_condition(instance).get("status") == "True"


def ready_reason(instance: Instance) -> str:
    return str(ready_condition(instance).get("reason") or "")


def ready_condition(instance: Instance) -> Mapping[str, Any]:
    conditions = (instance.cluster.get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == "Ready"), {})


def pod_is_ready(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)


def weight_of(instance: Instance) -> int:
    """The weight asked for; while a new template is on trial, the trial's."""
    trial = (instance.cluster["metadata"].get("annotations") or {}).get(names.CANARY_WEIGHT_ANNOTATION)
    return whole(trial, instance.routing.weight)


def model_names(instance: Instance) -> tuple[str, ...]:
    """What the running group answers to; before there is one, what the spec asks for."""
    if not instance.routing.enabled:
        return ()
    running: Served | None = served_by(instance.ranks[0]) if 0 in instance.ranks and is_whole(instance) else None
    return running.models if running and running.models else asked_by(instance.cluster).models


def build_peers(routers: Iterable[Manifest]) -> tuple[Peer, ...]:
    """Router pods that answer on their admin port, by name."""
    running = (
        pod for pod in routers if (pod.get("status") or {}).get("podIP") and pod["status"].get("phase") == "Running"
    )
    peers = (
        Peer(
            name=pod["metadata"]["name"],
            address=address(pod["status"]["podIP"], names.ADMIN_PORT),
            state=State.DRAINING if pod["metadata"].get("deletionTimestamp") else State.READY,
        )
        for pod in running
    )
    return tuple(sorted(peers, key=lambda peer: peer.name))


def parse_members(statefulset: Manifest | None) -> Mapping[str, str]:
    """Rank -> pod of the group that started together; empty when that is not known."""
    text = ((statefulset or {}).get("metadata", {}).get("annotations") or {}).get(GROUP_ANNOTATION, "{}")
    try:
        members = orjson.loads(text).get("members") or {}
        return {str(rank): str(pod) for rank, pod in members.items()}
    except (orjson.JSONDecodeError, AttributeError):
        return {}


def rank_of(pod: Manifest) -> int:
    """The pod's ordinal: its label, or the end of its name on clusters that do not set the label."""
    label = (pod["metadata"].get("labels") or {}).get(names.POD_INDEX_LABEL)
    text = str(label if label is not None else pod["metadata"]["name"].rpartition("-")[2])
    return int(text) if text.isdecimal() else -1


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
