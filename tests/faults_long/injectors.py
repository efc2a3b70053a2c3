"""Three ways to lose one rank: its processes killed, frozen, or out of memory.

In: the UID of a pod and a word of the command line of what is to be hit. Out: a context manager whose block runs while
the rank is lost; on the way out nothing of ours is left. Everything is found by the pod's control group, so that
nothing else can be hit.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from faults.ground import end_now, processes_of

Injector = Callable[[str, str], AbstractContextManager[object]]
CGROUPS = Path("/sys/fs/cgroup")
EVERYTHING = ""  # every process of a pod but the one that holds its network
# It joins the rank's control group and takes memory until the rank is gone: the kernel kills the container's process
# first, whose score the kubelet has raised. It never takes more than a limit that no engine of these tests has, so that
# a missing limit cannot cost the machine.
EATER = """
import os, sys, time
group, victims, most = sys.argv[1], [int(word) for word in sys.argv[3:]], int(sys.argv[2])
open(group + "/cgroup.procs", "w").write(str(os.getpid()))
def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
taken = []
while all(map(alive, victims)) and len(taken) * 8 < most:
    taken.append(b"x" * (8 << 20))
    time.sleep(0.002)
"""
MOST_MEBIBYTES = 8192
# Near its limit a container of real vLLM reads its libraries from disk again and again for minutes before the kernel
# gives up on it.
PATIENCE = 900


def found(pod_uid: str, word: str) -> list[int]:
    """The processes of a pod that are to be hit."""
    pids = [pid for pid in processes_of(pod_uid, word) if b"pause" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert pids, f"no process of pod {pod_uid} was started with {word!r}"
    return pids


@contextmanager
def killed(pod_uid: str, word: str) -> Iterator[None]:
    """SIGKILL; whatever its PID 1 has started goes with it."""
    end_now(found(pod_uid, word))
    yield


@contextmanager
def frozen(pod_uid: str, word: str) -> Iterator[None]:
    """Neither answers nor ends, and its connections stay open; what is left of it goes on afterwards."""
    handles = [os.pidfd_open(pid) for pid in found(pod_uid, word)]
    try:
        for handle in handles:
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
        yield
    finally:
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            os.close(handle)


@contextmanager
def out_of_memory(pod_uid: str, word: str) -> Iterator[None]:
    """The container reaches its memory limit, and the kernel kills the engine for it."""
    pids = found(pod_uid, word)
    command = [sys.executable, "-c", EATER, str(memory_group(pids[0])), str(MOST_MEBIBYTES), *map(str, pids)]
    handles = {pid: os.pidfd_open(pid) for pid in pids}
    try:
        # What ends the container may end the eater with it, so its own end says nothing.
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        ended = [pid for pid, handle in handles.items() if is_over(handle)]
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the container was not at its memory limit after {PATIENCE} s") from None
    finally:
        for handle in handles.values():
            os.close(handle)
    assert ended, f"the kernel killed nobody: {done.returncode} {done.stderr}"
    yield


def is_over(handle: int) -> bool:
    """Whether a process ends within some seconds."""
    wait = select.poll()
    wait.register(handle, select.POLLIN)
    return bool(wait.poll(5_000))


def memory_group(pid: int) -> Path:
    """The folder of a process's memory control group, of either version."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    groups = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    if "memory" in groups:
        return CGROUPS / "memory" / groups["memory"].lstrip("/")
    return CGROUPS / groups[""].lstrip("/")
