"""The oldest Kubernetes that the charts allow and the newest know every kind and field of every profile.

In: schemas of both (`ci/tools/kube-schemas`), read by kubeconform. What the operator makes of the instances is looked
at too, and the CRDs. Kinds that no Kubernetes brings (the project's own and those of a Prometheus operator) are left to
the real apiserver of test_apiserver.py.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.engines import engines
from charts.rendering import CHARTS, PROFILES, PROMETHEUS_OPERATOR, ROOT, Object, RenderError, helm, render, run

pytestmark = pytest.mark.helm

FOLDER = ROOT / "ci/tools/kube-schemas"
VERSIONS = tuple(json.loads((FOLDER / "versions.json").read_text()))
OTHERS = ("LLMCluster", "LLMClusterAutoscaler", "PodMonitor", "PrometheusRule")
# What no profile switches on.
MORE: Mapping[str, Any] = {
    "controllers": {"networkPolicy": {"enabled": True, "defaultDeny": True}},
    "fleet": {"networkPolicy": {"enabled": True, "defaultDeny": True}},
    "monitoring": {"enabled": True},
}


@cache
def schemas() -> Path:
    """The folder of schemas, made on first use."""
    found = subprocess.run([FOLDER / "fetch"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(found.stdout.strip())


def findings(version: str, folder: Path) -> dict[str, list[str]]:
    """What kubeconform has to say about each file of a folder; it is told of one version and reaches nothing else."""
    location = f"{schemas() / version}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"
    command = [helm("kubeconform"), "-strict", "-output=json", "-verbose", f"-schema-location={location}"]
    done = subprocess.run(
        [*command, f"-skip={','.join(OTHERS)}", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, list[str]] = {path.stem: [] for path in folder.iterdir()}
    for row in json.loads(done.stdout)["resources"]:
        expected = "statusSkipped" if row["kind"] in OTHERS else "statusValid"
        if row["status"] not in (expected, "statusEmpty"):
            found[Path(row["filename"]).stem].append(f"{row['kind']}/{row['name']}: {row['msg']}")
    return found


@cache
def rendered() -> dict[str, list[Object]]:
    """Every profile, and one with what none of them switches on."""
    return {profile: render(profile) for profile in PROFILES} | {
        "more": render("multi-tenant", MORE, apis=PROMETHEUS_OPERATOR)
    }


@pytest.fixture(scope="module", params=VERSIONS)
def looked_at(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What one version says of every profile, and of the CRDs."""
    folder = tmp_path_factory.mktemp(request.param)
    for name, objects in rendered().items():
        with (folder / f"{name}.yaml").open("w") as file:
            yaml.dump_all([*objects, *engines(objects)], file, Dumper=yaml.CSafeDumper)
    crds = (CHARTS / "llmfleet-crds" / "crds").glob("*.yaml")
    (folder / "crds.yaml").write_text("\n---\n".join(path.read_text() for path in crds))
    return findings(request.param, folder)


@pytest.mark.parametrize("file", [*PROFILES, "more", "crds"])
def test_a_version_knows_every_kind_and_field_of_a_profile(looked_at: dict[str, list[str]], file: str) -> None:
    assert looked_at[file] == []


def test_every_version_gets_the_same_objects() -> None:
    for profile in ("dev", "production-disaggregated"):
        assert render(profile, kubernetes=VERSIONS[0]) == render(profile)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"apiVersion": "autoscaling/v2beta2"}, "could not find schema"),
        ({"spec": {"maxReplicas": "ten"}}, "got string, want integer"),
        ({"spec": {"maxReplicas": 2, "sixth": 1}}, "additional properties 'sixth' not allowed"),
        ({"spec": {"minReplicas": 2}}, "missing properties"),
    ],
)
def test_what_a_version_does_not_know_is_found(
    version: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    scaler: dict[str, Any] = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler"}
    scaler |= {"metadata": {"name": "planted"}} | change
    (tmp_path / "planted.yaml").write_text(yaml.dump(scaler))
    [found] = findings(version, tmp_path)["planted"]
    assert message in found


def test_a_field_that_came_after_the_oldest_version_is_found_there_only(tmp_path: Path) -> None:
    container = {"name": "c", "image": "i", "restartPolicyRules": [{"action": "Restart"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}}
    (tmp_path / "pod.yaml").write_text(yaml.dump(pod))
    oldest, newest = VERSIONS
    assert "restartPolicyRules" in findings(oldest, tmp_path)["pod"][0]
    assert findings(newest, tmp_path)["pod"] == []


# What CEL in a CRD may call in Kubernetes 1.32: CEL's own macros and functions, and Kubernetes' quantities (1.29).
# Later ones (two variables in a comprehension, `semver`) are left out on purpose, and so is what no rule needs yet.
CEL = {
    *("all", "exists", "exists_one", "filter", "has", "hasValue", "map", "size", "value"),
    *("contains", "double", "endsWith", "int", "matches", "replace", "split", "startsWith", "string", "type"),
    *("compareTo", "isGreaterThan", "isLessThan", "isQuantity", "quantity"),
}


def rules(schema: Any) -> Iterator[str]:
    """Every CEL expression below a schema."""
    if isinstance(schema, dict):
        for rule in schema.get("x-kubernetes-validations", []):
            yield from (rule[word] for word in ("rule", "messageExpression") if word in rule)
        for part in schema.values():
            yield from rules(part)


def calls(rule: str) -> set[str]:
    """The functions that an expression calls; what stands in quotes is text."""
    return set(re.findall(r"\b([a-zA-Z]\w*)\(", re.sub(r"'[^']*'|\"[^\"]*\"", "''", rule)))


def test_the_rules_of_the_crds_call_only_what_the_oldest_version_knows() -> None:
    crds = [yaml.safe_load(path.read_text()) for path in (CHARTS / "llmfleet-crds" / "crds").glob("*.yaml")]
    found = [rule for crd in crds for version in crd["spec"]["versions"] for rule in rules(version["schema"])]
    assert len(found) > 100
    assert set[str]().union(*map(calls, found)) - CEL == set()


def test_a_function_that_is_newer_is_found() -> None:
    assert calls("self.x.transformList(i, v, v) && 'f(' != self.y") - CEL == {"transformList"}


def minor(version: str) -> str:
    return ".".join(version.removeprefix("v").split(".")[:2])


def test_the_oldest_version_is_the_one_the_charts_begin_with_and_the_newest_the_one_the_cluster_runs() -> None:
    begins = {yaml.safe_load(path.read_text())["kubeVersion"] for path in CHARTS.glob("llmfleet*/Chart.yaml")}
    assert begins == {f">={minor(VERSIONS[0])}.0-0"}
    assert json.loads((ROOT / "ci/tools/kubernetes/tool.json").read_text())["version"] == VERSIONS[1]


def test_helm_refuses_a_cluster_that_is_older() -> None:
    arguments = ["template", "demo", str(CHARTS / "llmfleet"), f"--values={ROOT}/values/dev.yaml"]
    with pytest.raises(RenderError, match=re.escape("chart requires kubeVersion: >=1.32.0-0")):
        run([*arguments, "--kube-version=1.31.9"])
    run([*arguments, "--kube-version=1.32.0"])


def fetch_program() -> Any:
    """The program that makes the schemas."""
    loader = SourceFileLoader("kube_schemas_fetch", str(FOLDER / "fetch"))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    program = module_from_spec(spec)
    loader.exec_module(program)
    return program


def test_another_checksum_than_the_pinned_is_refused_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fetch_program()
    module = {"Version": VERSIONS[0], "Sum": "h1:other", "GoModSum": "h1:other"}
    monkeypatch.setattr(program, "download", lambda version: module)
    with pytest.raises(program.FetchError, match=r"versions\.json says .* got \['h1:other', 'h1:other'\]"):
        program.ensure(tmp_path)
    assert not (tmp_path / program.key()).exists()
