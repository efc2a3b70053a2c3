"""Ask routers for `/fleet` and `/metrics`: by address, or through the apiserver's proxy to their pods.

In: an address, or a transport and a pod's name. Out: `RouterState`, with the problem when there was no answer. It only
reads and never raises for a router that is away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import requests

from llmfleet import names
from llmfleet.kube.errors import Forbidden, KubeError
from llmfleet.kube.transport.client import Transport
from llmfleet.top.samples import RouterState, parse_fleet, parse_metrics

SECONDS: Final = 3.0
BLOCKED: Final = (
    "a network policy may keep the apiserver from port {port}; try kubectl port-forward and llmfleet top --url"
)

Fetch = Callable[[str], str]


def ask_url(url: str, session: requests.Session) -> RouterState:
    """A router by the address of its admin port."""

    def fetch(path: str) -> str:
        answer = session.get(url.rstrip("/") + path, timeout=SECONDS)
        answer.raise_for_status()
        return answer.text

    try:
        return read(fetch, "", url)
    except requests.RequestException as error:
        return RouterState(namespace="", pod=url, problem=short(error))


def ask_pod(transport: Transport, namespace: str, pod: str, port: int = names.ADMIN_PORT) -> RouterState:
    """A router pod through the apiserver, which needs `get` on pods/proxy."""
    base = f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy"

    def fetch(path: str) -> str:
        return transport.request("GET", base + path, read_seconds=SECONDS).decode("utf-8", "replace")

    try:
        return read(fetch, namespace, pod)
    except Forbidden:
        return RouterState(namespace=namespace, pod=pod, problem="not allowed: it needs get on pods/proxy")
    except KubeError as error:
        hint = BLOCKED.format(port=port)
        return RouterState(namespace=namespace, pod=pod, problem=f"{short(error)}; {hint}")


def read(fetch: Fetch, namespace: str, pod: str) -> RouterState:
    fleet, samples = parse_fleet(fetch("/fleet")), parse_metrics(fetch("/metrics"))
    if "models" not in fleet:
        return RouterState(namespace=namespace, pod=pod, problem="this is not the admin port of a router")
    return RouterState(namespace=namespace, pod=str(fleet.get("pod") or pod), fleet=fleet, samples=samples)


def short(error: BaseException) -> str:
    """One line of an error."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."
