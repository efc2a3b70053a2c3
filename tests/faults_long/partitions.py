"""The network between one router and one engine breaks under load; each can still talk to everybody else.

Both engines serve one model, the broken one on another node than the router. Kubernetes sees nothing of it: the router
has to notice by itself, send elsewhere what may go elsewhere, and say of the rest that it was cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from e2e.bed import Manifest, eventually
from e2e.load import Load, Reconnect, open_loop
from faults_long.incident import Incident, count, named, spread
from faults_long.packets import delayed, dropped, filtered, has_netem, refused, thinned
from faults_long.scenario import Scenario
from faults_long.world import World, settled

RATE, TOKENS = 15.0, 40
FAR, NEAR = "node-2", "node-0"  # an engine, and a router
BROKEN_SECONDS = 45.0
STALL = 30.0  # the router's timeouts.stallSeconds here
Ranges = tuple[str, str]  # the pods of the router's node, and those of the engine's


def both(rule: Callable[[str, str], list[str]]) -> Callable[[Ranges], list[list[str]]]:
    """Apply a rule to both directions."""
    return lambda ranges: [rule(*ranges), rule(*reversed(ranges))]


def from_engine(ranges: Ranges) -> list[list[str]]:
    """Lose what the engine says; it hears the router."""
    return [dropped(ranges[1], ranges[0])]


def to_engine(ranges: Ranges) -> list[list[str]]:
    """Lose what the router says; it hears the engine."""
    return [dropped(*ranges)]


def by_rules(
    make: Callable[[Ranges], Sequence[Sequence[str]]],
) -> Callable[[World, Ranges], AbstractContextManager[None]]:
    """Break by packet filter rules on the router's node."""
    return lambda world, ranges: filtered(world.network_of(NEAR), make(ranges))


@contextmanager
def late(world: World, ranges: Ranges) -> Iterator[None]:
    """Delay what the router's node sends to the engine's."""
    with delayed(world.network_of(NEAR), ranges[1], 0.2):
        yield


def pods_of(world: World, node: str) -> str:
    """The range of a node's pod addresses."""
    address = next(pod["status"]["podIP"] for pod in world.bed.pods("") if pod["spec"].get("nodeName") == node)
    return f"{address.rpartition('.')[0]}.0/24"


def play(
    breaks: Callable[[World, Ranges], AbstractContextManager[None]],
    noticed: bool,
    world: World,
    incident: Incident,
) -> None:
    """Load, break, watch the router leave the engine out (or not), mend, watch it come back."""
    specs = {f"parted-{word}": world.single_spec("parted", node) for word, node in (("far", FAR), ("near", NEAR))}
    with world.instances("parted", specs):
        router = world.router_on(NEAR)
        ranges = pods_of(world, NEAR), pods_of(world, FAR)
        eventually(lambda: world.offers(router, "parted-far"), 30)
        url = f"http://{router['status']['podIP']}:8080"
        with open_loop(url, "parted", RATE, TOKENS, reconnect=Reconnect(times=2)) as load:
            settled(8)
            incident.note("breaking the network between router and engine")
            with breaks(world, ranges):
                begin = incident.note("it is broken")
                out, again = watch(world, incident, router, begin)
                incident.note("mending it")
            mended = incident.note("mended")
            eventually(lambda: world.offers(router, "parted-far"), 90)
            back = incident.note("the router uses it")
            settled(5)
        judge(incident, load, begin, out - begin if out else None, noticed)
        incident.figure("times it was used again while it was broken", again)
        incident.figure("seconds until it was used again", back - mended)


def watch(world: World, incident: Incident, router: Manifest, begin: float) -> tuple[float, int]:
    """Look for three quarters of a minute: when the engine was left out first, and how often it was used again."""
    out, again, used = 0.0, 0, True
    while time.time() < begin + BROKEN_SECONDS:
        now = world.offers(router, "parted-far")
        if used and not now:
            moment = incident.note(f"the router leaves it out: {world.view(router)['parted-far']['out']}")
            out = out or moment
        again += now and not used
        used = now
        time.sleep(0.2)
    return out, again


def judge(incident: Incident, load: Load, begin: float, out: float | None, noticed: bool) -> None:
    """What had not begun is answered, what had says so within the stall timeout."""
    count(incident, load)
    lost = load.failures()
    incident.figure("requests lost", len(lost))
    incident.figure("lost requests", named(lost, incident.began))
    if out is not None:
        incident.figure("seconds until the router left the engine out", out)
    incident.expect(not noticed or out is not None, "the router never left the engine out")
    begun_before = [one for one in lost if one.begin < begin + (out or 0) + 2]
    incident.figure("seconds from the break to the word", dict(spread(one.end - begin for one in begun_before)))
    slow = [one for one in lost if one.end - max(one.begin, begin) > STALL + TOKENS * 0.05 + 5]
    incident.expect(not slow, f"{len(slow)} clients heard of it later than the stall timeout: {slow[:2]}")
    unstarted = [one for one in lost if not one.chunks and one.status == 200]
    incident.expect(not unstarted, f"{len(unstarted)} streams without a token were lost: {unstarted[:2]}")
    later = [one for one in lost if out is not None and one.begin > begin + out + 1]
    incident.expect(not later, f"{len(later)} requests begun after the engine was left out were lost: {later[:2]}")
    if not noticed:
        incident.expect(not lost, f"{len(lost)} requests were lost: {lost[:2]}")


def delay_or_say(world: World, incident: Incident) -> None:
    """Delay by 200 ms, and say by what means."""
    incident.note("netem" if has_netem(world.network_of(NEAR)) else "no netem in this kernel: delayed on a TUN device")
    play(late, False, world, incident)


def scenario(name: str, title: str, must_hold: str, play: Callable[[World, Incident], None]) -> Scenario:
    """One kind of partition."""
    return Scenario(name=f"partition-{name}", title=title, must_hold=must_hold, limit=420, play=play)


CUT = (
    "what has no token yet is answered by the other engine; a stream that had begun is told within 30 s (stall timeout)"
)
HELD = "nothing is lost; no engine is left out for long"
SCENARIOS = (
    scenario("drop", "router and engine: packets dropped both ways", CUT, partial(play, by_rules(both(dropped)), True)),
    scenario("reject", "router and engine: connections reset", CUT, partial(play, by_rules(both(refused)), True)),
    scenario("from-engine", "the engine is not heard, but hears", CUT, partial(play, by_rules(from_engine), True)),
    scenario("to-engine", "the engine does not hear, but is heard", CUT, partial(play, by_rules(to_engine), True)),
    scenario(
        "loss",
        "10 % of the packets lost both ways",
        HELD,
        partial(play, by_rules(both(partial(thinned, share=0.1))), False),
    ),
    scenario("delay", "200 ms of delay", HELD, delay_or_say),
)
