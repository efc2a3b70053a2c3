"""Images on nodes: the pause image every pod starts with, and archives a user loads.

In: OCI or Docker archives. Out: images in every node's store. An image that a node already has is not
loaded again; a store is asked, not remembered.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import nodes
from .layout import Layout
from .shell import ClusterError, attempt, run, say

NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
LOAD_SECONDS = 1800.0
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def binary_archive(name: str, binary: Path, machine: str) -> bytes:
    """Write an OCI archive that holds one static binary; the same input gives the same bytes."""
    layer = tar_of({binary.name: (binary.read_bytes(), 0o755)})
    config = canonical(
        {
            "architecture": architecture(machine),
            "os": "linux",
            "config": {"Entrypoint": [f"/{binary.name}"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
    )
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(CONFIG_TYPE, config),
            "layers": [descriptor(LAYER_TYPE, layer)],
        }
    )
    named = {**descriptor(MANIFEST_TYPE, manifest), "annotations": {NAME_ANNOTATIONS[0]: name}}
    files = {f"blobs/sha256/{digest(blob)[7:]}": (blob, 0o644) for blob in (layer, config, manifest)}
    files["oci-layout"] = (canonical({"imageLayoutVersion": "1.0.0"}), 0o644)
    files["index.json"] = (canonical({"schemaVersion": 2, "manifests": [named]}), 0o644)
    return tar_of(files)


def tar_of(files: dict[str, tuple[bytes, int]]) -> bytes:
    """Pack files into a tar without times or owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, (content, mode) in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(blob), "size": len(blob)}


def architecture(machine: str) -> str:
    """Translate the kernel's name of a processor to the registry's."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def load(layout: Layout, names: Sequence[str], archive: Path) -> None:
    """Load an archive into the store of every node that lacks it, on all nodes at once."""
    wanted = contents(archive)
    for node in names:
        if problem := nodes.runtime_problem(layout, node):
            raise ClusterError(f"{node} cannot take images: {problem}; `cluster up` starts it again")
    missing = [node for node in names if not wanted or not wanted.items() <= stored(layout, node).items()]
    if not missing:
        say(f"{archive.name}: every node has it")
        return
    say(f"{archive.name}: loading into {', '.join(missing)}")
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda node: load_into(layout, node, archive), missing))


def contents(archive: Path) -> dict[str, str]:
    """Return image name -> digest of an OCI archive; nothing for an archive of another kind."""
    try:
        with tarfile.open(archive) as tar:
            member = tar.extractfile("index.json")
            index = json.load(member) if member else {}
    except KeyError:
        return {}
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ClusterError(f"{archive} is not an image archive: {error}") from error
    found = {}
    for manifest in index.get("manifests", []):
        annotations = manifest.get("annotations", {})
        name = next((annotations[key] for key in NAME_ANNOTATIONS if "/" in annotations.get(key, "")), None)
        if name:
            found[name] = manifest["digest"]
    return found


def stored(layout: Layout, node: str) -> dict[str, str]:
    """Return image name -> digest of a node's store."""
    rows = [line.split() for line in run([*nodes.ctr(layout, node), "images", "list"]).splitlines()[1:]]
    return {row[0]: row[2] for row in rows if len(row) > 2}


def load_into(layout: Layout, node: str, archive: Path) -> None:
    """Import by standard input: a node does not see all of the host's folders."""
    command = [*nodes.ctr(layout, node), "images", "import", "-"]
    result = attempt(["sh", "-c", 'exec "$@" < "$0"', str(archive), *command], timeout=LOAD_SECONDS)
    if result.returncode != 0:
        raise ClusterError(f"{node}: {archive.name} cannot be loaded: {result.stderr.strip()[-1000:]}")
