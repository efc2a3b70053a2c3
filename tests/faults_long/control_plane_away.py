"""etcd, apiserver, scheduler and controllers are dead for ten minutes, and a router is killed meanwhile.

The operator and the autoscaler lose their leases and go round; nothing of it is in the way of a request. The router
that comes back finds its backends where it left them.
"""

from __future__ import annotations

import time
from functools import partial

from e2e.bed import engine_spec, eventually
from e2e.load import Reconnect, open_loop
from faults.ground import CONTROL_PLANE, kill_in, processes_of
from faults.test_control_plane_dead import answers
from faults_long.incident import Incident, count, named
from faults_long.scenario import Scenario
from faults_long.world import ROUTERS, World, settled

RATE, TOKENS = 5.0, 20
# Nobody can take a router that restarts off the Service while there is no apiserver: clients connect again.
PATIENT = Reconnect(times=60, seconds=0.25, factor=1)


def play(world: World, incident: Incident) -> None:
    """Kill the control plane, kill a router in the middle, bring everything back, ask for an instance."""
    bed, away = world.bed, float(world.options["away"])
    with bed.fleet("orphan", 2, engine_spec("orphan"), wait=120):
        victim = bed.pods(ROUTERS)[0]
        uid, address = victim["metadata"]["uid"], victim["status"]["podIP"]
        with open_loop(bed.router_url(), "orphan", RATE, TOKENS, reconnect=PATIENT) as load:
            with world.ground.without(*CONTROL_PLANE):
                gone = incident.note("etcd, apiserver, scheduler and controllers killed")
                settled(away / 2)
                old = processes_of(uid, "router")
                death = kill_in(uid, "router")
                incident.note("a router killed", death.killed)
                eventually(lambda: set(processes_of(uid, "router")) - set(old) and answers(address), 120)
                incident.figure("seconds until the killed router served from its disk", time.time() - death.killed)
                settled(max(0.0, gone + away - time.time()))
                incident.note("they are started again")
            back = incident.note("they are back")
            incident.figure("seconds without a control plane", back - gone)
            bed.create("revived-0", engine_spec("revived"), fleet="revived")
            try:
                eventually(partial(bed.is_ready, "revived-0"), 180, lambda: bed.why("revived"))
                incident.figure("seconds until an instance asked for afterwards served", time.time() - back)
            finally:
                bed.delete("revived-0")
                eventually(lambda: not bed.instances("revived"), 120, lambda: bed.why("revived"))
        count(incident, load)
        lost = [one for one in load.failures() if not death.cut(one)]
        incident.figure("requests open on the killed router", sum(death.cut(one) for one in load.failures()))
        incident.figure("requests lost otherwise", len(lost))
        incident.figure("lost requests", named(load.failures(), incident.began))
        incident.expect(not lost, f"{len(lost)} requests were lost that were not open on the killed router: {lost[:2]}")


SCENARIOS = (
    Scenario(
        name="control-plane-away",
        title="no apiserver and no etcd for ten minutes, a router killed meanwhile",
        must_hold="nothing fails but what was open on the killed router, which comes back from its disk",
        limit=1500,
        play=play,
    ),
)
