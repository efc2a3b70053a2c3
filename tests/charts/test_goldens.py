"""Every profile renders its golden, under Helm 4 and Helm 3. `make golden` rewrites them.

A golden holds every object, or, beside another profile, those that differ from it and the names of those that are not
there: so one changed default is read once and not fourteen times.
"""

from __future__ import annotations

import pytest
import yaml

from charts.rendering import BESIDE, GOLDENS, PROFILES, VALUES, Object, render, title

pytestmark = pytest.mark.helm


def golden(objects: list[Object]) -> str:
    """Objects as text whose order does not depend on a template's."""
    return yaml.dump_all(objects, Dumper=yaml.CSafeDumper, sort_keys=True, width=120)


def beside(objects: list[Object], others: list[Object]) -> list[Object]:
    """The objects that differ from the others, after a list of what of the others is missing."""
    place = {(title(o), o["metadata"].get("namespace")): o for o in others}
    differing = [o for o in objects if place.get((title(o), o["metadata"].get("namespace"))) != o]
    missing = sorted({title(o) for o in others} - {title(o) for o in objects})
    return [{"missing": missing}, *differing]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_renders_its_golden(profile: str, request: pytest.FixtureRequest) -> None:
    path = GOLDENS / f"{profile}.yaml"
    objects = render(profile)
    text = golden(beside(objects, render(BESIDE[profile])) if profile in BESIDE else objects)
    if request.config.getoption("--golden", default=False):
        path.write_text(text)
    assert text == path.read_text(), "look at the difference; `make golden` accepts it"


@pytest.mark.parametrize("profile", PROFILES)
def test_helm_3_renders_what_helm_4_renders(profile: str) -> None:
    assert render(profile, binary="helm3") == render(profile)


def test_every_values_file_is_part_of_a_profile() -> None:
    assert {path.name for path in VALUES.glob("*.yaml")} == {name for names in PROFILES.values() for name in names}


def test_a_golden_beside_another_says_what_is_missing_and_what_differs() -> None:
    one, two, other = ({"kind": "A", "metadata": {"name": name}} for name in ("one", "two", "other"))
    changed = one | {"spec": 1}
    assert beside([changed, two], [one, two, other]) == [{"missing": ["A/other"]}, changed]


def test_every_golden_belongs_to_a_profile() -> None:
    assert {path.stem for path in GOLDENS.glob("*.yaml")} == set(PROFILES)
