"""A node loses its power under load: every process of it is gone at once and nothing answers at its address.

On the third node stand only halves of engine groups, on the first a router too. Kubernetes notices a dead node after
20 s here and gives its pods up 30 s later; both times are settings of the cluster (50 s and 5 min by default).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from e2e.bed import Manifest, eventually
from e2e.load import COMPLETE, Load, Outcome, Reconnect, open_loop
from faults_long.incident import Incident, count, named
from faults_long.scenario import Scenario
from faults_long.world import ROUTERS, World, settled

RATE, TOKENS = 20.0, 40  # requests a second, and tokens of 50 ms each
# Two groups with a half on the third node, and two with one on the first.
PLACES = {
    "powered-0": ("node-0", "node-2"),
    "powered-1": ("node-1", "node-2"),
    "powered-2": ("node-0", "node-1"),
}
PATIENT = Reconnect(times=3)


def engines_only(world: World, incident: Incident) -> None:
    """Cut the power of the node that holds nothing but engines."""
    cut_power(world, incident, "node-2")


def with_a_router(world: World, incident: Incident) -> None:
    """Cut the power of a node with a router, and whatever controllers stand on it."""
    cut_power(world, incident, "node-0")


def cut_power(world: World, incident: Incident, node: str) -> None:
    """Load, power cut, wait until the fleet is whole on the other nodes, power back."""
    bed = world.bed
    specs = {
        name: world.spread_spec("powered", nodes, lifecycle={"drainTimeoutSeconds": 20})
        for name, nodes in PLACES.items()
    }
    with world.instances("powered", specs) as names:
        incident.note(f"on {node}: {', '.join(sorted(kinds(world.pods_on(node))))}")
        hit = [name for name in names if node in where(bed.ranks(name))]
        incident.expect(len(hit) == 2, f"the groups with a part on {node} are {hit}: something else was tested")
        before = {name: bed.uids(name) for name in names}
        survivor = next(pod for pod in bed.pods(ROUTERS) if pod["spec"]["nodeName"] != node)
        with open_loop(bed.router_url(), "powered", RATE, TOKENS, reconnect=PATIENT) as load:
            settled(10)
            begin = incident.note(f"power of {node} cut; groups with a part on it: {', '.join(hit)}")
            with world.node_without_power(node):
                down = incident.note("its last process is gone")
                out = eventually(partial(none_offered, world, survivor, hit), 180)
                incident.figure("seconds until the router sends nothing more to a group with a dead part", out - begin)
                incident.note("no router offers a group with a part on it")
                for name in hit:
                    eventually(partial(recreated, world, name, before[name]), 420, lambda: bed.why("powered"))
                    incident.note(f"{name} is back on {', '.join(where(bed.ranks(name)))}")
                incident.figure("seconds until every group is back on the other nodes", time.time() - begin)
                settled(5)
            incident.note(f"{node} has its power back")
            settled(5)
        judge(incident, load, begin, down, out)


def none_offered(world: World, router: Manifest, names: Sequence[str]) -> float:
    """When a router that lives offers none of these; 0 while it does."""
    return 0.0 if any(world.offers(router, name) for name in names) else time.time()


def recreated(world: World, name: str, before: set[str]) -> bool:
    """Whether a group consists of other pods than before, and serves."""
    return not before & world.bed.uids(name) and world.bed.is_ready(name)


def where(pods: Sequence[Manifest]) -> list[str]:
    """The nodes of pods."""
    return sorted({pod["spec"]["nodeName"] for pod in pods})


def kinds(names: Sequence[str]) -> set[str]:
    """Names of pods without what is random in them."""
    return {name.removeprefix("llmfleet-").split("-")[0] if name.startswith("llmfleet-") else name for name in names}


def judge(incident: Incident, load: Load, begin: float, down: float, out: float) -> None:
    """Nothing is silent; only what was on the node is lost, and only until the routers know."""
    count(incident, load)
    lost = load.failures()
    incident.figure("requests lost", len(lost))
    incident.figure("lost requests", named(lost, incident.began))
    incident.figure("seconds from the cut to the last word about a lost request", last(lost, begin))
    # What begins after the routers know finds an engine. (A dead router's address is taken out by the cluster: 20 s.)
    late = [one for one in lost if one.begin > max(out, down + 25)]
    incident.expect(not late, f"{len(late)} requests that began after the routers knew were lost: {late[:2]}")
    unfinished = [one for one in load.outcomes if one.kind == COMPLETE and one.status != 200]
    incident.expect(not unfinished, f"complete, but not 200: {unfinished[:2]}")


def last(outcomes: Sequence[Outcome], begin: float) -> float:
    """Seconds until the last of some requests was over."""
    return max((one.end - begin for one in outcomes), default=0.0)


SCENARIOS = (
    Scenario(
        name="power-engines",
        title="power loss of a node with halves of engine groups",
        must_hold="no silent truncation; the groups come back on the other nodes; nothing that begins later is lost",
        limit=600,
        play=engines_only,
    ),
    Scenario(
        name="power-router",
        title="power loss of a node with a router and halves of engine groups",
        must_hold="the same; connections to the dead router fail until the cluster takes it off the Service",
        limit=600,
        play=with_a_router,
    ),
)
