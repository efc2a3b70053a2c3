"""What runs in the control plane's network namespace, and with which flags.

Pure: turns a Layout and the paths of binaries into process specs. Reasons stand beside the flags that are
not defaults. Starting is done elsewhere.
"""

from collections.abc import Mapping
from pathlib import Path

from . import pki
from .layout import CONTROL_PLANE, Layout
from .network import inside
from .processes import Spec

ETCD = "http://127.0.0.1:2379"
METRICS_PORT = 4443
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "coredns", "metrics-server")

Binaries = Mapping[str, str]


def spec(layout: Layout, name: str, argv: list[str], inputs: tuple[Path, ...] = ()) -> Spec:
    """Describe a process of the control plane."""
    return Spec(
        name=name,
        argv=tuple(argv),
        cgroup=layout.member_cgroup(CONTROL_PLANE),
        inputs=inputs,
        prefix=inside(layout, CONTROL_PLANE),
    )


def etcd(layout: Layout, binaries: Binaries) -> Spec:
    argv = [
        binaries["etcd"],
        f"--data-dir={layout.folder}/etcd",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--log-level=warn",
        # A test cluster may lose its last writes with the machine; a slow disk must not slow every test.
        "--unsafe-no-fsync",
    ]
    return spec(layout, "etcd", argv)


def kube_apiserver(layout: Layout, binaries: Binaries) -> Spec:
    argv = [
        binaries["kube-apiserver"],
        f"--etcd-servers={ETCD}",
        f"--advertise-address={layout.address(CONTROL_PLANE)}",
        f"--service-cluster-ip-range={layout.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        # Pods of a dead node are given up after 30 s instead of 5 min: fault tests wait for it.
        "--default-not-ready-toleration-seconds=30",
        "--default-unreachable-toleration-seconds=30",
        *apiserver_identity(layout),
        *apiserver_aggregation(layout),
    ]
    certificates = [pki.certificate(layout, name) for name in ("ca", "kube-apiserver", "kubelet-client", "front-proxy")]
    return spec(layout, "kube-apiserver", argv, tuple(certificates))


def apiserver_identity(layout: Layout) -> list[str]:
    """Return the flags that say who the server is, whom it trusts and how it reaches kubelets."""
    return [
        f"--tls-cert-file={pki.certificate(layout, 'kube-apiserver')}",
        f"--tls-private-key-file={pki.key(layout, 'kube-apiserver')}",
        f"--client-ca-file={pki.certificate(layout, 'ca')}",
        f"--service-account-key-file={layout.pki}/accounts.pub",
        f"--service-account-signing-key-file={layout.pki}/accounts.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--kubelet-certificate-authority={pki.certificate(layout, 'ca')}",
        f"--kubelet-client-certificate={pki.certificate(layout, 'kubelet-client')}",
        f"--kubelet-client-key={pki.key(layout, 'kubelet-client')}",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def apiserver_aggregation(layout: Layout) -> list[str]:
    """Return the flags for aggregated APIs. With one authority for all, the allowed names must be given."""
    return [
        f"--requestheader-client-ca-file={pki.certificate(layout, 'ca')}",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki.certificate(layout, 'front-proxy')}",
        f"--proxy-client-key-file={pki.key(layout, 'front-proxy')}",
        # Goes to endpoints directly: webhooks and aggregated APIs work without a proxy for Services.
        "--enable-aggregator-routing=true",
    ]


def kube_controller_manager(layout: Layout, binaries: Binaries) -> Spec:
    credentials = layout.credentials("kube-controller-manager")
    argv = [
        binaries["kube-controller-manager"],
        f"--kubeconfig={credentials}",
        f"--authentication-kubeconfig={credentials}",
        f"--authorization-kubeconfig={credentials}",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={layout.pki}/accounts.key",
        f"--root-ca-file={pki.certificate(layout, 'ca')}",
        f"--cluster-cidr={layout.pods}",
        "--allocate-node-cidrs=false",
        f"--flex-volume-plugin-dir={layout.folder}/volume-plugins",
        # There is only one; an election would cost seconds at every start.
        "--leader-elect=false",
        # A dead node is noticed in 20 s instead of 50 s, and its pods evicted without the rate limit for big clusters.
        "--node-monitor-grace-period=20s",
        "--node-monitor-period=2s",
        "--node-eviction-rate=5",
        "--secondary-node-eviction-rate=5",
        # metrics-server has new figures every 15 s.
        "--horizontal-pod-autoscaler-sync-period=10s",
    ]
    return spec(layout, "kube-controller-manager", argv, (credentials,))


def kube_scheduler(layout: Layout, binaries: Binaries) -> Spec:
    credentials = layout.credentials("kube-scheduler")
    argv = [
        binaries["kube-scheduler"],
        f"--kubeconfig={credentials}",
        f"--authentication-kubeconfig={credentials}",
        f"--authorization-kubeconfig={credentials}",
        "--leader-elect=false",
    ]
    return spec(layout, "kube-scheduler", argv, (credentials,))


def kube_proxy(layout: Layout, binaries: Binaries, member: str) -> Spec:
    """Make Services work in one namespace. In the control plane's it answers for the host."""
    credentials = layout.credentials("kube-proxy")
    argv = [
        binaries["kube-proxy"],
        f"--kubeconfig={credentials}",
        # The control plane is no node, and a proxy without a node waits 30 s for it.
        f"--hostname-override={'node-0' if member == CONTROL_PLANE else member}",
        f"--bind-address={layout.address(member)}",
        f"--cluster-cidr={layout.pods}",
        "--proxy-mode=iptables",
        *masquerading(layout, member),
        "--iptables-min-sync-period=200ms",
        # The namespace does not own these kernel settings.
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
        "--healthz-bind-address=127.0.0.1:10256",
    ]
    return Spec(
        name=f"kube-proxy.{member}",
        argv=tuple(argv),
        cgroup=f"{layout.member_cgroup(member)}/system" if member != CONTROL_PLANE else layout.member_cgroup(member),
        inputs=(credentials,),
        prefix=inside(layout, member),
    )


def masquerading(layout: Layout, member: str) -> list[str]:
    """Answers come back the way the question went, also when the host asks and the pod is on any node.

    Policies ask which pod a packet comes from, so with them nodes leave pods' addresses as they are.
    """
    return [] if layout.policies and member != CONTROL_PLANE else ["--masquerade-all"]


def coredns(layout: Layout, binaries: Binaries) -> Spec:
    file = layout.folder / "Corefile"
    return spec(layout, "coredns", [binaries["coredns"], "-conf", str(file)], (file, layout.credentials("coredns")))


def corefile(layout: Layout) -> str:
    """Answer the cluster's names from memory, and deny every other name at once.

    No time to live and no cache: a group's ranks look for a leader whose name appears a moment later.
    """
    return f""".:53 {{
    bind {layout.address(CONTROL_PLANE)}
    errors
    health 127.0.0.1:8089
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig "{layout.credentials("coredns")}"
        pods insecure
        ttl 0
    }}
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""


def metrics_server(layout: Layout, binaries: Binaries) -> Spec:
    credentials = layout.credentials("metrics-server")
    argv = [
        binaries["metrics-server"],
        f"--kubeconfig={credentials}",
        f"--authentication-kubeconfig={credentials}",
        f"--authorization-kubeconfig={credentials}",
        f"--secure-port={METRICS_PORT}",
        f"--tls-cert-file={pki.certificate(layout, 'kube-apiserver')}",
        f"--tls-private-key-file={pki.key(layout, 'kube-apiserver')}",
        f"--kubelet-certificate-authority={pki.certificate(layout, 'ca')}",
        "--kubelet-preferred-address-types=InternalIP",
        "--metric-resolution=15s",
    ]
    return spec(layout, "metrics-server", argv, (credentials,))
