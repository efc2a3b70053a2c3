"""Faults of what serves: instances, fleets, backends documents, routers, Redis.

In: a `Snapshot`. Out: findings, each with the object and the fix. The words of instances and fleets are the operator's
and the autoscaler's own. A check whose kinds could not be read finds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from llmfleet import names
from llmfleet.api.conditions import ConditionType, find_condition
from llmfleet.api.document import Document, DocumentError, ModelState, State, parse_document
from llmfleet.api.reasons import DecisionReason, Reason
from llmfleet.doctor.snapshot import (
    DEPLOYMENT,
    Finding,
    Severity,
    Snapshot,
    annotation,
    labels_of,
    place_of,
    pod_condition,
    when,
    where_of,
)
from llmfleet.explain.words import words_of
from llmfleet.kube.refs import AUTOSCALER, CONFIGMAP, LLMCLUSTER, POD, Manifest
from llmfleet.kube.selectors import SelectorError, parse_selector
from llmfleet.top.samples import RouterState

GATED: Final = re.compile(r"gated repo|\b401\b|\b403\b|access to model .* is restricted|authenticated to access", re.I)
STALE_SECONDS: Final = 15.0
"""route-sync follows within a second; this much later it does not follow."""
YOUNG_SECONDS: Final = 30.0
"""An operator sees a new instance within a second or two."""
WARN: Final = Severity.WARNING

FIXES: Final[Mapping[str, str]] = {
    Reason.UNSCHEDULABLE: "add nodes, free devices, or mend scheduling (tolerations, nodeSelector)",
    Reason.IMAGE_PULL_FAILED: "mend image, the registry or imagePullSecrets",
    Reason.MODEL_LOAD_FAILED: "wrong name, no files or too little memory: mend the spec (llmfleet plan says what fits)",
    Reason.CRASH_LOOP: "read the message and the log of the rank it names",
    Reason.STARTUP_TIMEOUT: "give a big model more lifecycle.startupTimeoutSeconds, else look at the log of rank 0",
    Reason.INVALID_SPEC: "edit the field that is named",
    Reason.UPDATE_HALTED: "the last good template runs on: edit the spec to another template, or back",
    Reason.CANARY_FAILED: "the canary was taken back: read the figures in the message, then edit the spec",
}
HALTED: Final = frozenset({Reason.UPDATE_HALTED, Reason.CANARY_FAILED})


def instances(world: Snapshot) -> Iterator[Finding]:
    """Instances whose own condition says that somebody should look."""
    for obj in world.of(LLMCLUSTER):
        ready = find_condition(obj.get("status") or {}, ConditionType.READY)
        reason, message = str(ready.get("reason", "")), str(ready.get("message", ""))
        if obj["metadata"].get("deletionTimestamp") or reason not in FIXES:
            continue
        if reason in (Reason.MODEL_LOAD_FAILED, Reason.CRASH_LOOP, Reason.STARTUP_TIMEOUT) and GATED.search(message):
            yield gated(obj, reason, message)
        else:
            check = "roll-out" if reason in HALTED else "instances"
            yield Finding(check=check, where=where_of(obj), problem=f"{reason}: {message}", fix=FIXES[reason])


def gated(obj: Manifest, reason: str, message: str) -> Finding:
    """The model is not for everybody, or the token is not for this model."""
    reference = ((obj.get("spec") or {}).get("security") or {}).get("huggingFaceTokenSecretRef") or {}
    if reference.get("name"):
        fix = f"accept the model's terms with the account of the token in Secret {reference['name']}"
    else:
        fix = "create a Secret with a Hugging Face token and name it in security.huggingFaceTokenSecretRef"
    return Finding(
        check="token", where=where_of(obj), problem=f"{reason}: may not download the model: {message}", fix=fix
    )


def untouched(world: Snapshot) -> Iterator[Finding]:
    """Instances without any condition although an operator runs: it does not look at them."""
    running = [obj for obj in world.labelled(DEPLOYMENT, app="llmfleet-operator") if is_up(obj)]
    for obj in world.of(LLMCLUSTER) if running else ():
        created = when(obj["metadata"].get("creationTimestamp"))
        young = created is not None and (world.now - created).total_seconds() < YOUNG_SECONDS
        if not (obj.get("status") or {}).get("conditions") and not young:
            yield Finding(
                check="controllers",
                where=where_of(obj),
                problem="has no condition: no operator follows it",
                fix="is its namespace one of operator.watchNamespaces, and does an operator lead?",
            )


def is_up(deployment: Manifest) -> bool:
    return bool((deployment.get("status") or {}).get("readyReplicas"))


def fleets(world: Snapshot) -> Iterator[Finding]:
    """Autoscalers that cannot see, cannot act, or cannot get what they ask for."""
    for obj in world.of(AUTOSCALER):
        status = obj.get("status") or {}
        decision = status.get("decision") or {}
        reason, message = str(decision.get("reason", "")), str(decision.get("message", ""))
        ready = find_condition(status, ConditionType.READY)
        if ready.get("reason") == Reason.INVALID_SPEC:
            problem = f"{Reason.INVALID_SPEC}: {ready.get('message', '')}"
            yield Finding(check="fleets", where=where_of(obj), problem=problem, fix=FIXES[Reason.INVALID_SPEC])
        elif reason in (DecisionReason.SIGNALS_STALE, DecisionReason.LOWER_BOUND_ABOVE_CAPACITY):
            fix = "engines and routers must be reachable from the autoscaler on their metrics ports (network policies)"
            yield Finding(check="fleets", severity=WARN, where=where_of(obj), problem=f"{reason}: {message}", fix=fix)
        elif reason == DecisionReason.AT_MAXIMUM:
            fix = words_of(reason).do
            yield Finding(check="fleets", severity=WARN, where=where_of(obj), problem=f"{reason}: {message}", fix=fix)
        degraded = find_condition(status, ConditionType.DEGRADED)
        if degraded.get("status") == "True" and degraded.get("reason") != Reason.INVALID_SPEC:
            fix = words_of(str(degraded.get("reason"))).do
            yield Finding(check="fleets", where=where_of(obj), problem=str(degraded.get("message", "")), fix=fix)


def backends(world: Snapshot) -> Iterator[Finding]:
    """Backends documents that nobody writes, or that list nobody."""
    for obj in documents(world):
        text = (obj.get("data") or {}).get(names.BACKENDS_KEY)
        owner = annotation(obj, names.MANAGED_BY_ANNOTATION)
        if text is None:
            yield Finding(
                check="backends",
                where=where_of(obj),
                problem=f"has no document yet: operator {owner or '(none named)'} never wrote one",
                fix="does that operator run, lead, watch this namespace and may it patch ConfigMaps here?",
            )
            continue
        try:
            document = parse_document(str(text).encode())
        except DocumentError as error:
            fix = "delete the key; the operator writes it again"
            yield Finding(check="backends", where=where_of(obj), problem=f"holds no valid document: {error}", fix=fix)
            continue
        yield from unserved(world, obj, document)


def documents(world: Snapshot) -> list[Manifest]:
    return [obj for obj in world.of(CONFIGMAP) if labels_of(obj).get(names.BACKENDS_LABEL) == "true"]


def unserved(world: Snapshot, obj: Manifest, document: Document) -> Iterator[Finding]:
    """Models without a ready engine, and a router without models."""
    selector = annotation(obj, names.CLUSTER_SELECTOR_ANNOTATION)
    if not document.models:
        yield Finding(
            check="backends",
            where=where_of(obj),
            problem=f"the router has no model: {selected(world, obj)} LLMClusters match its selector {selector!r}",
            fix="add a model to the values (fleet.models), or mend router.clusterSelector",
        )
    for name, model in document.models.items():
        ready = [one for one in model.endpoints if one.state is State.READY]
        if not ready and model.state is ModelState.SERVING:
            problem = f"model {name} has no ready engine: requests for it wait or are refused"
            fix = f"see why its instances are not Ready: kubectl get llmc -n {obj['metadata'].get('namespace', '')}"
            yield Finding(check="backends", where=where_of(obj), problem=problem, fix=fix)


def selected(world: Snapshot, obj: Manifest) -> int:
    """LLMClusters of the namespace that its selector takes."""
    selector = annotation(obj, names.CLUSTER_SELECTOR_ANNOTATION)
    namespace = obj["metadata"].get("namespace")
    return sum(
        one["metadata"].get("namespace") == namespace and takes(selector, labels_of(one))
        for one in world.of(LLMCLUSTER)
    )


def takes(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether a selector takes these labels; one that cannot be read takes nothing."""
    try:
        return parse_selector(selector)(labels)
    except SelectorError:
        return False


def routers(world: Snapshot) -> Iterator[Finding]:
    """Routers that are away, follow an old document, or cannot use what they were given."""
    for state in world.routers:
        where = f"Pod {state.namespace}/{state.pod}"
        if state.problem:
            fix = "nothing, if the router is ready: only this look is blocked"
            yield Finding(
                check="routers", severity=WARN, where=where, problem=f"could not be asked: {state.problem}", fix=fix
            )
            continue
        yield from behind(world, state, where)
        yield from refused(state, where)
        yield from redis(world, state, where)
    for pod in world.labelled(POD, app="llmfleet-router"):
        yield from restarting(pod, "routers")
    for pod in world.labelled(POD, app="llmfleet-redis"):
        yield from restarting(pod, "redis")


def behind(world: Snapshot, state: RouterState, where: str) -> Iterator[Finding]:
    """The document of its release is newer than the one it uses, and not only since a moment ago."""
    pod = next(
        (
            one
            for one in world.of(POD)
            if (one["metadata"].get("namespace"), one["metadata"]["name"]) == (state.namespace, state.pod)
        ),
        None,
    )
    newest = newest_generation(world, pod) if pod else 0
    used = generation_of(state)
    if used is None:
        problem = f"names its document {state.fleet.get('generation')!r}, which is no generation"
        fix = "nothing, if it serves: this router is of another version than this command"
        yield Finding(check="route-sync", severity=WARN, where=where, problem=problem, fix=fix)
        return
    age = world.now.timestamp() - newest / 1000
    if newest > used and age > STALE_SECONDS:
        yield Finding(
            check="route-sync",
            where=where,
            problem=f"uses generation {used}, the document is at {newest} since {age:.0f} s",
            fix=f"kubectl logs -n {state.namespace} {state.pod} -c route-sync (its rights, its way to the apiserver)",
        )


def generation_of(state: RouterState) -> int | None:
    """Of the document a router uses: 0 when it has none yet, None when it says something else."""
    said = state.fleet.get("generation") or 0
    return said if isinstance(said, int) else None


def newest_generation(world: Snapshot, pod: Manifest) -> int:
    """Generation of the document whose router selector takes this pod."""
    found = 0
    for obj in documents(world):
        same = obj["metadata"].get("namespace") == pod["metadata"].get("namespace")
        if same and takes(annotation(obj, names.ROUTER_SELECTOR_ANNOTATION), labels_of(pod)):
            try:
                document = parse_document(str((obj.get("data") or {}).get(names.BACKENDS_KEY, "")).encode())
            except DocumentError:
                continue
            found = max(found, document.generation)
    return found


def refused(state: RouterState, where: str) -> Iterator[Finding]:
    if state.samples.total("llmfleet_router_document_errors_total") and not state.fleet.get("generation"):
        fix = "read the router's log: it names the path of the fault"
        yield Finding(check="route-sync", where=where, problem="was given no document that it could use", fix=fix)
    if state.samples.total("llmfleet_router_keys_errors_total") and not state.samples.total(
        "llmfleet_router_keys_loads_total"
    ):
        fix = "mend the keys file in the Secret of router.apiKeys.existingSecret; the router's log names the fault"
        yield Finding(check="secrets", where=where, problem="has no valid keys file: every client is refused", fix=fix)


def redis(world: Snapshot, state: RouterState, where: str) -> Iterator[Finding]:
    """Jobs need a Redis that answers, that is the primary, and that never evicts."""
    if not state.samples.known("llmfleet_queue_redis_up") or state.samples.total("llmfleet_queue_redis_up"):
        return
    said = state.fleet.get("jobs")
    jobs: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
    place, reason = str(jobs.get("redis", "")), str(jobs.get("problem", "")) or "Redis does not answer"
    if state.samples.total("llmfleet_queue_redis_refused"):
        fix = refused_fix(reason)
    elif "Sentinels" in place:
        fix = "do the Sentinels run, are redis.external.sentinel's addresses and masterName right, their port open?"
    else:
        fix = own_fix(world, state, place)
    problem = f"takes no jobs: {reason}" + (f" ({place})" if place else "")
    yield Finding(check="redis", where=where, problem=problem, fix=fix)


def refused_fix(reason: str) -> str:
    """What to do about a Redis that answers and must not be used."""
    if "replica" in reason:
        return "write the primary's address into redis.external.url, or who names it into redis.external.sentinel"
    if "cluster" in reason or "too old" in reason:
        return "use another one: a single Redis 7 or newer, or Valkey"
    return "set maxmemory-policy noeviction in Redis: an evicted job would be lost"


def own_fix(world: Snapshot, state: RouterState, place: str) -> str:
    """What to do about one that does not answer: the release's own, or somebody else's."""
    name = re.search(rf"//([^.:/]+-redis)\.{re.escape(state.namespace)}\.svc:", place)
    if name is None or not world.knows(POD):
        return "is Redis up, its address right (redis.external.url), its password that of redis.passwordSecretRef?"
    mine = [pod for pod in world.labelled(POD, app="llmfleet-redis") if pod["metadata"]["name"].startswith(name[1])]
    if not mine:
        return f"it has no pod: kubectl scale statefulset -n {state.namespace} {name[1]} --replicas=1"
    if pod_condition(mine[0], "Ready").get("status") != "True":
        return f"its pod is not ready: kubectl describe pod {place_of(mine[0])}; kubectl logs {place_of(mine[0])}"
    return f"its pod is ready: does a policy keep the router away, or has its password changed? {place_of(mine[0])}"


def restarting(pod: Manifest, component: str) -> Iterator[Finding]:
    """Containers of a router or Redis that do not stay up."""
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        state: Mapping[str, Any] = (container.get("state") or {}).get("waiting") or {}
        if state.get("reason") == "CrashLoopBackOff":
            check = "route-sync" if container.get("name") == "route-sync" else component
            yield Finding(
                check=check,
                where=where_of(pod),
                problem=f"container {container.get('name')} does not stay up",
                fix=f"kubectl logs {place_of(pod)} -c {container.get('name')} --previous",
            )


CHECKS: Final = (instances, untouched, fleets, backends, routers)
