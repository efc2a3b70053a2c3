"""Say what an image or a Python distribution consists of, as CycloneDX 1.6 documents.

In: an OCI archive, or a hash-locked requirements file. Out: JSON values that depend on nothing else: no time, no
random serial number. What is in an image is read from its own layers, never from the lists it was made from.
"""

import json
import re
import tarfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from email import message_from_bytes
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from imagebuild.archive import OciArchive

VERSION = "1.6"
SCHEMA = f"http://cyclonedx.org/schema/bom-{VERSION}.schema.json"
DEBIAN = re.compile(r"var/lib/dpkg/status\.d/[^/]+$")
PYTHON = re.compile(r".*/[^/]+\.dist-info/METADATA$")
# `name==version ; marker \`, hashes, and below them `# via parent`, or one `#   parent` a line.
LOCKED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?:\s*;\s*(?P<marker>[^\\\n]+?))?\s*\\?$")
PARENT = re.compile(r"^\s+#\s+(?:via\s+)?(?!via$)(?P<name>[A-Za-z0-9._-]+)(?:\s+\(.*\))?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One package: where it comes from is in its purl."""

    name: str
    version: str
    purl: str
    license: str = ""
    marker: str = ""
    parents: tuple[str, ...] = ()


def images(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Describe images by the packages whose records lie in their layers; a layer that several share is read once."""
    read: dict[str, list[Component]] = {}
    return [_image(path, read) for path in paths]


def _image(path: Path, read: dict[str, list[Component]]) -> dict[str, Any]:
    with OciArchive(path) as archive:
        name, _, tag = archive.reference.rpartition(":")
        *layers, _ = archive.blobs
        for blob in layers:
            if blob.digest not in read:
                read[blob.digest] = _layer(archive.open(blob))
        digest = archive.digest
    found = {part.purl: part for blob in layers for part in read[blob.digest]}
    repository = name.partition("/")[2]
    whole = Component(name=repository, version=tag, purl=f"pkg:oci/{repository.rpartition('/')[2]}@{digest}?tag={tag}")
    parts = sorted(found.values(), key=lambda part: part.purl)
    return _document("container", whole, digest, parts, {whole.purl: [part.purl for part in parts]})


def distribution(name: str, version: str, lock: str, digest: str) -> dict[str, Any]:
    """Describe a wheel by the packages it was locked with, and who asks for whom."""
    whole = Component(name=name, version=version, purl=_pypi(name, version))
    parts = sorted(locked(lock), key=lambda part: part.purl)
    known = {part.name: part.purl for part in (whole, *parts)}
    wanted: dict[str, list[str]] = {purl: [] for purl in known.values()}
    for part in parts:
        for parent in part.parents:
            wanted[known[parent]].append(part.purl)
    return _document("application", whole, digest, parts, wanted)


def locked(text: str) -> list[Component]:
    """Read a lock that `uv pip compile` wrote with annotations."""
    parts: list[Component] = []
    for line in text.splitlines():
        if start := LOCKED.match(line):
            name, version = _normal(start["name"]), start["version"]
            parts.append(Component(name=name, version=version, purl=_pypi(name, version), marker=start["marker"] or ""))
        elif parent := PARENT.match(line):
            parts[-1] = replace(parts[-1], parents=(*parts[-1].parents, _normal(parent["name"])))
    return parts


def _layer(packed: IO[bytes]) -> list[Component]:
    with tarfile.open(fileobj=packed, mode="r|gz") as layer:
        return list(_records(layer))


def _records(layer: tarfile.TarFile) -> Iterable[Component]:
    for member in layer:
        if DEBIAN.match(member.name):
            yield _debian(_read(layer, member))
        elif PYTHON.match(member.name):
            yield _python(_read(layer, member))


def _read(layer: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream: IO[bytes] | None = layer.extractfile(member)
    if stream is None:
        raise ValueError(f"{member.name} is not a file in its layer")
    return stream.read()


def _debian(control: bytes) -> Component:
    """A package's own control file is one paragraph of headers."""
    fields = message_from_bytes(control)
    name, version, architecture = (str(fields[key]) for key in ("Package", "Version", "Architecture"))
    purl = f"pkg:deb/debian/{name}@{_quoted(version)}?arch={architecture}&distro=debian-12"
    return Component(name=name, version=version, purl=purl)


def _python(metadata: bytes) -> Component:
    fields = message_from_bytes(metadata)
    name, version = _normal(str(fields["Name"])), str(fields["Version"])
    # `License:` is free text, often a whole licence; only the newer field is an expression.
    licence = str(fields["License-Expression"] or "")
    return Component(name=name, version=version, purl=_pypi(name, version), license=licence)


def _normal(name: str) -> str:
    """Write a distribution's name as package indexes do."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pypi(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{_quoted(version)}"


def _quoted(version: str) -> str:
    return quote(version, safe=":")


def _document(
    kind: str, whole: Component, digest: str, parts: Sequence[Component], wanted: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Put a document together; its serial number follows from all it says."""
    hashes = [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]
    body = {
        "metadata": {"component": _described(kind, whole) | {"hashes": hashes}},
        "components": [_described("library", part) for part in parts],
        "dependencies": [{"ref": ref, "dependsOn": sorted(on)} for ref, on in sorted(wanted.items())],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    head = {"$schema": SCHEMA, "bomFormat": "CycloneDX", "specVersion": VERSION, "version": 1}
    return {**head, "serialNumber": f"urn:uuid:{serial}", **body}


def _described(kind: str, part: Component) -> dict[str, Any]:
    described: dict[str, Any] = {
        "type": kind,
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "purl": part.purl,
    }
    if part.license:
        described["licenses"] = [{"expression": part.license}]
    if part.marker:
        described |= {"scope": "optional", "properties": [{"name": "python:marker", "value": part.marker}]}
    return described
