"""A new image rolls a fleet one instance at a time and fails no request; one that cannot start halts the roll."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.bed import NEXT_SIM, SIM, Bed, engine_spec, eventually, has_ready, sampling
from e2e.figures import Figures
from e2e.load import COMPLETE, open_loop

BROKEN = "localhost/llmfleet/engine-sim:there-is-no-such-tag"


@contextmanager
def least_ready(bed: Bed, fleet: str) -> Iterator[list[int]]:
    """How many instances were Ready, sampled while the block runs: each sample of one answer of the apiserver."""
    seen: list[int] = []
    with sampling(lambda: seen.append(sum(map(has_ready, bed.instances(fleet)))), 0.3):
        yield seen


@pytest.mark.turn(4)
def test_a_new_image_rolls_a_fleet_of_three_one_by_one_without_a_failed_request(bed: Bed, figures: Figures) -> None:
    with bed.fleet("rolled", 3, engine_spec("rolled")) as names:
        with least_ready(bed, "rolled") as seen, open_loop(bed.router_url(), "rolled", rate=8, tokens=40) as load:
            time.sleep(2)
            begin = time.monotonic()
            for name in names:
                bed.patch(name, {"image": NEXT_SIM})
            for name in names:
                eventually(lambda name=name: bed.images(name) == {NEXT_SIM}, 400, lambda: bed.why("rolled"))
                eventually(lambda name=name: bed.is_ready(name), 300, lambda: bed.why("rolled"))
            took = time.monotonic() - begin
        assert len(seen) > 10 and min(seen) >= 2, seen
        assert load.kinds() == {COMPLETE: load.sent}, load.failures()[:3]
        assert load.sent > 50
    figures.count("requests during a roll of three instances, of which failed", [load.sent, len(load.failures())])
    figures.count("seconds to roll three instances under load", round(took, 1))


@pytest.mark.turn(3)
def test_an_image_that_cannot_start_halts_the_roll_and_the_fleet_serves_on(bed: Bed) -> None:
    spec = engine_spec("halted", lifecycle={"startupTimeoutSeconds": 45})
    with bed.fleet("halted", 3, spec) as names, open_loop(bed.router_url(), "halted", rate=4, tokens=20) as load:
        for name in names:
            bed.patch(name, {"image": BROKEN})
        eventually(lambda: halted(bed, names), 300, lambda: bed.why("halted"))
        eventually(lambda: all(bed.images(name) == {SIM} for name in names), 300, lambda: bed.why("halted"))
        eventually(lambda: all(map(has_ready, bed.instances("halted"))), 300, lambda: bed.why("halted"))
        assert_a_dead_pod_comes_back_on_the_old_image(bed, names)
        for name in names:
            bed.patch(name, {"image": SIM})
        eventually(lambda: all(bed.is_ready(name) for name in names), 300, lambda: bed.why("halted"))
    assert load.kinds()["silent"] == 0
    statuses = [outcome for outcome in load.failures() if outcome.kind == "status"]
    assert not statuses, statuses[:3]


def test_an_engine_that_ends_before_it_serves_is_quoted(bed: Bed) -> None:
    """What it wrote to its log last: nobody has to be quick to read the log of a container that is made anew."""
    spec = engine_spec("quoted")
    spec["inferenceArgs"]["extraArgs"].append("--no-such-flag")
    bed.create("quoted-0", spec, fleet="quoted")
    try:
        eventually(lambda: "--no-such-flag" in bed.condition("quoted-0").get("message", ""), 120)
        assert bed.condition("quoted-0")["reason"] in {"ModelLoadFailed", "CrashLoop"}
        eventually(lambda: any("--no-such-flag" in event["note"] for event in bed.events("quoted-0")), 60)
    finally:
        bed.delete("quoted-0")
        eventually(lambda: bed.instance("quoted-0") is None, 120)


def halted(bed: Bed, names: list[str]) -> bool:
    """Some instance says that the roll was halted, and an event says it too."""
    told = [name for name in names if "UpdateHalted" in str((bed.instance(name) or {}).get("status"))]
    return any("UpdateHalted" in {event["reason"] for event in bed.events(name)} for name in told)


def assert_a_dead_pod_comes_back_on_the_old_image(bed: Bed, names: list[str]) -> None:
    """While the spec asks for the broken image, a pod that dies must not pick it up."""
    for name in names:
        uids = bed.uids(name)
        bed.core.delete_namespaced_pod(f"{name}-1", bed.namespace, grace_period_seconds=0)
        eventually(lambda name=name, uids=uids: not uids & bed.uids(name), 240, lambda: bed.why("halted"))
        eventually(lambda name=name: len(bed.ranks(name)) == 2, 240, lambda: bed.why("halted"))
        assert bed.images(name) <= {SIM}  # a pod that is just being replaced names none
        eventually(lambda name=name: bed.condition(name).get("status") == "True", 300, lambda: bed.why("halted"))
