"""A model with `autoscaling`, as the chart installs it: load brings whole instances, silence drains them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.bed import GROUP, RELEASE, Bed, eventually, run, stays, tool
from e2e.figures import Figures
from e2e.lanes import NAMESPACE, settings
from e2e.load import COMPLETE, open_loop

FLEET = f"{RELEASE}-scaled"
# A token costs an engine 20 ms of its time, so an instance carries 0.9 s of work a second within 0.2 s per token.
STEPS = ["--sim-step-a=20", "--sim-step-b=20", "--sim-step-c=0", "--sim-step-d=0", "--sim-load-seconds=8"]
MODEL: dict[str, Any] = {
    "model": "tiny",
    "servedModelNames": ["scaled"],
    "replicas": 1,
    "gpusPerPod": 1,
    "tensorParallelSize": 1,
    "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "256Mi"}},
    "inferenceArgs": {"extraArgs": STEPS},
    "lifecycle": {"startupTimeoutSeconds": 120, "drainTimeoutSeconds": 60},
    "autoscaling": {
        "minInstances": 1,
        "maxInstances": 4,
        "workBudget": {
            "slo": {"ttftSeconds": "2", "tpotSeconds": "0.2", "errorBudget": "0.05"},
            "capacity": {"coefficients": {"a": "0.02", "b": "0.02", "c": "0", "d": "0"}},
            "coldStartSeconds": 15,
        },
        "behavior": {"scaleDown": {"stabilizationSeconds": 30, "cooldownSeconds": 5, "step": 1}},
    },
}
RATE, TOKENS = 2.5, 40


def upgrade(kubeconfig: Path, *values: str) -> None:
    """What a person does to change a release."""
    helm = [tool("helm"), f"--kubeconfig={kubeconfig}", "--namespace", NAMESPACE]
    run([*helm, "upgrade", RELEASE, "charts/llmfleet", *settings(), *values, "--wait"])


@pytest.fixture
def scaled(bed: Bed, tmp_path: Path) -> Iterator[str]:
    """The release with one model that scales; without it afterwards, and its instances gone by their drain."""
    values = tmp_path / "values.json"
    controllers = {"autoscaler": {"intervalSeconds": 5}}
    values.write_text(json.dumps({"controllers": controllers, "fleet": {"models": {"tiny": None, "scaled": MODEL}}}))
    upgrade(bed.kubeconfig, f"--values={values}")
    yield FLEET
    upgrade(bed.kubeconfig, "--set", "fleet.models=null")
    eventually(lambda: not bed.instances(FLEET), 300, lambda: bed.why(FLEET))


def scaler(bed: Bed) -> dict[str, Any]:
    found: dict[str, Any] = bed.custom.get_namespaced_custom_object(
        *GROUP, bed.namespace, "llmclusterautoscalers", FLEET
    )
    return found


def reason(bed: Bed) -> str:
    return str(scaler(bed).get("status", {}).get("decision", {}).get("reason", ""))


def ready(bed: Bed) -> int:
    return sum(bed.is_ready(item["metadata"]["name"]) for item in bed.instances(FLEET))


def why(bed: Bed) -> str:
    return json.dumps(scaler(bed).get("status")) + "\n" + bed.why(FLEET)


@pytest.mark.turn(5)
def test_load_brings_instances_and_silence_drains_them_and_no_request_is_lost(
    scaled: str, bed: Bed, figures: Figures
) -> None:
    eventually(lambda: ready(bed) == 1, 300, lambda: why(bed))
    owners = [item["metadata"]["ownerReferences"][0]["kind"] for item in bed.instances(FLEET)]
    assert owners == ["LLMClusterAutoscaler"]
    sizes: list[int] = []
    with open_loop(bed.router_url(), "scaled", 0.3, 20) as trickle:
        begin = time.monotonic()
        with open_loop(bed.router_url(), "scaled", RATE, TOKENS) as burst:
            eventually(lambda: len(bed.instances(FLEET)) >= 3, 300, lambda: why(bed))
            asked = time.monotonic() - begin
            eventually(lambda: ready(bed) >= 3, 300, lambda: why(bed))
            served = time.monotonic() - begin
        # The trickle goes on while the fleet shrinks instance by instance.
        eventually(lambda: sizes.append(sum(map(stays, bed.instances(FLEET)))) or sizes[-1] == 1, 600, lambda: why(bed))
        eventually(lambda: len(bed.instances(FLEET)) == 1, 300, lambda: why(bed))
        rested = time.monotonic() - begin
    assert burst.kinds() == {COMPLETE: burst.sent}, burst.failures()[:3]
    assert trickle.kinds() == {COMPLETE: trickle.sent}, trickle.failures()[:3]
    assert all(after - before >= -1 for before, after in itertools.pairwise(sizes)), sizes
    eventually(lambda: ("ScaledDown", "SustainedSurplus") in bed.said(FLEET), 60, lambda: str(bed.said(FLEET)))
    assert {why for action, why in bed.said(FLEET) if action == "ScaledUp"} <= {
        "AtMinimum",
        "AtMaximum",
        "ForecastAboveCapacity",
        "QueueAboveCapacity",
        "LowerBoundAboveCapacity",  # an instance is ready and its figures are not there yet, and the load needs more
    }
    figures.count(
        "requests while a fleet grew to three or more and shrank to one, of which lost", [burst.sent + trickle.sent, 0]
    )
    figures.count(
        "seconds from load to three instances asked for, ready, and back to one",
        [round(asked), round(served), round(rested)],
    )
