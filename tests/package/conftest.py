"""Fixtures of the release tests: a package as a person makes it, and the published schema of CycloneDX."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "ci" / "images")]

INPUTS = ("controllers", "images", "requirements", "charts", "pyproject.toml", "README.md", "LICENSE")

Package = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def package() -> Package:
    """Run ci/package."""

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [str(REPOSITORY / "ci/package"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, **options)

    return run


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a release is made from, so that somebody may go on editing while the tests run."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in INPUTS:
        if (given := REPOSITORY / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(given, copy / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copy(given, copy / name)
    return copy


@pytest.fixture(scope="session")
def release(package: Package, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of that copy."""
    out = tmp_path_factory.mktemp("release") / "package"
    done = package("--source", source, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def valid_bill() -> Callable[[Any], None]:
    """Check a document against the CycloneDX schema that its Python library ships; fetched once, by hash."""
    folder = schemas() / "cyclonedx/schema/_res"
    read = {path.name: json.loads(path.read_text()) for path in folder.glob("*.schema.json")}
    registry: Registry[Any] = Registry(
        retrieve=lambda uri: Resource.from_contents(read[uri.rpartition("/")[2]])  # type: ignore[call-arg]
    )
    schema = read["bom-1.6.SNAPSHOT.schema.json"]
    validator = jsonschema.Draft7Validator(schema, registry=registry)

    def check(document: Any) -> None:
        problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
        assert not problems, "\n".join(problems)

    return check


def schemas() -> Path:
    """Have the library's files in the cache, below a folder named after its lock; its code is never run."""
    from imagebuild import store

    lock = Path(__file__).with_name("requirements.txt")
    folder = store.cache_folder() / "schemas" / hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    if not folder.exists():
        scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
        uv = [Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--python", sys.executable]
        command = [*uv, "--target", scratch, "--no-deps", "--require-hashes", "--requirement", lock]
        subprocess.run(command, check=True)
        scratch.rename(folder)
    return folder
