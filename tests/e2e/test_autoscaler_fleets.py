"""Fleets that sleep, fleets of two roles, and an autoscaler that dies again and again while it follows a load.

The tormented autoscaler runs as a plain process beside the cluster, as the operator does in its own test: SIGKILL hits
it between any two writes and the next one starts at once.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kubernetes import client

from e2e.bed import GROUP, RELEASE, Bed, eventually
from e2e.figures import Figures
from e2e.load import COMPLETE, Load, many_streams, open_loop
from e2e.test_autoscaler import MODEL, upgrade

KILLS = 20
SEED = 20262
ASLEEP, ALONE, ROLES = (f"{RELEASE}-{name}" for name in ("asleep", "alone", "roles"))
CAPACITY = {"coefficients": {"a": "0.02", "b": "0.02", "c": "0.065", "d": "0"}}
# A prompt of six tokens costs 0.4 s where it is computed, a token 20 ms where it is made. Three requests a second are
# a third more than one prefill or one decode instance carries, whatever the headroom, and can be held until two do.
STEPS = ["--sim-step-a=20", "--sim-step-b=20", "--sim-step-c=65", "--sim-step-d=0", "--sim-load-seconds=5"]
FAST = {"scaleDown": {"stabilizationSeconds": 20, "cooldownSeconds": 2, "step": 4}}
BUDGET = {"slo": {"ttftSeconds": "5", "tpotSeconds": "0.2", "errorBudget": "0.05"}, "capacity": CAPACITY}
BUDGET |= {"coldStartSeconds": 10}
# Nobody has asked yet, and a prompt nobody has seen is taken for a thousand tokens: that must not be a minute of work.
CHEAP = BUDGET | {"capacity": {"coefficients": CAPACITY["coefficients"] | {"c": "0.0001"}}}
SHARED = {key: value for key, value in MODEL.items() if key != "autoscaling"}
SHARED |= {"inferenceArgs": {"extraArgs": STEPS}}
MODELS: dict[str, Any] = {
    "tiny": None,
    "asleep": {
        **SHARED,
        "servedModelNames": ["asleep"],
        "autoscaling": {
            "minInstances": 0,
            "maxInstances": 2,
            "scaleToZero": {"afterSeconds": 10},
            "workBudget": CHEAP,
            "behavior": {"scaleDown": {"stabilizationSeconds": 5, "cooldownSeconds": 0}},
        },
    },
    "alone": {
        **SHARED,
        "servedModelNames": ["alone"],
        "autoscaling": {"minInstances": 1, "maxInstances": 3, "workBudget": BUDGET, "behavior": FAST},
    },
    "roles": {
        **SHARED,
        "servedModelNames": ["roles"],
        "kvTransfer": {"connector": "NixlConnector", "port": 5600},
        "autoscaling": {"workBudget": BUDGET, "coordination": {"maxPrefillPerDecode": 1}, "behavior": FAST},
        "prefill": {"autoscaling": {"minInstances": 1, "maxInstances": 2}},
        "decode": {"autoscaling": {"minInstances": 1, "maxInstances": 3}},
    },
}
ROUTER = {"settings": {"disaggregation": {"bypassPrefill": {"minPromptTokens": 0}}}}


@pytest.fixture(scope="module")
def fleets(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The release with three models that scale; without them afterwards, and their instances gone by their drain."""
    values = tmp_path_factory.mktemp("fleets") / "values.json"
    controllers = {"autoscaler": {"intervalSeconds": 2}}
    values.write_text(json.dumps({"controllers": controllers, "fleet": {"models": MODELS, "router": ROUTER}}))
    upgrade(bed.kubeconfig, f"--values={values}")
    yield
    upgrade(bed.kubeconfig, "--set", "fleet.models=null")
    for fleet in (ASLEEP, ALONE, ROLES):
        eventually(lambda fleet=fleet: not bed.instances(fleet), 120, lambda fleet=fleet: bed.why(fleet))


@pytest.fixture
def no_autoscaler(bed: Bed) -> Iterator[None]:
    """The release's own autoscaler put to rest, and back afterwards."""
    scale(bed, 0)
    yield
    scale(bed, 1)


def scale(bed: Bed, replicas: int) -> None:
    """Set the autoscaler's replicas and wait until its pods are as many."""
    body = {"spec": {"replicas": replicas}}
    client.AppsV1Api(bed.api).patch_namespaced_deployment_scale(f"{RELEASE}-autoscaler", bed.namespace, body)
    eventually(lambda: len(bed.pods("app.kubernetes.io/component=autoscaler")) == replicas, 60)


class Autoscaler:
    """One autoscaler process after the other."""

    def __init__(self, bed: Bed, log: Path) -> None:
        self.kills, self.log, self.process = 0, log, None
        self.command = [sys.executable, "-m", "llmfleet", "autoscaler", f"--kubeconfig={bed.kubeconfig}"]
        self.command += ["--namespace", bed.namespace, "--identity", f"{bed.namespace}/{RELEASE}", "--interval=2"]
        self.command += ["--no-leader-election", "--metrics-port=0", "--health-port=0"]

    def start(self) -> None:
        """Start the next one."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is said."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def torment(self, dice: random.Random, least: float, most: float) -> None:
        """Kill and start again at random moments, each life this long; one is left running."""
        for _ in range(KILLS):
            self.start()
            time.sleep(dice.uniform(least, most))
            self.kill()
            self.kills += 1
        self.start()


@dataclass
class Watch:
    """Every instance that was ever seen, and every moment at which the ratio did not hold."""

    seen: dict[str, set[str]] = field(default_factory=dict)
    """UIDs by name."""
    sizes: dict[str, list[int]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    most: int = 0

    def look(self, bed: Bed) -> None:
        """Note what is there now."""
        found = {fleet: bed.instances(fleet) for fleet in (ALONE, ROLES)}
        for fleet, items in found.items():
            self.sizes.setdefault(fleet, []).append(len(items))
            for item in items:
                self.seen.setdefault(item["metadata"]["name"], set()).add(item["metadata"]["uid"])
        prefill = sum(serves(item) for item in found[ROLES] if item["spec"]["role"] == "prefill")
        decode = sum(serves(item) for item in found[ROLES] if item["spec"]["role"] == "decode" and stays(item))
        self.most = max(self.most, prefill)
        if prefill > decode:  # maxPrefillPerDecode is 1
            self.broken.append(f"{prefill} prefill to {decode} decode")


W = TypeVar("W", bound=Watch)


def serves(item: dict[str, Any]) -> bool:
    conditions = item.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def stays(item: dict[str, Any]) -> bool:
    return not item["metadata"].get("deletionTimestamp")


@contextmanager
def watching(bed: Bed, watch: W) -> Iterator[W]:
    """Look again and again while the block runs, with a connection of its own."""
    over, own = threading.Event(), Bed(bed.kubeconfig)

    def run() -> None:
        while not over.wait(0.25):
            watch.look(own)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


def count(bed: Bed, fleet: str, role: str = "") -> int:
    """Instances that serve."""
    return sum(serves(item) for item in bed.instances(fleet) if not role or item["spec"]["role"] == role)


def why(bed: Bed, fleet: str) -> str:
    found = bed.custom.get_namespaced_custom_object(*GROUP, bed.namespace, "llmclusterautoscalers", fleet)
    return json.dumps(found.get("status")) + "\n" + bed.why(fleet)


def all_answered(load: Load) -> bool:
    return load.kinds() == {COMPLETE: load.sent}


@pytest.mark.usefixtures("fleets")
def test_a_fleet_goes_to_zero_and_wakes_for_held_requests_and_none_is_lost(bed: Bed, figures: Figures) -> None:
    woken = []
    for waiting in (1, 10):
        eventually(lambda: not bed.instances(ASLEEP), 90, lambda: why(bed, ASLEEP))
        begin = time.monotonic()
        load = many_streams(bed.router_url(), "asleep", waiting, 5, lambda: None)
        woken.append(time.monotonic() - begin)
        assert all_answered(load), load.failures()[:3]
    eventually(lambda: not bed.instances(ASLEEP), 90, lambda: why(bed, ASLEEP))
    actions = {(event.get("action"), event["reason"]) for event in bed.events(ASLEEP)}
    assert {("ScaledUp", "WokenByRequest"), ("ScaledDown", "IdleToZero")} <= actions
    figures.samples("seconds from a request for an empty fleet to its whole answer", woken)


@pytest.mark.usefixtures("fleets", "no_autoscaler")
def test_killed_twenty_times_the_autoscaler_follows_the_load_and_does_nothing_twice(
    bed: Bed, figures: Figures, tmp_path: Path
) -> None:
    autoscaler = Autoscaler(bed, tmp_path / "autoscaler.log")
    url = bed.router_url()
    try:
        autoscaler.start()
        for fleet, ready in ((ALONE, 1), (ROLES, 2)):
            eventually(lambda fleet=fleet, ready=ready: count(bed, fleet) == ready, 90, lambda f=fleet: why(bed, f))
        autoscaler.kill()
        with watching(bed, Watch()) as watch, open_loop(url, "alone", 0.2, 10) as trickle:
            with open_loop(url, "alone", 1.5, 20) as alone, open_loop(url, "roles", 3, 20) as roles:
                autoscaler.torment(random.Random(SEED), 1.2, 5.0)
                eventually(lambda: count(bed, ALONE) >= 2, 90, lambda: why(bed, ALONE))
                eventually(lambda: count(bed, ROLES, "prefill") >= 2, 90, lambda: why(bed, ROLES))
            grown = {name: set(uids) for name, uids in watch.seen.items()}
            eventually(lambda: count(bed, ALONE) == 1, 180, lambda: why(bed, ALONE))
            eventually(lambda: len(bed.instances(ROLES)) == 2, 180, lambda: why(bed, ROLES))
        assert autoscaler.process.poll() is None, autoscaler.log.read_text()[-3000:]
    finally:
        autoscaler.kill()
    for load in (alone, roles, trickle):
        assert all_answered(load), load.failures()[:3]
    assert watch.broken == []
    assert watch.most == 2
    # Grown name by name, each made once; then shrunk, and no instance made in between.
    assert {len(uids) for uids in grown.values()} == {1}
    assert watch.seen == grown
    for fleet, most in ((ALONE, 3), (ROLES, 5)):
        assert max(watch.sizes[fleet]) <= most, watch.sizes[fleet]
    figures.count("autoscaler killed at random, times", autoscaler.kills)
    sent = sum(load.sent for load in (alone, roles, trickle))
    figures.count("requests while the autoscaler was killed, of which lost", [sent, 0])
