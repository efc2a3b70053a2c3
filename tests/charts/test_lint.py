"""What chart repositories run over a chart before they take it: chart-testing with every profile, and yamllint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from charts.rendering import CHARTS, PROFILES, VALUES, copy_charts, helm, run

pytestmark = pytest.mark.helm

RULES = Path(__file__).parent / "yamllint.yaml"
# Nothing here is fetched or compared with another commit: the subcharts are links, versions have a test of their own.
CT = (
    *("lint", "--skip-helm-dependencies", "--check-version-increment=false", "--validate-maintainers=false"),
    *("--validate-chart-schema=false", f"--lint-conf={RULES}", "--helm-lint-extra-args=--strict"),
)


def yamllint(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "yamllint", "--strict", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("chart", ["llmfleet", "llmfleet-controllers", "llmfleet-fleet"])
def test_chart_testing_takes_a_chart_with_every_values_file_it_has(chart: str, tmp_path: Path) -> None:
    charts = copy_charts(tmp_path)
    path = os.pathsep.join([str(Path(helm()).parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [helm("ct"), *CT, f"--charts={charts / chart}"],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    given = list((CHARTS / chart / "ci").glob("*-values.yaml"))
    assert given and done.stdout.count("Linting chart with values file") == len(given)


def test_the_values_that_chart_testing_takes_are_those_of_the_profiles() -> None:
    names = {path.name.removesuffix("-values.yaml") for path in (CHARTS / "llmfleet" / "ci").glob("*.yaml")}
    assert names == {path.stem for path in VALUES.glob("*.yaml")}


@pytest.mark.parametrize("profile", ["canary", "multi-tenant", "autoscaling"])
def test_files_that_were_merged_render_what_the_files_one_by_one_render(profile: str) -> None:
    arguments = ["template", "demo", str(CHARTS / "llmfleet")]
    apart = [f"--values={VALUES / name}" for name in PROFILES[profile]]
    assert run([*arguments, f"--values={CHARTS}/llmfleet/ci/{profile}-values.yaml"]) == run([*arguments, *apart])


def test_what_people_write_is_clean_yaml() -> None:
    written = [*VALUES.glob("*.yaml"), *CHARTS.glob("llmfleet*/Chart.yaml"), *CHARTS.glob("llmfleet*/values.yaml")]
    done = yamllint(f"--config-file={RULES}", *map(str, written))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", ["dev", "single", "multi-tenant", "production-disaggregated"])
def test_what_helm_writes_has_no_key_twice(profile: str, tmp_path: Path) -> None:
    files = [f"--values={VALUES / name}" for name in PROFILES[profile]]
    (tmp_path / "rendered.yaml").write_text(run(["template", "demo", str(CHARTS / "llmfleet"), *files]))
    rules = "{rules: {key-duplicates: enable, key-ordering: disable}}"
    done = yamllint(f"--config-data={rules}", str(tmp_path / "rendered.yaml"))
    assert done.returncode == 0, done.stdout


def test_a_key_that_stands_twice_is_found(tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text("uninstall: {enabled: true}\nuninstall: {enabled: false}\n")
    done = yamllint(f"--config-file={RULES}", str(tmp_path / "values.yaml"))
    assert done.returncode == 1
    assert 'duplication of key "uninstall"' in done.stdout
