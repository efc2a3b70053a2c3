"""A fleet is asked to run an image that nobody has, under load, and is asked back.

One instance is taken out and tried, and goes back to what it ran; the others are not touched. Until somebody edits the
spec the fleet stays halted, and says so.
"""

from __future__ import annotations

import time
from functools import partial

from e2e.bed import SIM, Bed, engine_spec, eventually
from e2e.load import Reconnect, open_loop
from faults_long.incident import Incident, count, named
from faults_long.scenario import Scenario
from faults_long.world import World, settled

MISSING = "localhost/llmfleet/engine-sim:there-is-no-such-tag"
FLEET, COUNT = "unpullable", 3
STARTUP_SECONDS = 45
TWICE = Reconnect(times=2)


def play(world: World, incident: Incident) -> None:
    """Ask every instance for the missing image, wait for the halt, serve on, take it back."""
    bed = world.bed
    spec = engine_spec(FLEET, lifecycle={"startupTimeoutSeconds": STARTUP_SECONDS})
    with bed.fleet(FLEET, COUNT, spec, wait=180) as names:
        before = {name: bed.uids(name) for name in names}
        restarts = {name: world.group_restarts(name) for name in names}
        with open_loop(bed.router_url(), FLEET, 8, 60, reconnect=TWICE) as load:
            settled(5)
            begin = incident.note(f"every instance is asked to run {MISSING.rsplit(':', 1)[1]!r}")
            for name in names:
                bed.patch(name, {"image": MISSING})
            tried = eventually(partial(trying, bed, names), 120, partial(bed.why, FLEET))
            incident.note(f"{tried} is drained and tries it")
            reason = eventually(partial(pull_failed, bed, tried), 90, partial(bed.why, FLEET))
            incident.figure("seconds until the status said that the image cannot be pulled", time.time() - begin)
            incident.note(f"{tried}: {reason}")
            eventually(partial(halted, bed, names), 180, partial(bed.why, FLEET))
            incident.figure("seconds until the roll halted and said so", incident.note("UpdateHalted") - begin)
            incident.expect(told(bed, tried), "no event says that the roll halted")
            eventually(partial(serves_old, bed, tried), 180, partial(bed.why, FLEET))
            incident.figure("seconds until it served what it ran before", incident.note("it serves again") - begin)
            settled(20)
            wrong = [name for name in names if bed.images(name) != {SIM}]
            incident.expect(not wrong, f"{wrong} run something else while the roll is halted")
            touched = [name for name in names if name != tried and bed.uids(name) != before[name]]
            incident.expect(not touched, f"{touched} were touched")
            back = incident.note("the old image is asked for again")
            for name in names:
                bed.patch(name, {"image": SIM})
            eventually(partial(cleared, bed, names), 120, partial(bed.why, FLEET))
            incident.figure("seconds until nothing was left of it", incident.note("nothing is left of it") - back)
            settled(3)
        counted = {name: world.group_restarts(name) - restarts[name] for name in names}
        incident.figure("restarts counted for it", sum(counted.values()))
        count(incident, load)
        lost = load.failures()
        incident.figure("lost requests", named(lost, incident.began))
        incident.expect(not lost, f"{len(lost)} requests were lost: {lost[:2]}")


def trying(bed: Bed, names: list[str]) -> str:
    """Which instance has a pod of the missing image."""
    return next((name for name in names if MISSING in bed.images(name)), "")


def pull_failed(bed: Bed, name: str) -> str:
    """What an instance says of an image that cannot be pulled; empty before it does."""
    ready = bed.condition(name)
    return str(ready["message"]) if ready.get("reason") == "ImagePullFailed" else ""


def halted(bed: Bed, names: list[str]) -> bool:
    """Whether an instance says that the update was halted."""
    return any("UpdateHalted" in str((bed.instance(name) or {}).get("status")) for name in names)


def told(bed: Bed, name: str) -> bool:
    """Whether an event says it too."""
    return any(reason == "UpdateHalted" for _, reason in bed.said(name))


def serves_old(bed: Bed, name: str) -> bool:
    """Whether an instance runs the old image and is ready."""
    return bed.images(name) == {SIM} and bed.condition(name).get("status") == "True"


def cleared(bed: Bed, names: list[str]) -> bool:
    """Whether every instance is as it was before anybody asked, and says nothing of it any more."""
    return all(map(bed.is_ready, names)) and not halted(bed, names)


SCENARIOS = (
    Scenario(
        name="image-missing",
        title="a fleet is asked to run an image that cannot be pulled",
        must_hold="the roll halts and says so; the others serve on untouched; no request is lost; going back clears it",
        limit=900,
        play=play,
    ),
)
