"""Routers are rolled and killed under load: a roll fails nothing, a kill only what was open on the killed one."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from kubernetes import client

from e2e.bed import RELEASE, Bed, engine_spec, eventually, run, tool
from e2e.figures import Figures
from e2e.load import REFUSED, RESET, Reconnect, open_loop
from faults.ground import kill_in

RATE = float(os.environ.get("LLMFLEET_FAULTS_RATE", "40"))  # requests a second; the published figures are of 100
ROLLOUTS = 3
TWICE = Reconnect(times=2)  # as both SDKs do by default
ROUTERS = "app.kubernetes.io/component=router"


def roll(bed: Bed) -> None:
    """Restart the routers as a person would, and wait until the new ones serve."""
    base = [tool("kubectl"), f"--kubeconfig={bed.kubeconfig}", "--namespace", bed.namespace, "rollout"]
    run([*base, "restart", f"deployment/{RELEASE}-router"])
    run([*base, "status", f"deployment/{RELEASE}-router", "--timeout=180s"])


def gone(bed: Bed, uids: set[str]) -> bool:
    """Whether none of these pods is left."""
    return not uids & {pod["metadata"]["uid"] for pod in bed.pods(ROUTERS)}


def test_three_rollouts_of_the_routers_fail_no_request(bed: Bed, figures: Figures) -> None:
    with bed.fleet("rolled", 2, engine_spec("rolled")):
        url = bed.router_url()
        with open_loop(url, "rolled", rate=RATE, tokens=20) as short, open_loop(url, "rolled", 1, 400) as long:
            for _ in range(ROLLOUTS):
                before = {pod["metadata"]["uid"] for pod in bed.pods(ROUTERS)}
                roll(bed)
                eventually(lambda before=before: gone(bed, before), 180)
    sent, failed = short.sent + long.sent, short.failures() + long.failures()
    figures.count("rollouts of the routers, requests, of which failed", [ROLLOUTS, sent, len(failed)])
    assert failed == []
    assert sent == len(short.outcomes) + len(long.outcomes)


def test_a_killed_router_costs_only_what_was_open_on_it(bed: Bed, figures: Figures) -> None:
    url = bed.router_url()
    with bed.fleet("killed", 2, engine_spec("killed")), open_loop(url, "killed", RATE, 20, reconnect=TWICE) as load:
        time.sleep(5)
        victim = bed.pods(ROUTERS)[0]["metadata"]
        death = kill_in(victim["uid"], "router")
        eventually(lambda: restarted(bed, victim["name"]), 240)
        time.sleep(10)
    open_then = [one for one in load.failures() if death.cut(one)]
    otherwise = [one for one in load.failures() if not death.cut(one)]
    figures.count("requests around the kill of one of two routers", load.sent)
    figures.count("of them open on it and cut, begun later and never connected", [len(open_then), len(otherwise)])
    assert {one.kind for one in open_then} <= {RESET, REFUSED}, open_then[:3]
    # How long the Service still names the dead router is the cluster's affair; no engine saw any of these.
    assert {one.kind for one in otherwise} <= {REFUSED}, (death, otherwise[:3])


def restarted(bed: Bed, name: str) -> bool:
    """Whether the kubelet has started a pod's router again."""
    states: Sequence[client.V1ContainerStatus] = bed.core.read_namespaced_pod(
        name, bed.namespace
    ).status.container_statuses
    return any(state.name == "router" and state.restart_count and state.ready for state in states)
