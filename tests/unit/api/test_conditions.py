"""Conditions keep their transition time while their status stays, so that saying the same again writes nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from llmfleet.api.conditions import Condition, ConditionType, build_conditions, find_condition, is_true

NOW = datetime(2026, 1, 1, tzinfo=UTC)
READY = Condition(type=ConditionType.READY, true=True, reason="Serving", message="all ranks are ready")


def test_the_transition_time_moves_only_with_the_status() -> None:
    first = build_conditions([READY], [], generation=1, now=NOW)
    later = build_conditions([READY], first, generation=1, now=NOW + timedelta(hours=1))
    assert later == first
    lost = Condition(type=ConditionType.READY, true=False, reason="Draining")
    changed = build_conditions([lost], later, generation=2, now=NOW + timedelta(hours=2))
    assert changed[0]["lastTransitionTime"] == "2026-01-01T02:00:00Z"
    assert changed[0]["observedGeneration"] == 2


def test_a_long_message_is_cut_to_what_the_api_takes() -> None:
    long = Condition(type=ConditionType.READY, true=False, reason="CrashLoop", message="x" * 40_000)
    assert len(build_conditions([long], [], generation=1, now=NOW)[0]["message"]) == 1024


def test_conditions_are_found_by_type() -> None:
    status = {"conditions": build_conditions([READY], [], generation=1, now=NOW)}
    assert is_true(status, ConditionType.READY)
    assert not is_true(status, ConditionType.STALLED)
    assert find_condition({}, ConditionType.READY) == {}
