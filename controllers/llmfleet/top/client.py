"""Ask routers for `/fleet` and `/metrics`: by address, or through the apiserver's proxy to their pods.

In: an address, or a transport and a pod's name. Out: `RouterState`, with the problem when there was no answer. It only
reads and never raises for a router that is away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import requests

from llmfleet import names
from llmfleet.kube.client import Api
from llmfleet.kube.errors import Forbidden, KubeError
from llmfleet.kube.refs import AUTOSCALER, LLMCLUSTER, POD, Kind, Manifest
from llmfleet.kube.transport.client import Transport
from llmfleet.top.samples import RouterState, parse_fleet, parse_metrics
from llmfleet.top.view import Look

SECONDS: Final = 3.0
AT_ONCE: Final = 8
ROUTERS: Final = f"{names.APP_NAME_LABEL}=llmfleet-{names.ROUTER_COMPONENT}"
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


class Source(Protocol):
    """Where looks come from."""

    def look(self, at: float) -> Look: ...


class Addresses:
    """Routers by the addresses of their admin ports; no Kubernetes."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls, self._session = urls, requests.Session()

    def look(self, at: float) -> Look:
        return Look(at=at, routers=tuple(ask_url(url, self._session) for url in self._urls))


class Cluster:
    """Routers, autoscalers and instances of a cluster, all asked at once."""

    def __init__(self, api: Api, transport: Transport, namespace: str) -> None:
        self._api, self._transport, self._namespace = api, transport, namespace

    def look(self, at: float) -> Look:
        problems: list[str] = []
        pods = [pod for pod in self._list(POD, problems, ROUTERS) if is_running(pod)]
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            asked = [pool.submit(self._ask, pod) for pod in pods]
            routers = tuple(one.result() for one in asked)
        return Look(
            at=at,
            routers=routers,
            scalers=self._list(AUTOSCALER, problems),
            clusters=self._list(LLMCLUSTER, problems),
            problems=tuple(problems),
        )

    def _ask(self, pod: Manifest) -> RouterState:
        return ask_pod(self._transport, pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _list(self, kind: Kind, problems: list[str], labels: str = "") -> tuple[Manifest, ...]:
        """What cannot be read is a problem on the screen, and the rest is shown."""
        try:
            found, _ = self._api.list(kind, namespace=self._namespace, label_selector=labels)
        except KubeError as error:
            problems.append(short(error))
            return ()
        return tuple(found)


def is_running(pod: Manifest) -> bool:
    return (pod.get("status") or {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
