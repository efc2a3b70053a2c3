"""The cluster built from Go modules: bring it to the wanted state, whatever state it is in, or remove it.

In: a name and a Record. Out: running nodes, or nothing at all. Every step looks at what is there and does
what is missing, so `up` after `up` changes nothing and `up` after a crash finishes. Called with the lock held.
"""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import addons, cgroups, controlplane, debian, images, network, nodes, pki, processes
from .apiclient import ApiClient
from .controlplane import Binaries
from .layout import CONTROL_PLANE, Layout, check_folder, node_names
from .shell import ClusterError, attempt, say, wait_for
from .store import SLOTS_LOCK, Record, folder_of, free_slot, layout_of, locked, write_file, write_record

TOOL = Path(__file__).resolve().parents[2] / "tools" / "tool"
PROGRAMS = (*controlplane.COMPONENTS, "kubelet", "kube-proxy", "pause")
# An idle machine needs ten; the limit is that of a machine that is busy with other things.
READY_SECONDS = 400.0
DEFAULT_NODES = 2


def up(name: str, record: Record, count: int | None) -> None:
    """Bring the cluster up with `count` nodes; None keeps what there is."""
    started = time.monotonic()
    debian.require_root()
    if problem := check_folder(folder_of(name)):
        raise ClusterError(problem)
    debian.ensure(record.policies)
    binaries = tools()
    record, surplus = settle(name, record, count)
    layout = layout_of(name, record)
    changed = converge(layout, record, surplus, binaries)
    state = "up" if changed else "already up"
    say(f"{name}: {record.nodes} nodes Ready, {state} ({time.monotonic() - started:.1f} s)")


def tools() -> Binaries:
    """Return the paths of the programs, built first if this machine has not built them."""
    command = [sys.executable, str(TOOL), *PROGRAMS]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError("the control plane's programs could not be built; see above")
    return dict(zip(PROGRAMS, result.stdout.splitlines(), strict=True))


def settle(name: str, record: Record, count: int | None) -> tuple[Record, list[str]]:
    """Fix address range and node count before anything is made; also returns the nodes that are too many."""
    wanted = count or record.nodes or DEFAULT_NODES
    surplus = node_names(record.nodes)[wanted:]
    # Two clusters that start at the same moment must not pick the same addresses.
    with locked(SLOTS_LOCK, quiet=True):
        if record.nodes == 0:
            routes = attempt(["ip", "-json", "route", "show", "table", "all"]).stdout
            record = replace(record, slot=free_slot(name, network.occupied_slots(routes)))
        write_record(name, replace(record, nodes=max(record.nodes, wanted)))
    return replace(record, nodes=wanted), surplus


def converge(layout: Layout, record: Record, surplus: Sequence[str], binaries: Binaries) -> bool:
    """Do what is missing, control plane first; returns whether anything was."""
    names, since = node_names(record.nodes), utc_now()
    pki.ensure(layout, names)
    drop(layout, surplus)
    broken = [node for node in names if not nodes.intact(layout, node, binaries)]
    for node in broken:
        nodes.cut_power(layout, node)
    evict_strangers(layout)
    network.ensure(layout, names, names)
    changed = start_control_plane(layout, broken, binaries)
    start_nodes(layout, broken, record.archives, binaries)
    changed |= start_helpers(layout, binaries)
    client = ApiClient(layout)
    for node in surplus:
        client.delete(f"/api/v1/nodes/{node}")
    wanted = {node: since if node in broken else "" for node in names}
    wait_for("the cluster", lambda: problem(layout, client, wanted), seconds=READY_SECONDS)
    write_record(layout.name, record)
    return bool(changed or broken or surplus)


def drop(layout: Layout, surplus: Sequence[str]) -> None:
    """Remove nodes that are too many."""
    for node in surplus:
        say(f"removing {node}")
        nodes.cut_power(layout, node)
        shutil.rmtree(layout.node_folder(node), ignore_errors=True)


def evict_strangers(layout: Layout) -> None:
    """End a control plane whose network namespace is no longer the pinned one: it could reach nobody."""
    for name in processes.recorded(layout):
        running = processes.find(layout, name)
        component, _, member = name.partition(".")
        ours = component in controlplane.COMPONENTS or member == CONTROL_PLANE
        if ours and running and not network.holds(layout, CONTROL_PLANE, running.pid):
            processes.stop(layout, name)


def start_control_plane(layout: Layout, broken: Sequence[str], binaries: Binaries) -> bool:
    """Start etcd and apiserver, the nodes' runtimes while these come up, then what needs the apiserver."""
    write_file(layout.folder / "Corefile", controlplane.corefile(layout))
    changed = [
        processes.ensure(layout, make(layout, binaries)) for make in (controlplane.etcd, controlplane.kube_apiserver)
    ]
    if any(changed):
        say(f"control plane at {layout.server} starts")
    for node in broken:
        nodes.start_runtime(layout, node)
    client = ApiClient(layout)
    wait_for("the apiserver", lambda: ended(layout, "kube-apiserver") or client.problem(), seconds=READY_SECONDS)
    for make in (controlplane.kube_controller_manager, controlplane.kube_scheduler, controlplane.coredns):
        changed.append(processes.ensure(layout, make(layout, binaries)))
    apply_addons(layout, client)
    return any(changed)


def ended(layout: Layout, name: str) -> str | None:
    """Say that a process has ended; waiting for it would be in vain."""
    if processes.find(layout, name):
        return None
    raise ClusterError(f"{name} ended; the reason is at the end of {layout.logs}/{name}.log")


def apply_addons(layout: Layout, client: ApiClient) -> None:
    """Apply the first objects, unless these very ones were applied to this very etcd."""
    wanted = addons.manifests(layout)
    marker = layout.folder / "addons.sha256"
    content = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    last = client.get(wanted[-1][0])
    if last and marker.exists() and marker.read_text() == content:
        return
    for path, manifest in wanted:
        client.apply(path, manifest)
    write_file(marker, content)


def start_nodes(layout: Layout, broken: Sequence[str], archives: Sequence[str], binaries: Binaries) -> None:
    """Finish the nodes whose runtime was started: images, kubelet, proxy."""
    if not broken:
        return
    pause = layout.folder / "pause.tar"
    write_file(pause, images.binary_archive(nodes.PAUSE_IMAGE, Path(binaries["pause"]), platform.machine()))
    for node in broken:
        nodes.wait_runtime(layout, node)
        say(f"{node} at {layout.address(node)} starts")
    for archive in [pause, *(Path(path) for path in archives if Path(path).exists())]:
        images.load(layout, broken, archive)
    for node in broken:
        for spec in nodes.programs(layout, node, binaries):
            processes.ensure(layout, spec)


def start_helpers(layout: Layout, binaries: Binaries) -> bool:
    """Start what is of use only with nodes: Services for the host, and metrics."""
    specs = [controlplane.kube_proxy(layout, binaries, CONTROL_PLANE), controlplane.metrics_server(layout, binaries)]
    changed = [processes.ensure(layout, spec) for spec in specs]
    return any(changed)


def problem(layout: Layout, client: ApiClient, wanted: Mapping[str, str]) -> str | None:
    """Say what is missing until pods can be created and will run; `wanted` maps a node to when it was started."""
    for name in processes.recorded(layout):
        ended(layout, name)
    answer = client.get("/api/v1/nodes")
    if answer is None:
        return "the apiserver does not answer"
    found = {node["metadata"]["name"]: node for node in answer["items"]}
    waiting = [name for name, since in wanted.items() if name not in found or not ready(found[name], since)]
    if waiting:
        return f"{', '.join(waiting)} not Ready"
    if open_nodes := [node for node in wanted if not policies_count(layout, node)]:
        return f"no policy counts yet on {', '.join(open_nodes)}"
    if client.get("/api/v1/namespaces/default/serviceaccounts/default") is None:
        return "the default service account does not exist yet"
    return None


def ready(node: Mapping[str, Any], since: str = "") -> bool:
    """Tell whether a Node object says, not before `since`, that it takes pods: what it said last may be outlived."""
    conditions = node["status"].get("conditions", [])
    words = [condition for condition in conditions if condition["type"] == "Ready"]
    return any(word["status"] == "True" and word["lastHeartbeatTime"] >= since for word in words)


def policies_count(layout: Layout, node: str) -> bool:
    """Tell whether a node's packet filter holds what policies say; it need not where nobody asked for that."""
    return not layout.policies or layout.policies_in_force(node).exists()


def utc_now() -> str:
    """Return the time as Kubernetes writes it; such texts compare like the times they mean."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def kill_node(name: str, record: Record, node: str) -> None:
    """Cut a node's power: no process of it says goodbye and nothing answers at its address."""
    layout = checked(name, record, node)
    nodes.cut_power(layout, node)
    say(f"{node}: power cut")


def start_node(name: str, record: Record, node: str) -> None:
    """Give a node its power back; returns when it is Ready."""
    layout, binaries = checked(name, record, node), tools()
    if nodes.intact(layout, node, binaries):
        say(f"{node}: runs already")
        return
    nodes.cut_power(layout, node)
    network.ensure(layout, node_names(record.nodes), [node])
    since, client = utc_now(), ApiClient(layout)
    nodes.start_runtime(layout, node)
    start_nodes(layout, [node], record.archives, binaries)
    wait_for(node, lambda: node_problem(layout, client, node, since), seconds=READY_SECONDS)
    say(f"{node}: Ready")


def node_problem(layout: Layout, client: ApiClient, node: str, since: str) -> str | None:
    """Say what is missing until one node takes pods."""
    answer = client.get(f"/api/v1/nodes/{node}")
    if not answer or not ready(answer, since):
        return "not Ready"
    return None if policies_count(layout, node) else "no policy counts yet"


def checked(name: str, record: Record, node: str) -> Layout:
    """Refuse a node that does not exist."""
    names = node_names(record.nodes)
    if node not in names:
        raise ClusterError(f"no node {node!r} in {name!r}; there are {', '.join(names)}")
    return layout_of(name, record)


def down(name: str, record: Record | None) -> None:
    """Remove every process, group, link, route, mount and file, also what an interrupted `up` left."""
    debian.require_root()
    layout = layout_of(name, record)
    cgroups.kill(layout.cgroup)
    for process in processes.recorded(layout):
        processes.stop(layout, process)
    network.remove(layout)
    cgroups.remove(layout.cgroup)
    if layout.folder.exists():
        remove_folder(layout.folder)


def remove_folder(folder: Path) -> None:
    """Delete the state; the record goes last, so that an interrupted `down` can be repeated."""
    if left := network.mounts_below(folder):
        raise ClusterError(f"{left[0]} is still mounted; unmount it and run `down` again")
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "cluster.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.rmdir()
