"""What the control plane proves itself by changes under load: certificate, keys of tokens, and the authority itself.

First as `kubeadm certs renew` does it: another serving certificate of the same authority, and tokens signed by another
key. Then the hard way: a certificate of an authority that no pod believes yet, until their bundle follows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import requests

from e2e.bed import Manifest, engine_spec, eventually
from e2e.load import Reconnect, open_loop
from faults_long.apiserver_moods import restarted
from faults_long.control_plane import MANAGER, Plane, bundle_is, key_id, mended, mounts_of, sees_bundle
from faults_long.incident import Incident, count, named
from faults_long.scenario import Scenario
from faults_long.world import NAMESPACE, ROUTERS, World, settled

WITH_ACCOUNTS = "app.kubernetes.io/component in (operator,autoscaler,router)"
LEASES = ("llmfleet-operator", "llmfleet-autoscaler")
TWICE = Reconnect(times=2)
DISBELIEF = 40.0  # seconds in which no pod believes the apiserver


def single(model: str) -> Manifest:
    """The smallest engine there is: one pod."""
    return engine_spec(model, replicas=1, tensorParallelSize=1)


def play(world: World, incident: Incident) -> None:
    """Certificate and tokens, then the authority, with a load that must not notice."""
    with world.bed.fleet("certified", 2, single("certified"), wait=120) as names, mended(world) as plane:
        before = {name: world.bed.uids(name) for name in names}
        with open_loop(world.bed.router_url(), "certified", 8, 40, reconnect=TWICE) as load:
            settled(3)
            another_certificate(world, incident, plane)
            other_tokens(world, incident, plane)
            another_authority(world, incident, plane)
            settled(3)
        count(incident, load)
        lost = load.failures()
        incident.figure("lost requests", named(lost, incident.began))
        incident.expect(not lost, f"{len(lost)} requests were lost: {lost[:2]}")
        changed = [name for name in names if world.bed.uids(name) != before[name]]
        incident.expect(not changed, f"{changed} were made anew")


def another_certificate(world: World, incident: Incident, plane: Plane) -> None:
    """Another serving certificate of the same authority."""
    restarts, shown = world.restarts(), plane.served()
    plane.new_serving_certificate()
    plane.restart_apiserver()
    incident.expect(plane.served() != shown, "the apiserver shows the certificate it had")
    begin = incident.note("the apiserver has another certificate of the same authority")
    all_go_on(world, incident, begin, "another certificate")
    at_most_once(world, incident, restarts, "another certificate")


def other_tokens(world: World, incident: Incident, plane: Plane) -> None:
    """Tokens signed by another key; soon the old ones are worth nothing."""
    restarts, pods = world.restarts(), world.bed.pods(WITH_ACCOUNTS)
    uids = [pod["metadata"]["uid"] for pod in pods]
    old = {uid: key_id(uid) for uid in uids}
    token = (mounts_of(uids[0])[0] / "token").read_text()
    new = plane.new_account_key()
    plane.restart_apiserver()
    plane.restart("kubelet", MANAGER)  # kubelets keep tokens in memory for most of an hour
    incident.note("tokens are signed by another key; the old ones count for now")
    eventually(lambda: all(key_id(uid) != old[uid] for uid in uids), 240)
    incident.note("every pod has a token of the new key")
    plane.forget_account_key(new)
    plane.restart_apiserver()
    begin = incident.note("the old tokens are worth nothing")
    ask = {"headers": {"authorization": f"Bearer {token}"}, "verify": str(plane.layout.pki / "ca.crt"), "timeout": 10}
    said = requests.get(f"{plane.layout.server}/api/v1/namespaces/{NAMESPACE}/pods", **ask)
    incident.expect(said.status_code == 401, f"an old token is answered {said.status_code}: nothing was tested")
    plane.restart(MANAGER)
    all_go_on(world, incident, begin, "other tokens")
    at_most_once(world, incident, restarts, "other tokens", times=2)


def another_authority(world: World, incident: Incident, plane: Plane) -> None:
    """A certificate that no pod believes, and then the bundle by which they do."""
    restarts = world.restarts()
    old = (plane.layout.pki / "ca.crt").read_text()
    made, key = plane.new_authority("/CN=llmfleet-2")
    plane.trust(key, made, old)
    plane.new_serving_certificate()
    plane.take_up(MANAGER)
    begin = incident.note("the apiserver has a certificate of an authority that no pod believes")
    settled(DISBELIEF)
    incident.expect(not anybody_renews(world), "somebody renewed a lease meanwhile: nothing was tested")
    incident.figure("seconds in which no pod believed the apiserver", time.time() - begin)
    plane.restart(MANAGER)
    eventually(partial(bundle_is, world, made + old), 120)
    follows = incident.note("kube-root-ca.crt names both authorities")
    uids = [pod["metadata"]["uid"] for pod in world.bed.pods(WITH_ACCOUNTS)]
    eventually(lambda: all(sees_bundle(uid, made + old) for uid in uids), 240)
    begin = incident.note("every pod has it")
    incident.figure("seconds until the kubelets had brought it", begin - follows)
    all_go_on(world, incident, begin, "another authority")
    at_most_once(world, incident, restarts, "another authority")


def renewals(world: World) -> list[str]:
    """When the leases were renewed last."""
    found = world.bed.custom.list_namespaced_custom_object("coordination.k8s.io", "v1", NAMESPACE, "leases")
    return [one["spec"].get("renewTime", "") for one in found["items"] if one["metadata"]["name"] in LEASES]


def anybody_renews(world: World) -> bool:
    """Whether a lease is renewed within a few seconds."""
    before = renewals(world)
    settled(7)
    return renewals(world) != before


def all_go_on(world: World, incident: Incident, begin: float, word: str) -> None:
    """Both leases are renewed, and an instance asked for now is offered by every router."""
    bed, name, before = world.bed, f"after-{word.split()[-1]}", renewals(world)
    eventually(lambda: all_differ(before, renewals(world)), 180, lambda: str(renewals(world)))
    incident.figure(f"seconds until both leases were renewed, {word}", time.time() - begin)
    routers = bed.pods(ROUTERS)
    try:
        bed.create(name, single("after"), fleet="after")
        eventually(lambda: all(world.offers(router, name) for router in routers), 180, lambda: bed.why("after"))
        incident.figure(f"seconds until every router offered a new instance, {word}", time.time() - begin)
    finally:
        bed.delete(name)
        eventually(lambda: bed.instance(name) is None, 120, lambda: bed.why("after"))
    incident.note("operator, autoscaler and routers go on")


def all_differ(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether each of two leases was renewed since."""
    return len(after) == len(LEASES) and all(one != other for one, other in zip(before, after, strict=True))


def at_most_once(world: World, incident: Incident, before: dict[str, int], word: str, times: int = 1) -> None:
    """Who could not renew its lease for 15 s leaves and comes back: once for each time the apiserver was away."""
    changed = restarted(world, before)
    incident.figure(f"restarts, {word}", sum(changed.values()))
    wrong = {name: number for name, number in changed.items() if number > times or not leads(name)}
    incident.expect(not wrong, f"{word}: restarted {wrong}")


def leads(container: str) -> bool:
    """Whether it is one that holds a lease."""
    return "operator" in container or "autoscaler" in container


SCENARIOS = (
    Scenario(
        name="certificates-rotate",
        title="the apiserver's certificate, the key of tokens and the authority itself change",
        must_hold="no request lost; operator, autoscaler and routers go on; no restart but for a lost lease",
        limit=1500,
        play=play,
    ),
)
