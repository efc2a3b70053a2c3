"""Values inside Applications and HelmReleases are values of the chart they name."""

from __future__ import annotations

from typing import Any

import pytest

from charts.rendering import of_kind, render
from recipes.asking import Kinds
from recipes.recipes import FOLDER, documents

pytestmark = [pytest.mark.helm, pytest.mark.apiserver]

# Name of the release, namespace, chart, values.
Release = tuple[str, str, str, dict[str, Any]]


def applications() -> list[Release]:
    """Of Argo CD."""
    found = [one["spec"] for one in documents(FOLDER / "argo-cd/applications.yaml") if one["kind"] == "Application"]
    return [
        (
            spec["source"]["helm"]["releaseName"],
            spec["destination"]["namespace"],
            spec["source"]["path"],
            spec["source"]["helm"].get("valuesObject", {}),
        )
        for spec in found
    ]


def helm_releases() -> list[Release]:
    """Of Flux."""
    return [
        (one["spec"]["releaseName"], one["metadata"]["namespace"], one["spec"]["chart"]["spec"]["chart"], values(one))
        for one in documents(FOLDER / "flux/helmrelease.yaml")
    ]


def values(release: dict[str, Any]) -> dict[str, Any]:
    return dict(release["spec"]["values"])


@pytest.mark.parametrize("release", [*applications(), *helm_releases()], ids=lambda one: f"{one[2]} as {one[0]}")
def test_the_chart_takes_the_values_and_the_apiserver_every_object(kinds: Kinds, release: Release) -> None:
    name, namespace, chart, given = release
    things = render("", given, release=name, namespace=namespace, chart=chart.removeprefix("charts/"))
    answers = [(one["kind"], kinds.dry_run(one)) for one in things]
    assert [f"{kind}: {answer.message}" for kind, answer in answers if answer.status != 201] == []


def test_the_fleet_looks_for_the_operator_where_the_other_release_puts_it() -> None:
    for found in (applications(), helm_releases()):
        [fleet] = [one for one in found if one[2] == "charts/llmfleet-fleet"]
        operators = {(name, namespace) for name, namespace, chart, _ in found if chart != "charts/llmfleet-fleet"}
        assert (fleet[3]["operator"]["release"], fleet[3]["operator"]["namespace"]) in operators


def test_the_health_check_of_flux_names_an_object_of_the_release() -> None:
    [kustomization] = [one for one in documents(FOLDER / "flux/flux-system.yaml") if one["kind"] == "Kustomization"]
    [name, namespace, chart, given] = helm_releases()[-1]
    things = render("", given, release=name, namespace=namespace, chart=chart.removeprefix("charts/"))
    names = [(one["kind"], one["metadata"]["name"]) for one in of_kind(things, "LLMClusterAutoscaler")]
    assert [(one["kind"], one["name"]) for one in kustomization["spec"]["healthChecks"]] == names
