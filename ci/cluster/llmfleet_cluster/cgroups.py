"""Control groups: where every process of a cluster is found again, whoever started it.

In: a group's path below the hierarchy's root. Out: its processes, ended by process file descriptor, so
that a number used again by another process is never hit. Works with version 1 (a tree per controller)
and version 2 (one tree). Never touches a group outside the path it is given.
"""

import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .shell import ClusterError

KILL_SECONDS = 90.0
# What pods need on version 2; a hierarchy without one of them (an old kernel) gives what it has.
WANTED_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids", "hugetlb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """One mounted tree of control groups."""

    mount: Path
    version: int


def parse_mounts(mountinfo: str) -> list[Hierarchy]:
    """Pick every tree: one of version 2, or several of version 1 with, on a hybrid machine, one of version 2 beside."""
    found: list[Hierarchy] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind = right.split(" ", 1)[0]
        if kind in ("cgroup", "cgroup2"):
            mount = Path(unescape(left.split(" ")[4]))
            found.append(Hierarchy(mount=mount, version=2 if kind == "cgroup2" else 1))
    return found


def unescape(text: str) -> str:
    """Undo the kernel's escapes of space, tab, newline and backslash in a path."""
    for code, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, plain)
    return text


def hierarchies() -> list[Hierarchy]:
    """Return the trees of this machine."""
    found = parse_mounts(Path("/proc/self/mountinfo").read_text())
    if not found:
        raise ClusterError("no control groups are mounted at /sys/fs/cgroup; a kubelet needs them")
    return found


def ensure(group: str) -> None:
    """Create a group, with its parents, in every tree, ready to take processes."""
    for hierarchy in hierarchies():
        current = hierarchy.mount
        for part in Path(group).parts:
            parent, current = current, current / part
            if hierarchy.version == 2:
                delegate(parent)
            current.mkdir(exist_ok=True)
            if hierarchy.version == 1:
                inherit_cpuset(parent, current)


def delegate(group: Path) -> None:
    """Version 2: let the children of a group use its controllers."""
    available = (group / "cgroup.controllers").read_text().split()
    enabled = (group / "cgroup.subtree_control").read_text().split()
    missing = [name for name in WANTED_CONTROLLERS if name in available and name not in enabled]
    try:
        if missing:
            (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in missing))
    except OSError as error:
        raise ClusterError(
            f"control groups: cannot enable {', '.join(missing)} below {group}: {error.strerror}. Processes in the "
            "root group of a container forbid it: move them to a child group, or run this on the machine itself"
        ) from error


def inherit_cpuset(parent: Path, child: Path) -> None:
    """Version 1: a cpuset group is born empty and takes no process until it has processors and memory."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = child / name
        if file.exists() and not file.read_text().strip():
            file.write_text((parent / name).read_text())


def folders(group: str) -> list[Path]:
    """Return the folders of a group and everything below it, deepest first."""
    result: list[Path] = []
    for hierarchy in hierarchies():
        below = [Path(folder) for folder, _, _ in os.walk(hierarchy.mount / group)]
        result.extend(sorted(below, key=lambda path: len(path.parts), reverse=True))
    return result


def join_files(group: str) -> list[str]:
    """Return the files a process writes "0" to in order to move into the group."""
    return [str(hierarchy.mount / group / "cgroup.procs") for hierarchy in hierarchies()]


def processes(group: str) -> set[int]:
    """Return the ids of all processes in a group and below it."""
    found: set[int] = set()
    for folder in folders(group):
        with suppress(OSError):
            found.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
    return found


def belongs(pid: int, group: str) -> bool:
    """Tell whether a process is in the group or below it."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    paths = [line.split(":", 2)[2] for line in lines]
    return any(f"{path}/".find(f"/{group}/") >= 0 for path in paths)


def kill(group: str) -> None:
    """End every process of a group at once, as a power loss would, and wait until none is left."""
    deadline = time.monotonic() + KILL_SECONDS
    while pids := processes(group):
        # A child forked between reading and killing is found in the next round.
        handles = [handle for pid in sorted(pids) if (handle := kill_one(pid, group)) is not None]
        wait_all(handles, deadline)
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {sorted(processes(group))} in control group {group} do not end")


def kill_one(pid: int, group: str) -> int | None:
    """Kill one process if it still is who it was; returns the descriptor to wait on."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if belongs(pid, group):
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    return handle


def wait_all(handles: Sequence[int], deadline: float) -> None:
    """Wait until the processes behind the descriptors have ended."""
    for handle in handles:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        poller.poll(max(0.0, min(30.0, deadline - time.monotonic())) * 1000)
        os.close(handle)


def remove(group: str) -> None:
    """Remove an empty group and all groups below it; the kernel may need a moment after the last process."""
    deadline = time.monotonic() + KILL_SECONDS
    while left := [folder for folder in folders(group) if not removed(folder)]:
        if time.monotonic() > deadline:
            raise ClusterError(f"control group {left[0]} cannot be removed; a process may still be in it")
        time.sleep(0.05)


def removed(folder: Path) -> bool:
    """Try to remove one control group."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
