"""The operator killed at random, again and again, while instances are made, lost, rolled and deleted: it converges."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from e2e.bed import NEXT_SIM, Bed, engine_spec, eventually
from e2e.figures import Figures
from e2e.load import SILENT, Load, open_loop
from e2e.torment import Controller, at_rest, tormented

KILLS = 50
SEED = 20261
LIVES = 0.8, 5.0  # seconds


@pytest.mark.turn(6)
def test_killed_fifty_times_amid_everything_it_converges(bed: Bed, figures: Figures, tmp_path: Path) -> None:
    names, gone = [f"chaos-{number}" for number in range(3)], "chaos-9"
    operator = Controller(bed, "operator", tmp_path / "operator.log")
    with at_rest(bed, "operator"):
        try:
            with tormented(operator, SEED, LIVES, KILLS):
                load = live_through(bed, names, gone)
            assert_converged(bed, names)
            assert load.kinds()[SILENT] == 0
            assert operator.runs(), operator.last_words()
            for name in names:
                bed.delete(name)
            eventually(lambda: not bed.instances("chaos"), 300, lambda: bed.why("chaos"))
            assert_nothing_left(bed)
        finally:
            operator.kill()
    figures.count("operator killed at random, times", operator.kills)
    figures.count("requests while the operator was killed, by outcome", dict(load.kinds()))


def live_through(bed: Bed, names: list[str], gone: str) -> Load:
    """Make instances, delete one, roll the others, lose a rank, all under load."""
    for name in (*names, gone):
        bed.create(name, engine_spec("chaos"), fleet="chaos")
    for name in (*names, gone):
        eventually(lambda name=name: bed.is_ready(name), 600, lambda: bed.why("chaos"))
    with open_loop(bed.router_url(), "chaos", rate=3, tokens=20) as load:
        bed.delete(gone)
        for name in names:
            bed.patch(name, {"image": NEXT_SIM})
        eventually(lambda: bed.instance(gone) is None, 600, lambda: bed.why("chaos"))
        for name in names:
            eventually(lambda name=name: bed.images(name) == {NEXT_SIM}, 600, lambda: bed.why("chaos"))
        lose_a_rank(bed, names[0])
    return load


def lose_a_rank(bed: Bed, name: str) -> None:
    """Take one pod away; the operator then takes the others, and nobody waits for a state it is only passing."""
    uids = bed.uids(name)
    with suppress(ApiException):  # it may be between two lives already
        bed.core.delete_namespaced_pod(f"{name}-1", bed.namespace, grace_period_seconds=0)
    eventually(lambda: not uids & bed.uids(name), 600, lambda: bed.why("chaos"))


def assert_converged(bed: Bed, names: list[str]) -> None:
    """Every instance is whole, Ready, on the new image, with one set of children."""
    for name in names:
        eventually(lambda name=name: whole(bed, name), 400, lambda: bed.why("chaos"))
    sets = client.AppsV1Api(bed.api).list_namespaced_stateful_set(
        bed.namespace, label_selector="serving.ai/fleet=chaos"
    )
    assert sorted(item.metadata.name for item in sets.items) == names


def whole(bed: Bed, name: str) -> bool:
    """Ready, with its two ranks, on the new image."""
    ranks = [pod["metadata"]["name"] for pod in bed.ranks(name)]
    return bed.is_ready(name) and bed.images(name) == {NEXT_SIM} and ranks == [f"{name}-0", f"{name}-1"]


def assert_nothing_left(bed: Bed) -> None:
    """No child outlives its instance."""
    apps, policy = client.AppsV1Api(bed.api), client.PolicyV1Api(bed.api)
    eventually(
        lambda: not apps.list_namespaced_stateful_set(bed.namespace, label_selector="serving.ai/fleet=chaos").items, 180
    )
    eventually(lambda: not bed.pods("serving.ai/fleet=chaos"), 180)
    eventually(
        lambda: (
            not policy.list_namespaced_pod_disruption_budget(bed.namespace, field_selector="metadata.name=chaos").items
        ),
        180,
    )
