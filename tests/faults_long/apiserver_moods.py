"""The apiserver misbehaves towards operator, autoscaler and route-sync, one way after the other, under load.

In each mood an instance is asked for. What can be done is done meanwhile, the rest once the apiserver is well again;
nobody restarts for it, and traffic notices nothing.
"""

from __future__ import annotations

import time
from functools import partial

from e2e.bed import Manifest, engine_spec, eventually
from e2e.load import Load, Reconnect, open_loop
from faults_long.apiserver_proxy import Misbehaving, Mood, misbehaving
from faults_long.incident import Incident, count, named
from faults_long.scenario import Scenario
from faults_long.world import ROUTERS, World, settled

MOOD_SECONDS = 40.0
CONVERGED = 60.0
# Half of the requests get through, or the lists do: an instance is built meanwhile, later than usual.
WORKABLE = (Mood.TOO_MANY, Mood.FAILING, Mood.GONE, Mood.SLOW)


def single(model: str) -> Manifest:
    """The smallest engine there is: one pod."""
    return engine_spec(model, replicas=1, tensorParallelSize=1)


def play(world: World, incident: Incident) -> None:
    """One mood after the other, with a load that must not notice."""
    bed = world.bed
    router = bed.pods(ROUTERS)[0]
    with bed.fleet("steady", 1, single("steady"), wait=120):
        before = world.restarts()
        with open_loop(bed.router_url(), "steady", 8, 20, reconnect=Reconnect(times=2)) as load:
            with misbehaving(world) as proxy:
                settled(5)
                for mood in list(Mood)[1:]:
                    one_mood(world, incident, proxy, mood, router)
            incident.note("the pods talk to the apiserver itself again")
            settled(5)
        judge(world, incident, load, before)


def one_mood(world: World, incident: Incident, proxy: Misbehaving, mood: Mood, router: Manifest) -> None:
    """Ask for an instance in this mood; it serves within a minute of better times."""
    bed, name, before = world.bed, f"mood-{mood.name.lower().replace('_', '-')}", world.restarts()
    proxy.mood = mood
    begin = incident.note(str(mood))
    done = partial(world.offers, router, name)
    try:
        bed.create(name, single("moods"), fleet="moods")
        while time.time() < begin + MOOD_SECONDS and not done():
            time.sleep(0.3)
        meanwhile = done()
        if meanwhile:
            incident.figure(f"seconds until an instance served, {mood}", time.time() - begin)
            settled(max(0.0, 15 - (time.time() - begin)))
        proxy.mood, well = Mood.WELL, time.time()
        if not meanwhile:
            eventually(done, 180, lambda: bed.why("moods"))
            incident.figure(f"seconds after it was over until an instance served, {mood}", time.time() - well)
            incident.expect(time.time() - well < CONVERGED + 20, f"{mood}: converged later than a minute afterwards")
        incident.figure(f"requests of the pods, {mood}", proxy.seen[mood.name])
        changed = restarted(world, before)
        incident.figure(f"restarts of operator and autoscaler, {mood}", sum(changed.values()))
        # Who could not renew its lease for 15 s leaves and comes back, once; a loop would be more.
        incident.expect(all(number <= 1 for number in changed.values()), f"{mood}: restarted in a loop: {changed}")
    finally:
        proxy.mood = Mood.WELL
        bed.delete(name)
        eventually(lambda: bed.instance(name) is None, 120, lambda: bed.why("moods"))


def judge(world: World, incident: Incident, load: Load, before: dict[str, int]) -> None:
    """Nothing was lost and nobody went in circles."""
    count(incident, load)
    lost = load.failures()
    incident.figure("requests lost", len(lost))
    incident.figure("lost requests", named(lost, incident.began))
    incident.expect(not lost, f"{len(lost)} requests were lost: {lost[:2]}")
    changed = restarted(world, before)
    incident.figure("containers restarted in all", sum(changed.values()))
    incident.expect(all("operator" in name or "autoscaler" in name for name in changed), f"restarted: {changed}")


def restarted(world: World, before: dict[str, int]) -> dict[str, int]:
    """Which containers restarted since, and how often."""
    after = world.restarts()
    return {name: after[name] - number for name, number in before.items() if after.get(name, 0) != number}


SCENARIOS = (
    Scenario(
        name="apiserver-moods",
        title="an apiserver that refuses, fails, forgets, is slow, is silent, breaks off",
        must_hold="no request lost; no restart but for a lost lease; what was asked for is there a minute later",
        limit=1200,
        play=play,
    ),
)
