"""Every bad LLMCluster is refused by the apiserver with a message that says what to write."""

from __future__ import annotations

import pytest

from crds.crd_objects import CLUSTERS, cluster
from crds.refused_clusters import CASES, NAMES, Case
from fakes.apiserver import Apiserver

pytestmark = pytest.mark.apiserver

DRY = {"dryRun": "All"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_bad_spec_is_refused_with_the_field_and_the_remedy(server: Apiserver, case: Case) -> None:
    _, changes, message, path = case
    answer = server.call("POST", CLUSTERS, cluster(changes), params=DRY)
    assert answer.status in (400, 422), answer.body
    assert message in answer.message
    assert path in answer.message


@pytest.mark.parametrize(("case", "name"), NAMES, ids=lambda value: value)
def test_a_name_that_no_service_could_have_is_refused(server: Apiserver, case: str, name: str) -> None:
    answer = server.call("POST", CLUSTERS, cluster(name=name), params=DRY)
    assert answer.status == 422, case
    assert "metadata.name must have at most 40 characters" in answer.message


def test_the_table_holds_what_it_promises() -> None:
    assert len(CASES) >= 60
    assert len({case[0] for case in CASES}) == len(CASES)
