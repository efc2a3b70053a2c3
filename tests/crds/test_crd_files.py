"""The CRD files themselves: generated, small, closed, bounded, described, and one spec in both kinds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import make_crds
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "llmfleet-crds"
FILES = sorted((CHART / "crds").glob("*.yaml"))
CRDS: dict[str, dict[str, Any]] = {file.name: yaml.safe_load(file.read_text()) for file in FILES}
LARGEST = 200_000
OPEN = ("podTemplate", "extraConfig")
# Where Kubernetes' own shapes begin: below these nothing is described, as Kubernetes does that.
KUBERNETES = (
    "scheduling.tolerations", "scheduling.affinity", "scheduling.topologySpreadConstraints", "spec.env",
    "security.podSecurityContext", "security.containerSecurityContext", "status.conditions",
)  # fmt: skip
TEMPLATES = ("instanceTemplate.spec", "prefill.instanceTemplate.spec", "decode.instanceTemplate.spec")

Node = dict[str, Any]


def root_of(crd: Node) -> Node:
    """The schema of the whole object."""
    found: Node = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every schema with its path; items are [], map values {}."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}" if path else name)
    if "items" in node:
        yield from walk(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from walk(node["additionalProperties"], f"{path}{{}}")


def every() -> list[tuple[str, str, Node]]:
    """Every schema below spec and status of both kinds."""
    nodes = [(file, path, node) for file, crd in CRDS.items() for path, node in walk(root_of(crd))]
    return [one for one in nodes if one[1].startswith(("spec", "status"))]


def offenders(wrong: Callable[[str, Node], bool]) -> list[str]:
    """Paths of both kinds that break a rule."""
    return [f"{file}: {path}" for file, path, node in every() if wrong(path, node)]


def test_the_files_are_what_the_source_makes() -> None:
    assert {path: path.read_text() for path in FILES} == make_crds.outputs(ROOT)


def test_a_changed_file_fails_the_check(tmp_path: Path) -> None:
    """The driver alone, with one module and one file."""
    modules = tmp_path / "ci" / "generate.d"
    modules.mkdir(parents=True)
    shutil.copy(ROOT / "ci" / "generate", tmp_path / "ci" / "generate")
    (modules / "make_one.py").write_text("def outputs(root):\n    return {root / 'out' / 'one.txt': 'right'}\n")
    assert run_generate(tmp_path, "--check") == (1, "out of date: out/one.txt\nrun ci/generate and commit the result\n")
    assert run_generate(tmp_path) == (0, "wrote: out/one.txt\n")
    assert run_generate(tmp_path, "--check") == (0, "")
    (tmp_path / "out" / "one.txt").write_text("wrong")
    assert run_generate(tmp_path, "--check")[0] == 1


def run_generate(root: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and output of the driver."""
    done = subprocess.run([sys.executable, root / "ci/generate", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_small_enough_for_kubectl_apply(file: Path) -> None:
    assert len(file.read_bytes()) <= LARGEST
    assert len(json.dumps(CRDS[file.name])) <= LARGEST


@pytest.mark.parametrize(
    ("file", "kind", "short"),
    [
        ("serving.ai_llmclusters.yaml", "LLMCluster", "llmc"),
        ("serving.ai_llmclusterautoscalers.yaml", "LLMClusterAutoscaler", "llmca"),
    ],
)
def test_a_kind_has_its_names(file: str, kind: str, short: str) -> None:
    spec = CRDS[file]["spec"]
    names = (spec["names"]["kind"], spec["names"]["shortNames"], spec["names"]["categories"])
    assert names == (kind, [short], ["llmfleet"])
    assert (spec["group"], spec["scope"], spec["versions"][0]["name"]) == ("serving.ai", "Namespaced", "v1alpha1")
    assert spec["versions"][0]["subresources"]["status"] == {}


def test_only_the_two_open_parts_keep_unknown_fields() -> None:
    found = {path.rsplit(".", 1)[-1] for _, path, node in every() if "x-kubernetes-preserve-unknown-fields" in node}
    assert found == set(OPEN)


def test_every_object_is_closed() -> None:
    known = {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"}
    assert offenders(lambda _, node: node.get("type") == "object" and not node.keys() & known) == []


def test_every_string_list_and_map_is_bounded() -> None:
    def unbounded(_: str, node: Node) -> bool:
        text = node.get("type") == "string" or "x-kubernetes-int-or-string" in node
        return (
            (text and not node.keys() & {"maxLength", "enum", "format"})
            or (node.get("type") == "array" and "maxItems" not in node)
            or ("additionalProperties" in node and "maxProperties" not in node)
        )

    assert offenders(unbounded) == []


def test_every_number_of_ours_has_a_lower_bound() -> None:
    def loose(path: str, node: Node) -> bool:
        number = node.get("type") in ("integer", "number")
        return number and "minimum" not in node and not is_borrowed(path) and "observedGeneration" not in path

    assert offenders(loose) == []


def test_every_field_of_ours_is_described() -> None:
    def silent(path: str, node: Node) -> bool:
        return (
            not path.endswith(("[]", "{}")) and not is_borrowed(path) and not node.get("description", "").endswith(".")
        )

    assert offenders(silent) == []


def test_borrowed_shapes_are_not_described_again() -> None:
    roots = tuple(f"{part}$" for part in KUBERNETES)
    assert offenders(lambda path, node: is_borrowed(path) and not matches(path, roots) and "description" in node) == []


def test_lists_of_named_things_are_maps() -> None:
    def flat(_: str, node: Node) -> bool:
        named = "name" in node.get("items", {}).get("required", [])
        return named and node.get("x-kubernetes-list-type") != "map"

    allowed = ("sysctls", "observedMetrics")
    assert [path for path in offenders(flat) if not path.endswith(allowed)] == []


def test_every_message_names_its_field() -> None:
    silent = [
        (path, rule["message"])
        for _, path, node in every()
        for rule in node.get("x-kubernetes-validations", [])
        if not names_field(path, node, rule)
    ]
    assert silent == []


def names_field(path: str, node: Node, rule: Node) -> bool:
    """The message holds the field's own name, that of the list or map it is in, or those of its fields."""
    where = path + rule.get("fieldPath", "")
    names = [*re.findall(r"[A-Za-z]+", where)[-2:], *node.get("properties", {})]
    return any(re.search(rf"\b{name}\b", rule["message"]) for name in names)


def test_a_template_is_the_cluster_spec_without_defaults_and_transition_rules() -> None:
    scaler = root_of(CRDS["serving.ai_llmclusterautoscalers.yaml"])["properties"]["spec"]["properties"]
    spec = root_of(CRDS["serving.ai_llmclusters.yaml"])["properties"]["spec"]
    for path in TEMPLATES:
        node: Node = {"properties": scaler}
        for name in path.split("."):
            node = node["properties"][name]
        assert undescribed(node) == undescribed(timeless(spec)), path


def undescribed(node: Node) -> Node:
    """Without the one description that differs by place."""
    return {key: value for key, value in node.items() if key != "description"}


def timeless(node: Any) -> Any:
    """Without defaults and without rules that look at the old value."""
    if isinstance(node, list):
        return [timeless(one) for one in node]
    if not isinstance(node, dict):
        return node
    kept = {key: timeless(value) for key, value in node.items() if key not in ("default", "x-kubernetes-validations")}
    rules = [rule for rule in node.get("x-kubernetes-validations", []) if "oldSelf" not in rule["rule"]]
    return {**kept, **({"x-kubernetes-validations": rules} if rules else {})}


def test_exactly_the_shape_is_immutable() -> None:
    spec = root_of(CRDS["serving.ai_llmclusters.yaml"])["properties"]["spec"]
    fixed = [path for path, node in walk(spec) if "oldSelf" in json.dumps(node.get("x-kubernetes-validations", ""))]
    assert sorted(fixed) == ["gpusPerPod", "pipelineParallelSize", "replicas", "role", "tensorParallelSize"]


def is_borrowed(path: str) -> bool:
    """Whether the path is in a shape of Kubernetes."""
    return matches(path, KUBERNETES) and not path.endswith(KUBERNETES)


def matches(path: str, parts: tuple[str, ...]) -> bool:
    """Whether any part is found in the path; `$` stands for its end."""
    return any(part in f"{path}$" for part in parts)
