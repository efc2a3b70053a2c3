"""What clients may ask, when a job may run, which Redis may keep it: all without one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.router.errors import Refusal
from llmfleet.router.jobs import entry, health, replay, rules
from llmfleet.router.jobs.entry import Result
from llmfleet.router.jobs.rules import End
from llmfleet.router.limits import SettingsError, parse_settings

ID = "job_" + "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("case", "slots", "in_flight", "jobs", "waiting", "starts"),
    [
        ("an idle engine takes a job", 20, 0, 0, 0, True),
        ("jobs leave the headroom free", 20, 18, 18, 0, False),
        ("and take what is beyond it", 20, 17, 17, 0, True),
        ("a direct request that waits goes first", 20, 10, 1, 1, False),
        ("but not before the share of jobs", 20, 10, 0, 1, True),
        ("the share does not make slots", 20, 20, 0, 0, False),
        ("of a hundred slots five are the share", 100, 99, 4, 50, True),
        ("and not six", 100, 99, 5, 50, False),
        ("a single slot is shared too", 1, 0, 0, 9, True),
        ("no slot is nobody's", 0, 0, 0, 0, False),
    ],
)
def test_when_a_job_may_start(case, slots, in_flight, jobs, waiting, starts):
    got = rules.may_start(slots=slots, in_flight=in_flight, jobs=jobs, waiting=waiting, share=0.05, headroom=0.1)
    assert got is starts, case


@given(slots=st.integers(0, 2000), in_flight=st.integers(0, 2000), jobs=st.integers(0, 2000), waiting=st.integers(0, 9))
def test_a_job_never_takes_a_slot_that_is_not_there(slots, in_flight, jobs, waiting):
    if rules.may_start(slots=slots, in_flight=in_flight, jobs=jobs, waiting=waiting, share=0.05, headroom=0.1):
        assert in_flight < slots
        assert not waiting or jobs < max(1, slots // 20)


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        (f"/v1/requests/{ID}", (ID, False, 0, 0)),
        (f"/v1/requests/{ID}?wait=9", (ID, False, 0, 0)),
        (f"/v1/requests/{ID}/result", (ID, True, 0, 0)),
        (f"/v1/requests/{ID}/result?wait=2.5", (ID, True, 2.5, 0)),
        (f"/v1/requests/{ID}/result?wait=9999&hop=99", (ID, True, 60, 12)),
        (f"/v1/requests/{ID}/result?hop=-1", (ID, True, 0, 0)),
        (f"/v1/requests/{ID}/", None),
        (f"/v1/requests/{ID.upper()}", None),
        (f"/v1/requests/{ID}x/result", None),
        ("/v1/requests/*", None),
        ("/v1/requests/result", None),
        ("/v1/models", None),
    ],
)
def test_which_targets_are_jobs(raw, target):
    got = rules.target_of(raw.encode())
    assert (None if got is None else (got.id, got.result, got.wait, got.hop)) == target


@given(st.binary(max_size=200))
def test_any_target_is_a_job_none_or_refused(raw):
    try:
        target = rules.target_of(b"/v1/requests/" + raw)
    except Refusal as refusal:
        assert refusal.status == 400
    else:
        assert target is None or entry.is_job_id(target.id)


def test_ids_hold_160_random_bits():
    assert entry.job_id(b"\xff" * entry.ID_BYTES) == "job_" + "f" * 40
    assert entry.is_job_id("job_" + "f" * 40)


@pytest.mark.parametrize(
    ("status", "whole", "dispatched", "end"),
    [
        (200, True, True, End.FINISH),
        (400, True, True, End.FINISH),
        (200, False, True, End.RETRY),
        (429, True, True, End.RETRY),
        (502, True, True, End.RETRY),
        (None, False, True, End.RETRY),
        (503, False, False, End.RETURN),
        (529, False, False, End.RETURN),
        (None, False, False, End.RETURN),
        (502, False, False, End.FINISH),
    ],
)
def test_what_follows_an_attempt(status, whole, dispatched, end):
    result = None if status is None else Result(status=status, content_type=b"", body=b"")
    assert rules.judge(result, whole=whole, dispatched=dispatched) is end


@pytest.mark.parametrize(
    ("info", "word"),
    [
        ({"maxmemory_policy": "noeviction", "redis_version": "7.0.15", "role": "master"}, ""),
        ({}, ""),
        ({"maxmemory_policy": "allkeys-lru"}, "allkeys-lru"),
        ({"maxmemory_policy": "volatile-lru", "maxmemory": 0}, "volatile-lru"),
        ({"redis_version": "6.2.14"}, "6.2.14 is too old"),
        ({"redis_version": "255.255.255"}, ""),
        ({"role": "slave"}, "primary"),
        ({"cluster_enabled": 1}, "cluster"),
    ],
)
def test_which_redis_may_keep_jobs(info, word):
    refusal = health.refusal(info)
    assert word in refusal and bool(refusal) == bool(word)


def test_what_makes_a_redis_less_safe_is_said():
    assert list(health.warnings({"aof_enabled": 1, "connected_slaves": 1}, replicated=True)) == []
    said = list(health.warnings({"aof_enabled": 0, "connected_slaves": 0}, replicated=True))
    assert "appendonly" in said[0] and "replica" in said[1]


@given(st.lists(st.binary(min_size=1, max_size=30).filter(lambda b: not set(b) & set(b"\r\n:")), max_size=20))
def test_a_replay_is_the_same_events_from_anywhere(texts):
    stream = b": hello\n\n" + b"".join(b"data: %b\n\n" % text for text in texts)
    whole = replay.replay(stream, 0)
    assert whole.count(b"id: ") >= len(texts)
    for after in range(len(texts) + 1):
        expected = b"".join(b"id: %d\ndata: %b\n\n" % (n, t) for n, t in enumerate(texts, 1) if n > after)
        assert replay.replay(stream, after) == expected


def test_events_may_end_in_any_of_the_three_ways():
    assert list(replay.events(b"data: a\r\n\r\nevent: b\rdata: b\r\rdata: c\n\n: x\n\n")) == [
        b"data: a",
        b"event: b\rdata: b",
        b"data: c",
    ]


def test_classes_are_ranked_as_tenants_are():
    assert rules.ranked({"high": -10, "standard": 0, "same": 0, "low": 10}) == ("high", "standard", "low")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"redis": {"url": "http://x"}}, "redis.url: 'http://x' cannot be used: write redis://"),
        ({"redis": {"url": "redis://:secret@x"}}, "redis.url"),
        ({"redis": {"passwordFile": "x"}}, "redis.passwordFile: 'x' cannot be used: write an absolute path"),
        ({"redis": {"replicated": 1}}, "redis.replicated: 1 is not true or false"),
        ({"queue": {"capacity": 0}}, "queue.capacity: 0 is not between 1 and"),
        ({"queue": {"overflow": "drop"}}, "queue.overflow: 'drop' is not one of hold, async, reject"),
        (
            {"queue": {"classes": {"low": {"ttlSeconds": 1e6}}}},
            "queue.classes.low.ttlSeconds: 1000000.0 is not between",
        ),
        ({"queue": {"classes": {"low": {}}}}, "queue.classes.low.ttlSeconds"),
        ({"queue": {"classes": {"none": {"ttlSeconds": 5}}}}, "queue.classes: none is not one of the classes"),
    ],
)
def test_wrong_settings_of_jobs_are_refused_by_their_path(raw, message):
    with pytest.raises(SettingsError) as refused:
        parse_settings(raw)
    assert message in str(refused.value)


def test_a_class_may_wait_for_a_day():
    settings = parse_settings({"queue": {"classes": {"low": {"ttlSeconds": 86400}}}})
    assert settings.queue.classes == (("low", 86400.0),)
