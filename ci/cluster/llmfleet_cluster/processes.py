"""Start, recognise and stop long-running processes.

In: a Spec. Out: a running process with a record (`NAME.json`: pid, start time, digest of what was started).
The process writes its own record, joins its control group and only then becomes the program, so there is no
moment at which it runs unrecorded; it holds the caller's lock until then. A process counts as ours only if
pid and start time both match. Never looks a process up by name.
"""

import hashlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import cgroups
from .layout import Layout
from .shell import PATH

TERM_SECONDS = 5.0
# The kernel frees what a killed process held before it is gone; etcd and the apiserver hold a lot.
KILL_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One process to keep: `inputs` are the files whose content it read at its start."""

    name: str
    argv: tuple[str, ...]
    cgroup: str
    inputs: tuple[Path, ...] = ()
    # Wrappers that enter namespaces differ from start to start and say nothing about the program.
    prefix: tuple[str, ...] = ()

    def digest(self) -> str:
        """Hash what decides the process's behaviour; another digest means it has to be started anew."""
        whole = hashlib.sha256("\0".join(self.argv).encode())
        for path in self.inputs:
            whole.update(path.read_bytes())
        return whole.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A recorded process."""

    name: str
    pid: int
    start: str
    digest: str


def ensure(layout: Layout, spec: Spec) -> bool:
    """Leave exactly this process running; returns whether it had to be started."""
    current = find(layout, spec.name)
    if current and current.digest == spec.digest():
        return False
    stop(layout, spec.name)
    start(layout, spec)
    return True


def matches(layout: Layout, spec: Spec) -> bool:
    """Tell whether exactly this process runs."""
    current = find(layout, spec.name)
    return current is not None and current.digest == spec.digest()


def start(layout: Layout, spec: Spec) -> None:
    """Start a process that outlives this one."""
    layout.logs.mkdir(parents=True, exist_ok=True)
    layout.records.mkdir(parents=True, exist_ok=True)
    cgroups.ensure(spec.cgroup)
    joins = cgroups.join_files(spec.cgroup)
    record, digest = str(layout.records / f"{spec.name}.json"), spec.digest()

    def enter() -> None:
        for path in joins:
            with open(path, "w") as file:
                file.write("0")
        pid = os.getpid()
        with open(f"{record}.{pid}", "w") as file:
            json.dump({"pid": pid, "start": start_time(pid), "digest": digest}, file)
        os.replace(f"{record}.{pid}", record)

    with (layout.logs / f"{spec.name}.log").open("ab") as log:
        child = subprocess.Popen(
            [*spec.prefix, *spec.argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env={"PATH": PATH, "HOME": "/root", "LLMFLEET_CLUSTER": layout.name},
            preexec_fn=enter,
        )
    # Not a child to wait for: it is meant to live on.
    child.returncode = 0


def find(layout: Layout, name: str) -> Running | None:
    """Return the recorded process if it is still the same one and alive."""
    try:
        raw = json.loads((layout.records / f"{name}.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    running = Running(name=name, pid=int(raw["pid"]), start=str(raw["start"]), digest=str(raw["digest"]))
    return running if start_time(running.pid) == running.start else None


def recorded(layout: Layout) -> list[str]:
    """Return the names of all recorded processes, running or not."""
    return sorted(path.stem for path in layout.records.glob("*.json"))


def start_time(pid: int) -> str:
    """Return a process's start in clock ticks since boot; empty when it has ended or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The name in the second field may itself contain spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]


def stop(layout: Layout, name: str) -> None:
    """End a recorded process, politely first, and forget it."""
    current = find(layout, name)
    if current:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(current.pid)
            end(handle, current)
            os.close(handle)
    (layout.records / f"{name}.json").unlink(missing_ok=True)


def end(handle: int, process: Running) -> None:
    """Send TERM, then KILL. The descriptor names the process even if its id is used again meanwhile."""
    if start_time(process.pid) != process.start:
        return
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
        if poller.poll(seconds * 1000):
            return


def resident_bytes(pids: Sequence[int]) -> int:
    """Sum the resident memory of processes; shared pages count once per process."""
    total = 0
    for pid in pids:
        with suppress(OSError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE")
