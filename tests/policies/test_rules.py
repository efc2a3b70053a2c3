"""What the local cluster's enforcer reads in a policy: the rules of the Kubernetes API, one by one."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from llmfleet_cluster import debian, enforcer
from llmfleet_cluster.policies import Opening, World, openings, script

from charts import matrix, mutants
from charts.reachability import Place, may_connect

WEB = [{"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]
ANY = Opening()


def pod(
    name: str, address: str, namespace: str = "a", *, labels: Mapping[str, str] | None = None, **changes: Any
) -> Any:
    """A running pod, labelled with its name, that serves two ports."""
    spec = {"nodeName": "node-0", "containers": [{"name": "one", "ports": WEB}]} | changes.pop("spec", {})
    status = {"phase": "Running", "podIP": address} | changes.pop("status", {})
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name} if labels is None else labels}
    return {"metadata": metadata, "spec": spec, "status": status}


OWN = pod("own", "10.0.0.1")
PODS = [
    OWN,
    pod("friend", "10.0.0.2"),
    pod("guest", "10.0.1.3", "b", spec={"nodeName": "node-1"}),
    pod("lookalike", "10.0.1.4", "b", labels={"app": "friend"}),
    pod("plain", "10.0.1.6", "b", labels={}, spec={"containers": [{"name": "one"}]}),
    pod("ended", "10.0.0.7", status={"phase": "Succeeded"}),
    pod("host", "10.0.0.8", spec={"hostNetwork": True}),
    pod("unplaced", "", spec={"nodeName": ""}),
]
NAMESPACES = [{"metadata": {"name": "a", "labels": {"team": "one"}}}, {"metadata": {"name": "b"}}]
FRIEND = {"podSelector": {"matchLabels": {"app": "friend"}}}
EVERYWHERE = {"namespaceSelector": {}}


def policy(name: str = "p", namespace: str = "a", **spec: Any) -> Any:
    """A policy for every pod of a namespace, unless it says more."""
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"podSelector": {}} | spec}


def world(*policies: Any) -> World:
    return World(pods=PODS, namespaces=NAMESPACES, policies=policies)


def addresses(*texts: str, **more: str) -> Opening:
    return Opening(addresses=texts, **more)


@pytest.mark.parametrize(
    ("case", "given", "wanted"),
    [
        ("no policy, no chain", [], (None, None)),
        ("one that says nothing is about what comes in", [policy()], ([], None)),
        ("one with rules for what goes out is about both", [policy(egress=[])], ([], [])),
        ("types are what they say", [policy(policyTypes=["Egress"], ingress=[{}])], (None, [])),
        ("another namespace's", [policy(namespace="b", policyTypes=["Ingress", "Egress"])], (None, None)),
        ("another pod's", [policy(podSelector={"matchLabels": {"app": "friend"}})], (None, None)),
        ("an empty rule lets everybody in", [policy(ingress=[{}])], ([ANY], None)),
        ("policies add up", [policy("p"), policy("q", ingress=[{}])], ([ANY], None)),
    ],
)
def test_a_pod_is_closed_in_the_directions_that_policies_for_it_speak_of(
    case: str, given: Sequence[Any], wanted: tuple[Any, Any]
) -> None:
    found = tuple(openings(OWN, direction, world(*given)) for direction in ("Ingress", "Egress"))
    assert found == wanted, case


@pytest.mark.parametrize(
    ("case", "peers", "wanted"),
    [
        ("pods of this namespace", [{"podSelector": {}}], [addresses("10.0.0.1/32", "10.0.0.2/32")]),
        ("pods by label, not their like elsewhere", [FRIEND], [addresses("10.0.0.2/32")]),
        ("namespaces by label", [{"namespaceSelector": {"matchLabels": {"team": "one"}}}],
         [addresses("10.0.0.1/32", "10.0.0.2/32")]),
        ("both selectors of one peer must match", [EVERYWHERE | FRIEND], [addresses("10.0.0.2/32", "10.0.1.4/32")]),
        ("of two peers one is enough", [FRIEND, {"namespaceSelector": {"matchLabels": {"team": "two"}}}],
         [addresses("10.0.0.2/32")]),
        ("nobody by that label", [{"podSelector": {"matchLabels": {"app": "none"}}}], []),
        ("a network without a hole", [{"ipBlock": {"cidr": "10.9.0.0/30", "except": ["10.9.0.1/32"]}}],
         [addresses("10.9.0.0/32", "10.9.0.2/31")]),
        ("a network without itself", [{"ipBlock": {"cidr": "10.9.0.0/30", "except": ["10.9.0.0/30"]}}], []),
        ("networks and pods that overlap", [{"ipBlock": {"cidr": "10.0.0.0/24"}}, FRIEND], [addresses("10.0.0.0/24")]),
    ],
)  # fmt: skip
def test_peers_are_who_the_selectors_mean(case: str, peers: Sequence[Any], wanted: Any) -> None:
    assert openings(OWN, "Ingress", world(policy(ingress=[{"from": peers}]))) == wanted, case
    assert openings(OWN, "Egress", world(policy(policyTypes=["Egress"], egress=[{"to": peers}]))) == wanted, case


@pytest.mark.parametrize(
    ("case", "expression", "wanted"),
    [
        ("In", {"key": "app", "operator": "In", "values": ["friend", "own"]}, {"own", "friend", "lookalike"}),
        ("NotIn holds without the label", {"key": "app", "operator": "NotIn", "values": ["friend", "own"]},
         {"guest", "plain"}),
        ("Exists", {"key": "app", "operator": "Exists"}, {"own", "friend", "lookalike", "guest"}),
        ("DoesNotExist", {"key": "app", "operator": "DoesNotExist"}, {"plain"}),
    ],
)  # fmt: skip
def test_expressions_are_read_as_the_api_has_them(case: str, expression: Any, wanted: set[str]) -> None:
    peer = EVERYWHERE | {"podSelector": {"matchExpressions": [expression]}}
    (found,) = openings(OWN, "Ingress", world(policy(ingress=[{"from": [peer]}]))) or []
    # Neighbours are written as one network: ask for each address.
    assert {one["metadata"]["name"] for one in PODS if within(one["status"]["podIP"], found)} == wanted, case


def within(address: str, opening: Opening) -> bool:
    networks = [ipaddress.ip_network(text) for text in opening.addresses or ()]
    return bool(address) and any(ipaddress.ip_address(address) in network for network in networks)


@pytest.mark.parametrize(
    ("case", "port", "wanted"),
    [
        ("a number", {"port": 80}, [Opening(protocol="tcp", ports="80")]),
        ("a range", {"port": 80, "endPort": 90, "protocol": "UDP"}, [Opening(protocol="udp", ports="80-90")]),
        ("a protocol", {"protocol": "SCTP"}, [Opening(protocol="sctp")]),
        ("this pod's name for it", {"port": "http"}, [Opening(protocol="tcp", ports="8080")]),
        ("a name of another protocol", {"port": "dns"}, []),
        ("a name that it has not", {"port": "admin"}, []),
    ],
)
def test_ports_coming_in(case: str, port: Any, wanted: Any) -> None:
    assert openings(OWN, "Ingress", world(policy(ingress=[{"ports": [port]}]))) == wanted, case


def test_a_ports_name_going_out_is_the_other_pods() -> None:
    rule = {"to": [EVERYWHERE | FRIEND], "ports": [{"port": "http"}]}
    wanted = [addresses(one, protocol="tcp", ports="8080") for one in ("10.0.0.2", "10.0.1.4")]
    assert openings(OWN, "Egress", world(policy(egress=[rule]))) == wanted


def test_a_node_has_chains_for_its_own_pods_alone() -> None:
    given = world(policy(ingress=[]), policy(namespace="b", ingress=[]))
    text = script("node-1", given)
    assert "a/own" not in text
    assert "ip daddr 10.0.1.3 jump ingress-0" in text
    assert "jump" not in script("node-2", given)


@pytest.fixture
def packet_filter() -> None:
    """Root, and the program; where it is missing it comes from where the cluster has it from."""
    debian.require_root()
    debian.ensure(policies=True)


def test_the_packet_filter_takes_every_kind_of_rule(packet_filter: None) -> None:
    rules = [
        {
            "from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}, EVERYWHERE],
            "ports": [{"port": "http"}],
        },
        {"ports": [{"port": 80, "endPort": 90}, {"protocol": "UDP"}, {"protocol": "SCTP", "port": 9}]},
        {"from": [FRIEND]},
        {},
    ]
    egress = [{"to": rule["from"], **rule} if "from" in rule else rule for rule in rules]
    outward = [{key: value for key, value in rule.items() if key != "from"} for rule in egress]
    text = script("node-0", world(policy(ingress=rules, egress=outward)))
    # In a network of its own, twice: the second replaces the first.
    command = [
        "unshare",
        "--net",
        "sh",
        "-c",
        'printf %s "$1" | nft -f - && printf %s "$1" | nft -f - && nft list ruleset',
    ]
    done = subprocess.run([*command, "filter", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("chain ") == 1 + 2 * 2, "one for each pod of the node, and direction, and the way there"


def test_both_readings_of_the_api_agree_on_the_charts_policies_and_their_mutants() -> None:
    places, policies = matrix.world()
    asked = matrix.cells(places)
    for title, given in [("as they are", policies), *mutants.coarse(policies)]:
        evaluated = {cell for cell in asked if may_connect(given, places[cell[0]], places[cell[1]], cell[2], cell[3])}
        assert come_about(asked, places, given) == evaluated, title


def come_about(asked: Sequence[matrix.Cell], places: Mapping[str, Place], policies: Sequence[Any]) -> set[matrix.Cell]:
    """The connections that the enforcer would let through at both ends."""
    pods = {name: pod_at(place, number) for number, (name, place) in enumerate(places.items())}
    names = {place.namespace for place in places.values()}
    namespaces = [{"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}} for name in names]
    listed = [pod for pod in pods.values() if pod["metadata"]["namespace"]]
    given = World(pods=listed, namespaces=namespaces, policies=policies)
    out, into = ({name: openings(pods[name], way, given) for name in pods} for way in ("Egress", "Ingress"))
    return {
        cell
        for cell in asked
        if lets(out[cell[0]], pods[cell[1]], cell[2], cell[3]) and lets(into[cell[1]], pods[cell[0]], cell[2], cell[3])
    }


def pod_at(place: Place, number: int) -> Any:
    """A pod of a place."""
    ports = [{"name": name, "containerPort": port} for name, port in place.ports.items()]
    containers = [{"name": "one", "ports": ports}]
    return pod(str(number), f"10.1.0.{number}", place.namespace, labels=place.labels, spec={"containers": containers})


def lets(found: Sequence[Opening] | None, other: Any, port: int, protocol: str) -> bool:
    """Whether one of the openings is for an address and port; without a policy everything is let through."""
    return found is None or any(
        one.protocol in ("", protocol.lower())
        and one.ports in ("", str(port))
        and (one.addresses is None or within(other["status"]["podIP"], one))
        for one in found
    )


def test_what_is_in_force_is_told_by_versions_and_addresses() -> None:
    versioned = [
        thing | {"metadata": thing["metadata"] | {"resourceVersion": "7"}} for thing in [policy(), *NAMESPACES]
    ]
    found = enforcer.in_force(World(pods=PODS, namespaces=versioned[1:], policies=versioned[:1]))
    assert found["policies"] == {"a/p": "7"}
    assert found["namespaces"] == {"/a": "7", "/b": "7"}
    assert set(found["pods"]) == {"a/own", "a/friend", "b/guest", "b/lookalike", "b/plain"}
    assert json.loads(json.dumps(found)) == found
