"""Where engine pods of the recipes may run: node pools, placeholders, schedulers, resource claims."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from charts.rendering import ROOT, Object
from llmfleet.names import ENGINE_CONTAINER
from recipes.building import engine, pods, rendered, specs
from recipes.recipes import FOLDER, documents

sys.path.insert(0, str(ROOT / "tests" / "unit" / "deploy"))
from world import World

pytestmark = pytest.mark.helm

GPU = "nvidia.com/gpu"


def of(path: str, kind: str) -> list[Object]:
    """The objects of a kind in a file of a recipe."""
    return [one for one in documents(FOLDER / path) if one["kind"] == kind]


def the(found: list[Any]) -> Any:
    """The only one."""
    assert len(found) == 1, found
    return found[0]


# -- a node autoscaler -----------------------------------------------------------------------------------------------

POOL = "node-autoscaler/nodepool.yaml"


def fits(pod: Any, pool: Object) -> bool:
    """Whether the pool's nodes are ones that the pod asks for and is let onto."""
    template = pool["spec"]["template"]
    wanted = pod.get("nodeSelector", {}).items() <= template["metadata"]["labels"].items()
    keys = {one["key"] for one in pod.get("tolerations", []) if one["operator"] == "Exists"}
    return bool(wanted) and {taint["key"] for taint in template["spec"]["taints"]} <= keys


def test_the_pool_makes_nodes_for_engines_and_for_the_placeholder() -> None:
    pool = the(of(POOL, "NodePool"))
    pod = the(list(pods(rendered(FOLDER / "node-autoscaler/values.yaml")).values()))
    placeholder = the(of(POOL, "Deployment"))["spec"]["template"]["spec"]
    assert (fits(pod["spec"], pool), fits(placeholder, pool)) == (True, True)
    assert not fits({"nodeSelector": {"pool": "another"}, "tolerations": []}, pool)
    # It holds what one pod of a group needs, so that the first pod has a place at once.
    held = the(placeholder["containers"])["resources"]["limits"][GPU]
    assert held == int(engine(pod)["resources"]["limits"][GPU])


def test_an_engine_throws_the_placeholder_out_and_never_the_other_way_round() -> None:
    priority = the(of(POOL, "PriorityClass"))
    placeholder = the(of(POOL, "Deployment"))["spec"]["template"]["spec"]
    pod = the(list(pods(rendered(FOLDER / "node-autoscaler/values.yaml")).values()))
    assert placeholder["priorityClassName"] == priority["metadata"]["name"]
    # A pod without a class has zero.
    assert (priority["value"] < 0, "priorityClassName" in pod["spec"]) == (True, False)
    assert priority["preemptionPolicy"] == "Never"


def test_a_new_instance_that_waits_for_its_nodes_has_not_begun_to_start() -> None:
    timeout = 60
    world = World(nodes={"n1": 0})
    world.create("a", fleet="f", lifecycle={"startupTimeoutSeconds": timeout})
    world.run(2 * timeout)
    assert (world.reason("a"), world.condition("a", "Stalled")["status"]) == ("Unschedulable", "False")
    assert world.restarts("a") == 0


def test_nobody_moves_an_engine_to_save_a_node() -> None:
    pod = the(list(pods(rendered(FOLDER / "node-autoscaler/values.yaml")).values()))
    annotations = pod["metadata"]["annotations"]
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


# -- Volcano ---------------------------------------------------------------------------------------------------------


def test_each_instance_has_a_pod_group_of_its_size() -> None:
    things = rendered(FOLDER / "volcano/values.yaml")
    groups = {one["metadata"]["name"]: one["spec"] for one in of("volcano/podgroups.yaml", "PodGroup")}
    wanted = specs(things)
    built = pods(things)
    assert len(built) == len(groups) == 2
    for name, pod in built.items():
        assert pod["spec"]["schedulerName"] == "volcano"
        group = groups.pop(pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"])
        assert group["minMember"] == wanted[name]["replicas"]
        assert group["minResources"][GPU] == wanted[name]["replicas"] * wanted[name]["gpusPerPod"]


def test_the_queue_has_room_for_all_of_them_and_both_serve_one_name() -> None:
    queue = the(of("volcano/podgroups.yaml", "Queue"))
    groups = [one["spec"] for one in of("volcano/podgroups.yaml", "PodGroup")]
    assert {one["queue"] for one in groups} == {queue["metadata"]["name"]}
    assert sum(one["minResources"][GPU] for one in groups) <= queue["spec"]["capability"][GPU]
    found = specs(rendered(FOLDER / "volcano/values.yaml")).values()
    assert [one["servedModelNames"] for one in found] == [["llama-3-70b"]] * 2
    assert len({one["model"] for one in found}) == 1


# -- resource claims -------------------------------------------------------------------------------------------------


def test_a_pod_claims_as_many_devices_as_its_instance_counts() -> None:
    template = the(of("dra/claim.yaml", "ResourceClaimTemplate"))
    request = the(template["spec"]["spec"]["devices"]["requests"])["exactly"]
    things = rendered(FOLDER / "dra/values.yaml")
    for name, pod in pods(things).items():
        claim = the(pod["spec"]["resourceClaims"])
        assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]
        container = next(one for one in pod["spec"]["containers"] if one["name"] == ENGINE_CONTAINER)
        assert [one["name"] for one in container["resources"]["claims"]] == [claim["name"]]
        assert GPU not in container["resources"].get("limits", {})
        assert specs(things)[name]["gpusPerPod"] == request["count"]
