"""Fleets that sleep, fleets of two roles, and an autoscaler that dies again and again while it follows a load."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from e2e.bed import GROUP, RELEASE, Bed, Manifest, eventually, has_ready, sampling, stays
from e2e.figures import Figures
from e2e.load import COMPLETE, Load, many_streams, open_loop
from e2e.test_autoscaler import MODEL, upgrade
from e2e.torment import Controller, at_rest

KILLS = 20
SEED = 20262
LIVES = 1.2, 5.0  # seconds
SETTLED_SECONDS = 10.0  # until what the last of a load still asked for was made, and seen
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
pytestmark = pytest.mark.turn(1)


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
        eventually(lambda fleet=fleet: not bed.instances(fleet), 300, lambda fleet=fleet: bed.why(fleet))


@dataclass
class Watch:
    """Every instance that was ever seen, and every moment at which the ratio did not hold."""

    seen: dict[str, set[str]] = field(default_factory=dict)
    """UIDs by name."""
    sizes: dict[str, list[int]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    served: set[str] = field(default_factory=set)
    doubted: bool = False
    most: int = 0

    def look(self, bed: Bed) -> None:
        """Note what is there now."""
        found = {fleet: bed.instances(fleet) for fleet in (ALONE, ROLES)}
        for fleet, items in found.items():
            self.sizes.setdefault(fleet, []).append(len(items))
            for item in items:
                self.seen.setdefault(item["metadata"]["name"], set()).add(item["metadata"]["uid"])
        prefill = sum(has_ready(item) for item in found[ROLES] if item["spec"]["role"] == "prefill")
        decode = sum(self.serves(item) for item in found[ROLES] if item["spec"]["role"] == "decode" and stays(item))
        self.most = max(self.most, prefill)
        wrong = prefill > decode  # maxPrefillPerDecode is 1
        if wrong and self.doubted:
            self.broken.append(f"{prefill} prefill to {decode} decode")
        self.doubted = wrong

    def serves(self, item: Manifest) -> bool:
        """Whether an instance was ever Ready: late probes of a busy kubelet are not the autoscaler's doing."""
        if has_ready(item):
            self.served.add(item["metadata"]["uid"])
        return item["metadata"]["uid"] in self.served


W = TypeVar("W", bound=Watch)


@contextmanager
def watching(bed: Bed, watch: W) -> Iterator[W]:
    """Look again and again while the block runs, with a connection of its own."""
    own = Bed(bed.kubeconfig)
    with sampling(lambda: watch.look(own), 0.25):
        yield watch


def count(bed: Bed, fleet: str, role: str = "") -> int:
    """Instances that serve."""
    return sum(has_ready(item) for item in bed.instances(fleet) if not role or item["spec"]["role"] == role)


def why(bed: Bed, fleet: str) -> str:
    found = bed.custom.get_namespaced_custom_object(*GROUP, bed.namespace, "llmclusterautoscalers", fleet)
    return json.dumps(found.get("status")) + "\n" + bed.why(fleet)


def all_answered(load: Load) -> bool:
    return load.kinds() == {COMPLETE: load.sent}


@pytest.mark.usefixtures("fleets")
def test_a_fleet_goes_to_zero_and_wakes_for_held_requests_and_none_is_lost(bed: Bed, figures: Figures) -> None:
    woken = []
    for waiting in (1, 10):
        eventually(lambda: not bed.instances(ASLEEP), 300, lambda: why(bed, ASLEEP))
        begin = time.monotonic()
        load = many_streams(bed.router_url(), "asleep", waiting, 5, lambda: None)
        woken.append(time.monotonic() - begin)
        assert all_answered(load), load.failures()[:3]
    eventually(lambda: not bed.instances(ASLEEP), 300, lambda: why(bed, ASLEEP))
    # What comes within one look may be taken for more than the two instances that there may be.
    woke = {("ScaledUp", "WokenByRequest"), ("ScaledUp", "AtMaximum")}
    eventually(lambda: woke & bed.said(ASLEEP), 60, lambda: str(bed.said(ASLEEP)))
    eventually(lambda: ("ScaledDown", "IdleToZero") in bed.said(ASLEEP), 60, lambda: str(bed.said(ASLEEP)))
    figures.samples("seconds from a request for an empty fleet to its whole answer", woken)


@pytest.mark.usefixtures("fleets")
def test_killed_twenty_times_the_autoscaler_follows_the_load_and_does_nothing_twice(
    bed: Bed, figures: Figures, tmp_path: Path
) -> None:
    autoscaler = Controller(bed, "autoscaler", tmp_path / "autoscaler.log", "--interval=2")
    url = bed.router_url()
    with at_rest(bed, "autoscaler"):
        try:
            autoscaler.start()
            for fleet, ready in ((ALONE, 1), (ROLES, 2)):
                eventually(lambda f=fleet, ready=ready: count(bed, f) == ready, 300, lambda f=fleet: why(bed, f))
            autoscaler.kill()
            with watching(bed, Watch()) as watch, open_loop(url, "alone", 0.2, 10) as trickle:
                with open_loop(url, "alone", 1.5, 20) as alone, open_loop(url, "roles", 3, 20) as roles:
                    autoscaler.torment(random.Random(SEED), LIVES, KILLS)
                    eventually(lambda: count(bed, ALONE) >= 2, 300, lambda: why(bed, ALONE))
                    eventually(lambda: count(bed, ROLES, "prefill") >= 2, 300, lambda: why(bed, ROLES))
                time.sleep(SETTLED_SECONDS)
                grown = {name: set(uids) for name, uids in watch.seen.copy().items()}
                eventually(lambda: count(bed, ALONE) == 1, 300, lambda: why(bed, ALONE))
                eventually(lambda: len(bed.instances(ROLES)) == 2, 300, lambda: why(bed, ROLES))
            assert autoscaler.runs(), autoscaler.last_words()
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
