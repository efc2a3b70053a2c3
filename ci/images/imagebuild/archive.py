"""Read an OCI archive: which image it holds, and its blobs one after the other.

In: the path of an archive `oci.write_archive` wrote (or any with one manifest). Out: descriptors, and
open files to read blobs from. Never unpacks anything to disk.
"""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A blob by digest, as a manifest describes it."""

    digest: str
    size: int


class OciArchive:
    """One image in one tar file."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path)  # noqa: SIM115  (this class is the context manager)
        (entry,) = json.loads(self._bytes("index.json"))["manifests"]
        self.digest = str(entry["digest"])
        self.media_type = str(entry["mediaType"])
        self.reference = str(entry["annotations"]["io.containerd.image.name"])
        self.manifest = self._bytes(_place(self.digest))

    def __enter__(self) -> "OciArchive":
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    @property
    def blobs(self) -> list[Blob]:
        """Return layers from the bottom up, then the config."""
        parsed: dict[str, Any] = json.loads(self.manifest)
        return [Blob(digest=one["digest"], size=one["size"]) for one in [*parsed["layers"], parsed["config"]]]

    def open(self, blob: Blob) -> IO[bytes]:
        """Open a blob for reading."""
        stream = self._tar.extractfile(_place(blob.digest))
        if stream is None:
            raise ValueError(f"{blob.digest} is not a file in the archive")
        return stream

    def _bytes(self, name: str) -> bytes:
        stream = self._tar.extractfile(name)
        if stream is None:
            raise ValueError(f"{name} is not a file in the archive")
        return stream.read()


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"
