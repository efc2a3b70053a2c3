"""The cluster's network: a bridge on the host and one network namespace per node and for the control plane.

In: a Layout and its nodes. Out: namespaces joined to the bridge, with routes such that pods reach pods, and
the host reaches pods and Services by address. Every step may be repeated. Writes no packet filter rule and
no kernel setting on the host; everything disappears with the bridge and the namespaces.
"""

import ipaddress
import json
import time
from collections.abc import Sequence
from pathlib import Path

from .cgroups import unescape
from .layout import CONTROL_PLANE, SLOTS, Layout
from .shell import ClusterError, attempt, run

GONE_SECONDS = 90.0
# Written inside a namespace. Bridged traffic passes the packet filter where the kernel offers it, as on any node.
NAMESPACE_SETTINGS = (
    "echo 1 > /proc/sys/net/ipv4/ip_forward; "
    "if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; "
    "then echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables; fi"
)


# A node that rejects many connections says so each time, not six times and then once a second.
POLICY_SETTINGS = "; echo 0 > /proc/sys/net/ipv4/icmp_ratemask"


def inside(layout: Layout, member: str) -> tuple[str, ...]:
    """Return the prefix that runs a command in a member's network."""
    return ("nsenter", f"--net={layout.namespace(member)}")


def ensure(layout: Layout, nodes: Sequence[str], present: Sequence[str]) -> None:
    """Build what is missing of bridge, namespaces, cables and routes; a node not present stays unplugged."""
    ensure_bridge(layout)
    for member in (CONTROL_PLANE, *present):
        ensure_namespace(layout, member)
        ensure_cable(layout, member)
        batch(layout, member, member_routes(layout, member, nodes))
    batch(layout, None, host_routes(layout, nodes))


def ensure_bridge(layout: Layout) -> None:
    """Create the switch every member is plugged into."""
    if layout.bridge not in links():
        # Without an address of its own a bridge takes over one of its cables', and changes it with them.
        run(["ip", "link", "add", layout.bridge, "address", layout.hardware("bridge"), "type", "bridge"])
    run(["ip", "address", "replace", f"{layout.host_address}/24", "dev", layout.bridge])
    run(["ip", "link", "set", layout.bridge, "up"])


def ensure_namespace(layout: Layout, member: str) -> None:
    """Pin a network namespace to a file below our folder, where `down` finds it in the mount table."""
    file = layout.namespace(member)
    if file in mounts_below(file.parent):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    run(["unshare", f"--net={file}", "true"])
    run([*inside(layout, member), "sh", "-c", NAMESPACE_SETTINGS + (POLICY_SETTINGS if layout.policies else "")])


def holds(layout: Layout, member: str, pid: int) -> bool:
    """Tell whether a process lives in the namespace that is pinned for its member now."""
    try:
        return layout.namespace(member).stat().st_ino == Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return False


def ensure_cable(layout: Layout, member: str) -> None:
    """Plug a member into the bridge; its own end is eth0."""
    link = layout.link(member)
    if link not in links():
        peer = ["peer", "name", "eth0", "address", layout.hardware(member), "netns", str(layout.namespace(member))]
        run(["ip", "link", "add", link, "type", "veth", *peer])
    run(["ip", "link", "set", link, "master", layout.bridge, "up"])


def member_routes(layout: Layout, member: str, nodes: Sequence[str]) -> list[str]:
    """List the addresses and routes of one namespace, as lines for `ip -batch`."""
    lines = [
        f"address replace {layout.address(member)}/24 dev eth0",
        "link set lo up",
        "link set eth0 up",
        *pod_routes(layout, [node for node in nodes if node != member]),
    ]
    if member == CONTROL_PLANE:
        # Services are answered here for the host. An address without a Service must end here, not bounce back.
        return [*lines, f"route replace {layout.services} dev eth0"]
    return [*lines, f"route replace default via {layout.host_address}"]


def host_routes(layout: Layout, nodes: Sequence[str]) -> list[str]:
    """Route pods to their node, and Services to the control plane, which no fault test takes away."""
    services = f"route replace {layout.services} via {layout.address(CONTROL_PLANE)}"
    return [*pod_routes(layout, nodes), services]


def pod_routes(layout: Layout, nodes: Sequence[str]) -> list[str]:
    return [f"route replace {layout.node_pods(node)} via {layout.address(node)}" for node in nodes]


def batch(layout: Layout, member: str | None, lines: Sequence[str]) -> None:
    """Run many `ip` commands in one process, in a member's namespace or on the host."""
    prefix = inside(layout, member) if member else ()
    run([*prefix, "ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


def links() -> set[str]:
    """Return the names of the host's links."""
    return {link["ifname"] for link in json.loads(run(["ip", "-json", "link", "show"]))}


def mounts_below(folder: Path) -> list[Path]:
    """Return the mount points at or below a folder, the latest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(unescape(line.split(" ")[4])) for line in lines]
    return [point for point in reversed(points) if point.is_relative_to(folder)]


def unmount_below(folder: Path) -> None:
    """Unmount everything at or below a folder, also what was mounted twice."""
    while points := mounts_below(folder):
        run(["umount", "--lazy", str(points[0])])


def remove_member(layout: Layout, member: str) -> None:
    """Take a member off the network for good: nothing answers at its address any more."""
    if layout.link(member) in links():
        attempt(["ip", "link", "delete", layout.link(member)])
    file = layout.namespace(member)
    unmount_below(file)
    file.unlink(missing_ok=True)


def remove(layout: Layout) -> None:
    """Remove bridge, cables and namespaces; the routes go with the bridge."""
    for link in sorted(ours(layout)):
        attempt(["ip", "link", "delete", link])
    unmount_below(layout.folder)
    deadline = time.monotonic() + GONE_SECONDS
    while left := ours(layout):
        # The kernel dismantles a namespace, and the cables in it, after its last user is gone.
        if time.monotonic() > deadline:
            raise ClusterError(f"network links {sorted(left)} cannot be removed")
        time.sleep(0.05)


def ours(layout: Layout) -> set[str]:
    return {link for link in links() if link.startswith(layout.link_prefix)}


def occupied_slots(routes: str) -> set[int]:
    """Find the slots whose ranges overlap a route of this machine (`ip -json route` output)."""
    destinations = [route["dst"] for route in json.loads(routes or "[]") if route["dst"] != "default"]
    networks = [ipaddress.ip_network(destination, strict=False) for destination in destinations]
    taken: set[int] = set()
    for slot in SLOTS:
        layout = Layout(name="any", slot=slot, folder=Path("/"))
        ranges = [ipaddress.ip_network(layout.pods), ipaddress.ip_network(layout.services)]
        if any(mine.overlaps(other) for mine in ranges for other in networks):
            taken.add(slot)
    return taken
