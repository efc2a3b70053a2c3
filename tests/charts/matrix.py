"""The parts of a release with policies on, those around it, and every connection among them that is open.

In: nothing. Out: values, pods as places, and the list of what is open; whatever is not on it is closed. Two tests read
it: one evaluates the rendered policies, one makes the connections on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

from charts.reachability import Place, policies_of
from charts.rendering import Object, of_kind, pod_templates, render
from llmfleet.api.parse import parse_spec
from llmfleet.deploy.objects.identity import Identity, pod_labels

RELEASE, NAMESPACE = "demo", "team-a"
PROFILE = "autoscaling"
# Source, target, port, protocol.
Cell = tuple[str, str, int, str]

GATEWAY = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}}]
PROMETHEUS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
DENY: dict[str, Any] = {"enabled": True, "metricsFrom": PROMETHEUS, "defaultDeny": True}
VALUES = {
    "fleet": {"networkPolicy": DENY | {"clientsFrom": GATEWAY}},
    "controllers": {
        "networkPolicy": DENY | {"egress": {"autoscaler": [{"to": PROMETHEUS, "ports": [{"port": 9090}]}]}}
    },
    "monitoring": {"enabled": False},
}

# What the release is made of, and what makes each pod.
PARTS = {
    "router": "Deployment/{}-router",
    "operator": "Deployment/{}-operator",
    "autoscaler": "Deployment/{}-autoscaler",
    "redis": "StatefulSet/{}-redis",
    "test": "Pod/{}-test-chat",
    "uninstall": "Job/{}-uninstall",
}
OWN = (*PARTS, "engine")
# Where somebody could listen: ports that a part serves, and one where it serves nothing.
PORTS = {
    "router": (8080, 8082, 9090),
    "engine": (8000, 29500),
    "redis": (6379, 8080),
    "operator": (8081, 9090),
    "autoscaler": (8081, 9090),
    "test": (8080,),
    "uninstall": (8080,),
    "gateway": (8080,),
    "prometheus": (8080, 9090),
    "stranger": (80, 6379, 9090),
    "foreign router": (8000, 9090),
    "foreign operator": (9090,),
    "foreign autoscaler": (9090,),
    "foreign engine": (8000,),
    "other fleet": (8000,),
    "other router": (8080, 9090),
    "other operator": (9090,),
    "other autoscaler": (9090,),
    "other redis": (6379,),
    "other test": (8080,),
    "other uninstall": (8080,),
    "anywhere": (53, 80, 443, 6443),
}
RESOLVERS_PORT = 53

_CALLS = [
    *[("gateway", "router", 8080), ("test", "router", 8080), ("test", "router", 9090)],
    *[("router", "engine", 8000), ("router", "router", 9090), ("router", "redis", 6379)],
    *[("operator", "engine", 8000), ("operator", "router", 9090)],
    *[("autoscaler", "engine", 8000), ("autoscaler", "router", 9090), ("autoscaler", "prometheus", 9090)],
    *[("engine", "engine", 8000), ("engine", "engine", 29500)],
    *[("prometheus", "router", 9090), ("prometheus", "engine", 8000)],
    *[("prometheus", "operator", 9090), ("prometheus", "autoscaler", 9090)],
    # Any address, by the apiserver's ports: which one it has is the cluster's own affair.
    *[
        (caller, "anywhere", port)
        for caller in ("router", "operator", "autoscaler", "uninstall")
        for port in (443, 6443)
    ],
    # A router serves whatever engines its namespace has; engines themselves decide who may.
    ("router", "other fleet", 8000),
    # Fleets are in any namespace, so the controllers may call what says that it is an engine or a router.
    *[(caller, "other fleet", 8000) for caller in ("operator", "autoscaler")],
    *[(caller, "foreign engine", 8000) for caller in ("operator", "autoscaler")],
    *[(caller, "foreign router", 9090) for caller in ("operator", "autoscaler")],
    *[(caller, "other router", 9090) for caller in ("operator", "autoscaler")],
]
_CALL_BY_NAME = ("router", "engine", "operator", "autoscaler", "test", "uninstall")
OPEN: frozenset[Cell] = frozenset(
    [(*call, "TCP") for call in _CALLS]
    + [(caller, "anywhere", RESOLVERS_PORT, protocol) for caller in _CALL_BY_NAME for protocol in ("UDP", "TCP")]
)


def cells(places: Iterable[str]) -> list[Cell]:
    """Every connection among places: to each port of each, and to a resolver by datagram too."""
    found = list(places)
    tcp = [(source, target, port, "TCP") for source in found for target in found for port in PORTS[target]]
    return [*tcp, *[(source, "anywhere", RESOLVERS_PORT, "UDP") for source in found]]


def is_open(cell: Cell) -> bool:
    """On the list; or a matter of others, whom the policies of a release leave alone."""
    source, target, *_ = cell
    return cell in OPEN or (source not in OWN and target not in OWN)


def place(template: Object, namespace: str = NAMESPACE) -> Place:
    """The pod that a template makes."""
    containers = template["spec"]["containers"]
    ports = {p["name"]: p["containerPort"] for c in containers for p in c.get("ports", [])}
    return Place(namespace=namespace, labels=template["metadata"]["labels"], ports=ports)


def engine(cluster: Object) -> Place:
    """Rank 0 of an instance."""
    metadata = cluster["metadata"]
    fleet = metadata["labels"]["serving.ai/fleet"]
    identity = Identity(namespace=metadata["namespace"], name=metadata["name"], uid="u", fleet=fleet, manager="a/b")
    return Place(
        namespace=metadata["namespace"], labels=pod_labels(identity, parse_spec(cluster["spec"])), ports={"http": 8000}
    )


def outside(pods: dict[str, Place]) -> dict[str, Place]:
    """Who is around the release; some look like a part of it, but are in another namespace or of another release."""
    rank = pods["engine"]
    # Not of an instance: there is none by that name.
    unowned = {key: value for key, value in rank.labels.items() if key != "serving.ai/cluster"}
    # What somebody adds to a release, by `extraObjects` say, is none of its parts.
    beside = {"app": "notebook", "app.kubernetes.io/instance": RELEASE, "serving.ai/fleet": f"{RELEASE}-tiny"}
    alike = {name: pods[name] for name in PARTS}
    foreign = {f"foreign {name}": replace(pod, namespace="team-b") for name, pod in alike.items()}
    other = {
        f"other {name}": replace(pod, labels={**pod.labels, "app.kubernetes.io/instance": "other"})
        for name, pod in alike.items()
    }
    return {
        "gateway": Place(namespace="gateway", labels={"app": "gateway"}),
        "prometheus": Place(namespace="monitoring", labels={"app": "prometheus"}, ports={"web": 9090}),
        "stranger": Place(namespace=NAMESPACE, labels=beside, ports={"http": 80}),
        "foreign engine": Place(namespace="team-b", labels=unowned, ports=rank.ports),
        "other fleet": replace(rank, labels={**unowned, "serving.ai/fleet": "other-tiny"}),
        "anywhere": Place(),
        **{name: pod for name, pod in {**foreign, **other}.items() if name in PORTS},
    }


@cache
def world(release: str = RELEASE) -> tuple[dict[str, Place], tuple[Object, ...]]:
    """The pods of a release, those around it, and its policies."""
    objects = render(PROFILE, VALUES, release=release, namespace=NAMESPACE)
    fixed = render("dev", VALUES, release=release, namespace=NAMESPACE)
    templates = pod_templates(objects)
    pods = {name: place(templates[title.format(release)]) for name, title in PARTS.items()}
    pods["engine"] = engine(of_kind(fixed, "LLMCluster")[0])
    return pods | outside(pods), tuple(policies_of(objects))
