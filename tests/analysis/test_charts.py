"""Static analysis of every profile as rendered: clean, or waived by name with a reason that is still needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.conftest import PLANTED, Finding

pytestmark = pytest.mark.helm

WAIVERS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("waivers.yaml").read_text())
PLANT = f"Pod/{PLANTED['metadata']['name']}"


def waives(waiver: dict[str, Any], finding: Finding) -> bool:
    return waiver["check"] == finding.check and re.fullmatch(waiver["resources"], finding.resource) is not None


def test_every_finding_is_mended_or_waived(findings: list[Finding]) -> None:
    charts = [finding for finding in findings if finding.resource != PLANT]
    open_ = [finding for finding in charts if not any(waives(waiver, finding) for waiver in WAIVERS)]
    assert not open_, "\n".join(f"{one.check} {one.resource}: {one.title}" for one in open_)


@pytest.mark.parametrize("waiver", WAIVERS, ids=lambda waiver: f"{waiver['check']} {waiver['resources']}")
def test_every_waiver_has_a_reason_and_is_needed(waiver: dict[str, Any], findings: list[Finding]) -> None:
    assert set(waiver) == {"check", "resources", "reason"} and len(waiver["reason"]) > 30
    assert [finding for finding in findings if finding.resource != PLANT and waives(waiver, finding)]


def test_a_privileged_pod_on_the_hosts_network_is_found(findings: list[Finding]) -> None:
    found = {finding.check for finding in findings if finding.resource == PLANT}
    assert {"CKV_K8S_16", "CKV_K8S_19", "CKV_K8S_14", "CKV_K8S_37"} <= found
