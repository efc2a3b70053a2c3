"""New versions: what the operator does with the canary's values, and what may differ between environments."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from charts.rendering import ROOT, Object, find, of_kind
from recipes.building import engine, pods, rendered, template
from recipes.recipes import FOLDER

sys.path.insert(0, str(ROOT / "tests" / "unit" / "deploy"))
from world import World

pytestmark = pytest.mark.helm

NEXT = FOLDER / "canary/values-next.yaml"
PROMOTION = FOLDER / "promotion"
FIRST = "llmfleet-llama-3-70b-0"


# -- canary ----------------------------------------------------------------------------------------------------------


def before() -> list[Object]:
    """The fleet as it was: the same command without the last file."""
    profiles = [f"--values={ROOT / 'values' / name}.yaml" for name in ("production-monolithic", "canary")]
    return template((str(ROOT / "charts/llmfleet"), *profiles))


def test_the_new_version_changes_the_engines_and_nothing_else_and_no_shape() -> None:
    old, new = before(), rendered(NEXT)
    changed = [one for one in new if one not in old]
    assert {one["kind"] for one in changed} == {"LLMCluster"}
    for one in changed:
        spec, was = one["spec"], find(old, "LLMCluster", one["metadata"]["name"])["spec"]
        assert {key for key in spec if spec[key] != was.get(key)} == {"model"}
        assert spec["servedModelNames"] == was["servedModelNames"]


def world_of_the_recipe() -> tuple[World, dict[str, Any]]:
    """The fleet of the recipe under the real operator, and what the recipe changes."""
    world, old = World(), before()
    update = find(old, "LLMCluster", FIRST)["spec"]["update"]
    for name in ("a", "b", "c"):
        world.create(name, fleet="f", model="old", update=update)
    world.run(120, until=world.all_serving)
    return world, {"model": find(rendered(NEXT), "LLMCluster", FIRST)["spec"]["model"]}


def test_one_instance_is_on_trial_while_the_others_wait() -> None:
    world, change = world_of_the_recipe()
    for name in ("a", "b", "c"):
        world.edit(name, **change)
    world.run(300, until=lambda: "CanaryAnalysis" in reasons(world))
    assert sorted(reasons(world)) == ["CanaryAnalysis", "WaitingForTurn", "WaitingForTurn"]
    assert all(world.ready(name) for name in ("a", "b", "c"))


def reasons(world: World) -> list[str]:
    return [world.reason(name) for name in ("a", "b", "c")]


# -- promotion -------------------------------------------------------------------------------------------------------


def pod_of(stage: str) -> Any:
    """The first engine pod of an environment."""
    return next(iter(pods(rendered(PROMOTION / f"values-{stage}.yaml")).values()))


def test_production_runs_the_very_engine_that_stage_tried() -> None:
    assert pod_of("prod") == pod_of("stage")


def test_dev_takes_the_same_arguments_but_the_model_and_runs_on_no_device() -> None:
    dev, stage = engine(pod_of("dev")), engine(pod_of("stage"))
    different = set(stage["args"]) ^ set(dev["args"])
    assert different <= {"/models/llama-3.1-8b-instruct", "tiny"}
    assert "nvidia.com/gpu" not in str(dev["resources"])
    assert "engine-sim" in dev["image"]


def test_environments_differ_in_size_and_in_nothing_that_a_client_sees() -> None:
    sizes = {}
    for stage in ("dev", "stage", "prod"):
        found = of_kind(rendered(PROMOTION / f"values-{stage}.yaml"), "LLMCluster")
        sizes[stage] = len(found)
        assert {tuple(one["spec"]["servedModelNames"]) for one in found} == {("llama-8b",)}
    assert sizes == {"dev": 1, "stage": 1, "prod": 6}


def test_every_environment_is_the_first_file_and_one_more() -> None:
    from recipes.recipes import arguments

    for stage in ("dev", "stage", "prod"):
        _, *values = arguments(PROMOTION / f"values-{stage}.yaml")
        names = [one.rsplit("/", 1)[1] for one in values]
        assert names == ["values.yaml", f"values-{stage}.yaml"]
