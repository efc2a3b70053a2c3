"""A real apiserver takes every object of every recipe, with the CRDs of the projects that each one speaks to."""

from __future__ import annotations

from pathlib import Path

import pytest

from charts.rendering import ROOT, Object, of_kind, run, title
from recipes.asking import Kinds
from recipes.building import pods, rendered
from recipes.recipes import (
    NAMESPACE,
    UNKNOWN,
    arguments,
    helm_line,
    is_manifest,
    manifests,
    name_of,
    objects,
    values_files,
)

pytestmark = [pytest.mark.helm, pytest.mark.apiserver]


def known(things: list[Object]) -> list[Object]:
    """All but the kinds that are listed as unknown."""
    return [one for one in things if (one["apiVersion"], one["kind"]) not in UNKNOWN]


def refused(kinds: Kinds, things: list[Object]) -> list[str]:
    answers = [(title(one), kinds.dry_run(one)) for one in known(things)]
    return [f"{name}: {answer.message}" for name, answer in answers if answer.status != 201]


@pytest.mark.parametrize("path", manifests(), ids=name_of)
def test_the_apiserver_takes_every_object(kinds: Kinds, path: Path) -> None:
    assert refused(kinds, objects(path)) == []


@pytest.mark.parametrize("path", values_files(), ids=name_of)
def test_helm_renders_the_values_and_the_apiserver_takes_every_object(kinds: Kinds, path: Path) -> None:
    assert f"--values={path}" in arguments(path), helm_line(path)
    things = rendered(path)
    assert of_kind(things, "LLMCluster", "LLMClusterAutoscaler")
    assert refused(kinds, things) == []


@pytest.mark.parametrize("path", [*values_files(), *manifests()], ids=name_of)
def test_a_restricted_namespace_admits_every_engine_that_the_operator_makes_of_it(kinds: Kinds, path: Path) -> None:
    things = objects(path) if is_manifest(path) else rendered(path)
    for name, pod in pods(things).items():
        answer = kinds.pod(pod)
        # A directory of the node is the one thing a recipe asks for that the standard forbids; its page says so.
        if any("hostPath" in volume for volume in pod["spec"]["volumes"]):
            assert 'restricted volume type "hostPath"' in answer.message, name
        else:
            assert answer.status == 201, f"{name}: {answer.message}"


@pytest.mark.parametrize("kind", sorted(UNKNOWN), ids=" ".join)
def test_a_kind_that_is_listed_as_unknown_is_one_and_is_used(kinds: Kinds, kind: tuple[str, str]) -> None:
    assert not kinds.known(*kind)
    assert kind in {(one["apiVersion"], one["kind"]) for path in manifests() for one in objects(path)}


def test_a_key_that_the_chart_does_not_know_turns_the_check_red(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("fleet: {router: {replicsa: 3}}\n")
    with pytest.raises(Exception, match="replicsa"):
        run(["template", "llmfleet", str(ROOT / "charts/llmfleet"), f"--values={path}"])


def test_a_field_that_another_project_does_not_know_turns_the_check_red(kinds: Kinds) -> None:
    metadata = {"name": "wrong", "namespace": NAMESPACE}
    trigger = {"type": "prometheus", "metadata": {"query": "up"}}
    body = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": metadata}
    answer = kinds.dry_run(body | {"spec": {"scaleTargetRef": {"name": "x"}, "triggers": [trigger], "minReplicas": 1}})
    assert (answer.status, "minReplicas" in answer.message) == (400, True), answer.message
