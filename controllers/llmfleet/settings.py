"""The only reader of the environment and of settings files. One headed section per role.

In: paths and the process environment. Out: frozen settings objects, or an error that says what to write. The rules of
each section are pure and live beside what they configure; here they only meet the file.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# ======================================================================================================================
# Router
# ======================================================================================================================


class UnreadableSettings(ValueError):
    """A settings file that cannot be read at all; what is wrong inside one is for its section's parser to say."""


def read_settings_file(path: str | None) -> object:
    """Return what a YAML settings file holds; no file reads as an empty one."""
    if path is None:
        return None
    try:
        return parse_yaml(Path(path).read_bytes())
    except OSError as error:
        raise UnreadableSettings(f"{path}: {error.strerror}") from None
    except UnreadableSettings as error:
        raise UnreadableSettings(f"{path}: {error}") from None


def parse_yaml(data: bytes) -> object:
    """Return what YAML, or JSON, says."""
    import yaml

    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableSettings(f"not YAML: {' '.join(str(error).split())}") from None


def pod_name() -> str:
    """Name this process goes by on its admin port: the pod's, as Kubernetes writes it into the environment."""
    return os.environ.get("POD_NAME") or os.environ.get("HOSTNAME") or "router"


# ======================================================================================================================
# Operator, route-sync, uninstall: who and where this process is
# ======================================================================================================================

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True, kw_only=True)
class InCluster:
    """How a pod reaches its apiserver: the address, and the files the kubelet keeps current."""

    url: str
    token: Path
    ca: Path


def read_in_cluster() -> InCluster | None:
    """The pod's way to its apiserver; None outside a pod, or in a pod without a token."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    folder = Path(os.environ.get("LLMFLEET_KUBE_SERVICEACCOUNT") or SERVICE_ACCOUNT)
    if not host or not (folder / "token").is_file():
        return None
    shown = f"[{host}]" if ":" in host else host
    return InCluster(url=f"https://{shown}:{port}", token=folder / "token", ca=folder / "ca.crt")


def own_namespace() -> str:
    """Namespace of this pod; `default` outside a cluster."""
    if name := os.environ.get("POD_NAMESPACE"):
        return name
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip() or "default"
    except OSError:
        return "default"


def holder_name() -> str:
    """Name this process writes into a Lease: the pod's, or the host's with the process id."""
    return os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """What the operator was told on its command line."""

    identity: str
    """`<namespace>/<release>`: objects that another identity claimed are left alone."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to watch; none means all."""


# ======================================================================================================================
# Autoscaler
# ======================================================================================================================


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalerSettings:
    """What the autoscaler was told on its command line."""

    identity: str
    """`<namespace>/<release>`: autoscalers that another identity claimed are left alone."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to watch; none means all."""
    interval: float = 15.0
    """Seconds between two decisions about one fleet."""
