"""Derive every name, path and address of a cluster from its name, its slot and its folder.

Pure: no file, clock, process or environment. A name that is derived needs no record, so `down` finds
what a killed `up` made. Clusters side by side differ in the slot, which picks their address ranges.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_NAME = "local"
SLOTS = range(10)
MAX_NODES = 100
CONTROL_PLANE = "control-plane"
# A kubelet's longest socket is FOLDER/nodes/node-99/kubelet/pod-resources/kubelet.sock; the kernel takes 107 bytes.
LONGEST_FOLDER = 60
# Host folders that programs of a node use whatever they are told; every node covers them with memory of its own.
PRIVATE_FOLDERS = (Path("/run"), Path("/var/log"), Path("/var/lib/cni"), Path("/var/lib/kubelet"))
HIDDEN = (*PRIVATE_FOLDERS, Path("/var/run"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where one cluster's things are."""

    name: str
    slot: int
    folder: Path
    # Whether NetworkPolicies count.
    policies: bool = False

    @property
    def records(self) -> Path:
        return self.folder / "processes"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def credentials(self, user: str) -> Path:
        """Return the kubeconfig a component uses."""
        return self.pki / f"{user}.kubeconfig"

    def namespace(self, member: str) -> Path:
        """Return the file that holds a member's network namespace (a member is a node or the control plane)."""
        return self.folder / "namespaces" / member

    def node_folder(self, node: str) -> Path:
        return self.folder / "nodes" / node

    def policies_in_force(self, node: str) -> Path:
        """Return the file that says what a node's packet filter was made from."""
        return self.node_folder(node) / "policies.json"

    @property
    def cgroup(self) -> str:
        """Return the parent of every control group, below which is every process of the cluster."""
        return f"llmfleet-{self.name}"

    def member_cgroup(self, member: str) -> str:
        return f"{self.cgroup}/{member}"

    @property
    def link_prefix(self) -> str:
        """Start of every link's name on the host; a link's name has at most 15 characters."""
        return "lf" + hashlib.sha256(self.name.encode()).hexdigest()[:6]

    @property
    def bridge(self) -> str:
        return f"{self.link_prefix}br"

    def link(self, member: str) -> str:
        """Name the host's end of a member's cable."""
        return self.link_prefix + ("cp" if member == CONTROL_PLANE else f"n{node_index(member)}")

    def hardware(self, member: str) -> str:
        """Return a fixed hardware address: neighbours remember it for many seconds after a node came back."""
        digest = hashlib.sha256(f"{self.name}/{member}".encode()).digest()
        return ":".join(["02", *(f"{byte:02x}" for byte in digest[:5])])

    @property
    def octet(self) -> int:
        return 244 - self.slot

    @property
    def pods(self) -> str:
        return f"10.{self.octet}.0.0/16"

    def node_pods(self, node: str) -> str:
        return f"10.{self.octet}.{node_index(node)}.0/24"

    @property
    def services(self) -> str:
        return f"10.{96 + self.slot}.0.0/16"

    @property
    def api_service(self) -> str:
        return f"10.{96 + self.slot}.0.1"

    @property
    def host_address(self) -> str:
        return f"10.{self.octet}.255.1"

    def address(self, member: str) -> str:
        """Return the address of a node or of the control plane on the bridge."""
        last = 2 if member == CONTROL_PLANE else 10 + node_index(member)
        return f"10.{self.octet}.255.{last}"

    @property
    def server(self) -> str:
        return f"https://{self.address(CONTROL_PLANE)}:6443"


def node_names(count: int) -> list[str]:
    return [f"node-{index}" for index in range(count)]


def node_index(node: str) -> int:
    return int(node.removeprefix("node-"))


def check_name(name: str) -> str | None:
    """Say what is wrong with a cluster's name, if anything."""
    if re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", name):
        return None
    return f"--name {name!r}: write 1 to 20 lower-case letters, digits and inner dashes"


def check_folder(folder: Path) -> str | None:
    """Say why nodes could not live in this folder, if they could not."""
    if len(str(folder)) > LONGEST_FOLDER:
        return f"state folder {folder}: at most {LONGEST_FOLDER} characters, a socket's path must fit below it"
    if any(folder.is_relative_to(hidden) for hidden in HIDDEN):
        return f"state folder {folder}: nodes cover {', '.join(map(str, HIDDEN))}; set LLMFLEET_STATE elsewhere"
    return None
