"""What a cluster remembers on disk, and the lock that lets one command at a time change it.

In: a cluster's name. Out: its folder, its lock and its record (`cluster.json`: slot, node count, where it
came from and why). Every file appears whole or not at all, because `up` may be killed at any moment.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .layout import SLOTS, Layout
from .shell import ClusterError, say

# No cluster can have this name.
SLOTS_LOCK = "_slots"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What cannot be derived from the cluster's name."""

    backend: str
    why: str
    nodes: int = 0
    slot: int = 0
    context: str = ""
    archives: tuple[str, ...] = ()
    policies: bool = False


def state_folder() -> Path:
    """Return the folder all clusters of this user live in; only root can build a control plane."""
    if own := os.environ.get("LLMFLEET_STATE"):
        return Path(own).absolute() / "cluster"
    if os.geteuid() == 0:
        return Path("/var/lib/llmfleet/cluster")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "llmfleet/cluster"


def folder_of(name: str) -> Path:
    return state_folder() / name


def cache_folder() -> Path:
    """Return the cache of built tools and images, shared by every checkout."""
    if own := os.environ.get("LLMFLEET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmfleet"


def layout_of(name: str, record: Record | None) -> Layout:
    slot, policies = (record.slot, record.policies) if record else (0, False)
    return Layout(name=name, slot=slot, folder=folder_of(name), policies=policies)


def read_record(name: str) -> Record | None:
    """Return what was recorded, or None when there is no such cluster."""
    path = folder_of(name) / "cluster.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return Record(**{**raw, "archives": tuple(raw["archives"])})


def write_record(name: str, record: Record) -> None:
    write_file(folder_of(name) / "cluster.json", json.dumps(asdict(record), indent=1))


def remember_archive(name: str, record: Record, archive: Path) -> Record:
    """Note a loaded archive, so that a node added later gets it too."""
    newer = replace(record, archives=tuple(dict.fromkeys([*record.archives, str(archive)])))
    write_record(name, newer)
    return newer


def write_file(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.chmod(mode)
    temporary.replace(path)


def used_slots(but: str) -> set[int]:
    """Return the slots of the other clusters in the state folder."""
    names = [path.parent.name for path in state_folder().glob("*/cluster.json")]
    records = [read_record(name) for name in names if name != but]
    return {record.slot for record in records if record and record.backend == "built"}


def free_slot(name: str, occupied: set[int]) -> int:
    """Pick the lowest slot that neither a cluster nor a route of this machine uses."""
    for slot in SLOTS:
        if slot not in used_slots(name) | occupied:
            return slot
    raise ClusterError(f"all {len(SLOTS)} address ranges are in use; `cluster down --name NAME` frees one")


@contextmanager
def locked(name: str, *, quiet: bool = False) -> Iterator[None]:
    """Hold a cluster's lock. A process being started holds it too until it has recorded itself."""
    path = state_folder() / f".{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not quiet:
                say(f"another command works on {name!r}, waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
