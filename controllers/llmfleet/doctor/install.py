"""Faults of what a chart installs: kinds, controllers, images, devices, volumes, Secrets.

In: a `Snapshot`. Out: findings, each with the object and the fix. A check whose kinds could not be read finds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

from llmfleet import names
from llmfleet.api.autoscaler import AutoscalerSpec
from llmfleet.api.types import Spec
from llmfleet.doctor.snapshot import (
    DEPLOYMENT,
    STORAGE_CLASS,
    Finding,
    Severity,
    Snapshot,
    annotation,
    labels_of,
    last_start,
    place_of,
    waiting,
    when,
    where_of,
)
from llmfleet.kube.refs import AUTOSCALER, CLAIM, CRD, EVENT, LEASE, LLMCLUSTER, NODE, POD, Manifest

PULL: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
SECRET: Final = re.compile(r'secret "?([\w.-]+)"? not found', re.IGNORECASE)
KEY: Final = re.compile(r"couldn't find key (\S+) in Secret (\S+)", re.IGNORECASE)
DEFAULT_CLASS: Final = "storageclass.kubernetes.io/is-default-class"
KINDS: Final = (("llmclusters.serving.ai", Spec), ("llmclusterautoscalers.serving.ai", AutoscalerSpec))
PENDING_SECONDS: Final = 60.0
"""A claim that waits for its first consumer, and a pod that was made a moment ago, are in no trouble."""


def crds(world: Snapshot) -> Iterator[Finding]:
    """Both kinds are there, served, and know every field that this version writes."""
    if not world.knows(CRD):
        return
    found = {obj["metadata"]["name"]: obj for obj in world.of(CRD)}
    for name, spec in KINDS:
        crd = found.get(name)
        if crd is None:
            fix = "helm install llmfleet-crds charts/llmfleet-crds, or set crds.enabled: true in one release"
            yield Finding(check="crds", where=f"CustomResourceDefinition {name}", problem="is not installed", fix=fix)
            continue
        conditions = (crd.get("status") or {}).get("conditions") or ()
        if not any(item.get("type") == "Established" and item.get("status") == "True" for item in conditions):
            fix = f"kubectl describe crd {name}: another kind may have taken its names"
            yield Finding(check="crds", where=where_of(crd), problem="is not served", fix=fix)
        missing = sorted(json_names(spec) - known_fields(crd))
        if missing:
            shown = ", ".join(missing[:5])
            yield Finding(
                check="crds",
                where=where_of(crd),
                problem=f"is older than llmfleet {names.VERSION}: its spec does not know {shown}",
                fix="llmfleet apply-crds --from charts/llmfleet-crds/crds (Helm never upgrades CRDs by itself)",
            )


def json_names(spec: type[Any]) -> set[str]:
    """The fields of a spec as they are written."""
    return {one.metadata.get("json", camel(one.name)) for one in fields(spec)}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def known_fields(crd: Manifest) -> set[str]:
    """What the served schema of a kind has below `spec`."""
    found: set[str] = set()
    for version in crd["spec"].get("versions") or ():
        if version.get("served"):
            schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
            found |= set(((schema.get("properties") or {}).get("spec") or {}).get("properties") or {})
    return found


def controllers(world: Snapshot) -> Iterator[Finding]:
    """An operator runs and leads; an autoscaler too where somebody needs one."""
    if not world.knows(DEPLOYMENT):
        return
    for component, kind in (("operator", LLMCLUSTER), ("autoscaler", AUTOSCALER)):
        needed = world.of(kind)
        deployments = world.labelled(DEPLOYMENT, app=f"llmfleet-{component}")
        if needed and not deployments:
            yield Finding(
                check="controllers",
                where=f"{len(needed)} {kind.plural}",
                problem=f"no {component} is installed, so nobody acts on them",
                fix=f"install the chart llmfleet-controllers with {component}.enabled: true",
            )
        for deployment in deployments:
            yield from one_controller(world, deployment, component)
    yield from nobodys(world)


def one_controller(world: Snapshot, deployment: Manifest, component: str) -> Iterator[Finding]:
    """Its pods are ready and one of them renews the Lease."""
    wanted = (deployment.get("spec") or {}).get("replicas", 1)
    ready = (deployment.get("status") or {}).get("readyReplicas") or 0
    logs = f"kubectl logs -n {deployment['metadata']['namespace']} deploy/{deployment['metadata']['name']}"
    if not wanted and component == "autoscaler" and not world.of(AUTOSCALER):
        return  # somebody switched off what nobody needs
    if not ready:
        problem = f"none of its {wanted} pods is ready" if wanted else "is scaled to 0"
        fix = f"kubectl describe pods of it; {logs}" if wanted else "kubectl scale it to 1 or more"
        yield Finding(check="controllers", where=where_of(deployment), problem=problem, fix=fix)
        return
    if not world.knows(LEASE):
        return
    lease = lease_of(world, deployment)
    if lease is None:
        if elects(deployment):
            problem = f"the {component} has no Lease: no pod leads"
            yield Finding(
                check="controllers", where=where_of(deployment), problem=problem, fix=f"{logs} (Lease rights)"
            )
        return
    if age := overdue(world, lease):
        yield Finding(
            check="controllers",
            where=where_of(lease),
            problem=f"was not renewed for {age:.0f} s: no {component} leads",
            fix=logs,
        )


def lease_of(world: Snapshot, deployment: Manifest) -> Manifest | None:
    metadata = deployment["metadata"]
    wanted = next((one.partition("=")[2] for one in arguments(deployment) if one.startswith("--lease-name=")), "")
    key = (metadata["namespace"], wanted or metadata["name"])
    return next(
        (one for one in world.of(LEASE) if (one["metadata"]["namespace"], one["metadata"]["name"]) == key), None
    )


def elects(deployment: Manifest) -> bool:
    return "--no-leader-election" not in arguments(deployment)


def arguments(deployment: Manifest) -> list[str]:
    """Arguments of every container of a Deployment."""
    template = ((deployment.get("spec") or {}).get("template") or {}).get("spec") or {}
    return [str(one) for container in template.get("containers") or () for one in container.get("args") or ()]


def overdue(world: Snapshot, lease: Manifest) -> float:
    """Seconds since the last renewal, when that is longer than the Lease lasts; else 0."""
    spec = lease.get("spec") or {}
    renewed = when(spec.get("renewTime"))
    age = (world.now - renewed).total_seconds() if renewed else 0.0
    return age if age > float(spec.get("leaseDurationSeconds") or 15) or not renewed else 0.0


def nobodys(world: Snapshot) -> Iterator[Finding]:
    """Instances and autoscalers that claim a controller which is not there."""
    identities = {
        one.partition("=")[2]
        for deployment in world.of(DEPLOYMENT)
        for one in arguments(deployment)
        if one.startswith("--identity=")
    }
    for kind in (LLMCLUSTER, AUTOSCALER):
        for obj in world.of(kind):
            owner = annotation(obj, names.MANAGED_BY_ANNOTATION)
            if owner and identities and owner not in identities:
                yield Finding(
                    check="controllers",
                    where=where_of(obj),
                    problem=f"belongs to {owner}; this cluster has {', '.join(sorted(identities))}",
                    fix=f"install that release again, or set its annotation {names.MANAGED_BY_ANNOTATION}",
                )


def images(world: Snapshot) -> Iterator[Finding]:
    """Images that the kubelet cannot pull; once for each image."""
    seen: set[str] = set()
    for pod in ours(world):
        for container, reason, message in waiting(pod):
            image = str(container.get("image", ""))
            if reason in PULL and image not in seen:
                seen.add(image)
                yield Finding(
                    check="images",
                    where=where_of(pod),
                    problem=f"cannot pull {image or 'its image'}: {message or reason}",
                    fix=image_fix(image),
                )


def image_fix(image: str) -> str:
    if not re.match(r"^[^/]+[.:][^/]*/|^localhost/", image):
        return "the image names no registry: set global.imageRegistry (filled by make push REGISTRY=...)"
    return "push the image there (make push REGISTRY=...), or mend global.imageRegistry and global.imagePullSecrets"


def ours(world: Snapshot) -> list[Manifest]:
    """Pods of this project: engines, routers, controllers, Redis, hooks."""
    return [pod for pod in world.of(POD) if labels_of(pod).get(names.APP_NAME_LABEL, "").startswith("llmfleet-")]


def devices(world: Snapshot) -> Iterator[Finding]:
    """Some node has as many of the devices as one pod asks for."""
    if not world.knows(NODE, LLMCLUSTER):
        return
    if world.of(NODE) and all(is_cordoned(node) for node in world.of(NODE)):
        yield all_cordoned(world)
    seen: set[tuple[str, int]] = set()
    for obj in world.of(LLMCLUSTER):
        spec = obj.get("spec") or {}
        accelerator = spec.get("accelerator") or {}
        wanted, resource = int(spec.get("gpusPerPod") or 0), accelerator.get("resourceName", "nvidia.com/gpu")
        if not wanted or not resource or accelerator.get("resourceClaimTemplateName") or (resource, wanted) in seen:
            continue
        seen.add((resource, wanted))
        most = max((amount(node, resource) for node in world.of(NODE)), default=0)
        if most < wanted:
            yield Finding(
                check="devices",
                where=where_of(obj),
                problem=f"a pod asks for {wanted} {resource}, the best node of {len(world.of(NODE))} offers {most}",
                fix=device_fix(resource, most),
            )


def all_cordoned(world: Snapshot) -> Finding:
    """What runs goes on, so this is a fault only for somebody who waits to start."""
    waits = any((pod.get("status") or {}).get("phase") == "Pending" for pod in ours(world))
    return Finding(
        check="devices",
        severity=Severity.ERROR if waits else Severity.WARNING,
        where=f"{len(world.of(NODE))} nodes",
        problem="every node is cordoned: no pod can start",
        fix="kubectl uncordon NODE, or add nodes",
    )


def is_cordoned(node: Manifest) -> bool:
    return bool((node.get("spec") or {}).get("unschedulable"))


def amount(node: Manifest, resource: str) -> int:
    text = str(((node.get("status") or {}).get("allocatable") or {}).get(resource, "0"))
    return int(text) if text.isdecimal() else 0


def device_fix(resource: str, most: int) -> str:
    if most:
        return "use a smaller gpusPerPod (more replicas), or larger nodes; llmfleet plan --gpus-per-node says what fits"
    return f"install the device plugin that offers {resource}, or add nodes that have it; kubectl describe nodes shows"


def claims(world: Snapshot) -> Iterator[Finding]:
    """Claims of ours that no volume was found for."""
    for claim in world.of(CLAIM):
        if names.CLUSTER_LABEL not in labels_of(claim) and not wanting(world, claim):
            continue
        created = when(claim["metadata"].get("creationTimestamp"))
        young = created is not None and (world.now - created).total_seconds() < PENDING_SECONDS
        if (claim.get("status") or {}).get("phase") != "Pending" or young:
            continue
        problem, fix = claim_trouble(world, claim)
        if problem:
            yield Finding(check="claims", where=where_of(claim), problem=problem, fix=fix)


def claim_trouble(world: Snapshot, claim: Manifest) -> tuple[str, str]:
    describe = f"kubectl describe pvc {place_of(claim)}"
    wanted = (claim.get("spec") or {}).get("storageClassName")
    if not world.knows(STORAGE_CLASS):
        return "is Pending: no volume was found for it", describe
    classes = {one["metadata"]["name"]: one for one in world.of(STORAGE_CLASS)}
    if wanted == "":
        volume = (claim.get("spec") or {}).get("volumeName") or "one made by hand"
        return f"is Pending: it waits for a volume without a class ({volume})", f"kubectl get pv; {describe}"
    if not wanted:
        if any(annotation(one, DEFAULT_CLASS) == "true" for one in classes.values()):
            return "is Pending: no volume was found for it", describe
        return "is Pending: it names no storage class and the cluster has no default one", "set storageClassName"
    if wanted not in classes:
        return (
            f"is Pending: there is no storage class {wanted}",
            f"choose one of: {', '.join(sorted(classes)) or 'none'}",
        )
    if classes[wanted].get("volumeBindingMode") == "WaitForFirstConsumer" and not wanting(world, claim):
        return "", ""
    return f"is Pending: storage class {wanted} made no volume", f"{describe} (access mode, size, provisioner)"


def wanting(world: Snapshot, claim: Manifest) -> bool:
    """Whether a pod of ours mounts it."""
    key = (claim["metadata"].get("namespace"), claim["metadata"]["name"])
    return any(
        (pod["metadata"].get("namespace"), (volume.get("persistentVolumeClaim") or {}).get("claimName")) == key
        for pod in ours(world)
        for volume in (pod.get("spec") or {}).get("volumes") or ()
    )


def secrets(world: Snapshot) -> Iterator[Finding]:
    """Secrets that a pod of ours needs and that are not there. No Secret is read: kubelets say it."""
    mine = {(pod["metadata"].get("namespace"), pod["metadata"]["name"]): pod for pod in ours(world)}
    said = [
        (pod, message)
        for pod in mine.values()
        for _, reason, message in waiting(pod)
        if reason == "CreateContainerConfigError"
    ]
    for event in world.of(EVENT):
        about = event.get("regarding") or {}
        pod = mine.get((about.get("namespace"), about.get("name")))
        if event.get("reason") == "FailedMount" and pod is not None and not is_over(event, pod):
            said.append((pod, str(event.get("note", ""))))
    seen: set[tuple[Any, str]] = set()
    for pod, message in said:
        name = missing_secret(message)
        if name and (pod["metadata"].get("namespace"), name) not in seen:
            seen.add((pod["metadata"].get("namespace"), name))
            yield Finding(
                check="secrets", where=where_of(pod), problem=f"needs {name}, which is not there", fix=fix_of(pod)
            )


def is_over(event: Manifest, pod: Manifest) -> bool:
    """Events stay for an hour. No container starts before every volume is there, so a start ends what was missing."""
    uid = (event.get("regarding") or {}).get("uid")
    if is_ready(pod) or (uid and uid != pod["metadata"].get("uid", uid)):
        return True
    started, said = last_start(pod), said_at(event)
    return started is not None and (said is None or said <= started)


def said_at(event: Manifest) -> datetime | None:
    """When it was said last."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime"))
    return max((found for one in times if (found := when(one))), default=None)


def is_ready(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)


def missing_secret(message: str) -> str:
    if found := SECRET.search(message):
        return f"Secret {found[1]}"
    if found := KEY.search(message):
        return f"key {found[1]} in Secret {found[2].rpartition('/')[2]}"
    return ""


def fix_of(pod: Manifest) -> str:
    """Which value names the Secret depends on whose pod it is."""
    component = labels_of(pod).get(names.APP_COMPONENT_LABEL, "")
    if component == names.ROUTER_COMPONENT:
        return (
            "create it (llmfleet keys makes API keys), or mend router.apiKeys.existingSecret or redis.passwordSecretRef"
        )
    if component == names.ENGINE_COMPONENT:
        return "create it with the Hugging Face token, or mend security.huggingFaceTokenSecretRef"
    return "create it, or mend the value that names it"


def unread(world: Snapshot) -> Iterator[Finding]:
    """What could not be looked at, so that silence is not taken for health."""
    for kind, reason in sorted(world.refused.items()):
        yield Finding(
            check="access",
            severity=Severity.WARNING,
            where=kind,
            problem=f"could not be read: {reason}",
            fix="ask for the right to list it",
        )


CHECKS: Final = (crds, controllers, images, devices, claims, secrets, unread)
