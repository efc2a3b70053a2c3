"""The CRDs of other projects are pinned by version and checksum, and nothing else gets into the folder."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from charts.rendering import ROOT

TOOL = ROOT / "ci/tools/recipe-crds"
MODULE = {"Path": "example.com/m", "Version": "v1.0.0", "Sum": "h1:right", "GoModSum": "h1:mod"}


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with a folder of pins of its own and a Go client that hands out one module."""
    loader = SourceFileLoader("recipe_crds_fetch", str(TOOL / "fetch"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    program: Any = importlib.util.module_from_spec(spec)
    loader.exec_module(program)
    pins = tmp_path / "pins"
    pins.mkdir()
    (pins / "crds.json").write_text(json.dumps({"example.com/m": ["crds/a.yaml"]}))
    (pins / "go.mod").write_text("module x\n\nrequire (\n\texample.com/m v1.0.0\n)\n")
    (pins / "go.sum").write_text("example.com/m v1.0.0 h1:right\nexample.com/m v1.0.0/go.mod h1:mod\n")
    (pins / "fetch").write_text("")
    archive = tmp_path / "m.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("example.com/m@v1.0.0/crds/a.yaml", "kind: A\n")
        target.writestr("example.com/m@v1.0.0/crds/b.yaml", "kind: B\n")
    monkeypatch.setattr(program, "FOLDER", pins)
    monkeypatch.setattr(program, "download", lambda scratch, pinned: [MODULE | {"Zip": str(archive)}])
    return program


def test_only_the_files_that_are_named_are_taken_out(fetch: ModuleType, tmp_path: Path) -> None:
    folder = fetch.ensure(tmp_path / "cache")
    assert [(one.name, one.read_text()) for one in folder.iterdir()] == [
        ("example.com_m@v1.0.0_crds_a.yaml", "kind: A\n")
    ]
    assert fetch.ensure(tmp_path / "cache") == folder


def test_another_checksum_is_refused_and_leaves_no_folder(fetch: ModuleType, tmp_path: Path) -> None:
    (fetch.FOLDER / "go.sum").write_text("example.com/m v1.0.0 h1:wrong\nexample.com/m v1.0.0/go.mod h1:mod\n")
    with pytest.raises(fetch.FetchError, match=r"go\.sum has no line 'example\.com/m v1\.0\.0 h1:right'"):
        fetch.ensure(tmp_path / "cache")
    assert not (tmp_path / "cache" / fetch.key()).exists()


def test_another_version_is_another_folder(fetch: ModuleType) -> None:
    before = fetch.key()
    (fetch.FOLDER / "go.mod").write_text("module x\n\nrequire (\n\texample.com/m v1.0.1\n)\n")
    assert (fetch.versions(), fetch.key() != before) == ({"example.com/m": "v1.0.1"}, True)


def test_every_module_is_pinned_named_and_summed_and_no_other() -> None:
    named = set(json.loads((TOOL / "crds.json").read_text()))
    lines = [line.split() for line in (TOOL / "go.sum").read_text().splitlines()]
    summed = {(path, version) for path, version, _ in lines if not version.endswith("/go.mod")}
    pinned = {
        tuple(line.split())
        for line in (TOOL / "go.mod").read_text().splitlines()
        if line.startswith("\t") and " v" in line
    }
    assert summed == pinned
    assert {path for path, _ in pinned} == named
