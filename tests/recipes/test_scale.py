"""What KEDA and the HPA do to a fleet: write /scale, with no more rights than they have."""

from __future__ import annotations

import json

import pytest

from charts.rendering import Object, find
from fakes.apiserver import Apiserver
from recipes.asking import Kinds
from recipes.building import rendered
from recipes.recipes import FOLDER, documents
from unit.scale.world import World

pytestmark = [pytest.mark.helm, pytest.mark.apiserver]

MERGE = "application/merge-patch+json"
CONTROLLER = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"


def autoscaler(recipe: str) -> Object:
    """The object of the recipe's values."""
    return find(rendered(FOLDER / recipe / "values.yaml"), "LLMClusterAutoscaler", "llmfleet-llama-3-70b")


@pytest.mark.parametrize(
    ("recipe", "file", "kind"),
    [("keda", "scaledobject.yaml", "ScaledObject"), ("hpa", "horizontalpodautoscaler.yaml", "HorizontalPodAutoscaler")],
)
def test_the_target_is_the_object_that_the_values_make_and_the_bounds_lie_within_its_own(
    recipe: str, file: str, kind: str
) -> None:
    target = autoscaler(recipe)
    spec = next(one for one in documents(FOLDER / recipe / file) if one["kind"] == kind)["spec"]
    expected = {"apiVersion": target["apiVersion"], "kind": target["kind"], "name": target["metadata"]["name"]}
    assert spec["scaleTargetRef"] == expected
    lowest, highest = (spec.get(f"{end}ReplicaCount", spec.get(f"{end}Replicas")) for end in ("min", "max"))
    assert target["spec"]["minInstances"] <= lowest <= highest <= target["spec"]["maxInstances"]


@pytest.mark.parametrize("recipe", ["keda", "hpa"])
def test_after_a_first_size_the_hpa_controller_sets_the_next_by_the_scale_subresource(
    server: Apiserver, kinds: Kinds, recipe: str
) -> None:
    thing = autoscaler(recipe)
    thing["metadata"]["name"] = f"by-{recipe}"
    assert server.call("POST", kinds.path(thing), thing).status == 201
    path = f"{kinds.path(thing)}/by-{recipe}"
    # A size that nobody has set cannot be read, by KEDA or by an HPA: so the pages begin with `kubectl scale`.
    unset = server.call("GET", f"{path}/scale")
    assert (unset.status, "does not exist" in unset.message) == (500, True), unset.message
    first = server.call("PATCH", f"{path}/scale", {"spec": {"replicas": 2}}, content_type=MERGE)
    assert first.status == 200, first.message
    scale = server.call("GET", f"{path}/scale").body
    # What an HPA sends: the whole scale, with the number it wants; as the account it runs under.
    answer = server.session.put(
        f"{server.url}{path}/scale",
        data=json.dumps(scale | {"spec": {"replicas": 5}}),
        headers={"Content-Type": "application/json", "Impersonate-User": CONTROLLER},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert server.call("GET", path).body["spec"]["instances"] == 5


@pytest.mark.parametrize("page", ["keda.md", "hpa.md"])
def test_a_page_says_how_the_first_size_is_set(page: str) -> None:
    assert "kubectl scale llmca -n llmfleet llmfleet-llama-3-70b --replicas=2" in (FOLDER / page).read_text()


@pytest.mark.parametrize("recipe", ["keda", "hpa"])
def test_the_fleet_follows_what_was_written_within_its_bounds(recipe: str) -> None:
    world, thing = World(), autoscaler(recipe)
    thing["spec"]["instances"] = 5
    thing["metadata"] = {"name": "llama", "annotations": {}}
    world.create(thing)
    world.run(2)
    assert (len(world.names()), world.reason()) == (5, "ExternalTarget")
    world.edit("llama", lambda spec: spec.update(instances=50))
    world.run(2)
    assert (len(world.names()), world.reason()) == (8, "AtMaximum")
