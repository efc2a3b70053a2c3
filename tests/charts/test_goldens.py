"""Every profile renders its golden, under Helm 4 and Helm 3. `make golden` rewrites them."""

from __future__ import annotations

import pytest
import yaml

from charts.rendering import GOLDENS, PROFILES, VALUES, Object, render

pytestmark = pytest.mark.helm


def golden(objects: list[Object]) -> str:
    """Objects as text whose order does not depend on a template's."""
    return yaml.dump_all(objects, Dumper=yaml.CSafeDumper, sort_keys=True, width=120)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_renders_its_golden(profile: str, request: pytest.FixtureRequest) -> None:
    path = GOLDENS / f"{profile}.yaml"
    text = golden(render(profile))
    if request.config.getoption("--golden", default=False):
        path.write_text(text)
    assert text == path.read_text(), "look at the difference; `make golden` accepts it"


@pytest.mark.parametrize("profile", PROFILES)
def test_helm_3_renders_what_helm_4_renders(profile: str) -> None:
    assert render(profile, binary="helm3") == render(profile)


def test_every_values_file_is_part_of_a_profile() -> None:
    assert {path.name for path in VALUES.glob("*.yaml")} == {name for names in PROFILES.values() for name in names}


def test_every_golden_belongs_to_a_profile() -> None:
    assert {path.stem for path in GOLDENS.glob("*.yaml")} == set(PROFILES)
