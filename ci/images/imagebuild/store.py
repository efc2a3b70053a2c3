"""Keep finished layers and archives in the cache, named after the hash of all that decides their content.

In: a name, a key, a way to make the thing. Out: the thing, made at most once. What exists under its
final name is whole: it was put there by one rename. Old versions are removed, the newest few stay.
"""

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from imagebuild import oci
from imagebuild.tree import Tree, fingerprint, read_tar, with_parents, write_folder

KEEP = 3
KEEP_SECONDS = 3600
KEY_LENGTH = 16


def cache_folder() -> Path:
    """Return this project's part of the user's cache."""
    own = os.environ.get("LLMFLEET_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(own) if own else Path(base) / "llmfleet"


def key(*parts: object) -> str:
    """Hash whatever decides a content."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:KEY_LENGTH]


class Store:
    """One folder: `layers/NAME-KEY/`, `NAME-KEY.tar`, and what is laid out in `NAME-KEY/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "layers").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one builder at a time write here."""
        with (self.folder / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def layer(self, name: str, layer_key: str, make: Callable[[], Tree]) -> oci.Layer:
        """Return a layer, made now if it never was."""
        home = self.folder / "layers" / f"{name}-{layer_key}"
        if not home.exists():
            self._make_layer(home, name, make)
        home.touch()
        described = json.loads((home / "layer.json").read_text())
        return oci.Layer(path=home / "layer.tar.gz", **described)

    def _make_layer(self, home: Path, name: str, make: Callable[[], Tree]) -> None:
        started = time.monotonic()
        scratch = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            layer = oci.write_layer(make(), scratch / "layer.tar.gz")
            described = {field: value for field, value in asdict(layer).items() if field != "path"}
            (scratch / "layer.json").write_text(json.dumps(described))
            scratch.rename(home)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        say(f"layer {name}: {layer.size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s")
        self._retire((self.folder / "layers").glob(f"{name}-{'[0-9a-f]' * KEY_LENGTH}"))

    def archive(self, name: str, archive_key: str, write: Callable[[Path], str]) -> Path:
        """Return an archive, written now if it never was."""
        path = self.folder / f"{name}-{archive_key}.tar"
        if path.exists():
            path.touch()
            return path
        scratch = self.folder / f".{name}-{os.getpid()}.tar"
        try:
            digest = write(scratch)
            scratch.rename(path)
        finally:
            scratch.unlink(missing_ok=True)
        say(f"{name}: {path.stat().st_size / 1e6:.1f} MB, {digest}")
        self._retire(self.folder.glob(f"{name}-{'[0-9a-f]' * KEY_LENGTH}.tar"))
        return path

    def laid_out(self, name: str, files: Tree) -> Path:
        """Return a folder that holds a tree, written now if it never was."""
        home = self.folder / f"{name}-{key(fingerprint(files))}"
        if not home.exists():
            scratch = Path(tempfile.mkdtemp(dir=self.folder))
            try:
                write_folder(with_parents(files), scratch)
                scratch.rename(home)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        home.touch()
        self._retire(self.folder.glob(f"{name}-{'[0-9a-f]' * KEY_LENGTH}"))
        return home

    def _retire(self, versions: Iterator[Path]) -> None:
        """Remove what is neither among the newest nor young enough for somebody to be about to use it."""
        newest_first = sorted(versions, key=lambda path: path.stat().st_mtime, reverse=True)
        used_until = time.time() - KEEP_SECONDS
        for old in newest_first[KEEP:]:
            if old.stat().st_mtime < used_until:
                shutil.rmtree(old) if old.is_dir() else old.unlink()


def unpack(layer: oci.Layer) -> Tree:
    """Read a layer back."""
    return read_tar(gzip.decompress(layer.path.read_bytes()))


def say(text: str) -> None:
    """Progress goes to stderr: stdout carries results only."""
    print(f"images: {text}", file=sys.stderr, flush=True)
