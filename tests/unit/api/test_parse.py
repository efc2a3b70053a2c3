"""A spec parses to typed values, or to one sentence that names the field and says what to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.api.parse import SpecError, parse_spec, schema_of
from llmfleet.api.types import CacheType, Role, Spec

CRD = Path(__file__).parents[3] / "charts/llmfleet-crds/crds/serving.ai_llmclusters.yaml"
SMALLEST: Mapping[str, Any] = {
    "model": "org/model",
    "image": "vllm:1",
    "replicas": 2,
    "gpusPerPod": 4,
    "tensorParallelSize": 8,
}


def test_the_smallest_spec_has_the_defaults_of_the_crd() -> None:
    spec = parse_spec(SMALLEST)
    assert (spec.role, spec.names, spec.slots) == (Role.BOTH, ("org/model",), 256)
    assert (spec.lifecycle.drain_timeout_seconds, spec.storage.model_cache.type) == (300, CacheType.EMPTY_DIR)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": None}, "spec.model: is required"),
        ({"model": ""}, "spec.model: must not be empty"),
        ({"replicas": "2"}, "spec.replicas: must be an integer, not '2'"),
        ({"replicas": True}, "spec.replicas: must be an integer, not True"),
        ({"replicas": 2.5}, "spec.replicas: must be an integer, not 2.5"),
        ({"replicas": 0, "gpusPerPod": 0}, "spec.replicas: 0 is below 1"),
        ({"role": "leader"}, "spec.role: must be one of both, prefill, decode, not 'leader'"),
        ({"resources": []}, "spec.resources: must be an object, not []"),
        ({"servedModelNames": "x"}, "spec.servedModelNames: must be a list, not 'x'"),
        ({"servedModelNames": ["a", 1]}, "spec.servedModelNames[1]: must be a string, not 1"),
        (
            {"inferenceArgs": {"gpuMemoryUtilization": "lots"}},
            "spec.inferenceArgs.gpuMemoryUtilization: must be a decimal string such as \"0.90\", not 'lots'",
        ),
        (
            {"inferenceArgs": {"gpuMemoryUtilization": "NaN"}},
            "spec.inferenceArgs.gpuMemoryUtilization: must be a finite number, not 'NaN'",
        ),
        (
            {"inferenceArgs": {"lora": {"adapters": [{"name": "a"}]}}},
            "spec.inferenceArgs.lora.adapters[0].path: is required",
        ),
        ({"kvTransfer": {}}, "spec.kvTransfer: only with role prefill or decode; remove it or set spec.role"),
        (
            {"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}},
            "spec.podDisruptionBudget: set minAvailable or maxUnavailable, not both",
        ),
        (
            {"accelerator": {"resourceName": "x/y", "resourceClaimTemplateName": "z"}},
            "spec.accelerator: set resourceName or resourceClaimTemplateName, not both",
        ),
        (
            {"tensorParallelSize": 4},
            "spec.tensorParallelSize: tensorParallelSize 4 x pipelineParallelSize 1 "
            "must equal replicas 2 x gpusPerPod 4 = 8",
        ),
    ],
)
def test_a_wrong_field_is_named(change: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_spec({**SMALLEST, **change})
    assert str(error.value) == sentence


@pytest.mark.parametrize("raw", [None, [], "spec", 3])
def test_a_spec_that_is_no_object_is_refused(raw: object) -> None:
    with pytest.raises(SpecError, match="spec: must be an object"):
        parse_spec(raw)


def test_null_is_the_same_as_absent() -> None:
    assert parse_spec({**SMALLEST, "kvTransfer": None, "lifecycle": {"warmup": None}}) == parse_spec(SMALLEST)


def test_an_empty_accelerator_name_is_kept_apart_from_none() -> None:
    assert parse_spec(SMALLEST).accelerator.resource_name is None
    assert parse_spec({**SMALLEST, "accelerator": {"resourceName": ""}}).accelerator.resource_name == ""


def test_unknown_fields_are_left_to_the_crd() -> None:
    assert parse_spec({**SMALLEST, "future": {"x": 1}}) == parse_spec(SMALLEST)


def test_decimals_stay_exact() -> None:
    spec = parse_spec({**SMALLEST, "update": {"canary": {"maxErrorRatio": "0.001", "maxTTFTRatio": "2"}}})
    assert (spec.update.canary.max_error_ratio, spec.update.canary.max_ttft_ratio) == (Decimal("0.001"), Decimal(2))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(name=st.sampled_from([name for _, name, _ in schema_of(Spec)]), value=JSON)
def test_no_value_of_any_field_does_worse_than_a_spec_error(name: str, value: object) -> None:
    try:
        parse_spec({**SMALLEST, name: value})
    except SpecError as error:
        assert error.path.startswith("spec")


def parser_fields(kind: Any, path: str = "") -> Iterator[str]:
    """Every path the parser reads; open objects end a path."""
    for _, name, hint in schema_of(kind):
        yield f"{path}.{name}"
        inner = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
        for part in inner:
            yield from parser_fields(part, f"{path}.{name}" + ("[]" if get_origin(hint) is tuple else ""))


def crd_fields(schema: Mapping[str, Any], known: frozenset[str], path: str = "") -> Iterator[str]:
    """Every path of the CRD, not looking into objects that are Kubernetes' own (which the parser keeps as they are)."""
    for name, field in (schema.get("properties") or {}).items():
        here = f"{path}.{name}"
        yield here
        items = field.get("items")
        if items is not None and any(other.startswith(f"{here}[].") for other in known):
            yield from crd_fields(items, known, f"{here}[]")
        if any(other.startswith(f"{here}.") for other in known):
            yield from crd_fields(field, known, here)


def crd_spec() -> Mapping[str, Any]:
    crd = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    spec: Mapping[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def test_the_parser_reads_exactly_the_fields_of_the_crd() -> None:
    read = frozenset(parser_fields(Spec))
    assert set(crd_fields(crd_spec(), read)) == read


def crd_defaults(schema: Mapping[str, Any]) -> Any:
    """What the API server fills in for an absent object."""
    if schema.get("type") != "object":
        return schema.get("default")
    if "default" not in schema and schema is not None and not schema.get("properties"):
        return None
    properties = schema.get("properties") or {}
    filled = {name: crd_defaults(field) for name, field in properties.items() if "default" in field}
    return {**filled, **(schema.get("default") or {})}


def test_the_parsers_defaults_are_the_crds() -> None:
    defaulted = {**crd_defaults(crd_spec()), **SMALLEST}
    assert parse_spec(defaulted) == parse_spec(SMALLEST)
