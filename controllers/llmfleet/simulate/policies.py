"""What decides in a simulation, and how a person names it.

In: the fleets and an observation of each at each tick. Out: how many instances of each role. `work-budget` is
`scale.replay.step`, unchanged; the others are in `peers.py`, one instance of them for each role. `oracle` follows a
schedule made with knowledge of the whole trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from llmfleet.api.autoscaler import AutoscalerSpec
from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity
from llmfleet.scale.decide import Decision
from llmfleet.scale.fleet import Fleet
from llmfleet.scale.memory import Memory
from llmfleet.scale.replay import acted, room, step
from llmfleet.scale.signals import Observation
from llmfleet.simulate.peers import PEER_OPTIONS, PEERS, Peer, Watching


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Sizes of fleets."""

    sizes: Mapping[Role, int]
    ready_may_go: Mapping[Role, int] = field(default_factory=dict)
    """Most ready instances of a role that may be deleted now; a role that is not in it has no such limit."""


class Policy(Protocol):
    """Decides at each tick."""

    def decide(self, fleets: Mapping[Role, Fleet], seen: Mapping[Role, Observation], now: float) -> Wanted: ...


@dataclass(slots=True, kw_only=True)
class WorkBudget:
    """Our own; it keeps what it decided, so that a run can be replayed."""

    spec: AutoscalerSpec
    capacities: Mapping[Role, Capacity]
    memories: Mapping[Role, Memory] = field(default_factory=dict)
    decisions: list[Mapping[Role, Decision]] = field(default_factory=list)

    def decide(self, fleets: Mapping[Role, Fleet], seen: Mapping[Role, Observation], now: float) -> Wanted:
        found = step(self.spec, fleets, seen, self.capacities, self.memories, now)
        sizes = {role: decision.instances for role, decision in found.decisions.items()}
        for role, most in room(self.spec, fleets, found.decisions).items():
            sizes[role] = min(sizes[role], max(fleets[role].size, len(fleets[role].instances) + most))
        self.memories = {
            role: acted(memory, grew=sizes[role] > fleets[role].size, shrank=sizes[role] < fleets[role].size, now=now)
            for role, memory in found.memories.items()
        }
        self.decisions.append(found.decisions)
        return Wanted(sizes=sizes, ready_may_go=found.ready_may_go)


@dataclass(slots=True, kw_only=True)
class PerRole:
    """A policy that knows nothing of roles, once for each."""

    peers: Mapping[Role, Peer]

    def decide(self, fleets: Mapping[Role, Fleet], seen: Mapping[Role, Observation], now: float) -> Wanted:
        return Wanted(sizes={role: peer.size(fleets[role], seen[role], now) for role, peer in self.peers.items()})


@dataclass(slots=True, kw_only=True)
class Scheduled:
    """What somebody who knows the trace would do."""

    begin: float
    width: float
    needs: Mapping[Role, Sequence[int]]
    """Instances to have ordered by each bin of the trace."""

    def decide(self, fleets: Mapping[Role, Fleet], seen: Mapping[Role, Observation], now: float) -> Wanted:
        place = int((now - self.begin) / self.width)
        return Wanted(sizes={role: need[min(place, len(need) - 1)] for role, need in self.needs.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every policy may use."""

    spec: AutoscalerSpec
    capacities: Mapping[Role, Capacity]
    ttft: float
    schedule: Callable[[float], Policy]
    """The clairvoyant's, for a share of the load that an instance carries by the table."""

    def watching(self, role: Role) -> Watching:
        rules = self.spec.fleets()[role]
        return Watching(
            role=role,
            capacity=self.capacities[role],
            ttft=self.ttft,
            low=rules.min_instances,
            high=rules.max_instances,
        )


OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "work-budget": frozenset(),
    **PEER_OPTIONS,
    "oracle": frozenset({"fill"}),
}


class PolicyError(ValueError):
    """The text names no policy; the message says what to write."""


def parse_policy(text: str) -> tuple[str, dict[str, float]]:
    """`NAME` or `NAME:key=value,key=value`."""
    name, _, rest = text.partition(":")
    if name not in OPTIONS:
        raise PolicyError(f"{name!r} is no policy: write one of {', '.join(OPTIONS)}")
    options: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            options[key] = float(value)
        except ValueError:
            raise PolicyError(f"{part!r}: write {key or 'KEY'}=NUMBER") from None
        if key not in OPTIONS[name]:
            raise PolicyError(f"{name} has no option {key!r}; it has {', '.join(sorted(OPTIONS[name])) or 'none'}")
    return name, options


def build_policy(text: str, setting: Setting) -> Policy:
    """The policy a person asked for."""
    name, options = parse_policy(text)
    if name == "work-budget":
        return WorkBudget(spec=setting.spec, capacities=setting.capacities)
    if name == "oracle":
        return setting.schedule(options.get("fill", 1.0))
    return PerRole(peers={role: PEERS[name](setting.watching(role), **options) for role in setting.capacities})
