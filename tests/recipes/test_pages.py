"""Pages and files of the recipes are the same: nothing is shown that is not checked, nothing is hidden."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recipes.recipes import (
    FENCE,
    FOLDER,
    INDEX,
    UNKNOWN,
    embedded,
    files,
    is_manifest,
    is_values,
    manifests,
    name_of,
    objects,
    pages,
)

# Files that are neither objects nor values: what proves them instead.
OTHERWISE = {
    "alertmanager/alertmanager.yaml": "tests/recipes/test_alertmanager.py",
    "hpa/prometheus-adapter.yaml": "tests/recipes/test_queries.py",
    "locust/locustfile.py": "tests/recipes/test_locust.py",
}


def page_of(path: Path) -> Path:
    return FOLDER / f"{path.relative_to(FOLDER).parts[0]}.md"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_what_a_page_shows_of_a_file_is_the_file(page: Path, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("golden"):
        page.write_text(
            FENCE.sub(lambda found: f"```yaml {found[1]}\n{(FOLDER / found[1]).read_text()}```", page.read_text())
        )
    for name, text in embedded(page):
        assert text == (FOLDER / name).read_text(), f"{name}: pytest tests/recipes --golden writes it anew"


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_every_file_is_on_the_page_of_its_folder(path: Path) -> None:
    text, name = page_of(path).read_text(), name_of(path)
    assert f"```yaml {name}\n" in text or f"({name})" in text, f"{page_of(path).name} does not show {name}"


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_every_file_is_checked_somewhere(path: Path) -> None:
    if not is_values(path) and not is_manifest(path):
        test = FOLDER.parents[1] / OTHERWISE[name_of(path)]
        assert name_of(path) in test.read_text()


def test_no_file_is_said_to_be_checked_that_is_not_there() -> None:
    assert set(OTHERWISE) <= {name_of(path) for path in files()}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_page_says_what_it_solves_what_to_look_at_and_how_it_was_proven(page: Path) -> None:
    headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
    assert {"Look at", "Proof"} <= set(headings), headings
    assert f"({page.name})" in INDEX.read_text()


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_file_that_a_command_names_exists(page: Path) -> None:
    named = set(
        re.findall(r"(?<![\w/$.-])((?:docs|values|charts|tests|ci)/[\w./-]+\.(?:yaml|py|md))", page.read_text())
    )
    assert named
    assert [name for name in sorted(named) if not (FOLDER.parents[1] / name).exists()] == []


@pytest.mark.parametrize("path", manifests(), ids=name_of)
def test_a_page_names_every_kind_that_no_test_could_check(path: Path) -> None:
    unchecked = {one["kind"] for one in objects(path) if (one["apiVersion"], one["kind"]) in UNKNOWN}
    proof = page_of(path).read_text().split("## Proof")[1]
    for kind in unchecked:
        assert re.search(rf"`{kind}`[^.]*\bnot checked\b", proof), (
            f"{page_of(path).name} does not say that {kind} is not"
        )
        assert f"`{kind}`" in INDEX.read_text().split("## Not proven")[1]
