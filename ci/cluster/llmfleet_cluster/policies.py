"""What one node's packet filter has to hold so that NetworkPolicies count there.

In: pods, namespaces and policies as the apiserver lists them, and a node's name. Out: a script for `nft -f` that
replaces the one table it speaks of. Pure. This is the project's own reading of the Kubernetes API, made for clusters of
a few dozen pods: every pod that a policy selects gets a chain, and every chain lists the addresses it lets through.
As the API has it: a node always reaches its own pods, a pod itself, and a connection that is open stays open.
"""

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]
TABLE = "policies"
# Direction, the key of its peers, which address of a packet is the pod's own, and which one the other end's.
DIRECTIONS = (("Ingress", "from", "daddr", "saddr"), ("Egress", "to", "saddr", "daddr"))
# Before kube-proxy's rules, whose word about a packet is only their own.
HEAD = f"""\
add table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
"""
BASE = """\
    chain forward {{
        type filter hook forward priority filter - 1; policy accept;
        ct state established,related accept
{jumps}    }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the apiserver lists."""

    pods: Sequence[Object]
    namespaces: Sequence[Object]
    policies: Sequence[Object]

    def labels_of(self, namespace: str) -> Mapping[str, str]:
        """Return the labels of a namespace."""
        return next((labels(one) for one in self.namespaces if one["metadata"]["name"] == namespace), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What is let through: some addresses or (None) any, one protocol or any, some of its ports or any."""

    addresses: tuple[str, ...] | None = None
    protocol: str = ""
    ports: str = ""


def script(node: str, world: World) -> str:
    """Write the table of one node."""
    chains, jumps = [], []
    for number, pod in enumerate(pod for pod in world.pods if counts(pod) and pod["spec"].get("nodeName") == node):
        for direction, _, own, other in DIRECTIONS:
            found = openings(pod, direction, world)
            if found is not None:
                name = f"{direction.lower()}-{number}"
                chains.append(chain(name, pod, found, other))
                jumps.append(f"        ip {own} {pod['status']['podIP']} jump {name}\n")
    return HEAD + "".join(chains) + BASE.format(jumps="".join(jumps))


def chain(name: str, pod: Object, found: Sequence[Opening], other: str) -> str:
    """Write what one pod lets through in one direction; whatever comes to its end is told that it may not."""
    first = Opening(addresses=(pod["status"]["podIP"],))
    lines = [line(opening, other) for opening in dict.fromkeys([first, *found])]
    body = "".join(f"        {text}\n" for text in [*lines, "reject with icmp type admin-prohibited"])
    return f"    # {title(pod)}\n    chain {name} {{\n{body}    }}\n"


def line(opening: Opening, other: str) -> str:
    """Write one opening; `return` leads to the question whether the other end allows it, too."""
    addresses = f"ip {other} {{ {', '.join(opening.addresses)} }} " if opening.addresses is not None else ""
    if opening.ports:
        return f"{addresses}{opening.protocol} dport {opening.ports} return"
    protocol = f"meta l4proto {opening.protocol} " if opening.protocol else ""
    return f"{addresses}{protocol}return"


def openings(pod: Object, direction: str, world: World) -> list[Opening] | None:
    """Say what a pod lets through in a direction; None when no policy speaks of it."""
    mine = [policy for policy in world.policies if direction in types(policy) and selects(policy, pod)]
    if not mine:
        return None
    key = direction.lower()
    return [
        opening
        for policy in mine
        for rule in policy["spec"].get(key) or []
        for opening in rule_openings(policy, rule, direction, pod, world)
    ]


def types(policy: Object) -> Sequence[str]:
    """Return the directions that a policy is about."""
    spec = policy["spec"]
    found: Sequence[str] = spec.get("policyTypes") or (["Ingress", "Egress"] if "egress" in spec else ["Ingress"])
    return found


def selects(policy: Object, pod: Object) -> bool:
    """Tell whether a policy is about a pod."""
    here = policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return here and matches(policy["spec"].get("podSelector") or {}, labels(pod))


def rule_openings(policy: Object, rule: Object, direction: str, pod: Object, world: World) -> Iterator[Opening]:
    """Say what one rule lets through."""
    peers = rule.get("from" if direction == "Ingress" else "to")
    others = [one for one in world.pods if counts(one) and (not peers or any_peer(policy, peers, one, world))]
    addresses = joined([*blocks(peers), *(one["status"]["podIP"] for one in others)]) if peers else None
    for port in rule.get("ports") or [{"protocol": ""}]:
        protocol, number = str(port.get("protocol", "TCP")).lower(), port.get("port")
        if isinstance(number, str):
            yield from by_name(number, protocol, pod, others, addresses, direction)
        elif addresses is None or addresses:
            last = f"-{port['endPort']}" if "endPort" in port else ""
            yield Opening(addresses=addresses, protocol=protocol, ports=f"{number}{last}" if number else "")


def by_name(
    name: str, protocol: str, pod: Object, others: Sequence[Object], addresses: tuple[str, ...] | None, direction: str
) -> Iterator[Opening]:
    """Look a port's name up in the pod that serves it: this one, or going out each one at the other end."""
    if direction == "Ingress":
        if addresses is None or addresses:
            yield from (Opening(addresses=addresses, protocol=protocol, ports=n) for n in named(pod, name, protocol))
        return
    for other in others:
        own = (str(other["status"]["podIP"]),)
        yield from (Opening(addresses=own, protocol=protocol, ports=n) for n in named(other, name, protocol))


def named(pod: Object, name: str, protocol: str) -> list[str]:
    """Return the numbers that a pod's containers give a port's name."""
    containers = [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or [])]
    ports = [port for container in containers for port in container.get("ports") or []]
    said = [port for port in ports if port.get("name") == name and port.get("protocol", "TCP").lower() == protocol]
    return [str(port["containerPort"]) for port in said]


def any_peer(policy: Object, peers: Sequence[Object], pod: Object, world: World) -> bool:
    """Tell whether a pod is one of the peers."""
    return any(is_peer(policy, peer, pod, world) for peer in peers if "ipBlock" not in peer)


def is_peer(policy: Object, peer: Object, pod: Object, world: World) -> bool:
    """Both selectors of a peer must match; without one for namespaces it is about the policy's own."""
    namespace = pod["metadata"]["namespace"]
    if peer.get("namespaceSelector") is not None:
        inside = matches(peer["namespaceSelector"], world.labels_of(namespace))
    else:
        inside = namespace == policy["metadata"]["namespace"]
    return inside and matches(peer.get("podSelector") or {}, labels(pod))


def blocks(peers: Sequence[Object] | None) -> list[str]:
    """Return the networks that peers name, without what they except."""
    found: list[str] = []
    for block in [peer["ipBlock"] for peer in peers or [] if "ipBlock" in peer]:
        networks = [ipaddress.ip_network(block["cidr"], strict=False)]
        for text in block.get("except") or []:
            networks = [part for network in networks for part in cut(network, ipaddress.ip_network(text, strict=False))]
        found += map(str, networks)
    return found


def cut(network: Any, hole: Any) -> list[Any]:
    """Take a network out of another one."""
    if not network.overlaps(hole):
        return [network]
    return list(network.address_exclude(hole)) if hole.subnet_of(network) else []


def joined(texts: Sequence[str]) -> tuple[str, ...]:
    """Write addresses and networks without overlap: the packet filter refuses a set that has any."""
    networks = [ipaddress.ip_network(text) for text in texts]
    return tuple(map(str, ipaddress.collapse_addresses(one for one in networks if one.version == 4)))


def matches(selector: Object, found: Mapping[str, str]) -> bool:
    """Tell whether labels are those that a selector asks for."""
    exact = (selector.get("matchLabels") or {}).items() <= found.items()
    return exact and all(holds(expression, found) for expression in selector.get("matchExpressions") or [])


def holds(expression: Object, found: Mapping[str, str]) -> bool:
    """Tell whether labels fulfil one expression."""
    key, operator = expression["key"], expression["operator"]
    if operator in ("Exists", "DoesNotExist"):
        return (key in found) is (operator == "Exists")
    listed = found.get(key) in expression["values"]
    return listed is (operator == "In")


def counts(pod: Object) -> bool:
    """Tell whether a pod has an address of its own that is in use."""
    status = pod.get("status") or {}
    ended = status.get("phase") in ("Succeeded", "Failed")
    return bool(status.get("podIP")) and not ended and not pod["spec"].get("hostNetwork")


def labels(thing: Object) -> Mapping[str, str]:
    found: Mapping[str, str] = thing["metadata"].get("labels") or {}
    return found


def title(thing: Object) -> str:
    """Return namespace and name."""
    return f"{thing['metadata'].get('namespace', '')}/{thing['metadata']['name']}"
