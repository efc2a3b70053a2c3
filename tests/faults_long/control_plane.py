"""The keys of a local cluster's control plane: made anew, and taken up by the programs that read them at their start.

In: a running cluster that this machine built. Out: the same cluster with another serving certificate, another key for
service accounts, another authority. Kubelets are started anew beside their pods, which notice nothing. What an
interrupted run left is completed by the next `cluster up`.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from e2e.bed import ROOT, eventually, run
from faults.ground import processes_of
from faults_long.world import NAMESPACE, World

sys.path.append(str(ROOT / "ci/cluster"))

from llmfleet_cluster import built, controlplane, nodes, pki, processes, store
from llmfleet_cluster.apiclient import ApiClient
from llmfleet_cluster.layout import CONTROL_PLANE, Layout, node_names

MANAGER = "kube-controller-manager"
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
TOKEN = "root/run/secrets/kubernetes.io/serviceaccount"
WAIT = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """The control plane of one cluster, and the programs it consists of."""

    world: World
    layout: Layout
    binaries: controlplane.Binaries
    nodes: Sequence[str]

    def specs(self, name: str) -> list[processes.Spec]:
        """The processes that go by a name: one of the control plane, or one of each node."""
        layout, binaries = self.layout, self.binaries
        if name == "kubelet":
            return [nodes.kubelet(layout, node, binaries) for node in self.nodes]
        if name == "kube-proxy":
            return [controlplane.kube_proxy(layout, binaries, member) for member in (*self.nodes, CONTROL_PLANE)]
        return [getattr(controlplane, name.replace("-", "_"))(layout, binaries)]

    def restart(self, *names: str) -> None:
        """End programs and start them as their files are now."""
        with store.locked(self.layout.name):
            for spec in (spec for name in names for spec in self.specs(name)):
                processes.stop(self.layout, spec.name)
                processes.start(self.layout, spec)

    def serves(self) -> bool:
        """Whether the apiserver answers."""
        return ApiClient(self.layout).problem() is None

    def restart_apiserver(self) -> None:
        """The apiserver as its files are now; returns when it answers."""
        self.restart("kube-apiserver")
        eventually(self.serves, WAIT)

    # -- keys ----------------------------------------------------------------------------------------------------------

    def new_serving_certificate(self) -> None:
        """Another key and certificate of the apiserver, signed by the authority as it is now."""
        name = "kube-apiserver"
        pki.certificate(self.layout, name).unlink()
        pki.ensure_certificate(self.layout, name, name, "", pki.server_names(self.layout))

    def new_account_key(self) -> str:
        """Sign tokens with another key, and believe both for now; returns the new public key."""
        public = self.layout.pki / "accounts.pub"
        old = public.read_text()
        public.unlink()
        pki.ensure_account_key(self.layout)
        new = public.read_text()
        store.write_file(public, new + old)
        return new

    def forget_account_key(self, keep: str) -> None:
        """Believe one public key alone."""
        store.write_file(self.layout.pki / "accounts.pub", keep)

    def new_authority(self, subject: str, *key: str) -> tuple[str, str]:
        """Another certificate of an authority and its key, which is a new one unless a file with one is named."""
        with pki.workplace(self.layout) as folder:
            wanted = ["-key", *key] if key else [*pki.NEW_KEY, "-keyout", f"{folder}/key"]
            run(["openssl", "req", "-x509", *wanted, "-out", f"{folder}/crt", "-days", pki.DAYS, "-subj", subject])
            return (Path(folder) / "crt").read_text(), Path(*key or (folder, "key")).read_text()

    def trust(self, key: str, *authorities: str) -> None:
        """Write the certificates that are believed; the first is that of who signs, with this key."""
        store.write_file(pki.key(self.layout, "ca"), key)
        store.write_file(pki.certificate(self.layout, "ca"), "".join(authorities))
        for user in pki.USERS:
            pki.ensure_kubeconfig(self.layout, user, self.layout.credentials(user))
        for node in self.nodes:
            pki.ensure_kubeconfig(self.layout, node, self.layout.credentials(node))
        pki.ensure_kubeconfig(self.layout, "admin", self.layout.kubeconfig)
        self.world.bed.__post_init__()  # in place: others hold it

    def take_up(self, *but: str) -> None:
        """Everything that holds a kubeconfig or a certificate reads it now, except what is named."""
        self.restart_apiserver()
        names = ("kubelet", "kube-proxy", "kube-scheduler", "coredns", "metrics-server", MANAGER)
        self.restart(*(name for name in names if name not in but))

    def served(self) -> str:
        """The certificate that the apiserver shows."""
        host, port = self.layout.server.removeprefix("https://").split(":")
        return ssl.get_server_certificate((host, int(port)))


def plane_of(world: World) -> Plane:
    """The control plane of a world's cluster."""
    record = store.read_record(world.ground.name)
    assert record and record.backend == "built", "only a cluster that this machine built can be given other keys"
    layout = store.layout_of(world.ground.name, record)
    return Plane(world=world, layout=layout, binaries=built.tools(), nodes=node_names(record.nodes))


@contextmanager
def mended(world: World) -> Iterator[Plane]:
    """Change what is needed; afterwards the cluster is as its files say, whatever happened in between."""
    plane = plane_of(world)
    try:
        yield plane
    finally:
        world.ground.up()
        world.bed.__post_init__()


def faketime() -> Path:
    """The library that gives a process another clock, from Debian's package if it is not there yet."""
    if not FAKETIME.exists():
        run(["apt-get", "install", "--yes", "--no-install-recommends", "libfaketime"])
    return FAKETIME


def long_valid(world: World) -> None:
    """Let certificates be valid since two days: a pod whose clock is behind would not believe those of today."""
    with mended(world) as plane:
        os.environ |= {"LD_PRELOAD": str(faketime()), "FAKETIME": "-2d"}
        try:
            made, key = plane.new_authority("/CN=llmfleet", str(pki.key(plane.layout, "ca")))
            plane.trust(key, made)
            plane.new_serving_certificate()
        finally:
            del os.environ["LD_PRELOAD"], os.environ["FAKETIME"]
        plane.take_up()
        eventually(partial(bundle_is, world, made), WAIT)
    for pod in world.bed.pods("app.kubernetes.io/component in (operator,autoscaler,router)"):
        eventually(partial(sees_bundle, pod["metadata"]["uid"], made), WAIT)


def bundle_is(world: World, content: str) -> bool:
    """Whether pods of our namespace are to be given these authorities."""
    found = world.bed.core.read_namespaced_config_map("kube-root-ca.crt", NAMESPACE)
    return bool((found.data or {}).get("ca.crt") == content)


def mounts_of(pod_uid: str) -> list[Path]:
    """Where the processes of a pod that have an account see its files: one place for each container."""
    pids = [pid for word in ("operator", "autoscaler", "route-sync") for pid in processes_of(pod_uid, word)]
    return [Path(f"/proc/{pid}") / TOKEN for pid in pids]


def sees_bundle(pod_uid: str, content: str) -> bool:
    """Whether the files of a pod's account hold these authorities."""
    return any((place / "ca.crt").read_text() == content for place in mounts_of(pod_uid))


def key_id(pod_uid: str) -> str:
    """The key that signed the token which a pod sees now."""
    token = (mounts_of(pod_uid)[0] / "token").read_text()
    head = token.split(".", 1)[0]
    return str(json.loads(urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"])
