"""Refuse a pod template overlay that takes away what the operator relies on.

In: the operator's own template and the merged one. Out: nothing, or a `SpecError` that names the field and says what
to write instead. CEL cannot look into `podTemplate`, so this is the only check it gets before the API server's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmfleet import names
from llmfleet.api.parse import SpecError

ROOT: Final = "spec.podTemplate"
# Parts of the engine container that make a group start, drain and restart as one.
KEPT: Final[Mapping[str, str]] = {
    "command": "use image and inferenceArgs",
    "args": "use inferenceArgs and its extraArgs",
    "lifecycle": "use lifecycle.drainTimeoutSeconds",
    "livenessProbe": "use lifecycle.stallTimeoutSeconds",
    "readinessProbe": "it tells rank 0 from the others",
    "startupProbe": "use lifecycle.startupTimeoutSeconds",
}
POD_KEPT: Final[Mapping[str, str]] = {
    "enableServiceLinks": "service links set VLLM_PORT, and vLLM refuses to start",
    "terminationGracePeriodSeconds": "use lifecycle.drainTimeoutSeconds",
}


def check_overlay(base: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Compare what must stay as the operator made it."""
    if set(merged) - {"metadata", "spec"}:
        raise SpecError(ROOT, "may hold metadata and spec only")
    check_labels(base, merged)
    pod = expect_object(merged.get("spec"), f"{ROOT}.spec")
    for field, advice in POD_KEPT.items():
        if pod.get(field) != base["spec"].get(field):
            raise SpecError(f"{ROOT}.spec.{field}", f"must stay as the operator sets it: {advice}")
    if pod.get("restartPolicy", "Always") != "Always":
        raise SpecError(f"{ROOT}.spec.restartPolicy", "must be Always or absent")
    check_engine(engine_of(base), engine_of(merged))
    check_volumes(base, merged)


def check_labels(base: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    metadata = expect_object(merged.get("metadata"), f"{ROOT}.metadata")
    expect_object(metadata.get("annotations") or {}, f"{ROOT}.metadata.annotations")
    labels = expect_object(metadata.get("labels"), f"{ROOT}.metadata.labels")
    for name, value in base["metadata"]["labels"].items():
        if labels.get(name) != value:
            raise SpecError(f"{ROOT}.metadata.labels[{name}]", "is set by the operator; remove it")


def expect_object(value: object, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(path, "must be an object")
    return value


def engine_of(template: Mapping[str, Any]) -> Mapping[str, Any]:
    containers: object = template["spec"].get("containers")
    if not isinstance(containers, list) or not all(isinstance(item, Mapping) for item in containers):
        raise SpecError(f"{ROOT}.spec.containers", "must be a list of objects, each with a name")
    for container in containers:
        if container.get("name") == names.ENGINE_CONTAINER:
            return expect_object(container, ROOT)
    raise SpecError(f"{ROOT}.spec.containers", f"must not remove the container {names.ENGINE_CONTAINER}")


def check_engine(base: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    path = f"{ROOT}.spec.containers[{names.ENGINE_CONTAINER}]"
    for field, advice in KEPT.items():
        if merged.get(field) != base.get(field):
            raise SpecError(f"{path}.{field}", f"must stay as the operator sets it: {advice}")
    if not isinstance(merged.get("image"), str) or not merged["image"]:
        raise SpecError(f"{path}.image", "must be an image reference")
    check_kept_items(base, merged, "env", "name", path)
    check_kept_items(base, merged, "ports", "name", path)
    check_kept_items(base, merged, "volumeMounts", "mountPath", path)


def check_kept_items(base: Mapping[str, Any], merged: Mapping[str, Any], field: str, key: str, path: str) -> None:
    """Items the operator wrote may be added to, not changed; HOME and HF_HOME are the user's to set."""
    found = {item.get(key): item for item in objects_in(merged.get(field), f"{path}.{field}")}
    for item in base.get(field) or []:
        free = field == "env" and item[key] in ("HOME", "HF_HOME")
        if not free and found.get(item[key]) != item:
            raise SpecError(f"{path}.{field}[{item[key]}]", "is set by the operator; remove it")


def objects_in(value: object, path: str) -> list[Mapping[str, Any]]:
    """A list of objects, possibly absent."""
    if not isinstance(value, list | None) or not all(isinstance(item, Mapping) for item in value or ()):
        raise SpecError(path, "must be a list of objects")
    return value or []


def check_volumes(base: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    found = {volume.get("name") for volume in objects_in(merged["spec"].get("volumes"), f"{ROOT}.spec.volumes")}
    for volume in base["spec"]["volumes"]:
        if volume["name"] not in found:
            raise SpecError(f"{ROOT}.spec.volumes[{volume['name']}]", "must not be removed")
