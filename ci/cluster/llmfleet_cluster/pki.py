"""Certificates and kubeconfigs of a built cluster.

In: a Layout and its nodes. Out: files in the cluster's `pki` folder, private to root, made once. A
certificate is written after its key, so an interrupted run makes both again. Uses the openssl command;
elliptic keys, because a dozen of them take less time than one RSA key.
"""

import base64
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .layout import CONTROL_PLANE, Layout
from .shell import run
from .store import write_file

DAYS = "3650"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
METRICS_NAME = "metrics-server.kube-system.svc"
# Common name and organisation decide what RBAC allows; most have their role built into Kubernetes.
USERS = {
    "admin": ("llmfleet:admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", ""),
    "coredns": ("system:coredns", ""),
    "metrics-server": ("system:metrics-server", ""),
    "policies": ("system:policies", ""),
    "kubelet-client": ("llmfleet:kubelet-client", "system:masters"),
    "front-proxy": ("front-proxy", ""),
}


def ensure(layout: Layout, nodes: Sequence[str]) -> None:
    """Make what is missing: authority, service account key, certificates, kubeconfigs."""
    ensure_authority(layout)
    ensure_account_key(layout)
    ensure_certificate(layout, "kube-apiserver", "kube-apiserver", "", server_names(layout))
    for user, (common_name, organisation) in USERS.items():
        ensure_certificate(layout, user, common_name, organisation, [])
        ensure_kubeconfig(layout, user, layout.credentials(user))
    for node in nodes:
        names = [f"DNS:{node}", f"IP:{layout.address(node)}"]
        ensure_certificate(layout, node, f"system:node:{node}", "system:nodes", names)
        ensure_kubeconfig(layout, node, layout.credentials(node))
    ensure_kubeconfig(layout, "admin", layout.kubeconfig)


def certificate(layout: Layout, name: str) -> Path:
    return layout.pki / f"{name}.crt"


def key(layout: Layout, name: str) -> Path:
    return layout.pki / f"{name}.key"


def server_names(layout: Layout) -> list[str]:
    """Return every name and address the apiserver is reached under."""
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", METRICS_NAME]
    addresses = ["127.0.0.1", layout.address(CONTROL_PLANE), layout.api_service]
    return [f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses]


def ensure_authority(layout: Layout) -> None:
    """Make the one authority for clients, servers and the front proxy."""
    if certificate(layout, "ca").exists():
        return
    with workplace(layout) as folder:
        made = ["-keyout", f"{folder}/key", "-out", f"{folder}/crt", "-days", DAYS, "-subj", "/CN=llmfleet"]
        run(["openssl", "req", "-x509", *NEW_KEY, *made])
        keep(layout, "ca", Path(folder))


def ensure_account_key(layout: Layout) -> None:
    """Make the key that signs service account tokens."""
    if (layout.pki / "accounts.pub").exists():
        return
    private = run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"])
    write_file(layout.pki / "accounts.key", private)
    write_file(layout.pki / "accounts.pub", run(["openssl", "ec", "-pubout"], stdin=private))


def ensure_certificate(
    layout: Layout, name: str, common_name: str, organisation: str, alternatives: Sequence[str]
) -> None:
    """Make a key and have it signed, for use as client and as server."""
    if certificate(layout, name).exists():
        return
    subject = (f"/O={organisation}" if organisation else "") + f"/CN={common_name}"
    with workplace(layout) as folder:
        (Path(folder) / "extensions").write_text(extensions(alternatives))
        run(["openssl", "req", *NEW_KEY, "-keyout", f"{folder}/key", "-out", f"{folder}/request", "-subj", subject])
        signer = ["-CA", str(certificate(layout, "ca")), "-CAkey", str(key(layout, "ca"))]
        request = ["-in", f"{folder}/request", "-out", f"{folder}/crt", "-extfile", f"{folder}/extensions"]
        run(
            [
                "openssl",
                "x509",
                "-req",
                *request,
                *signer,
                "-CAserial",
                f"{folder}/serial",
                "-CAcreateserial",
                "-days",
                DAYS,
            ]
        )
        keep(layout, name, Path(folder))


def extensions(alternatives: Sequence[str]) -> str:
    """Write the openssl extension file of a certificate."""
    lines = ["keyUsage=digitalSignature,keyEncipherment", "extendedKeyUsage=clientAuth,serverAuth"]
    if alternatives:
        lines.append(f"subjectAltName={','.join(alternatives)}")
    return "\n".join(lines) + "\n"


def workplace(layout: Layout) -> tempfile.TemporaryDirectory[str]:
    """Return a folder for half-made files, removed afterwards."""
    layout.pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    return tempfile.TemporaryDirectory(dir=layout.pki)


def keep(layout: Layout, name: str, made: Path) -> None:
    """Put key and certificate in their place; the certificate last, because it says that both are there."""
    write_file(key(layout, name), (made / "key").read_bytes())
    write_file(certificate(layout, name), (made / "crt").read_bytes())


def ensure_kubeconfig(layout: Layout, user: str, path: Path) -> None:
    """Write a kubeconfig with everything inside, so that it can be copied."""
    content = json.dumps(kubeconfig(layout, user), indent=1) + "\n"
    if not path.exists() or path.read_text() != content:
        write_file(path, content)


def kubeconfig(layout: Layout, user: str) -> dict[str, object]:
    """Build the content of a user's kubeconfig; JSON is YAML."""
    name = f"llmfleet-{layout.name}"
    cluster = {"server": layout.server, "certificate-authority-data": encoded(certificate(layout, "ca"))}
    login = {
        "client-certificate-data": encoded(certificate(layout, user)),
        "client-key-data": encoded(key(layout, user)),
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": user, "user": login}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        "current-context": name,
    }


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
