"""A file system as a value: path (no leading slash) to Entry.

In: tar streams, folders, literal text. Out: trees, and the one tar stream a tree always gives.
Owners and modes live in the entries, so no step needs root. Never keeps a time: every mtime is 0.
"""

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


class Kind(StrEnum):
    """What a path is; devices, sockets and hard links do not occur in an image."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One path's content, mode and owner; `target` is set for links only."""

    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    data: bytes = b""
    target: str = ""


Tree = dict[str, Entry]


def file(data: bytes | str, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    """Make a regular file."""
    content = data.encode() if isinstance(data, str) else data
    return Entry(kind=Kind.FILE, mode=mode, uid=uid, gid=gid, data=content)


def folder(*, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    """Make a folder."""
    return Entry(kind=Kind.FOLDER, mode=mode, uid=uid, gid=gid)


def link(target: str) -> Entry:
    """Make a symbolic link."""
    return Entry(kind=Kind.LINK, mode=0o777, target=target)


def merged_usr(path: str) -> str:
    """Move a path below /bin, /lib, ... to its place below /usr, as every Debian since 12 has it."""
    first = path.partition("/")[0]
    return f"usr/{path}" if first in MERGED else path


def read_tar(data: bytes) -> Tree:
    """Read a tar file: hard links become copies, set-id bits are dropped, owners stay."""
    tree: Tree = {}
    with tarfile.open(fileobj=BytesIO(data)) as archive:
        for member in archive:
            path = _normal(member.name)
            if path:
                tree[path] = _entry(archive, member, tree)
    return tree


def with_merged_usr(tree: Mapping[str, Entry]) -> Tree:
    """Move what a package still ships below /bin, /lib, ... to where it is after the merge of /usr."""
    return {merged_usr(path): entry for path, entry in tree.items()}


def _normal(name: str) -> str:
    """Strip `./` and trailing slashes; the root folder itself becomes the empty path."""
    path = str(PurePosixPath(name.lstrip("/")))
    return "" if path == "." else path


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, so_far: Mapping[str, Entry]) -> Entry:
    mode = member.mode & 0o1777
    if member.isdir():
        return folder(mode=mode, uid=member.uid, gid=member.gid)
    if member.issym():
        return link(member.linkname)
    if member.islnk():
        return so_far[_normal(member.linkname)]
    content = archive.extractfile(member)
    if content is None:
        raise ValueError(f"{member.name}: neither file, folder nor link")
    return file(content.read(), mode=mode, uid=member.uid, gid=member.gid)


def read_folder(root: Path, *, skip: Callable[[str], bool] = lambda path: False) -> Tree:
    """Read a folder; of its modes only the executable bit counts, so a umask changes nothing."""
    tree: Tree = {}
    for parent, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(folders + files):
            source = Path(parent, name)
            path = source.relative_to(root).as_posix()
            if not skip(path):
                tree[path] = _read(source)
    return tree


def _read(source: Path) -> Entry:
    if source.is_symlink():
        return link(os.readlink(source))
    if source.is_dir():
        return folder()
    return file(source.read_bytes(), mode=0o755 if source.stat().st_mode & 0o100 else 0o644)


def below(prefix: str, tree: Mapping[str, Entry]) -> Tree:
    """Move a whole tree below a folder."""
    return {f"{prefix}/{path}": entry for path, entry in tree.items()}


def without(tree: Mapping[str, Entry], unwanted: Callable[[str], bool]) -> Tree:
    """Drop the paths somebody does not want, and the folders that become empty by it."""
    kept = {path: entry for path, entry in tree.items() if not unwanted(path)}
    emptied = set(_parents(tree.keys() - kept.keys())) - set(_parents(kept))
    return {path: entry for path, entry in kept.items() if path not in emptied}


def with_parents(tree: Mapping[str, Entry]) -> Tree:
    """Add the folders that contain something but are not named."""
    missing = {path: folder() for path in _parents(tree)}
    return missing | dict(tree)


def _parents(paths: Iterable[str]) -> Iterable[str]:
    for path in paths:
        yield from (str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")


def owned(tree: Mapping[str, Entry], *, uid: int, gid: int) -> Tree:
    """Give everything one owner."""
    return {path: replace(entry, uid=uid, gid=gid) for path, entry in tree.items()}


def write_tar(tree: Mapping[str, Entry], out: BinaryIO) -> None:
    """Write the one tar stream of a tree: sorted, mtime 0, numeric owners."""
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(tree):
            archive.addfile(*_member(path, tree[path]))


def _member(path: str, entry: Entry) -> tuple[tarfile.TarInfo, BinaryIO | None]:
    member = tarfile.TarInfo(path)
    member.mode, member.uid, member.gid, member.mtime = entry.mode, entry.uid, entry.gid, 0
    match entry.kind:
        case Kind.FOLDER:
            member.type = tarfile.DIRTYPE
        case Kind.LINK:
            member.type, member.linkname = tarfile.SYMTYPE, entry.target
        case Kind.FILE:
            member.size = len(entry.data)
            return member, BytesIO(entry.data)
    return member, None


def write_folder(tree: Mapping[str, Entry], root: Path) -> None:
    """Lay a tree out on disk; owners are set where the caller may set them (root)."""
    root.mkdir(parents=True, exist_ok=True)
    for path in sorted(tree):
        _write(root / path, tree[path])
    for path in sorted(tree, reverse=True):
        _restrict(root / path, tree[path])


def _write(target: Path, entry: Entry) -> None:
    match entry.kind:
        case Kind.FOLDER:
            target.mkdir(parents=True, exist_ok=True)
        case Kind.LINK:
            target.unlink(missing_ok=True)
            target.symlink_to(entry.target)
        case Kind.FILE:
            target.unlink(missing_ok=True)
            target.write_bytes(entry.data)


def _restrict(target: Path, entry: Entry) -> None:
    if os.geteuid() == 0:
        os.lchown(target, entry.uid, entry.gid)
    if entry.kind is not Kind.LINK:
        target.chmod(entry.mode)


def fingerprint(tree: Mapping[str, Entry]) -> str:
    """Hash everything a tree says."""
    result = hashlib.sha256()
    for path in sorted(tree):
        entry = tree[path]
        line = (path, entry.kind.value, entry.mode, entry.uid, entry.gid, entry.target, len(entry.data))
        result.update(repr(line).encode() + entry.data)
    return result.hexdigest()
