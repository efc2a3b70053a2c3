"""A node: a network namespace, a mount namespace, containerd, a kubelet, a kube-proxy, and an enforcer of policies.

In: a Layout, a node's name, paths of binaries. Out: a node that registers itself, or one whose power is
cut. The mount namespace is private and covers the host's PRIVATE_FOLDERS with memory, so every mount, socket
and link a node makes vanishes with its last process, and two nodes never meet on a path.
"""

import json
import shutil
import socket
import sys
from pathlib import Path

from . import cgroups, network, pki, processes
from .controlplane import Binaries, kube_proxy
from .layout import CONTROL_PLANE, PRIVATE_FOLDERS, Layout
from .processes import Spec
from .shell import attempt, wait_for
from .store import write_file

ENFORCER = Path(__file__).resolve().parents[1] / "enforcer"
PAUSE_IMAGE = "localhost/llmfleet/pause:1"
SOCKET = "/run/containerd/containerd.sock"
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
PRIVATE_MOUNTS = (
    "set -e; mount --make-rshared /; "
    f"for folder in {' '.join(map(str, PRIVATE_FOLDERS))}; do mount -t tmpfs -o mode=755 llmfleet $folder; done; "
    'exec "$@"'
)


def containerd(layout: Layout, node: str) -> Spec:
    """Describe a node's first process, which makes the node's mount namespace."""
    config = layout.node_folder(node) / "containerd.toml"
    private = ("unshare", "--mount", "--propagation", "private", "sh", "-c", PRIVATE_MOUNTS, "node")
    return Spec(
        name=f"containerd.{node}",
        argv=("containerd", "--config", str(config)),
        cgroup=f"{layout.member_cgroup(node)}/system",
        inputs=(config, layout.node_folder(node) / "cni/10-pods.conflist"),
        prefix=(*network.inside(layout, node), *private),
    )


def kubelet(layout: Layout, node: str, binaries: Binaries) -> Spec:
    """Describe the kubelet; it joins the namespaces containerd made."""
    folder = layout.node_folder(node)
    argv = [
        binaries["kubelet"],
        f"--config={folder}/kubelet.json",
        f"--kubeconfig={layout.credentials(node)}",
        f"--hostname-override={node}",
        f"--node-ip={layout.address(node)}",
        f"--root-dir={folder}/kubelet",
        f"--cert-dir={folder}/kubelet-pki",
    ]
    return Spec(
        name=f"kubelet.{node}",
        argv=tuple(argv),
        cgroup=f"{layout.member_cgroup(node)}/system",
        inputs=(folder / "kubelet.json", layout.credentials(node)),
        prefix=joined(layout, node),
    )


def enforcer(layout: Layout, node: str) -> Spec:
    """Describe what makes NetworkPolicies count on a node."""
    own = Path(__file__).parent
    return Spec(
        name=f"policies.{node}",
        argv=(str(ENFORCER), layout.name, str(layout.slot), str(layout.folder), node),
        cgroup=f"{layout.member_cgroup(node)}/system",
        inputs=(pki.certificate(layout, "policies"), own / "enforcer.py", own / "policies.py"),
        # The interpreter of this very command, whichever `python3` comes first on somebody's PATH.
        prefix=(*network.inside(layout, node), sys.executable),
    )


def programs(layout: Layout, node: str, binaries: Binaries) -> list[Spec]:
    """Describe what a node runs once containerd serves, in the order in which it starts."""
    usual = [kubelet(layout, node, binaries), kube_proxy(layout, binaries, node)]
    return [enforcer(layout, node), *usual] if layout.policies else usual


def specs(layout: Layout, node: str, binaries: Binaries) -> list[Spec]:
    """Describe everything a node runs, in the order in which it starts."""
    return [containerd(layout, node), *programs(layout, node, binaries)]


def joined(layout: Layout, node: str) -> tuple[str, ...]:
    """Return the prefix that runs a command in a node's mounts and network."""
    running = processes.find(layout, f"containerd.{node}")
    return ("nsenter", f"--target={running.pid if running else 0}", "--mount", "--net")


def ctr(layout: Layout, node: str) -> tuple[str, ...]:
    """Return the prefix of a command to a node's image store."""
    return (*joined(layout, node), "ctr", "--namespace", "k8s.io")


def configure(layout: Layout, node: str) -> None:
    """Write a node's configuration files."""
    folder = layout.node_folder(node)
    write_file(folder / "containerd.toml", containerd_config(folder, snapshotter(folder)))
    write_file(folder / "cni/10-pods.conflist", json.dumps(pod_network(layout, node), indent=1))
    write_file(folder / "kubelet.json", json.dumps(kubelet_config(layout, node), indent=1))


def snapshotter(folder: Path) -> str:
    """Use overlayfs if it works on this file system (inside a container it often does not)."""
    probe = folder / "overlay-probe"
    for name in ("lower", "upper", "work", "merged"):
        (probe / name).mkdir(parents=True, exist_ok=True)
    options = ",".join(f"{key}dir={name}" for key, name in (("lower", "lower"), ("upper", "upper"), ("work", "work")))
    mount = f'cd "$1" && mount -t overlay overlay -o {options} merged'
    works = attempt(["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "probe", str(probe)])
    shutil.rmtree(probe)
    return "overlayfs" if works.returncode == 0 else "native"


def containerd_config(folder: Path, snapshots: str) -> str:
    plugins = next((str(path) for path in CNI_FOLDERS if (path / "bridge").exists()), str(CNI_FOLDERS[0]))
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "{folder}/containerd"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  tolerate_missing_hugetlb_controller = true
  # Without CAP_SYS_RESOURCE a lower score than our own is refused, and every sandbox with it.
  restrict_oom_score_adj = true
[{cri}.cni]
  bin_dir = "{plugins}"
  conf_dir = "{folder}/cni"
[{cri}.containerd]
  snapshotter = "{snapshots}"
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


def pod_network(layout: Layout, node: str) -> dict[str, object]:
    """Join pods to a bridge in the node, with addresses that are routed, not translated."""
    ranges = [[{"subnet": layout.node_pods(node)}]]
    addresses = {
        "type": "host-local",
        # Memory, like the pods themselves: a node that lost its power has no address in use.
        "dataDir": "/run/llmfleet-addresses",
        "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [{**bridge, "ipam": addresses}, ports]}


def kubelet_config(layout: Layout, node: str) -> dict[str, object]:
    folder = layout.node_folder(node)
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki.certificate(layout, "ca"))},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki.certificate(layout, node)),
        "tlsPrivateKeyFile": str(pki.key(layout, node)),
        "clusterDNS": [layout.address(CONTROL_PLANE)],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "volumePluginDir": f"{folder}/volume-plugins",
        # Kubelets that share a folder delete each other's pod logs.
        "podLogsDir": f"{folder}/pod-logs",
        **kubelet_groups(layout, node),
        **kubelet_timing(),
    }


def kubelet_groups(layout: Layout, node: str) -> dict[str, object]:
    """Return the settings about control groups and about sharing the machine with everybody else."""
    return {
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.member_cgroup(node)}/pods",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        # The disk is the user's: a full one is theirs to see, and unused images were loaded on purpose.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
    }


def kubelet_timing() -> dict[str, object]:
    """Return the settings that make changes show soon; the lease fits the 20 s after which a node counts as dead."""
    return {
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "nodeLeaseDurationSeconds": 16,
        "serializeImagePulls": False,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "eventRecordQPS": 0,
    }


def start_runtime(layout: Layout, node: str) -> None:
    """Start containerd; a node of which any process is missing loses its power first."""
    configure(layout, node)
    layout.policies_in_force(node).unlink(missing_ok=True)
    cgroups.ensure(f"{layout.member_cgroup(node)}/pods")
    for covered in PRIVATE_FOLDERS:
        # Left in place by `down`: removing a folder would unmount what another cluster's nodes have there.
        covered.mkdir(exist_ok=True)
    processes.ensure(layout, containerd(layout, node))


def wait_runtime(layout: Layout, node: str) -> None:
    """Wait until containerd serves."""
    wait_for(f"containerd of {node}", lambda: runtime_problem(layout, node), seconds=180)


def runtime_problem(layout: Layout, node: str) -> str | None:
    """Say why containerd does not serve, or return None."""
    running = processes.find(layout, f"containerd.{node}")
    if running is None:
        return f"it ended; see {layout.logs}/containerd.{node}.log"
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(f"/proc/{running.pid}/root{SOCKET}")
        except OSError as error:
            return str(error)
    return None


def intact(layout: Layout, node: str, binaries: Binaries) -> bool:
    """Tell whether a node needs nothing: all its processes run, with the configuration it should have."""
    first = processes.find(layout, f"containerd.{node}")
    if first is None or not network.holds(layout, node, first.pid):
        return False
    configure(layout, node)
    return all(processes.matches(layout, spec) for spec in specs(layout, node, binaries))


def cut_power(layout: Layout, node: str) -> None:
    """End every process of a node at once and take it off the network."""
    cgroups.kill(layout.member_cgroup(node))
    for name in processes.recorded(layout):
        if name.endswith(f".{node}"):
            processes.stop(layout, name)
    network.remove_member(layout, node)
    cgroups.remove(layout.member_cgroup(node))
