"""The life of a cluster: up, up again, repaired after a kill at any moment, down without a trace."""

import os
import random
import shutil
from pathlib import Path

import pytest
from cluster_driver import (
    REPOSITORY,
    Cluster,
    eventually,
    everything,
    kill,
    namespaces_of,
    network_namespaces,
    traces,
)

pytestmark = pytest.mark.cluster

KILLS = 4
# The same moments in every run, which hit something else on every machine.
SEED = 20261
# What a node's conditions, or a program's short-lived helper, need to settle on a busy machine.
SETTLED_SECONDS = 120
# A warm `up` takes about 10 s; moments beyond its end test nothing.
LONGEST_MOMENT = 9.0


def test_a_second_up_changes_nothing(running: Cluster) -> None:
    before = running.pids()
    assert "already up" in running.run("up")
    assert running.pids() == before


def test_down_leaves_nothing_and_disturbs_no_other_cluster(running: Cluster, fresh: Cluster) -> None:
    neighbour, before = running.pids(), everything()
    fresh.run("up", "--backend", "built", "--policies")
    own = namespaces_of(fresh.name)
    assert fresh.status()["pods"] != running.status()["pods"], "clusters side by side have their own addresses"
    assert len(own) == 3, "two nodes and a control plane have a network each"
    assert {"policies.node-0", "policies.node-1"} <= fresh.pids().keys(), "what can be asked for is taken away, too"
    assert traces({fresh.name}), "a running cluster is seen by the very look that must find nothing afterwards"

    fresh.run("down")
    # A process that ended is seen until it was waited for, which is a moment later.
    eventually(lambda: not traces({fresh.name}), SETTLED_SECONDS, "nothing is left")
    eventually(lambda: not own & network_namespaces(), SETTLED_SECONDS, "its networks are gone")
    new = {line for line in everything() - before if line.startswith(("mount", "iptables", "file", "ip route"))}
    assert new - traces({running.name}) == set()
    assert running.pids() == neighbour
    assert fresh.status()["exists"] is False


def test_down_without_a_cluster_is_fine(fresh: Cluster) -> None:
    assert "gone" in fresh.run("down")
    assert "gone" in fresh.run("down")


def test_up_finishes_what_a_killed_up_began(fresh: Cluster) -> None:
    dice = random.Random(SEED)
    moments = [dice.uniform(0.1, LONGEST_MOMENT) for _ in range(KILLS)]
    for moment in moments:
        fresh.kill_after(moment, "up", "--backend", "built")
    fresh.run("up", "--backend", "built")
    eventually(lambda: fresh.status()["healthy"], SETTLED_SECONDS, f"killed after {moments}: {fresh.status()}")
    parts = len(fresh.pids())
    # Programs start helpers, which are gone in a moment; one that runs twice stays.
    eventually(lambda: len(programs_of(fresh)) == parts, SETTLED_SECONDS, f"killed after {moments}: each runs once")


def programs_of(cluster: Cluster) -> list[str]:
    """The processes that carry the cluster's name."""
    return [process for process in traces({cluster.name}) if process.startswith("process")]


def test_down_cleans_up_after_a_killed_up_and_a_killed_down(fresh: Cluster) -> None:
    dice = random.Random(SEED + 1)
    moments = [dice.uniform(0.1, LONGEST_MOMENT) for _ in range(2)]
    for moment in moments:
        fresh.kill_after(moment, "up", "--backend", "built")
        fresh.kill_after(moment / 10, "down")
        fresh.run("down")
        # A command that the killed one had started may outlive it by the moment it takes to end.
        eventually(lambda: not traces({fresh.name}), SETTLED_SECONDS, f"killed after {moments}: nothing is left")


@pytest.mark.parametrize("component", ["etcd", "kube-apiserver", "containerd.node-1", "kubelet.node-0", "coredns"])
def test_up_replaces_a_component_that_died(running: Cluster, component: str) -> None:
    before = running.pids()
    kill(before[component])
    running.run("up")
    after = running.pids()
    assert after[component] not in (0, before[component])
    # While there was no apiserver no node could say that it is well; that is noticed, and made good, a little later.
    eventually(lambda: running.status()["healthy"], SETTLED_SECONDS, "the cluster is well")


def test_nodes_are_added_and_removed(fresh: Cluster, probe: Path) -> None:
    fresh.run("up", "--backend", "built", "--nodes", "1")
    fresh.run("load", str(probe))
    fresh.run("up", "--nodes", "2")
    assert fresh.kubectl("get", "nodes", "-o", "name").split() == ["node/node-0", "node/node-1"]
    assert "every node has it" in fresh.run("load", str(probe)), "a new node gets the images loaded before it came"
    fresh.run("up", "--nodes", "1")
    assert fresh.kubectl("get", "nodes", "-o", "name").split() == ["node/node-0"]
    left = "node-1 left nothing"
    eventually(lambda: not [line for line in traces({fresh.name}) if "node-1" in line], SETTLED_SECONDS, left)


def test_checkout_and_state_may_have_a_space_in_their_path(spaced: Path) -> None:
    for part in ("tools", "cluster"):
        shutil.copytree(REPOSITORY / "ci" / part, spaced / "ci" / part)
    place = {"LLMFLEET_STATE": str(spaced)}
    cluster = Cluster(f"gap-{os.getpid()}", checkout=spaced, environment=place)
    try:
        cluster.run("up", "--backend", "built", "--nodes", "1")
        assert " " in cluster.run("kubeconfig")
        assert cluster.kubectl("get", "nodes", "-o", "name").split() == ["node/node-0"]
    finally:
        cluster.run("down")
    eventually(lambda: not traces({cluster.name}), SETTLED_SECONDS, "nothing is left")


@pytest.mark.parametrize(
    ("arguments", "status", "advice"),
    [
        (["up", "--nodes", "0"], 2, "a number from 1"),
        (["up", "--nodes", "101"], 2, "a number from 1"),
        (["up", "--nodes", "two"], 2, "a number from 1"),
        (["up", "--context", "no-such-context"], 1, "no-such-context"),
        (["load", "/dev/null"], 1, "there is no cluster"),
        (["kubeconfig"], 1, "there is no cluster"),
        (["logs"], 1, "there is no cluster"),
        (["node-kill", "node-0"], 1, "there is no cluster"),
    ],
)
def test_wrong_input_is_refused_with_advice(fresh: Cluster, arguments: list[str], status: int, advice: str) -> None:
    ended, out, said = fresh.attempt(*arguments)
    assert (ended, out) == (status, ""), said
    assert advice in said
    assert fresh.status()["exists"] is False


@pytest.mark.parametrize("name", ["Upper", "under_score", "-first", "last-", "a" * 21, "../up", ""])
def test_a_name_that_cannot_be_a_path_or_a_group_is_refused(name: str, as_root: None) -> None:
    ended, _, said = Cluster(name).attempt("status")
    assert (ended, "lower-case letters" in said) == (2, True)


def test_a_running_cluster_is_not_turned_into_another(running: Cluster) -> None:
    ended, _, said = running.attempt("up", "--context", "other")
    assert (ended, "run `down` first" in said) == (1, True)
    ended, _, said = running.attempt("up", "--policies")
    assert (ended, "exists without --policies" in said) == (1, True)
    ended, _, said = running.attempt("node-kill", "node-9")
    assert (ended, "there are node-0, node-1" in said) == (1, True)
