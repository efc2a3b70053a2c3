"""Write OCI images: layers from trees, and one archive per image.

In: trees and an image's config. Out: bytes that depend on nothing else, so that the same content
always has the same digest. The archive imports into containerd, Podman and Docker alike (it carries
Docker's `manifest.json` besides the OCI index).
"""

import gzip
import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from imagebuild.tree import Entry, write_tar

EPOCH = "1970-01-01T00:00:00Z"
TYPE = "application/vnd.oci.image"
LEVEL = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A compressed layer in a file: its digest, and the digest of what it unpacks to."""

    path: Path
    digest: str
    diff_id: str
    size: int


class _Hashing:
    """Hash what passes through on the way to `out`."""

    def __init__(self, out: BinaryIO | gzip.GzipFile) -> None:
        self._out = out
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._out.write(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def write_layer(content: Mapping[str, Entry], path: Path) -> Layer:
    """Write one gzip layer; the header carries no name and no time."""
    with path.open("wb") as file:
        outer = _Hashing(file)
        with gzip.GzipFile(filename="", fileobj=outer, mode="wb", compresslevel=LEVEL, mtime=0) as packed:  # type: ignore[call-overload]
            inner = _Hashing(packed)
            write_tar(content, inner)  # type: ignore[arg-type]
    return Layer(path=path, digest=outer.digest, diff_id=inner.digest, size=path.stat().st_size)


def write_archive(
    path: Path, *, reference: str, architecture: str, config: Mapping[str, Any], layers: Sequence[Layer]
) -> str:
    """Write the archive and return the image's digest."""
    config_blob = _json(_config(architecture, config, layers))
    manifest_blob = _json(_manifest(config_blob, layers))
    small = {_digest(blob): blob for blob in (config_blob, manifest_blob)}
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", _json(_index(manifest_blob, reference, architecture)))
        _add(archive, "manifest.json", _json(_docker(config_blob, reference, layers)))
        for digest, blob in sorted(small.items()):
            _add(archive, _blob(digest), blob)
        for layer in sorted({layer.digest: layer for layer in layers}.values(), key=lambda one: one.digest):
            _add_file(archive, _blob(layer.digest), layer.path)
    return _digest(manifest_blob)


def _config(architecture: str, config: Mapping[str, Any], layers: Sequence[Layer]) -> dict[str, Any]:
    return {
        "created": EPOCH,
        "architecture": architecture,
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }


def _manifest(config_blob: bytes, layers: Sequence[Layer]) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": f"{TYPE}.manifest.v1+json",
        "config": _descriptor(f"{TYPE}.config.v1+json", config_blob),
        "layers": [
            {"mediaType": f"{TYPE}.layer.v1.tar+gzip", "digest": layer.digest, "size": layer.size} for layer in layers
        ],
    }


def _index(manifest_blob: bytes, reference: str, architecture: str) -> dict[str, Any]:
    """Name the image the way `ctr images import` and `skopeo` look for it."""
    entry = _descriptor(f"{TYPE}.manifest.v1+json", manifest_blob) | {
        "platform": {"architecture": architecture, "os": "linux"},
        "annotations": {
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
        },
    }
    return {"schemaVersion": 2, "mediaType": f"{TYPE}.index.v1+json", "manifests": [entry]}


def _docker(config_blob: bytes, reference: str, layers: Sequence[Layer]) -> list[dict[str, Any]]:
    paths = [_blob(layer.digest) for layer in layers]
    return [{"Config": _blob(_digest(config_blob)), "RepoTags": [reference], "Layers": paths}]


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, BytesIO(data))


def _add_file(archive: tarfile.TarFile, name: str, path: Path) -> None:
    member = tarfile.TarInfo(name)
    member.size = path.stat().st_size
    with path.open("rb") as file:
        archive.addfile(member, file)
