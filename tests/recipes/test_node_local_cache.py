"""The copying loop of the node-local cache, run as it stands with a stand-in for the download."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from recipes.recipes import FOLDER, documents

RECIPE = FOLDER / "node-local-cache"
FETCH = """#!/bin/sh
[ ! -e "$STAND_IN/broken" ] || exit 1
mkdir -p "$4" && echo "$2" >> "$4/weights" && echo x >> "$STAND_IN/downloads"
"""


def script(root: Path) -> str:
    """One turn of the loop, with the node's folders below `root`."""
    pod = next(one for one in documents(RECIPE / "daemonset.yaml") if one["kind"] == "DaemonSet")["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert container["command"] == ["bash", "-ceu"]
    text = str(container["args"][0]).replace("sleep 60", "exit 0")
    assert "exit 0" in text
    for place in ("/models", "/etc/models", "/tmp/complete"):
        text = text.replace(f"={place}/", f"={root}{place}/").replace(f" {place}", f" {root}{place}")
    return text


def turn(root: Path) -> int:
    """Run it once; the list is the recipe's own."""
    stand_in = root / "bin"
    for folder in (stand_in, root / "etc/models", root / "models", root / "tmp"):
        folder.mkdir(parents=True, exist_ok=True)
    (stand_in / "hf").write_text(FETCH)
    (stand_in / "hf").chmod(0o755)
    environment = {**os.environ, "PATH": f"{stand_in}:{os.environ['PATH']}", "STAND_IN": str(root)}
    return subprocess.run(["bash", "-ceu", script(root)], env=environment, check=False, timeout=60).returncode


def write_list(root: Path, version: str = "") -> None:
    """The models of the recipe's ConfigMap, or the same in another version."""
    text = next(one for one in documents(RECIPE / "daemonset.yaml") if one["kind"] == "ConfigMap")["data"]["models.txt"]
    source, folder, first = text.split()
    (root / "etc/models").mkdir(parents=True, exist_ok=True)
    (root / "etc/models/models.txt").write_text(f"{source} {folder} {version or first}\n")


def downloads(root: Path) -> int:
    path = root / "downloads"
    return len(path.read_text().splitlines()) if path.exists() else 0


def mark(root: Path) -> Path:
    """The file that engines wait for, where the values look for it."""
    [values] = documents(RECIPE / "values.yaml")
    storage = values["fleet"]["engine"]["storage"]
    model = values["fleet"]["models"]["llama-3-70b"]["model"]
    assert f"{model}/.complete" in storage["preload"]["command"][-1]
    return root / model.removeprefix("/") / ".complete"


def test_a_model_is_copied_once_and_its_mark_comes_last(tmp_path: Path) -> None:
    write_list(tmp_path)
    assert turn(tmp_path) == 0
    assert mark(tmp_path).read_text().strip() == "2026-11-01"
    assert (tmp_path / "tmp/complete").exists()
    assert turn(tmp_path) == 0
    assert downloads(tmp_path) == 1


def test_a_copy_that_was_cut_short_has_no_mark_and_the_pod_is_not_ready(tmp_path: Path) -> None:
    write_list(tmp_path)
    (tmp_path / "broken").touch()
    assert turn(tmp_path) != 0
    assert not mark(tmp_path).exists()
    assert not (tmp_path / "tmp/complete").exists()
    (tmp_path / "broken").unlink()
    assert turn(tmp_path) == 0
    assert mark(tmp_path).exists()


def test_a_new_version_is_fetched_again(tmp_path: Path) -> None:
    write_list(tmp_path)
    assert turn(tmp_path) == 0
    write_list(tmp_path, "2026-12-01")
    assert turn(tmp_path) == 0
    assert (downloads(tmp_path), mark(tmp_path).read_text().strip()) == (2, "2026-12-01")


def test_the_engines_read_the_folder_that_the_daemon_set_fills() -> None:
    [values] = documents(RECIPE / "values.yaml")
    pod = next(one for one in documents(RECIPE / "daemonset.yaml") if one["kind"] == "DaemonSet")["spec"]["template"]
    paths = [volume["hostPath"]["path"] for volume in pod["spec"]["volumes"] if "hostPath" in volume]
    assert [values["fleet"]["engine"]["storage"]["modelCache"]["hostPath"]] == paths
