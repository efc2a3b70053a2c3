"""The archives as files: valid OCI layouts, the same bytes every time, no larger than they need to be."""

import hashlib
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from image_driver import NAMES, REPOSITORY, Built, build
from imagebuild import containerfile, store

pytestmark = pytest.mark.images
MAX_COMPRESSED_MB = {"llmfleet": 60, "sim": 60, "redis": 15, "vllm-cpu": 30}
EXPECTED = {
    "llmfleet": ("localhost/llmfleet/llmfleet:0.1.0", "65532:65532", ["llmfleet"]),
    "sim": ("localhost/llmfleet/engine-sim:0.1.0", "2000:0", ["vllm", "serve"]),
    "redis": ("localhost/llmfleet/redis:7.0", "999:999", ["redis-server", "--protected-mode", "no"]),
    "vllm-cpu": ("localhost/llmfleet/vllm-cpu:0.32.0", "2000:0", ["vllm", "serve"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_the_name_user_and_entry_point_the_chart_relies_on(built: dict[str, Built], name: str) -> None:
    image = built[name]
    config = image.config["config"]
    assert (image.reference, config["User"], config["Entrypoint"]) == EXPECTED[name]
    assert image.descriptor["annotations"]["io.containerd.image.name"] == image.reference


@pytest.mark.parametrize("name", NAMES)
def test_every_digest_size_and_diff_id_in_an_archive_holds(built: dict[str, Built], name: str) -> None:
    image = built[name]
    assert image.json("oci-layout") == {"imageLayoutVersion": "1.0.0"}
    for descriptor in (image.descriptor, image.manifest["config"], *image.manifest["layers"]):
        assert len(image.blob(descriptor["digest"])) == descriptor["size"]
    unpacked = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in image.layers]
    assert unpacked == image.config["rootfs"]["diff_ids"]
    named = {f"blobs/{d['digest'].replace(':', '/')}" for d in (image.descriptor, *image.manifest["layers"])}
    named |= {f"blobs/{image.manifest['config']['digest'].replace(':', '/')}"}
    assert named == {path for path in image.files if path.startswith("blobs/")}, "a blob nobody refers to"


@pytest.mark.parametrize("name", NAMES)
def test_docker_finds_the_same_config_and_layers_as_containerd(built: dict[str, Built], name: str) -> None:
    image = built[name]
    (docker,) = image.json("manifest.json")
    assert docker["RepoTags"] == [image.reference]
    assert docker["Config"] == f"blobs/{image.manifest['config']['digest'].replace(':', '/')}"
    assert docker["Layers"] == [f"blobs/{layer['digest'].replace(':', '/')}" for layer in image.manifest["layers"]]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_run_is_what_the_containerfile_says(built: dict[str, Built], name: str) -> None:
    text = (REPOSITORY / "images" / name / "Containerfile").read_text()
    assert built[name].config["config"] == containerfile.image_config(text)
    assert f"ci/images/build --tree /image {name}\n" in text, "a builder must get its files from the same place"


@pytest.mark.parametrize("name", NAMES)
def test_layers_carry_no_times_names_or_set_id_bits_and_are_sorted(built: dict[str, Built], name: str) -> None:
    for layer in built[name].layers:
        with tarfile.open(fileobj=BytesIO(layer)) as archive:
            members = archive.getmembers()
        assert [m.name for m in members] == sorted(m.name for m in members)
        assert {(m.mtime, m.uname, m.gname) for m in members} == {(0, "", "")}
        assert not [m.name for m in members if m.mode & 0o6000]
        assert not [m.name for m in members if m.mode & 0o002 and not (m.issym() or m.mode & 0o1000)]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_stays_small(built: dict[str, Built], name: str) -> None:
    assert built[name].path.stat().st_size < MAX_COMPRESSED_MB[name] * 1e6


def test_images_that_run_python_share_their_large_layers(built: dict[str, Built]) -> None:
    layers = {name: [layer["digest"] for layer in built[name].manifest["layers"]] for name in NAMES}
    assert layers["llmfleet"][:2] == layers["sim"][:2]
    assert layers["llmfleet"][:1] == layers["vllm-cpu"][:1]


def test_a_second_run_does_nothing_and_says_the_same(built: dict[str, Built], source: Path) -> None:
    before = {name: built[name].path.stat().st_ino for name in NAMES}
    again = build(source, *NAMES)
    assert again.progress == ""
    assert [path for _, path in again.lines] == [built[name].path for name in NAMES]
    assert {name: built[name].path.stat().st_ino for name in NAMES} == before


def test_a_build_from_nothing_in_another_folder_gives_the_same_bytes(
    built: dict[str, Built], source: Path, tmp_path: Path
) -> None:
    """A space in the path, no layer in the cache; only the downloaded packages are the same files."""
    cache = tmp_path / "another cache"
    shutil.copytree(store.cache_folder() / "images" / "debs", cache / "images" / "debs", symlinks=True)
    for reference, path in build(source, *NAMES, cache=cache).lines:
        first = next(image.path for image in built.values() if image.reference == reference)
        assert path.name == first.name
        assert path.read_bytes() == first.read_bytes(), f"{reference} differs from one build to the next"


def test_what_a_containerfile_copies_is_all_its_build_stage_needs(built: dict[str, Built], tmp_path: Path) -> None:
    """Run the build stage by hand, in a folder that holds only what the COPY lines name."""
    stage = (REPOSITORY / "images/llmfleet/Containerfile").read_text().partition("FROM scratch")[0].splitlines()
    for line in stage:
        if line.startswith("COPY "):
            _, source, target = line.split()
            copy(REPOSITORY / source, tmp_path / target.removeprefix("/"))
    (run,) = [line for line in stage if "--tree" in line]
    image = tmp_path / "image"
    script = run.removeprefix("RUN ").replace("LLMFLEET_CACHE=/cache ", "").replace("/image ", f"{image} ")
    subprocess.run(["sh", "-c", script.replace("/src/", f"{tmp_path}/src/")], check=True, capture_output=True)
    assert (image / "usr/local/bin/llmfleet").stat().st_mode & 0o777 == 0o755
    assert (image / "etc/passwd").read_text().count("65532") == 2


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder as COPY does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
