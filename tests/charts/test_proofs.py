"""docs/proofs.md cannot name a proof that is not there, nor leave out an alert, a panel, a profile or a recipe."""

from __future__ import annotations

import importlib
import json
import re
import sys
from types import ModuleType

import pytest
import yaml

from charts.rendering import CHARTS, ROOT, VALUES

PAGE = (ROOT / "docs/proofs.md").read_text()
MONITORING = CHARTS / "llmfleet-monitoring"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The module that writes the page."""
    sys.path.insert(0, str(ROOT / "ci/generate.d"))
    try:
        return importlib.import_module("make_proofs")
    finally:
        sys.path.remove(str(ROOT / "ci/generate.d"))


@pytest.mark.parametrize(
    "written", ["tests/charts/test_no_such.py", "tests/charts/test_proofs.py::test_no_such", "tests/no_such"]
)
def test_a_proof_that_does_not_exist_is_refused(generator: ModuleType, written: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(f"there is no {written}")):
        generator.proof(ROOT, written)


def test_a_proof_that_exists_is_a_link_to_it(generator: ModuleType) -> None:
    written = "tests/charts/test_proofs.py::test_a_proof_that_exists_is_a_link_to_it"
    link = "[a proof that exists is a link to it](../tests/charts/test_proofs.py)"
    assert generator.proof(ROOT, written) == link


def test_every_stage_that_a_row_names_is_one_of_the_check(generator: ModuleType) -> None:
    stages = re.search(r"^stages=\((.*)\)$", (ROOT / "ci/check").read_text(), re.MULTILINE)
    assert stages
    assert set(generator.STAGES.values()) <= set(stages[1].split())


def test_make_test_chart_runs_the_stages_that_the_page_says() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [line] = re.findall(r"^test-chart:.*\n\t@ci/check (.+)$", makefile, re.MULTILINE)
    head = PAGE.split("##")[0].split("runs the stages")[1].split("`ci/check")[0]
    assert set(re.findall(r"`([a-z]+)`", head)) == set(line.split()) - {"tools"}


def test_every_alert_panel_profile_and_recipe_is_on_the_page() -> None:
    alerts = yaml.safe_load((MONITORING / "values.yaml").read_text())["alerts"]
    assert [name for name in alerts if f"| `{name}` |" not in PAGE] == []
    pages = [json.loads(path.read_text()) for path in (MONITORING / "dashboards").glob("*.json")]
    panels = [panel["title"] for page in pages for panel in page["panels"] if panel["type"] != "row"]
    assert [title for title in panels if f"| {title} |" not in PAGE] == []
    assert [path.stem for path in VALUES.glob("*.yaml") if f"| [{path.stem}](../values/" not in PAGE] == []
    recipes = [path.stem for path in (ROOT / "docs/recipes").glob("*.md") if path.stem != "README"]
    assert [name for name in recipes if f"| [{name}](recipes/{name}.md) |" not in PAGE] == []
