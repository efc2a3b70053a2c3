"""`llmfleet apply-crds`: creates, updates, leaves alone what is right, and says what it does not take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.apiserver import ROOT, Apiserver
from fakes.shared import new_namespace
from unit.operator.test_permissions import account

CRDS = ROOT / "charts" / "llmfleet-crds" / "crds"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAME = "probes.serving.ai"


def definition(*fields: str) -> dict[str, Any]:
    properties = {name: {"type": "string", "maxLength": 8} for name in fields}
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": "Probe", "listKind": "ProbeList", "plural": "probes", "singular": "probe"}
    spec = {"group": "serving.ai", "names": names, "scope": "Namespaced", "versions": [version]}
    head = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": NAME}}
    return {**head, "spec": spec}


def apply(kubeconfig: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmfleet", "apply-crds", "--from", str(folder), "--kubeconfig", str(kubeconfig)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=400)


def write(folder: Path, *documents: Any) -> Path:
    (folder / "file.yaml").write_text(yaml.safe_dump_all(documents))
    return folder


@pytest.mark.apiserver
def test_a_kind_is_created_then_updated_then_left_alone(server: Apiserver, tmp_path: Path) -> None:
    said = []
    for fields in (["one"], ["one", "two"], ["one", "two"]):
        done = apply(server.kubeconfig, write(tmp_path, definition(*fields)))
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip())
    stored = server.call("GET", f"{DEFINITIONS}/{NAME}").body
    assert said == [f"{NAME}: created", f"{NAME}: updated", f"{NAME}: already right"]
    properties = stored["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert set(properties) == {"one", "two"}
    server.call("DELETE", f"{DEFINITIONS}/{NAME}")


@pytest.mark.apiserver
def test_the_charts_files_need_the_rights_of_the_table_and_no_more(server: Apiserver, tmp_path: Path) -> None:
    kubeconfig = account(server, new_namespace(server, "crds"), "apply-crds", tmp_path)
    first, second = apply(kubeconfig, CRDS), apply(kubeconfig, CRDS)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert second.stdout.count("already right") == 2


@pytest.mark.apiserver
def test_a_refused_kind_ends_the_upgrade_with_the_apiservers_words(server: Apiserver, tmp_path: Path) -> None:
    broken = definition("one")
    broken["spec"]["scope"] = "Everywhere"
    done = apply(server.kubeconfig, write(tmp_path, broken))
    assert done.returncode == 1
    assert "spec.scope" in done.stderr


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ((), "no *.yaml file with a CustomResourceDefinition"),
        (({"apiVersion": "v1", "kind": "Secret"},), "file.yaml holds something else than"),
        ((definition("one") | {"spec": {"group": "example.com"}},), "that is not of the group serving.ai"),
        (("text",), "file.yaml holds something else than"),
    ],
)
def test_a_folder_with_anything_else_is_refused(tmp_path: Path, documents: Sequence[Any], message: str) -> None:
    done = apply(tmp_path / "none", write(tmp_path, *documents))
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
