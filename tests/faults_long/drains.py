"""A node is emptied on purpose: by `kubectl drain` with all the time it needs, and on a notice of half a minute.

In the second case the node's power is cut when the notice is over, whatever is still there, as a cloud does that takes
a spot machine back: who handles such notices there taints the node and drains it, and nothing else.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from e2e.bed import Manifest, eventually, has_ready, tool
from e2e.beside import beside
from e2e.load import Load, Reconnect, open_loop
from faults_long.incident import Incident, count, named, spread
from faults_long.node_power import kinds, none_offered, where
from faults_long.scenario import Scenario
from faults_long.world import ROUTERS, World, among, settled

RATE, TOKENS = 3.0, 160  # requests a second, of 8 s each
LONG_RATE, LONG_TOKENS = 0.2, 1000  # those that no notice is long enough for: 50 s
TWICE = Reconnect(times=2)
PATIENT = Reconnect(times=3)
NOTICE = 30.0
TAINT = "aws-node-termination-handler/spot-itn"
ROUTER_STALL = 30.0
# As in values/spot.yaml: a machine that is taken away does not wait until one engine after the other has left it.
ALL_AT_ONCE = {"podDisruptionBudget": {"maxUnavailable": "100%"}}
DRAIN_SECONDS = 20  # drainTimeoutSeconds of engines on machines that give half a minute of notice


@dataclass
class Drain:
    """A running `kubectl drain`: what it said, and when."""

    process: subprocess.Popen[str]
    incident: Incident
    gone: dict[str, float] = field(default_factory=dict)
    refused: int = 0

    def follow(self) -> None:
        """Note each pod that is gone; count how often a budget said `not yet`."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("pod/") and line.rstrip().endswith(" evicted"):
                name = line.split("/", 1)[1].split(" ", 1)[0]
                self.gone[name] = self.incident.note(f"{name} is gone")
            elif "violate the pod's disruption budget" in line:
                self.refused += 1


@contextmanager
def drained(world: World, incident: Incident, node: str, *more: str) -> Iterator[Drain]:
    """Drain a node beside the block; it takes pods again when the block ends."""
    kubectl = [tool("kubectl"), f"--kubeconfig={world.ground.kubeconfig}"]
    command = [*kubectl, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={4 * 60}s", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    drain = Drain(process, incident)
    reader = threading.Thread(target=drain.follow)
    reader.start()
    try:
        yield drain
    finally:
        process.terminate()
        process.wait()
        reader.join()
        world.kubectl("uncordon", node)


@contextmanager
def least_serving(world: World, fleet: str) -> Iterator[list[int]]:
    """How many instances of a fleet were Ready, one sample after the other."""
    seen: list[int] = []

    def sample(stop: threading.Event) -> None:
        while not stop.wait(0.5):
            seen.append(sum(map(has_ready, world.bed.instances(fleet))))

    with beside(sample):
        yield seen


# -- with all the time it needs --------------------------------------------------------------------------------------


def node_drained(world: World, incident: Incident) -> None:
    """Empty the node of a router and of halves of two groups, under a load of streams."""
    bed, node = world.bed, "node-0"
    specs = {
        "drained-0": world.spread_spec("drained", ("node-0", "node-2")),
        "drained-1": world.spread_spec("drained", ("node-0", "node-1")),
        "drained-2": world.spread_spec("drained", ("node-1", "node-2")),
    }
    with world.instances("drained", specs) as names:
        hit = [name for name in names if node in where(bed.ranks(name))]
        incident.note(f"on {node}: {', '.join(sorted(kinds(world.pods_on(node))))}")
        incident.expect(len(hit) == 2, f"the groups with a half on {node} are {hit}: something else was tested")
        before = {name: bed.uids(name) for name in names}
        with (
            open_loop(bed.router_url(), "drained", RATE, TOKENS, reconnect=TWICE) as load,
            least_serving(world, "drained") as seen,
        ):
            settled(8)
            begin = incident.note(f"kubectl drain {node}")
            with drained(world, incident, node) as drain:
                eventually(lambda: drain.process.poll() is not None, 260, lambda: str(world.pods_on(node)))
                incident.expect(drain.process.returncode == 0, "the drain did not come to its end")
                incident.figure("seconds until the node was empty", incident.note(f"{node} is empty") - begin)
                incident.figure("pods evicted", len(drain.gone))
                incident.figure("evictions that a budget put off", drain.refused)
                eventually(lambda: all(map(bed.is_ready, names)), 240, lambda: bed.why("drained"))
                incident.note("every group serves on the other nodes")
                incident.expect(not world.pods_on(node), f"{world.pods_on(node)} are on the drained node")
                eventually(world.whole, 120, world.why_not_whole)
                settled(5)
            incident.note(f"{node} takes pods again")
            settled(3)
        count(incident, load)
        lost = load.failures()
        incident.figure("lost requests", named(lost, incident.began))
        incident.expect(not lost, f"{len(lost)} requests were lost: {lost[:2]}")
        incident.figure("instances of three that served at least", min(seen, default=0))
        spared = [name for name in names if name not in hit and bed.uids(name) != before[name]]
        incident.expect(not spared, f"{spared} had nothing on the node and were made anew")


# -- on short notice -------------------------------------------------------------------------------------------------


def on_spot(world: World) -> Manifest:
    """An engine of one pod that prefers the machine which is taken away."""
    spec = world.single_spec("spotted", "node-2")
    preferred = [{"weight": 100, "preference": among(("node-2",))}]
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    lifecycle = spec["lifecycle"] | {"drainTimeoutSeconds": DRAIN_SECONDS}
    pod = {"spec": {"affinity": affinity}}
    return spec | {"podTemplate": pod, "lifecycle": lifecycle} | ALL_AT_ONCE


def spot_notice(world: World, incident: Incident) -> None:
    """Half a minute of notice for a machine with two engines and half a group, then its power is cut."""
    bed, node = world.bed, "node-2"
    base = {"steady-0": world.single_spec("spotted", "node-1")}
    half = world.spread_spec("spotted", ("node-1", "node-2"), lifecycle={"drainTimeoutSeconds": DRAIN_SECONDS})
    spots = {"spotted-0": on_spot(world), "spotted-1": on_spot(world), "spotted-2": half | ALL_AT_ONCE}
    with world.instances("steady", base), world.instances("spotted", spots) as names:
        hit = [name for name in names if node in where(bed.ranks(name))]
        incident.expect(hit == names, f"only {hit} stand on {node}: something else was tested")
        router = bed.pods(ROUTERS)[0]
        eventually(lambda: all(world.offers(router, name) for name in [*names, *base]), 60)
        with (
            open_loop(bed.router_url(), "spotted", LONG_RATE, LONG_TOKENS, 1.0, PATIENT) as long,
            open_loop(bed.router_url(), "spotted", RATE, TOKENS, reconnect=PATIENT) as load,
        ):
            settled(12)
            begin = incident.note(f"the cloud gives notice of {NOTICE:.0f} s: {node} is tainted and drained")
            with noticed(world, node), drained(world, incident, node) as drain:
                out = given_up(world, router, names, begin + NOTICE)
                for name, moment in out.items():
                    incident.note(f"the routers send nothing more to {name}", moment)
                settled(max(0.0, begin + NOTICE - time.time()))
                incident.figure("pods that had left when the notice was over", len(drain.gone))
                incident.figure("evictions that a budget put off", drain.refused)
                left = [name for name in names if node in where(bed.ranks(name))]
                cut = incident.note(f"power of {node} cut; still on it: {', '.join(left) or 'nothing'}")
                with world.node_without_power(node):
                    down = incident.note("its last process is gone")
                    known = eventually(lambda: none_offered(world, router, left), 180)
                    incident.figure("seconds from the cut until the router left out what was on it", known - cut)
                    eventually(lambda: all(map(bed.is_ready, names)), 300, lambda: bed.why("spotted"))
                    ready = incident.note("all of them serve on the other nodes")
                    incident.figure("seconds from the notice until all served elsewhere", ready - begin)
                    settled(5)
            incident.note(f"{node} is there again")
        judge(incident, load, long, cut, max(known, down))


@contextmanager
def noticed(world: World, node: str) -> Iterator[None]:
    """The taint that says that a machine will be taken away."""
    try:
        world.kubectl("taint", "node", node, f"{TAINT}=notice:NoSchedule", "--overwrite")
        yield
    finally:
        world.kubectl("taint", "node", node, f"{TAINT}:NoSchedule-")


def given_up(world: World, router: Manifest, names: Sequence[str], until: float) -> dict[str, float]:
    """When a router stopped sending to each of some instances, of those it did in time."""
    found: dict[str, float] = {}
    while time.time() < until - 1 and len(found) < len(names):
        view = world.view(router)
        for name in names:
            one = view.get(name, {"out": "not listed", "state": ""})
            if view and name not in found and (one["out"] or one["state"] != "ready"):
                found[name] = time.time()
        settled(0.2)
    return found


def judge(incident: Incident, load: Load, long: Load, cut: float, known: float) -> None:
    """What was cut was told so, soon; what had no token yet was answered by another engine; nothing later is lost."""
    for part, what in ((load, "requests of 8 s"), (long, "streams of 50 s")):
        count(incident, part, what)
        lost = part.failures()
        incident.figure(f"{what}: lost", len(lost))
        incident.figure(f"{what}: lost before the power was cut", sum(one.end < cut for one in lost))
        incident.figure(f"{what}: which", named(lost, incident.began))
        late = [one for one in lost if one.begin > known]
        incident.expect(not late, f"{len(late)} of the {what} began after the routers knew and were lost: {late[:2]}")
        unstarted = [one for one in lost if not one.chunks and one.begin < known]
        incident.expect(not unstarted, f"{len(unstarted)} of the {what} were lost without a token: {unstarted[:2]}")
    told = [one.end - cut for one in [*load.failures(), *long.failures()] if one.end >= cut]
    incident.figure("seconds from the cut to the word", dict(spread(told)))
    incident.expect(max(told, default=0.0) < ROUTER_STALL + 15, "somebody was told later than the stall timeout")


SCENARIOS = (
    Scenario(
        name="node-drained",
        title="kubectl drain of a node with a router and halves of engine groups",
        must_hold="the node becomes empty; no request fails; groups without a part on it are left alone",
        limit=900,
        play=node_drained,
    ),
    Scenario(
        name="spot-notice",
        title="a machine is taken back: taint, drain, and half a minute later its power is cut",
        must_hold="what is cut is told so; what had no token is answered elsewhere; nothing that begins later is lost",
        limit=900,
        play=spot_notice,
    ),
)
