"""Clusters that somebody else runs: a kube context of the user's own, or kind on Docker or Podman.

In: a name and a Record. Out: a kubeconfig in the state folder. A user's own cluster is never changed, and
`down` only forgets it; a kind cluster is created and deleted.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from .built import DEFAULT_NODES, TOOL
from .shell import PATH, ClusterError, attempt, run, say
from .store import Record, folder_of, write_file

ANSWER_SECONDS = 10.0
CREATE_SECONDS = 600.0


def choose(context: str) -> Record:
    """Decide where a new cluster comes from, and say why."""
    if context:
        return Record(backend="context", why=f"--context {context} was given", context=context)
    for program in ("docker", "podman"):
        if answers(program):
            return Record(backend="kind", why=f"{program} answers", context=program)
    return Record(backend="built", why="no --context, and neither Docker nor Podman answers")


def answers(program: str) -> bool:
    """Ask the daemon, not the client: a client without a daemon is common."""
    if shutil.which(program, path=PATH) is None:
        return False
    question = "{{.ServerVersion}}" if program == "docker" else "{{.Version.Version}}"
    try:
        result = attempt([program, "info", "--format", question], timeout=ANSWER_SECONDS)
    except ClusterError:
        return False
    return result.returncode == 0 and bool(result.stdout.strip())


def up_context(name: str, record: Record) -> None:
    """Check that the context answers and keep a copy of its login."""
    kubectl = kubectl_program()
    run([kubectl, "--context", record.context, "get", "--raw", "/readyz"], timeout=ANSWER_SECONDS * 3)
    view = [kubectl, "--context", record.context, "config", "view", "--minify", "--flatten"]
    write_file(folder_of(name) / "kubeconfig", run(view))
    say(f"{name}: uses context {record.context}")


def kubectl_program() -> str:
    """Prefer the user's kubectl for the user's cluster; its login plugins may depend on it."""
    return shutil.which("kubectl") or tool("kubectl")


def tool(name: str) -> str:
    """Return the path of a pinned tool."""
    result = subprocess.run([sys.executable, str(TOOL), name], stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"{name} could not be built; see above")
    return result.stdout.strip()


def kind(record: Record) -> list[str]:
    """Return kind's command, for the container engine that answered."""
    return ["env", f"KIND_EXPERIMENTAL_PROVIDER={record.context}", tool("kind")]


def up_kind(name: str, record: Record, count: int | None) -> None:
    """Create the kind cluster unless it exists."""
    kubeconfig = folder_of(name) / "kubeconfig"
    if name in run([*kind(record), "get", "clusters"]).split():
        run([*kind(record), "export", "kubeconfig", "--name", name, "--kubeconfig", str(kubeconfig)])
        say(f"{name}: kind cluster is already up")
        return
    config = folder_of(name) / "kind.json"
    write_file(config, json.dumps(kind_config(count or record.nodes or DEFAULT_NODES)))
    say(f"{name}: creating a kind cluster on {record.context}")
    create = ["create", "cluster", "--name", name, "--config", str(config), "--kubeconfig", str(kubeconfig)]
    run([*kind(record), *create, "--wait", "180s"], timeout=CREATE_SECONDS)


def kind_config(count: int) -> dict[str, object]:
    """Describe a control plane and `count` nodes that take pods."""
    roles = [{"role": "control-plane"}, *({"role": "worker"} for _ in range(count))]
    return {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": roles}


def load(name: str, record: Record, archive: Path) -> None:
    """Load an archive into kind's nodes; a cluster of one's own pulls from a registry."""
    if record.backend != "kind":
        raise ClusterError(f"{name!r} is context {record.context}: its nodes pull images from a registry you push to")
    run([*kind(record), "load", "image-archive", str(archive), "--name", name], timeout=CREATE_SECONDS)
    say(f"{archive.name}: loaded")


def down(name: str, record: Record) -> None:
    """Delete a kind cluster; forget a context."""
    if record.backend == "kind":
        run([*kind(record), "delete", "cluster", "--name", name], timeout=CREATE_SECONDS)
    else:
        say(f"{name}: context {record.context} is left as it is")
    shutil.rmtree(folder_of(name))
