"""A release as its files: the same bytes from every machine, checksums that hold, parts that work where they land."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from charts.rendering import VALUES, run

pytestmark = pytest.mark.images

Package = Callable[..., subprocess.CompletedProcess[str]]
REPOSITORY = Path(__file__).resolve().parents[2]
MAX_IMAGE_MB = 120


def contents(folder: Path) -> dict[str, str]:
    """Each file's hash."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_another_folder_time_zone_and_umask_give_the_same_bytes(
    release: Path, package: Package, source: Path, tmp_path: Path
) -> None:
    """A checkout made under a strict umask, packaged from elsewhere. (Images from nothing: tests/images.)"""
    before = os.umask(0o077)
    try:
        other = shutil.copytree(source, tmp_path / "a checkout", symlinks=True)
        for path in other.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o700 if path.is_dir() or path.stat().st_mode & 0o100 else 0o600)
        environment = os.environ | {"TZ": "Asia/Kathmandu", "LC_ALL": "C"}
        done = package("--source", other, "--out", tmp_path / "out", cwd="/", env=environment)
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(release)


def test_there_is_a_chart_an_image_a_wheel_and_a_bill_for_each(release: Path) -> None:
    names = {folder.name: {path.name for path in folder.iterdir()} for folder in release.iterdir() if folder.is_dir()}
    charts = {path.name for path in (REPOSITORY / "charts").iterdir() if path.is_dir()}
    assert names["charts"] == {f"{chart}-0.1.0.tgz" for chart in charts}
    assert names["images"] == {"llmfleet-0.1.0.tar", "engine-sim-0.1.0.tar", "redis-7.0.tar", "vllm-cpu-0.32.0.tar"}
    assert names["python"] == {"llmfleet-0.1.0-py3-none-any.whl"}
    stems = {name.rpartition(".")[0] for name in names["images"] | names["python"]}
    assert names["sbom"] == {f"{stem}.cdx.json" for stem in stems}


def test_the_checksums_name_every_file_and_hold(release: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=release, check=True)
    named = {line.split("  ", 1)[1] for line in (release / "SHA256SUMS").read_text().splitlines()}
    assert named == set(contents(release)) - {"SHA256SUMS"}


def test_everybody_may_read_what_is_released(release: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in release.rglob("*") if path.is_file()} == {0o644}


def test_no_image_is_larger_than_promised(release: Path) -> None:
    sizes = {path.name: path.stat().st_size / 1e6 for path in (release / "images").iterdir()}
    assert not {name: size for name, size in sizes.items() if size > MAX_IMAGE_MB}


def test_an_image_that_is_too_large_is_named_and_the_last_package_stays(
    package: Package, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "package"
    out.mkdir()
    (out / "SHA256SUMS").write_text("of the last time\n")
    done = package("--source", source, "--out", out, "--max-image-mb", "30")
    assert done.returncode == 1
    assert "image llmfleet-0.1.0 has" in done.stderr and "more than 30 MB" in done.stderr
    assert contents(tmp_path) == {"package/SHA256SUMS": hashlib.sha256(b"of the last time\n").hexdigest()}


def test_the_umbrella_renders_from_its_archive_what_it_renders_from_its_folder(release: Path, source: Path) -> None:
    values = f"--values={VALUES / 'dev.yaml'}"
    packed = run(["template", "demo", str(release / "charts/llmfleet-0.1.0.tgz"), values, "--include-crds"])
    assert packed == run(["template", "demo", str(source / "charts/llmfleet"), values, "--include-crds"])
    assert "kind: CustomResourceDefinition" in packed and "kind: Deployment" in packed


def test_the_wheel_holds_every_file_of_both_packages(release: Path, source: Path) -> None:
    with zipfile.ZipFile(release / "python/llmfleet-0.1.0-py3-none-any.whl") as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    controllers = source / "controllers"
    assert packed == {str(path.relative_to(controllers)) for path in controllers.rglob("*") if path.is_file()}


def test_the_wheel_runs_where_it_was_installed(release: Path, tmp_path: Path) -> None:
    (wheel,) = (release / "python").iterdir()
    uv = [Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--python", sys.executable]
    subprocess.run([*uv, "--no-deps", "--offline", "--target", tmp_path, wheel], check=True)
    ask = "import llmfleet.cli, sys; print(llmfleet.cli.__file__); llmfleet.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", ask, "--help"],
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path)) and "router" in done.stdout
