"""The helm-unittest suites under charts/*/tests, and what stands in a packaged chart."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from charts.rendering import CHARTS, OWN_CHARTS, helm, render, run

pytestmark = pytest.mark.helm


@pytest.mark.parametrize("chart", OWN_CHARTS)
def test_the_suites_of_a_chart_pass(chart: str) -> None:
    command = [helm("helm-unittest"), "--strict", "--with-subchart=false", str(CHARTS / chart)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tests:       0 passed" not in done.stdout


def test_the_packaged_umbrella_renders_what_the_folder_renders(tmp_path: Path) -> None:
    run(["package", str(CHARTS / "llmfleet"), f"--destination={tmp_path}"])
    [archive] = tmp_path.glob("*.tgz")
    for profile in ("dev", "production-disaggregated", "multi-tenant", "single"):
        assert render(profile, chart=archive.name, charts=tmp_path) == render(profile)
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert "llmfleet/charts/llmfleet-crds/crds/serving.ai_llmclusters.yaml" in names
    assert "llmfleet/charts/llmfleet-fleet/templates/tests/chat.yaml" in names
    assert not [name for name in names if name.endswith("_test.yaml")]
