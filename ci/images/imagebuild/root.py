"""The files of an image that come from no package: users, folders, applet links.

Pure. The same users exist in every image, so that a volume written by one is readable by the other.
"""

from imagebuild import tree
from imagebuild.tree import Tree

USERS = (
    ("root", 0, 0, "/root"),
    ("nobody", 65534, 65534, "/nonexistent"),
    ("redis", 999, 999, "/data"),
    # Group 0 as in vLLM's own images: what a pod with an arbitrary UID and group 0 may write stays writable.
    ("vllm", 2000, 0, "/home/vllm"),
    ("llmfleet", 65532, 65532, "/tmp"),
)
GROUPS = (("root", 0), ("nogroup", 65534), ("redis", 999), ("llmfleet", 65532))
# What a person or a probe types in a container. One program of 0.7 MB instead of 18 MB of coreutils.
APPLETS = """
    sh [ basename cat chmod chown cmp cp cut date dd df diff dirname du echo env expr false find free getopt grep groups
    gunzip gzip head hostname id install ip kill killall ln ls md5sum mkdir mkfifo mktemp more mount mv nc netstat
    nslookup od paste pgrep pidof ping printf ps pwd readlink realpath renice reset rm rmdir sed seq sha256sum sleep
    sort stat stty sync tail tar tee telnet test time timeout top touch tr true tty umount uname uniq uptime vi
    watch wc wget which who xargs yes zcat
"""


def standard() -> Tree:
    """Return users, name service order, temporary folders and the links merged /usr needs."""
    merged = {path: tree.link(f"usr/{path}") for path in ("bin", "sbin", "lib")}
    empty = {path: tree.folder() for path in ("dev", "etc", "mnt", "opt", "proc", "run", "sys", "var")}
    temporary = {path: tree.folder(mode=0o1777) for path in ("tmp", "var/tmp")}
    homes = {"root": tree.folder(mode=0o700), "home/vllm": tree.folder(mode=0o775, uid=2000)}
    return merged | empty | temporary | homes | _names() | {"var/run": tree.link("/run")}


def _names() -> Tree:
    passwd = "".join(f"{name}:x:{uid}:{gid}:{name}:{home}:/bin/sh\n" for name, uid, gid, home in USERS)
    group = "".join(f"{name}:x:{gid}:\n" for name, gid in GROUPS)
    nsswitch = "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"
    return {
        "etc/passwd": tree.file(passwd),
        "etc/group": tree.file(group),
        "etc/nsswitch.conf": tree.file(nsswitch),
    }


def loader_link(packages: Tree) -> Tree:
    """On x86-64 programs name their loader below /lib64, which is a link too."""
    return {"lib64": tree.link("usr/lib64")} if any(path.startswith("usr/lib64/") for path in packages) else {}


def applets() -> Tree:
    """Return the links by which busybox is called under its many names."""
    return {f"usr/bin/{name}": tree.link("busybox") for name in APPLETS.split()}


def python_link(version: str) -> Tree:
    """Scripts and the start gate of an engine group call `python3`."""
    return {"usr/bin/python3": tree.link(f"python{version}")}


def redis_data() -> Tree:
    """Return the folder redis-server works in; a pod mounts a volume over it."""
    return {"data": tree.folder(mode=0o775, uid=999, gid=999)}


def vllm_links() -> Tree:
    """Let the mounted environment be importable, and its model be where the demo's values look for it."""
    site = "/opt/vllm/venv/lib/python3.11/site-packages"
    return {
        "opt/vllm": tree.folder(),
        "models/tiny": tree.link("/opt/vllm/model"),
        "usr/local/lib/python3.11/dist-packages/vllm-environment.pth": tree.file(f"{site}\n"),
    }
