"""Build the pod template that all ranks of one instance share.

In: an `Identity` and a `Spec`. Out: a `Template`: the manifest with the user's overlay on top, its hash, its engine
revision. What differs between ranks is left to the kubelet (downward API) and to the programs in `scripts/`. The
same spec gives the same bytes; anything the overlay breaks is a `SpecError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmfleet import names
from llmfleet.api.parse import SpecError
from llmfleet.api.types import Colocation, Spec
from llmfleet.deploy import programs
from llmfleet.deploy.flags import engine_args, owned_flag
from llmfleet.deploy.merge import merge
from llmfleet.deploy.objects.environment import build_env
from llmfleet.deploy.objects.identity import ENGINE_ANNOTATION, TEMPLATE_ANNOTATION, Identity, pod_labels, selector
from llmfleet.deploy.objects.revision import digest, engine_revision
from llmfleet.deploy.objects.volumes import build_mounts, build_volumes, models_mount
from llmfleet.deploy.overlay import check_overlay

DEFAULT_ACCELERATOR: Final = "nvidia.com/gpu"
GRACE_AFTER_DRAIN: Final = 40
ENGINE_USER: Final = 2000
CLAIM_NAME: Final = "accelerator"
# A rank may wait for its group as long as the scheduler needs; only the operator decides that a start took too long.
NEVER: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A pod template and what identifies it."""

    manifest: Mapping[str, Any]
    hash: str
    engine_revision: str


def build_template(identity: Identity, spec: Spec) -> Template:
    """The operator's template with the user's overlay on top, checked and hashed."""
    check_extra_args(spec)
    base = {
        "metadata": {"labels": pod_labels(identity, spec), "annotations": dict(spec.network.annotations)},
        "spec": build_pod_spec(identity, spec),
    }
    merged = merge(base, spec.pod_template)
    check_overlay(base, merged)
    image = next(c["image"] for c in merged["spec"]["containers"] if c["name"] == names.ENGINE_CONTAINER)
    revision = engine_revision(spec, image)
    return seal(merged, revision)


def check_extra_args(spec: Spec) -> None:
    for index, argument in enumerate(spec.inference_args.extra_args):
        if flag := owned_flag(argument):
            path = f"spec.inferenceArgs.extraArgs[{index}]"
            raise SpecError(path, f"{argument} is {flag}, which the operator sets; remove it and use the typed field")


def seal(merged: Mapping[str, Any], revision: str) -> Template:
    """Write the hashes onto the template. A pod carries them, and the gate compares them between ranks."""
    annotations = {**(merged["metadata"].get("annotations") or {}), ENGINE_ANNOTATION: revision}
    unsealed = {**merged, "metadata": {**merged["metadata"], "annotations": annotations}}
    template_hash = digest(unsealed)
    metadata = {**unsealed["metadata"], "annotations": {**annotations, TEMPLATE_ANNOTATION: template_hash}}
    return Template(manifest={**unsealed, "metadata": metadata}, hash=template_hash, engine_revision=revision)


def build_pod_spec(identity: Identity, spec: Spec) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": spec.lifecycle.drain_timeout_seconds + GRACE_AFTER_DRAIN,
        "securityContext": merge(POD_SECURITY, spec.security.pod_security_context),
        "containers": [build_engine(identity, spec)],
        "volumes": build_volumes(identity, spec),
    }
    if spec.storage.preload.enabled:
        pod["initContainers"] = [build_preload(spec)]
    if spec.accelerator.resource_claim_template_name:
        claim = {"name": CLAIM_NAME, "resourceClaimTemplateName": spec.accelerator.resource_claim_template_name}
        pod["resourceClaims"] = [claim]
    return pod | build_placement(identity, spec)


POD_SECURITY: Final[Mapping[str, Any]] = {
    "runAsNonRoot": True,
    "runAsUser": ENGINE_USER,
    "runAsGroup": ENGINE_USER,
    "fsGroup": ENGINE_USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Final[Mapping[str, Any]] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}


def build_placement(identity: Identity, spec: Spec) -> dict[str, Any]:
    """Where pods may run; unset fields are left out, so that they stay Kubernetes' own defaults."""
    scheduling = spec.scheduling
    fields = {
        "nodeSelector": dict(scheduling.node_selector),
        "tolerations": [dict(item) for item in scheduling.tolerations],
        "affinity": build_affinity(identity, spec),
        "topologySpreadConstraints": [dict(item) for item in scheduling.topology_spread_constraints],
        "priorityClassName": scheduling.priority_class_name,
        "schedulerName": scheduling.scheduler_name,
        "runtimeClassName": scheduling.runtime_class_name,
        "serviceAccountName": spec.security.service_account_name,
        "imagePullSecrets": [dict(item) for item in spec.image_pull_secrets],
        "hostNetwork": spec.network.host_network,
        "dnsPolicy": "ClusterFirstWithHostNet" if spec.network.host_network else "",
    }
    return {name: value for name, value in fields.items() if value}


def build_affinity(identity: Identity, spec: Spec) -> dict[str, Any]:
    """The user's affinity, with a term that draws the pods of one group together."""
    scheduling = spec.scheduling
    if spec.replicas == 1 or scheduling.colocation is Colocation.NONE:
        return dict(scheduling.affinity)
    term: dict[str, Any] = {
        "labelSelector": {"matchLabels": selector(identity)},
        "topologyKey": scheduling.colocation_topology_key,
    }
    item: dict[str, Any]
    if scheduling.colocation is Colocation.REQUIRED:
        kind, item = "requiredDuringSchedulingIgnoredDuringExecution", term
    else:
        kind, item = "preferredDuringSchedulingIgnoredDuringExecution", {"weight": 100, "podAffinityTerm": term}
    near = dict(scheduling.affinity.get("podAffinity") or {})
    near[kind] = [*(near.get(kind) or []), item]
    return {**scheduling.affinity, "podAffinity": near}


def build_engine(identity: Identity, spec: Spec) -> dict[str, Any]:
    """The engine container. A group starts through the gate; a single pod execs the engine at once."""
    arguments = ["vllm", *engine_args(spec, identity.name)]
    grouped = spec.replicas > 1
    container: dict[str, Any] = {
        "name": names.ENGINE_CONTAINER,
        "image": spec.image,
        "command": programs.gate() if grouped else programs.start(),
        "args": arguments,
        "env": build_env(identity, spec),
        "ports": build_ports(spec),
        "resources": build_resources(spec),
        "securityContext": merge(CONTAINER_SECURITY, spec.security.container_security_context),
        "lifecycle": {"preStop": {"exec": {"command": programs.stop()}}},
        # Engines write no termination message: the end of the log is what a condition can say of why one ended.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": build_mounts(spec),
    }
    if spec.image_pull_policy:
        container["imagePullPolicy"] = spec.image_pull_policy
    return container | build_probes(spec)


def build_probes(spec: Spec) -> dict[str, Any]:
    probes: dict[str, Any] = {"livenessProbe": build_liveness(spec)}
    if spec.replicas == 1:
        probes["readinessProbe"] = {
            "httpGet": {"path": "/health", "port": "http"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        }
        return probes
    probes["startupProbe"] = {
        "exec": {"command": programs.started()},
        "periodSeconds": 10,
        "timeoutSeconds": 12,
        "failureThreshold": NEVER,
    }
    probes["readinessProbe"] = {
        "exec": {"command": programs.ready()},
        "periodSeconds": 10,
        "timeoutSeconds": 14,
        "failureThreshold": 2,
    }
    return probes


def build_liveness(spec: Spec) -> dict[str, Any]:
    """The program itself counts the seconds, so the kubelet only has to ask often enough."""
    return {
        "exec": {"command": programs.live()},
        "periodSeconds": min(max(spec.lifecycle.stall_timeout_seconds // 6, 2), 10),
        "timeoutSeconds": 8,
        "failureThreshold": 2,
        "terminationGracePeriodSeconds": 10,
    }


def build_ports(spec: Spec) -> list[dict[str, Any]]:
    """Declared from basePort, so that two groups on one host network are kept apart by the scheduler."""
    base = spec.network.base_port
    ports = [{"name": "http", "containerPort": base}]
    if spec.replicas > 1:
        ports += [{"name": "master", "containerPort": base + 1}, {"name": "gate", "containerPort": base + 2}]
    if spec.kv_transfer and spec.kv_transfer.port:
        ports.append({"name": "kv-transfer", "containerPort": spec.kv_transfer.port})
    return [{**port, "protocol": "TCP"} for port in ports]


def build_resources(spec: Spec) -> dict[str, Any]:
    """The user's resources plus the accelerator and network devices, which are always limits."""
    accelerator = spec.accelerator
    limits = {**spec.resources.limits, **spec.network.resources}
    resource_name = DEFAULT_ACCELERATOR if accelerator.resource_name is None else accelerator.resource_name
    if resource_name and not accelerator.resource_claim_template_name:
        limits[resource_name] = str(spec.gpus_per_pod)
    resources: dict[str, Any] = {"requests": dict(spec.resources.requests), "limits": limits}
    if accelerator.resource_claim_template_name:
        resources["claims"] = [{"name": CLAIM_NAME}]
    return {name: value for name, value in resources.items() if value}


def build_preload(spec: Spec) -> dict[str, Any]:
    """An init container that fills the model cache."""
    preload = spec.storage.preload
    container: dict[str, Any] = {
        "name": "preload",
        "image": preload.image or spec.image,
        "env": [{"name": "HF_HOME", "value": spec.storage.model_cache.mount_path}],
        "securityContext": merge(CONTAINER_SECURITY, spec.security.container_security_context),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *models_mount(spec)],
    }
    if preload.command:
        container["command"] = list(preload.command)
    return container
