"""What a router and its sidecar stand on goes away: the disk they write to, the names, the keys of their clients."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import requests

from e2e.bed import Manifest, eventually, run
from e2e.load import Load, Reconnect, open_loop
from faults.ground import kill_in, processes_of
from faults.test_control_plane_dead import answers
from faults_long.incident import Incident, count, named
from faults_long.loads import Jobs, shaped_loop, takes_jobs
from faults_long.scenario import Scenario
from faults_long.world import NAMESPACE, ROUTERS, World, settled
from llmfleet.router.keys import hashed

TWICE = Reconnect(times=2)
FOLDER = "/var/run/llmfleet"
OLD, NEW = "sk-the-old-key-of-a-tenant", "sk-the-new-key-of-a-tenant"


def none_lost(incident: Incident, load: Load) -> None:
    """Not one request of a load may be lost."""
    count(incident, load)
    lost = load.failures()
    incident.figure("lost requests", named(lost, incident.began))
    incident.expect(not lost, f"{len(lost)} requests were lost: {lost[:2]}")


# -- a full disk -----------------------------------------------------------------------------------------------------


@contextmanager
def no_room(pod_uid: str) -> Iterator[None]:
    """Lay a full disk of one page over the folder route-sync writes to; the router goes on seeing the real one."""
    inside = ["nsenter", f"--target={processes_of(pod_uid, 'route-sync')[0]}", "--mount"]
    try:
        run([*inside, "mount", "-t", "tmpfs", "-o", "size=4k,mode=777", "full", FOLDER])
        run([*inside, "sh", "-c", f"head -c 4096 /dev/zero > {FOLDER}/filler"])
        yield
    finally:
        run([*inside, "umount", "-l", FOLDER])


def disk_full(world: World, incident: Incident) -> None:
    """route-sync cannot write while a fleet grows: the router keeps what it has, and hears of it afterwards."""
    bed = world.bed
    specs = {f"cramped-{number}": world.single_spec("cramped", "node-2") for number in range(2)}
    with world.instances("cramped", {"cramped-0": specs["cramped-0"]}):
        router = world.router_on("node-0")
        with open_loop(bed.router_url(), "cramped", 8, 20, reconnect=TWICE) as load:
            with no_room(router["metadata"]["uid"]):
                incident.note("no room where route-sync of one router writes")
                bed.create("cramped-1", specs["cramped-1"], fleet="cramped")
                try:
                    eventually(partial(world.offers, world.router_on("node-1"), "cramped-1"), 120)
                    incident.note("the other router knows the new instance")
                    settled(10)
                    incident.expect(not world.offers(router, "cramped-1"), "the file was written: nothing was tested")
                except BaseException:
                    bed.delete("cramped-1")
                    raise
            room = incident.note("there is room again")
            try:
                eventually(partial(world.offers, router, "cramped-1"), 60)
                incident.figure("seconds until its router knew it too", incident.note("so does this one") - room)
            finally:
                bed.delete("cramped-1")
                eventually(lambda: bed.instance("cramped-1") is None, 120)
        none_lost(incident, load)


# -- no names --------------------------------------------------------------------------------------------------------


def no_names(world: World, incident: Incident) -> None:
    """DNS is gone while a router and a rank are killed: routers need no name, a group's ranks wait for one."""
    bed = world.bed
    places = {"nameless-0": ("node-0", "node-2"), "nameless-1": ("node-1", "node-2")}
    specs = {name: world.spread_spec("nameless", nodes) for name, nodes in places.items()}
    with world.instances("nameless", specs):
        victim = world.router_on("node-0")
        uid, address = victim["metadata"]["uid"], victim["status"]["podIP"]
        jobs = Jobs(f"http://{world.router_on('node-1')['status']['podIP']}:8080", "nameless", 4)
        with open_loop(bed.router_url(), "nameless", 6, 20, reconnect=Reconnect(times=3)) as load:
            settled(5)
            with world.ground.without("coredns"):
                incident.note("DNS is gone")
                settled(5)
                jobs.ask()
                incident.expect(len(jobs.accepted) == 1, f"a router that had its Redis took no job: {jobs.refused}")
                old = processes_of(uid, "router")
                death = kill_in(uid, "router")
                incident.note("a router killed", death.killed)
                eventually(lambda: set(processes_of(uid, "router")) - set(old) and answers(address), 120)
                incident.figure("seconds until it served again, without names", time.time() - death.killed)
                before = bed.uids("nameless-0")
                cut = kill_in(bed.ranks("nameless-0")[0]["metadata"]["uid"], "serve")
                incident.note("rank 0 of one of two groups killed", cut.killed)
                eventually(lambda: len(bed.uids("nameless-0") - before) == 2, 120, lambda: bed.why("nameless"))
                incident.note("its pods are new, and wait for each other")
                settled(15)
            back = incident.note("DNS is back")
            eventually(partial(bed.is_ready, "nameless-0"), 120, lambda: bed.why("nameless"))
            incident.figure("seconds until the group was there after DNS was", time.time() - back)
        count(incident, load)
        told = [one for one in load.failures() if death.cut(one) or one.chunks]
        lost = [one for one in load.failures() if one not in told]
        incident.figure("requests cut with the router and the rank", len(told))
        incident.figure("lost requests", named(load.failures(), incident.began))
        incident.expect(not lost, f"{len(lost)} requests were lost without having begun: {lost[:2]}")
        incident.figure("jobs of the time without names", dict(jobs.ends(60)))
        again = Jobs(f"http://{address}:8080", "nameless", 4)
        eventually(partial(takes_jobs, again), 60)
        incident.note("the router that was killed takes jobs: it found Redis by its name")


# -- keys that change ------------------------------------------------------------------------------------------------


def write_keys(world: World, *keys: str) -> None:
    """Make the Secret hold these keys of one tenant."""
    content = json.dumps({"tenants": {"a": {"keys": [hashed(key) for key in keys]}}})
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tenants", "namespace": NAMESPACE}}
    world.kubectl("apply", "--filename=-", stdin=json.dumps(secret | {"stringData": {"keys.yaml": content}}))


def lets_in(router: Manifest, key: str) -> bool:
    """Whether a router knows a key."""
    headers = {"authorization": f"Bearer {key}"}
    address = f"http://{router['status']['podIP']}:8080/v1/models"
    return requests.get(address, headers=headers, timeout=5).status_code == 200


def keys_rotated(world: World, incident: Incident) -> None:
    """Add a key, move the clients to it, take the old one away."""
    bed, key = world.bed, OLD
    write_keys(world, OLD)
    try:
        with world.instances("keyed", {"keyed-0": world.single_spec("keyed", "node-2")}):
            world.install("--set", "fleet.router.apiKeys.existingSecret=tenants")
            eventually(world.whole, 180, world.why_not_whole)
            routers = [pod for pod in bed.pods(ROUTERS) if not pod["metadata"].get("deletionTimestamp")]
            eventually(lambda: all(lets_in(router, OLD) for router in routers), 60)
            with shaped_loop(bed.router_url(), "keyed", 10, 20, key=lambda: key, reconnect=TWICE) as load:
                settled(5)
                write_keys(world, OLD, NEW)
                begin = incident.note("the new key is written beside the old one")
                eventually(lambda: all(lets_in(router, NEW) for router in routers), 180)
                incident.figure("seconds until every router took the new key", incident.note("it works") - begin)
                key = NEW
                settled(10)
                write_keys(world, NEW)
                begin = incident.note("the old key is taken away")
                eventually(lambda: not any(lets_in(router, OLD) for router in routers), 180)
                incident.figure("seconds until no router took the old key", incident.note("it is refused") - begin)
                settled(5)
            none_lost(incident, load)
    finally:
        world.install()


SCENARIOS = (
    Scenario(
        name="disk-full",
        title="no room on the disk that a router's backends are written to",
        must_hold="the router serves by what it has; it hears of the rest when there is room, without a restart",
        limit=500,
        play=disk_full,
    ),
    Scenario(
        name="names-gone",
        title="DNS gone; a router and a rank killed meanwhile",
        must_hold="the router comes back without a name; the group when there are names again; no silent end",
        limit=500,
        play=no_names,
    ),
    Scenario(
        name="keys-rotated",
        title="an API key changed under load: two live keys, then the new one alone",
        must_hold="no request is refused or lost",
        limit=700,
        play=keys_rotated,
    ),
)
