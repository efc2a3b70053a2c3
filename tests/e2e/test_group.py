"""A group lives and dies as one: a lost rank restarts exactly its group, exactly once, and says so."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from kubernetes import watch
from urllib3.exceptions import ProtocolError

from e2e.bed import Bed, engine_spec, eventually
from e2e.figures import Figures
from e2e.load import SILENT, Load, open_loop

ROUNDS = 5
FLEET = 6


@contextmanager
def pods_made(bed: Bed, instances: list[str]) -> Iterator[dict[str, list[str]]]:
    """UIDs of every pod that appears for these instances while the block runs."""
    made: dict[str, list[str]] = {name: [] for name in instances}
    known = {uid for name in instances for uid in bed.uids(name)}
    watcher, over = watch.Watch(), threading.Event()

    def follow() -> None:
        while not over.is_set():
            with suppress(ProtocolError):
                look()

    def look() -> None:
        for event in watcher.stream(bed.core.list_namespaced_pod, bed.namespace, timeout_seconds=900):
            labels, uid = event["object"].metadata.labels or {}, event["object"].metadata.uid
            name = labels.get("serving.ai/cluster")
            if name in made and uid not in known:
                known.add(uid)
                made[name].append(uid)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        watcher.stop()


def kill_container(bed: Bed, instance: str, rank: int) -> None:
    """Kill the engine inside a rank: PID 1 of the container, so that the kubelet restarts it in place."""
    pod = bed.ranks(instance)[rank]["metadata"]["name"]
    with suppress(AssertionError):  # the kernel may end this very command together with its PID 1
        bed.execute(pod, "python3", "-c", "import os,signal,time; os.kill(1, signal.SIGTERM)")


def delete_pod(bed: Bed, instance: str, rank: int) -> None:
    """Take a rank's pod away at once, as a lost node would."""
    pod = bed.ranks(instance)[rank]["metadata"]["name"]
    bed.core.delete_namespaced_pod(pod, bed.namespace, grace_period_seconds=0)


KILLS: list[tuple[Callable[[Bed, str, int], None], int]] = [
    (delete_pod, 1),
    (kill_container, 1),
    (delete_pod, 0),
    (kill_container, 0),
]


def restarts(bed: Bed, name: str) -> int:
    """Group restarts the operator has counted."""
    return int((bed.instance(name) or {}).get("status", {}).get("restarts", 0))


@pytest.mark.turn(2)
def test_a_lost_rank_restarts_exactly_its_group_exactly_once(bed: Bed, figures: Figures) -> None:
    spec, seconds = engine_spec("ranks"), list[float]()
    with bed.fleet("ranks", FLEET, spec) as names, pods_made(bed, names) as made:
        with open_loop(bed.router_url(), "ranks", rate=4, tokens=20) as load:
            for number in range(ROUNDS):
                seconds += one_round(bed, names, made, number)
        assert_nothing_silent(load)
        total = sum(restarts(bed, name) for name in names)
    figures.samples("seconds from a lost rank to the group serving again", seconds)
    figures.count("ranks lost, group restarts counted", [ROUNDS * FLEET, total])
    figures.count("requests during the rank losses, by outcome", dict(load.kinds()))
    figures.count("what those with a status were told", dict(load.told().most_common(10)))


def one_round(bed: Bed, names: list[str], made: dict[str, list[str]], number: int) -> list[float]:
    """Lose one rank of every instance together; each group must come back whole, made anew once."""
    before = {name: (bed.uids(name), restarts(bed, name), len(made[name])) for name in names}
    begin = time.monotonic()
    for offset, name in enumerate(names):
        kill, rank = KILLS[(number + offset) % len(KILLS)]
        kill(bed, name, rank)
    back = []
    for name in names:
        uids, counted, _ = before[name]
        eventually(lambda name=name, uids=uids: not uids & bed.uids(name), 240, lambda: bed.why("ranks"))
        eventually(lambda name=name: bed.is_ready(name), 300, lambda: bed.why("ranks"))
        back.append(time.monotonic() - begin)
        assert restarts(bed, name) == counted + 1, (name, number, bed.why("ranks"))
    for name in names:
        known = before[name][2]
        eventually(lambda name=name, known=known: len(made[name]) >= known + 2, 60)  # the watch may lag
        assert len(made[name]) == known + 2, (name, number, made[name])
        assert_met_only_its_own_group(bed, name)
    return back


def assert_met_only_its_own_group(bed: Bed, name: str) -> None:
    """The leader that serves saw each follower join once, in the order gate, then rendezvous."""
    for rank in (0, 1):  # a line takes its time from the container to the log
        eventually(lambda rank=rank: "the group is complete" in bed.logs(f"{name}-{rank}"), 60)
        log = bed.logs(f"{name}-{rank}")
        assert log.count("the group is complete") == 1, log
    eventually(lambda: "rank 1 joined" in bed.logs(f"{name}-0"), 60)
    leader = bed.logs(f"{name}-0")
    assert leader.count("rank 1 joined") == 1, leader


def assert_nothing_silent(load: Load) -> None:
    """Every request ended in a way its client can see."""
    assert load.sent == len(load.outcomes)
    assert load.kinds()[SILENT] == 0, [outcome for outcome in load.outcomes if outcome.kind == SILENT][:3]


def test_a_hung_group_is_found_and_made_anew(bed: Bed) -> None:
    spec = engine_spec("hung", lifecycle={"stallTimeoutSeconds": 5})
    spec["inferenceArgs"]["extraArgs"].append("--sim-admin-port=8009")
    with bed.fleet("hung", 1, spec) as (name,):
        uids = bed.uids(name)
        hang = json.dumps({"kind": "hang"})
        program = f"import urllib.request as u; u.urlopen(u.Request('http://127.0.0.1:8009/fault', {hang!r}.encode()))"
        bed.execute(f"{name}-0", "python3", "-c", program)
        with open_loop(bed.router_url(), "hung", rate=1, tokens=20) as load:
            eventually(lambda: not uids & bed.uids(name), 240, lambda: bed.why("hung"))
        eventually(lambda: bed.is_ready(name), 300, lambda: bed.why("hung"))
        assert_nothing_silent(load)


@pytest.mark.parametrize("child", ["statefulsets", "services"])
def test_a_child_deleted_by_hand_comes_back(bed: Bed, child: str) -> None:
    from kubernetes import client

    with bed.fleet(f"healed-{child}", 1, engine_spec(f"healed-{child}")) as (name,):
        if child == "services":
            uid = bed.core.read_namespaced_service(name, bed.namespace).metadata.uid
            bed.core.delete_namespaced_service(name, bed.namespace)
            eventually(lambda: service_uid(bed, name) not in ("", uid), 120)
        else:
            apps = client.AppsV1Api(bed.api)
            uid = apps.read_namespaced_stateful_set(name, bed.namespace).metadata.uid
            apps.delete_namespaced_stateful_set(name, bed.namespace)
            eventually(lambda: (found := bed.ranks(name)) and all(owner(pod) != uid for pod in found), 240)
        eventually(lambda: bed.is_ready(name), 300, lambda: bed.why(f"healed-{child}"))


def service_uid(bed: Bed, name: str) -> str:
    """UID of the client Service of an instance, or nothing."""
    found = bed.core.list_namespaced_service(bed.namespace, field_selector=f"metadata.name={name}").items
    return found[0].metadata.uid if found else ""


def owner(pod: dict[str, dict[str, list[dict[str, str]]]]) -> str:
    """UID of what owns a pod."""
    return pod["metadata"]["ownerReferences"][0]["uid"]
