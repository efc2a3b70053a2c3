"""The list of who reaches whom, tried: each connection that is on it comes about, and no other one does.

Every pair of places, a real connection from inside each pod's network to each pod of the other place, on both nodes and
across them, on a cluster whose packet filters hold the release's policies.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from charts.matrix import Cell, is_open, world
from charts.mutants import coarse
from charts.reachability import may_connect
from policies.ground import Ground, opened
from policies.wires import OPEN, REJECTED

pytestmark = pytest.mark.cluster


def expected(policies: Any, cells: Any) -> set[Cell]:
    """What policies mean for the places of the list."""
    pods, _ = world()
    return {cell for cell in cells if may_connect(policies, pods[cell[0]], pods[cell[1]], cell[2], cell[3])}


def test_every_connection_of_the_list_comes_about_and_every_other_one_is_rejected(ground: Ground) -> None:
    found = ground.outcomes()
    wanted = {cell: {OPEN if is_open(cell) else REJECTED} for cell in found}
    assert {cell: found[cell] for cell in found if found[cell] != wanted[cell]} == {}
    closed = sum(outcome == {REJECTED} for outcome in found.values())
    assert closed > 300, f"{closed} pairs are kept apart, {len(found) - closed} are not"


def test_without_policies_every_connection_comes_about(ground: Ground) -> None:
    with ground.under([]):
        found = ground.outcomes()
    assert {cell: found[cell] for cell in found if found[cell] != {OPEN}} == {}


def test_each_policy_is_missed_when_it_is_gone_or_wide_open(ground: Ground) -> None:
    usual = opened(ground.outcomes())
    policies = ground.policies()
    assert len(policies) == len(world()[1])
    for name, mutant in coarse(policies):
        with ground.under(mutant):
            found = ground.outcomes()
        assert opened(found) != usual, name
        assert opened(found) == expected(mutant, found), name


@pytest.mark.parametrize(
    ("source", "outcome"),
    [("gateway", OPEN), ("test", OPEN), ("stranger", REJECTED), ("engine", REJECTED), ("foreign router", REJECTED)],
)
def test_behind_a_service_the_same_counts(ground: Ground, source: str, outcome: str) -> None:
    # Many, so that each endpoint is met, on the caller's node and on the other one.
    assert ground.reach(source, ground.cluster_ip("demo-router"), 8080, 20) == {outcome}


@pytest.mark.parametrize(("source", "outcome"), [("operator", OPEN), ("engine", REJECTED), ("redis", REJECTED)])
def test_the_apiserver_is_reached_by_its_service_or_not_at_all(ground: Ground, source: str, outcome: str) -> None:
    assert ground.reach(source, ground.cluster_ip("kubernetes", "default"), 443, 5) == {outcome}


def test_helm_test_passes_under_the_policies(ground: Ground) -> None:
    done: subprocess.CompletedProcess[str] = ground.helm("test", "demo", "--timeout=10m", "--logs")
    print(done.stdout, file=sys.stderr)
    assert done.returncode == 0, done.stdout + ground.why()
