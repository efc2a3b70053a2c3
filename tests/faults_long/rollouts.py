"""Routers and engines are rolled together, three times, under a hundred requests a second.

Most streams are short, some take a minute; a token takes 400 ms, so that as many are open as a busy fleet has while two
cores still have room for client and fleet. Nothing at all may fail.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

from e2e.bed import Manifest, eventually
from e2e.load import Load, Reconnect, open_loop
from faults.test_routers_away import gone, roll
from faults_long.incident import Incident, count, named
from faults_long.scenario import Scenario
from faults_long.world import ROUTERS, World, settled

ROUNDS, INSTANCES = 3, 3
STEP = 400  # milliseconds a token
MIX = ((80.0, 4), (10.0, 25), (6.0, 75), (4.0, 150))  # requests a second, tokens: 1.6 s, 10 s, 30 s, a minute
TWICE = Reconnect(times=2)


def spec(world: World, turn: int) -> Manifest:
    """An instance with room for everything that is open while another one is away; each turn is another template."""
    args = {
        "maxModelLen": 8192,
        "maxNumSeqs": 1024,
        "extraArgs": [f"--sim-step-a={STEP}", "--sim-step-b=0", "--sim-step-c=0", "--sim-step-d=0"],
    }
    made = world.spread_spec("turned", ("node-0", "node-1", "node-2"), lifecycle={"drainTimeoutSeconds": 180})
    return made | {"inferenceArgs": args, "env": [{"name": "TURN", "value": str(turn)}]}


def play(world: World, incident: Incident) -> None:
    """Begin both rollouts together, wait for both, once more."""
    bed = world.bed
    with bed.fleet("turned", INSTANCES, spec(world, 0), wait=180) as names, ExitStack() as stack:
        eventually(lambda: all(world.offers(pod, name) for pod in bed.pods(ROUTERS) for name in names), 60)
        part = partial(open_loop, bed.router_url(), "turned", reconnect=TWICE)
        loads = [stack.enter_context(part(rate, tokens)) for rate, tokens in MIX]
        settled(10)
        for turn in range(1, ROUNDS + 1):
            incident.note(f"rollout {turn} of routers and engines, {sum(one.sent for one in loads):,} requests so far")
            turned(world, incident, names, turn)
        settled(5)
        stack.close()
        together = Load([one for load in loads for one in load.outcomes], sum(load.sent for load in loads))
    count(incident, together)
    longest = max(one.end - one.begin for one in together.outcomes)
    incident.figure("rollouts of the routers, of the engines", [ROUNDS, ROUNDS])
    incident.figure("requests a second", sum(rate for rate, _ in MIX))
    incident.figure("longest answer in seconds", longest)
    lost = together.failures()
    incident.figure("requests failed", len(lost))
    incident.figure("failed requests", named(lost, incident.began))
    incident.expect(not lost, f"{len(lost)} requests failed: {lost[:2]}")


def turned(world: World, incident: Incident, names: list[str], turn: int) -> None:
    """One rollout of everything."""
    bed = world.bed
    routers = {pod["metadata"]["uid"] for pod in bed.pods(ROUTERS)}
    before = {name: bed.uids(name) for name in names}
    with ThreadPoolExecutor(1) as pool:
        rolled = pool.submit(roll, bed)
        for name in names:
            bed.patch(name, {"env": [{"name": "TURN", "value": str(turn)}]})
        rolled.result()
    eventually(lambda: gone(bed, routers), 300)
    incident.note("every router is a new one")
    for name in names:
        eventually(lambda name=name: not before[name] & bed.uids(name), 900, lambda: bed.why("turned"))
        eventually(partial(bed.is_ready, name), 300, lambda: bed.why("turned"))
        incident.note(f"{name} is a new one")


SCENARIOS = (
    Scenario(
        name="rollouts",
        title="three rollouts of routers and engines under 100 requests a second, 70 % streams of up to a minute",
        must_hold="no request fails",
        limit=2400,
        play=play,
    ),
)
