"""Turn the spec of an LLMCluster from JSON into `types.Spec`, or say which field is wrong and what to write.

In: the `spec` mapping as the API server stores it. Out: a `Spec`, or `SpecError` naming the field's full path. The
CRD refuses the same mistakes at admission; they are checked again here because an object may be older than its CRD.
Unknown fields are left to the CRD. It never looks anything up and never fills in anything but the CRD's own
defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from llmfleet.api.types import Spec


class SpecError(ValueError):
    """A field of the spec cannot be used; `path` names it and `problem` says why and what to write."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def parse_spec(raw: object) -> Spec:
    """Read a whole spec and check the rules that span fields."""
    spec: Spec = parse_value(Spec, raw, "spec")
    check(spec)
    return spec


def parse_value(kind: Any, raw: object, path: str) -> Any:
    """Read one value of the given type."""
    if kind is Any:
        return raw
    origin = get_origin(kind)
    if origin is UnionType or (origin is not None and str(origin) == "typing.Union"):
        return parse_union(get_args(kind), raw, path)
    if origin is tuple:
        return parse_list(get_args(kind)[0], raw, path)
    if origin is not None and issubclass(origin, Mapping):
        return expect(raw, Mapping, path, "an object")
    if is_dataclass(kind):
        return parse_object(kind, raw, path)
    return SCALARS[scalar_kind(kind)](kind, raw, path)


def parse_union(kinds: tuple[Any, ...], raw: object, path: str) -> Any:
    """Read `X | None`, or a Kubernetes int-or-string."""
    if raw is None:
        return None
    choices = [kind for kind in kinds if kind is not NoneType]
    if choices == [int, str]:
        return expect_int_or_string(raw, path)
    return parse_value(choices[0], raw, path)


def parse_list(kind: Any, raw: object, path: str) -> tuple[Any, ...]:
    items = expect(raw, list | tuple, path, "a list")
    return tuple(parse_value(kind, item, f"{path}[{index}]") for index, item in enumerate(items))


def parse_object(kind: Any, raw: object, path: str) -> Any:
    """Read each declared field that is present; an explicit null is the same as leaving the field out."""
    given = expect(raw, Mapping, path, "an object")
    values: dict[str, Any] = {}
    for declared, json_name, hint in schema_of(kind):
        if given.get(json_name) is not None:
            values[declared.name] = parse_value(hint, given[json_name], f"{path}.{json_name}")
        elif declared.default is MISSING and declared.default_factory is MISSING:
            raise SpecError(f"{path}.{json_name}", "is required")
    return kind(**values)


@cache
def schema_of(kind: Any) -> tuple[tuple[Field[Any], str, Any], ...]:
    """The fields of a dataclass with their JSON names and types."""
    hints = get_type_hints(kind)
    return tuple((declared, json_name(declared), hints[declared.name]) for declared in fields(kind))


def json_name(declared: Field[Any]) -> str:
    """camelCase of the Python name, or what the field's metadata says."""
    first, *rest = declared.name.split("_")
    return str(declared.metadata.get("json") or first + "".join(word.capitalize() for word in rest))


def expect(raw: object, kind: Any, path: str, what: str) -> Any:
    if not isinstance(raw, kind):
        raise SpecError(path, f"must be {what}, not {shown(raw)}")
    return raw


def expect_int(kind: Any, raw: object, path: str) -> int:
    """An integer; JSON's 2.0 counts as one, true does not."""
    if isinstance(raw, float) and raw.is_integer():
        return int(raw)
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise SpecError(path, f"must be an integer, not {shown(raw)}")
    return raw


def expect_int_or_string(raw: object, path: str) -> int | str:
    if isinstance(raw, str):
        return raw
    return expect_int(int, raw, path)


def expect_decimal(kind: Any, raw: object, path: str) -> Decimal:
    """A finite decimal string such as "0.90"."""
    try:
        value = Decimal(expect(raw, str, path, 'a decimal string such as "0.90"'))
    except InvalidOperation:
        raise SpecError(path, f'must be a decimal string such as "0.90", not {shown(raw)}') from None
    if not value.is_finite():
        raise SpecError(path, f"must be a finite number, not {shown(raw)}")
    return value


def expect_enum(kind: Any, raw: object, path: str) -> StrEnum:
    allowed = [str(member) for member in kind]
    if raw not in allowed:
        raise SpecError(path, f"must be one of {', '.join(allowed)}, not {shown(raw)}")
    member: StrEnum = kind(raw)
    return member


SCALARS: Mapping[Any, Callable[[Any, object, str], Any]] = {
    str: lambda kind, raw, path: expect(raw, str, path, "a string"),
    bool: lambda kind, raw, path: expect(raw, bool, path, "true or false"),
    int: expect_int,
    Decimal: expect_decimal,
    StrEnum: expect_enum,
}


def scalar_kind(kind: Any) -> Any:
    return StrEnum if issubclass(kind, StrEnum) else kind


def shown(raw: object) -> str:
    """A value as a message may show it: short."""
    text = repr(raw)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check(spec: Spec) -> None:
    """The rules that one field alone cannot hold."""
    check_sizes(spec)
    check_sources(spec)
    check_transfer(spec)
    check_budget(spec)


def check_sizes(spec: Spec) -> None:
    sizes = {
        "replicas": spec.replicas,
        "gpusPerPod": spec.gpus_per_pod,
        "tensorParallelSize": spec.tensor_parallel_size,
        "pipelineParallelSize": spec.pipeline_parallel_size,
    }
    for name, size in sizes.items():
        if size < 1:
            raise SpecError(f"spec.{name}", f"{size} is below 1")
    devices = spec.replicas * spec.gpus_per_pod
    if spec.tensor_parallel_size * spec.pipeline_parallel_size != devices:
        raise SpecError(
            "spec.tensorParallelSize",
            f"tensorParallelSize {spec.tensor_parallel_size} x pipelineParallelSize {spec.pipeline_parallel_size} "
            f"must equal replicas {spec.replicas} x gpusPerPod {spec.gpus_per_pod} = {devices}",
        )


def check_sources(spec: Spec) -> None:
    for name, value in (("model", spec.model), ("image", spec.image)):
        if not value:
            raise SpecError(f"spec.{name}", "must not be empty")
    accelerator = spec.accelerator
    if accelerator.resource_name and accelerator.resource_claim_template_name:
        raise SpecError("spec.accelerator", "set resourceName or resourceClaimTemplateName, not both")


def check_transfer(spec: Spec) -> None:
    if spec.kv_transfer is not None and spec.role == "both":
        raise SpecError("spec.kvTransfer", "only with role prefill or decode; remove it or set spec.role")


def check_budget(spec: Spec) -> None:
    budget = spec.pod_disruption_budget
    if budget.min_available is not None and budget.max_unavailable is not None:
        raise SpecError("spec.podDisruptionBudget", "set minAvailable or maxUnavailable, not both")
