"""What Helm and the operator make of a recipe.

In: files of recipes. Out: rendered objects, and the pod that the operator would build of each instance among them.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from charts.rendering import Object, made_from, of_kind, run, title
from llmfleet.api.parse import parse_spec
from llmfleet.deploy.objects.identity import Identity
from llmfleet.deploy.objects.pod import build_template
from recipes.recipes import NAMESPACE, arguments

RELEASE = "llmfleet"


def rendered(path: Path) -> list[Object]:
    """What Helm makes of the values of a recipe, by the very options of the command in its head."""
    return template(tuple(arguments(path)))


def template(given: tuple[str, ...]) -> list[Object]:
    return deepcopy(cached(given))


@cache
def cached(given: tuple[str, ...]) -> list[Object]:
    options = ["--namespace", NAMESPACE, "--kube-version=1.36.3", "--api-versions=monitoring.coreos.com/v1"]
    text = run(["template", RELEASE, *given, *options])
    return [one for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one]


def specs(things: list[Object]) -> dict[str, Any]:
    """The spec of each instance, and of each that an autoscaler would make."""
    found = {title(one): one["spec"] for one in of_kind(things, "LLMCluster")}
    return found | {name: made["spec"] for name, made in made_from(things).items()}


def pods(things: list[Object], fleet: str = "probe") -> dict[str, Any]:
    """The pod template that the operator builds of each."""
    identity = Identity(namespace=NAMESPACE, name="probe", uid="u", fleet=fleet, manager="a/b")
    return {name: build_template(identity, parse_spec(spec)).manifest for name, spec in specs(things).items()}


def engine(pod: Any) -> dict[str, Any]:
    """The container that runs vLLM."""
    return dict(
        next(one for one in pod["spec"]["containers"] if any(p["name"] == "http" for p in one.get("ports", [])))
    )
