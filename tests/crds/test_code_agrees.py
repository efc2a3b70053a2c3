"""The operator's types, parser and word lists say the same as the CRD."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml

from crds.crd_objects import CLUSTERS, cluster
from crds.test_cluster_acceptance import ACCEPTED
from fakes.apiserver import Apiserver
from llmfleet.api.parse import parse_spec, schema_of
from llmfleet.api.reasons import DecisionReason, Reason
from llmfleet.api.types import Spec
from llmfleet.deploy.flags import OWNED_FLAGS, OWNED_SHORT
from llmfleet.deploy.objects.environment import OWNED_ENV, OWNED_PREFIX

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "llmfleet-crds"
OWNED = yaml.safe_load((CHART / "schema" / "owned.yaml").read_text())


@pytest.mark.apiserver
@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case[0])
def test_the_parser_reads_what_is_accepted_and_fills_the_same_defaults(
    server: Apiserver, case: tuple[str, dict[str, Any]]
) -> None:
    written = cluster(case[1])
    stored = server.call("POST", CLUSTERS, written, params={"dryRun": "All"}).body
    assert parse_spec(stored["spec"]) == parse_spec(written["spec"])


def test_the_operator_owns_the_same_flags() -> None:
    flags = {name for flag in OWNED["flags"] for name in (flag["flag"], *flag.get("aliases", []))}
    assert set(OWNED_FLAGS) == flags
    assert set(OWNED_SHORT) == {flag["short"] for flag in OWNED["flags"] if "short" in flag}


def test_the_operator_owns_the_same_variables() -> None:
    assert set(OWNED_ENV) == set(OWNED["env"])
    assert OWNED["envPrefix"] == OWNED_PREFIX


def test_the_types_have_the_fields_of_the_schema() -> None:
    crd = yaml.safe_load((CHART / "crds" / "serving.ai_llmclusters.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert list(differences(Spec, schema, "spec")) == []


def differences(kind: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Fields that only one side has, wherever the types go as deep as the schema."""
    declared = {name: hint for _, name, hint in schema_of(kind)}
    described = schema["properties"]
    yield from (f"{path}.{name}" for name in declared.keys() ^ described.keys())
    for name in declared.keys() & described.keys():
        inner = dataclass_in(declared[name])
        below = described[name].get("items", described[name])
        if inner is not None and "properties" in below:
            yield from differences(inner, below, f"{path}.{name}")


def dataclass_in(hint: Any) -> Any:
    """The dataclass of `X`, `X | None` or `tuple[X, ...]`, if there is one."""
    if get_origin(hint) in (types.UnionType, tuple):
        return next((found for one in get_args(hint) if (found := dataclass_in(one))), None)
    return hint if is_dataclass(hint) else None


@pytest.mark.parametrize(("page", "words"), [("llmcluster", Reason), ("llmclusterautoscaler", DecisionReason)])
def test_the_page_names_every_reason(page: str, words: type[Reason] | type[DecisionReason]) -> None:
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
    status = text.split("\n## Status\n")[1].split("<!-- generated")[0]
    named = set(re.findall(r"`([A-Z][A-Za-z]+)`", status))
    assert {str(word) for word in words} <= named
