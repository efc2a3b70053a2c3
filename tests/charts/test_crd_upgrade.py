"""The chart of the CRDs: clean for both Helms, and the opt-in Job that brings them up to date."""

from __future__ import annotations

import pytest

from charts.rendering import CHARTS, Object, render, run, title

pytestmark = pytest.mark.helm

ENABLED = {"upgrade": {"enabled": True}, "global": {"imageRegistry": "registry.example.com"}}
FILES = {path.name: path.read_text() for path in (CHARTS / "llmfleet-crds" / "crds").glob("*.yaml")}


def upgrade(binary: str = "helm") -> dict[str, Object]:
    objects = render("", ENABLED, chart="llmfleet-crds", binary=binary)
    return {title(obj): obj for obj in objects if obj["kind"] != "CustomResourceDefinition"}


@pytest.mark.parametrize("binary", ["helm", "helm3"])
@pytest.mark.parametrize("switch", ["true", "false"])
def test_the_chart_is_clean_under_strict_lint(binary: str, switch: str) -> None:
    chart = str(CHARTS / "llmfleet-crds")
    values = [f"--set=upgrade.enabled={switch}", "--set=global.imageRegistry=registry.example.com"]
    assert "0 chart(s) failed" in run(["lint", "--strict", *values, chart], binary=binary)


def test_without_being_asked_the_chart_is_its_crds_and_nothing_else() -> None:
    assert {obj["kind"] for obj in render("", {}, chart="llmfleet-crds")} <= {"CustomResourceDefinition"}


@pytest.mark.parametrize("binary", ["helm", "helm3"])
def test_the_job_gets_the_very_files(binary: str) -> None:
    found = upgrade(binary)["ConfigMap/demo-crds-upgrade"]["data"]
    assert {name: text.strip() for name, text in found.items()} == {name: text.strip() for name, text in FILES.items()}
    assert sum(map(len, found.values())) < 1_000_000


def test_everything_runs_before_the_upgrade_rights_first() -> None:
    weights = {}
    for name, obj in upgrade().items():
        annotations = obj["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "pre-upgrade", name
        weights[name.split("/")[0]] = int(annotations["helm.sh/hook-weight"])
    assert weights["Job"] > weights["ClusterRoleBinding"] > weights["ClusterRole"]
    assert weights["Job"] > max(weights["ConfigMap"], weights["ServiceAccount"])


def test_the_job_runs_the_command_that_applies_them() -> None:
    spec = upgrade()["Job/demo-crds-upgrade"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["args"] == ["apply-crds", "--from=/crds", "--timeout=60"]
    assert container["volumeMounts"] == [{"name": "crds", "mountPath": "/crds", "readOnly": True}]
    assert spec["volumes"] == [{"name": "crds", "configMap": {"name": "demo-crds-upgrade"}}]
