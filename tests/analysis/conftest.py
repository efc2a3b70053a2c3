"""Fixtures of the static analysis: checkov in an environment of its own, and what it says of the rendered charts."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.engines import engines
from charts.rendering import PROFILES, render

LOCK = Path(__file__).with_name("requirements.txt")
# Whatever the charts do: proof that the analysis looks, in the same run.
PLANTED = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "planted", "namespace": "team-a"},
    "spec": {
        "hostNetwork": True,
        "containers": [{"name": "c", "image": "i:latest", "securityContext": {"privileged": True}}],
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check that failed for one resource."""

    check: str
    title: str
    resource: str


def cache_folder() -> Path:
    """Return the cache as every tool of this checkout names it."""
    general = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmfleet"
    return Path(os.environ.get("LLMFLEET_CACHE") or general)


@pytest.fixture(scope="session")
def checkov() -> Path:
    """The Python that has checkov: installed by hash once per lock, away from the project's own packages."""
    key = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = cache_folder() / "checkov" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            install(folder.with_name(f".{key}.part")).rename(folder)
    return folder / "bin/python"


def install(folder: Path) -> Path:
    """Make the environment; only its `bin/python` is used, so it may be moved."""
    shutil.rmtree(folder, ignore_errors=True)
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    sync = [uv, "pip", "install", "--quiet", "--python", folder / "bin/python", "--require-hashes", "-r", LOCK]
    subprocess.run(sync, check=True)
    return folder


@pytest.fixture(scope="session")
def findings(checkov: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    """What fails in any profile and in what the operator makes of it; the analysis cannot reach a network."""
    releases = [render(profile) for profile in PROFILES]
    every = [one for objects in releases for one in [*objects, *engines(objects)]]
    rendered = {json.dumps(one, sort_keys=True): one for one in every}  # each distinct object is looked at once
    folder = tmp_path_factory.mktemp("rendered")
    with (folder / "all.yaml").open("w") as file:
        yaml.dump_all([*rendered.values(), PLANTED], file, Dumper=yaml.CSafeDumper)
    offline = ["unshare", "--net"] if os.geteuid() == 0 else []
    command = [
        *offline,
        checkov,
        "-P",
        "-m",
        "checkov.main",
        "--file",
        folder / "all.yaml",
        "--framework",
        "kubernetes",
    ]
    done = subprocess.run(
        [*map(str, command), "--skip-download", "--quiet", "--compact", "--soft-fail", "--output", "json"],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    return sorted({finding(row) for row in report["results"]["failed_checks"]}, key=repr)


def finding(row: dict[str, Any]) -> Finding:
    """Name the resource as we do: the report says Kind.namespace.name."""
    kind, _, name = row["resource"].split(".", 2)
    return Finding(check=row["check_id"], title=row["check_name"], resource=f"{kind}/{name}")
