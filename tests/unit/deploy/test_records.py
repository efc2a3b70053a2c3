"""What is remembered survives its text form, and unreadable text is no memory at all."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.deploy.records import Cause, Failure, Figures, Incident, Records, Trial, parse_records, render_records

NOW = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
FULL = Records(
    members={"0": "u1/0", "1": "u2/0"},
    incident=Incident(cause=Cause.LOST_RANK, since=NOW, message="rank 1 is gone", served=True, doomed=("u1",)),
    torn_since=NOW,
    restarts=3,
    streak=2,
    last_restart=NOW,
    last_reason="GroupRestarting",
    last_message="rank 0 ended",
    loaded="c1",
    load_seconds=41.5,
    warmed="c1",
    good="abc",
    superseded="older",
    failed=Failure(template="def", reason="UpdateHalted", message="no"),
    trial=Trial(template="abc", since=NOW, canary=Figures(requests=1), rest=Figures(errors=2)),
    backed_off=NOW,
)


@pytest.mark.parametrize("records", [Records(), FULL])
def test_records_survive_their_text(records: Records) -> None:
    assert parse_records(render_records(records)) == records


def test_nothing_remembered_is_an_empty_object() -> None:
    assert render_records(Records()) == "{}"


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", "{", "[]", "3", '{"incident": 3}', '{"incident": {"cause": "x"}}', '{"incident": {}}'),
        *('{"last_restart": "x"}', '{"last_restart": 3}', '{"trial": {}}', '{"members": 3}', '{"members": []}'),
        *('{"streak": "2"}', '{"restarts": null}', '{"good": 3}', '{"load_seconds": "x"}', '{"trial": null}'),
    ],
)
def test_unreadable_text_is_no_memory(text: str | None) -> None:
    assert parse_records(text) == Records()


@given(text=st.text(max_size=40))
def test_no_text_does_harm(text: str) -> None:
    parse_records(text)


def test_fields_of_a_later_version_are_ignored() -> None:
    assert parse_records('{"restarts": 2, "future": {"x": 1}}').restarts == 2
