"""Programs the built cluster takes from the distribution.

In: nothing. Out: they are on PATH, installed by apt-get when this is root on a Debian system; otherwise a
message that names every missing package.
"""

import os
import shutil

from .nodes import CNI_FOLDERS
from .shell import PATH, ClusterError, attempt, say

PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
}
# Only for clusters on which policies count.
POLICY_PROGRAMS = {"nft": "nftables"}
PLUGINS = "containernetworking-plugins"
INSTALL_SECONDS = 600.0


def missing_packages(policies: bool = False) -> list[str]:
    """Return the packages whose programs are not there."""
    wanted = {**PROGRAMS, **(POLICY_PROGRAMS if policies else {})}
    missing = {package for program, package in wanted.items() if shutil.which(program, path=PATH) is None}
    if not any((folder / "bridge").exists() for folder in CNI_FOLDERS):
        missing.add(PLUGINS)
    return sorted(missing)


def require_root() -> None:
    """Refuse early what needs the right to make namespaces."""
    if os.geteuid() != 0:
        packages = missing_packages()
        also = f" Packages it will need: {' '.join(packages)}." if packages else ""
        raise ClusterError(
            "a cluster built on this machine needs root (it makes namespaces): run `sudo ci/cluster/cluster up`, "
            f"start Docker or Podman, or name a cluster of your own with --context.{also}"
        )


def ensure(policies: bool = False) -> None:
    """Install what is missing, or say exactly what to install."""
    packages = missing_packages(policies)
    if not packages:
        return
    if shutil.which("apt-get", path=PATH) is None:
        raise ClusterError(f"missing on this machine (Debian's names): {' '.join(packages)}; install them and repeat")
    say(f"installing {' '.join(packages)}")
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]
    install = [*apt, "install", "-y", "--no-install-recommends", *packages]
    if attempt(install, timeout=INSTALL_SECONDS).returncode != 0:
        # A fresh machine has no package lists yet.
        attempt([*apt, "update"], timeout=INSTALL_SECONDS)
        result = attempt(install, timeout=INSTALL_SECONDS)
        if result.returncode != 0:
            raise ClusterError(f"apt-get cannot install {' '.join(packages)}: {result.stderr.strip()[-1000:]}")
