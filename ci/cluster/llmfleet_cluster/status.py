"""What a cluster is and how it is doing, for a person or as JSON.

In: a name and its Record. Out: one dictionary, or the lines a person reads. Changes nothing.
"""

import urllib.error
from typing import Any

from . import cgroups, processes
from .apiclient import ApiClient
from .built import ready
from .layout import Layout, node_names
from .store import Record, folder_of, layout_of


def collect(name: str, record: Record | None) -> dict[str, Any]:
    """Look at a cluster; `healthy` sums up what else is said."""
    if record is None:
        return {"name": name, "exists": False, "healthy": False}
    base = {
        "name": name,
        "exists": True,
        "backend": record.backend,
        "why": record.why,
        "kubeconfig": str(folder_of(name) / "kubeconfig"),
    }
    if record.backend != "built":
        return {**base, "context": record.context, "healthy": (folder_of(name) / "kubeconfig").exists()}
    layout = layout_of(name, record)
    parts, members = components(layout), node_states(layout, record)
    healthy = bool(parts) and all(part["pid"] for part in parts) and all(node["ready"] for node in members)
    own = [part["pid"] for part in parts if part["pid"]]
    everything = sorted(cgroups.processes(layout.cgroup))
    return {
        **base,
        "server": layout.server,
        "pods": layout.pods,
        "services": layout.services,
        "healthy": healthy,
        "components": parts,
        "nodes": members,
        "resident_bytes": {"components": processes.resident_bytes(own), "all": processes.resident_bytes(everything)},
    }


def components(layout: Layout) -> list[dict[str, Any]]:
    """Describe every recorded process; pid 0 means that it has ended."""
    found = []
    for name in processes.recorded(layout):
        running = processes.find(layout, name)
        pid = running.pid if running else 0
        resident = processes.resident_bytes([pid] if pid else [])
        found.append({"name": name, "pid": pid, "resident_bytes": resident, "log": f"{layout.logs}/{name}.log"})
    return found


def node_states(layout: Layout, record: Record) -> list[dict[str, Any]]:
    """Describe every node as the apiserver sees it; not Ready when nobody can say."""
    try:
        answer = ApiClient(layout).get("/api/v1/nodes") or {"items": []}
    except (OSError, urllib.error.URLError):
        answer = {"items": []}
    good = {item["metadata"]["name"] for item in answer["items"] if ready(item)}
    return [
        {
            "name": node,
            "address": layout.address(node),
            "ready": node in good,
            "processes": len(cgroups.processes(layout.member_cgroup(node))),
        }
        for node in node_names(record.nodes)
    ]


def lines(state: dict[str, Any]) -> list[str]:
    """Write a status for a person."""
    if not state["exists"]:
        return [f"{state['name']}: no such cluster; `ci/cluster/cluster up` makes it"]
    head = [
        f"{state['name']}: {'healthy' if state['healthy'] else 'NOT healthy'}, {state['backend']} ({state['why']})",
        f"kubeconfig {state['kubeconfig']}",
    ]
    if state["backend"] != "built":
        return head
    resident = state["resident_bytes"]
    return [
        *head,
        f"server {state['server']}, pods {state['pods']}, services {state['services']}",
        *[f"  {node['name']:10} {node['address']:15} {node_word(node)}" for node in state["nodes"]],
        *[f"  {part['name']:28} {component_word(part)}" for part in state["components"]],
        f"resident: {mib(resident['components'])} components, {mib(resident['all'])} with pods and their shims",
    ]


def node_word(node: dict[str, Any]) -> str:
    return f"{'Ready' if node['ready'] else 'not Ready'}, {node['processes']} processes"


def component_word(part: dict[str, Any]) -> str:
    if not part["pid"]:
        return f"ENDED, see {part['log']}"
    return f"pid {part['pid']:<8} {mib(part['resident_bytes'])}"


def mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
