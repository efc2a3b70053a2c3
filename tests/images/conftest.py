"""Fixtures of the image tests: the archives as a person builds them, and containers without an engine."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "ci" / "images")]

from image_driver import NAMES, REPOSITORY, Built, Container, build  # noqa: E402


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what images are made from, so that somebody may go on editing while the tests run."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("controllers", "images", "requirements"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", copy)
    return copy


@pytest.fixture(scope="session")
def built(source: Path) -> dict[str, Built]:
    """Every image, built in the user's cache (nothing to do when it is there)."""
    return {name: Built(*line) for name, line in zip(NAMES, build(source, *NAMES).lines, strict=True)}


@pytest.fixture(scope="session")
def containers(built: dict[str, Built], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Container]]:
    """A way to run commands in each image: its files, its user, a read-only root."""
    assert os.geteuid() == 0, "running an image's files as its user takes chroot: run these tests as root"
    yield {name: Container(image, tmp_path_factory.mktemp(name) / "root") for name, image in built.items()}
