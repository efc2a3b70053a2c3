"""Build images as a person does, read what was written, and run commands in it with nothing but the kernel."""

import gzip
import hashlib
import json
import os
import shlex
import signal
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("llmfleet", "sim", "redis", "vllm-cpu")
BUILD_SECONDS = 900
# A mount namespace of its own: the image read-only, a /tmp, the machine's devices; nothing outlives it.
ENTER = """
set -e
mount --bind "$ROOT" "$ROOT"
mount --rbind /dev "$ROOT/dev"
mount --rbind /sys "$ROOT/sys"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
for folder in $WRITABLE; do mount -t tmpfs -o mode=0777 tmpfs "$ROOT/$folder"; done
mount -o remount,ro,bind "$ROOT"
exec chroot --userspec="$USER_ID" "$ROOT" /usr/bin/env -i "$@"
"""


@dataclass(frozen=True)
class Run:
    """What `ci/images/build` printed."""

    lines: list[tuple[str, Path]]
    progress: str


def build(source: Path, *names: str, cache: Path | None = None) -> Run:
    """Run the builder; a failure shows its own words."""
    environment = os.environ | ({"LLMFLEET_CACHE": str(cache)} if cache else {})
    command = [str(REPOSITORY / "ci/images/build"), "--source", str(source), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    pairs = [line.split(" ", 1) for line in done.stdout.splitlines()]
    return Run([(reference, Path(path)) for reference, path in pairs], done.stderr)


@dataclass(frozen=True)
class Built:
    """One image: its reference and its archive."""

    reference: str
    path: Path

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The archive's members."""
        with tarfile.open(self.path) as archive:
            return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]

    def json(self, name: str) -> Any:
        return json.loads(self.files[name])

    def blob(self, digest: str) -> bytes:
        """Return a blob after checking that it is what its name says."""
        data = self.files[f"blobs/{digest.replace(':', '/')}"]
        assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        return data

    @property
    def descriptor(self) -> dict[str, Any]:
        (only,) = self.json("index.json")["manifests"]
        return dict(only)

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads(self.blob(self.descriptor["digest"])))

    @property
    def config(self) -> dict[str, Any]:
        return dict(json.loads(self.blob(self.manifest["config"]["digest"])))

    @cached_property
    def layers(self) -> list[bytes]:
        """The layers, unpacked to tar files."""
        return [gzip.decompress(self.blob(layer["digest"])) for layer in self.manifest["layers"]]


class Container:
    """Runs commands in an image's file system as the image's user."""

    def __init__(self, image: Built, root: Path) -> None:
        from imagebuild import tree

        self.image = image
        self.tree: tree.Tree = {}
        for layer in image.layers:
            self.tree |= tree.read_tar(layer)
        self.root = root
        tree.write_folder(self.tree, root)

    def command(self, *command: str, writable: str = "", user: str = "", **environment: str) -> tuple[list[str], Any]:
        """Return a command line and its environment for `subprocess`."""
        config = self.image.config["config"]
        inside = [*config.get("Env", []), *(f"{name}={value}" for name, value in environment.items())]
        outside = os.environ | {"ROOT": str(self.root), "USER_ID": user or config["User"], "WRITABLE": writable}
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "enter"]
        return [*unshare, *inside, *command], outside

    def run(self, *command: str, writable: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        line, outside = self.command(*command, writable=writable, **environment)
        return subprocess.run(line, env=outside, capture_output=True, text=True, timeout=400, check=False)

    def start(self, *command: str, writable: str = "", **environment: str) -> subprocess.Popen[str]:
        """Start a command that goes on until `end`."""
        line, outside = self.command(*command, writable=writable, **environment)
        return subprocess.Popen(line, env=outside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @staticmethod
    def end(process: subprocess.Popen[str]) -> None:
        """Kill the first process of the namespace, and with it everything inside.

        A process that changes its user outlives its parent: `--kill-child` alone would leave it behind.
        """
        inside = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in map(int, inside):
            os.kill(pid, signal.SIGKILL)
        process.wait(timeout=120)
        assert not any(Path(f"/proc/{pid}").exists() for pid in inside)

    def shell(self, text: str, **environment: str) -> str:
        """Run a line of shell and return what it printed; a failure shows it."""
        done = self.run("sh", "-c", text, **environment)
        assert done.returncode == 0, f"{shlex.quote(text)}: {done.stdout}{done.stderr}"
        return done.stdout
