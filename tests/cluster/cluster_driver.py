"""Drive `ci/cluster/cluster` and kubectl as a person would, and collect what a cluster leaves on the machine."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from faults.ground import end_now

REPOSITORY = Path(__file__).resolve().parents[2]
PROBE_IMAGE = "localhost/llmfleet/probe:1"
COMMAND_SECONDS = 900


def build_probe(archive: Path) -> Path:
    """Write the archive of the image the tests' pods run."""
    from llmfleet_cluster import images

    archive.write_bytes(images.binary_archive(PROBE_IMAGE, Path(tool("probe")), platform.machine()))
    return archive


@cache
def tool(name: str) -> str:
    """Return the path of a pinned tool."""
    return subprocess.check_output([REPOSITORY / "ci/tools/tool", name], text=True).strip()


@dataclass
class Cluster:
    """One cluster under test; `checkout` and `environment` say from where and how it is driven."""

    name: str
    checkout: Path = REPOSITORY
    environment: Mapping[str, str] = field(default_factory=dict)
    login: str = ""

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command and leave it running."""
        return subprocess.Popen(
            [self.checkout / "ci/cluster/cluster", *arguments, f"--name={self.name}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )

    def attempt(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command to its end; returns status, stdout and stderr."""
        child = self.start(*arguments)
        out, said = child.communicate(timeout=COMMAND_SECONDS)
        return child.returncode, out, said

    def run(self, *arguments: str) -> str:
        """Run a command that must succeed; returns both outputs."""
        status, out, said = self.attempt(*arguments)
        assert status == 0, f"cluster {' '.join(arguments)} ended with {status}: {said}{out}"
        return out + said

    def kill_after(self, seconds: float, *arguments: str) -> None:
        """Start a command and kill it, uncatchably, a while later."""
        child = self.start(*arguments)
        time.sleep(seconds)
        child.kill()
        child.communicate()

    def status(self) -> dict[str, Any]:
        """Return the parsed status."""
        found: dict[str, Any] = json.loads(self.attempt("status", "--json")[1])
        return found

    def pids(self) -> dict[str, int]:
        """Return component -> pid."""
        return {part["name"]: part["pid"] for part in self.status()["components"]}

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl, which must succeed."""
        result = self.try_kubectl(*arguments, stdin=stdin)
        assert result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}"
        return result.stdout

    def try_kubectl(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run kubectl; the caller looks at the result."""
        if not self.login:
            self.login = self.run("kubeconfig").strip()
        command = [tool("kubectl"), "--kubeconfig", self.login, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=COMMAND_SECONDS)


def eventually(check: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.5)


def kill(pid: int) -> None:
    """End a process uncatchably and wait until it has: told to die, it still looks alive for a moment."""
    end_now([pid])


def network_namespaces() -> set[int]:
    """Return the network namespaces any process lives in."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):
            found.add(path.stat().st_ino)
    return found


def namespaces_of(name: str) -> set[int]:
    """Return the network namespaces of a cluster's processes, pods included."""
    from llmfleet_cluster import cgroups

    found = set()
    for pid in cgroups.processes(f"llmfleet-{name}"):
        with suppress(OSError):
            found.add(Path(f"/proc/{pid}/ns/net").stat().st_ino)
    return found


def traces(names: set[str]) -> set[str]:
    """List what the named clusters have on this machine, wherever it can be seen from the host."""
    from llmfleet_cluster.layout import Layout

    marks = {f"llmfleet-{name}" for name in names} | {f"cluster/{name}/" for name in names}
    marks |= {Layout(name=name, slot=0, folder=Path("/")).link_prefix for name in names}
    return {line for line in everything() if any(mark in line for mark in marks)}


def everything() -> set[str]:
    """List the machine's processes, mounts, links, routes, filter rules, control groups and runtime files."""
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (process / "environ").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = (process / "cgroup").read_text().replace("\n", " ")
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            cluster = [word for word in environment.split() if word.startswith("LLMFLEET_CLUSTER=")]
            owner = "".join(f" llmfleet-{word.removeprefix('LLMFLEET_CLUSTER=')}" for word in cluster)
            found.add(f"process {process.name} {place}{command}{owner}")
    found.update(f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines())
    for query in ("ip -o link", "ip route show table all", "iptables-save"):
        out = subprocess.run(query.split(), capture_output=True, text=True, check=True).stdout
        lines = (re.sub(r" expires \d+sec", "", line) for line in out.splitlines())
        found.update(f"{query}: {line}" for line in lines if not line.startswith(("#", ":")))
    found.update(f"cgroup {folder}" for folder, _, _ in os.walk("/sys/fs/cgroup"))
    for folder in (
        "/run/netns",
        "/run/containerd",
        "/var/lib/cni",
        "/var/lib/kubelet",
        "/var/log/pods",
        "/opt/containerd",
    ):
        # What somebody else takes away meanwhile is no error to `walk`.
        found.update(f"file {place}/{name}" for place, below, names in os.walk(folder) for name in (*below, *names))
    return found
