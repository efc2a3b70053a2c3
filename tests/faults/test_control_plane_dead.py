"""The whole control plane is dead: traffic goes on, a router that restarts meanwhile serves from its disk."""

from __future__ import annotations

import time

import requests

from e2e.bed import Bed, engine_spec, eventually
from e2e.figures import Figures
from e2e.load import Reconnect, open_loop
from faults.ground import CONTROL_PLANE, Ground, kill_in, processes_of

ROUTERS = "app.kubernetes.io/component=router"
DEAD_SECONDS = 20.0


def answers(address: str) -> bool:
    """Whether a router serves."""
    try:
        return requests.get(f"http://{address}:8080/readyz", timeout=2).status_code == 200
    except requests.RequestException:
        return False


def test_with_the_control_plane_dead_nothing_fails_and_a_restarted_router_serves_from_disk(
    bed: Bed, ground: Ground, figures: Figures
) -> None:
    # Nobody can take a router that restarts off the Service while there is no apiserver: clients connect again.
    patient = Reconnect(times=480, seconds=0.25, factor=1)
    with bed.fleet("orphan", 2, engine_spec("orphan")):
        victim = bed.pods(ROUTERS)[0]
        uid, address = victim["metadata"]["uid"], victim["status"]["podIP"]
        with open_loop(bed.router_url(), "orphan", 10, 20, reconnect=patient) as load:
            with ground.without(*CONTROL_PLANE):
                time.sleep(DEAD_SECONDS)
                old = processes_of(uid, "router")
                death = kill_in(uid, "router")
                eventually(lambda: set(processes_of(uid, "router")) - set(old) and answers(address), 180)
                ask = {"model": "orphan", "prompt": "Hi", "max_tokens": 1}
                answer = requests.post(f"http://{address}:8080/v1/completions", json=ask, timeout=60)
                assert answer.status_code == 200, answer.text
                time.sleep(DEAD_SECONDS)
            time.sleep(5)
        lost = [one for one in load.failures() if not death.cut(one)]
        open_then = [one for one in load.failures() if death.cut(one)]
        figures.count(
            "requests while the control plane was dead, open on a killed router, lost otherwise",
            [load.sent, len(open_then), len(lost)],
        )
        assert lost == [], death
    with bed.fleet("revived", 1, engine_spec("revived")) as (name,):
        eventually(lambda: bed.is_ready(name), 300, lambda: bed.why("revived"))
