"""Settings: strict, bounded, and every one documented."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from llmfleet.router.errors import Code
from llmfleet.router.limits import (
    Drain,
    Limits,
    Settings,
    SettingsError,
    Timeouts,
    camel,
    max_connections,
    parse_settings,
    setting_names,
)
from llmfleet.settings import UnreadableSettings, read_settings_file
from llmfleet.telemetry import RouterGauges, RouterMetrics


def read_router_settings(path: str | None) -> Settings:
    return parse_settings(read_settings_file(path))


PAGE = (Path(__file__).parents[2] / "docs" / "router.md").read_text()


def test_no_file_and_an_empty_file_mean_every_default(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_router_settings(None) == read_router_settings(str(tmp_path / "empty.yaml")) == Settings()


def test_every_setting_can_be_written(tmp_path):
    text = (
        "limits: {maxBodyBytes: 4096, maxConnections: 7}\ntimeouts: {stallSeconds: 1.5, firstEventSeconds: 9}\n"
        "drain: {settleSeconds: 0}\nforwardHeaders: [Accept, X-Tenant]\nlogLevel: debug\n"
    )
    (tmp_path / "s.yaml").write_text(text)
    settings = read_router_settings(str(tmp_path / "s.yaml"))
    assert (settings.limits.max_body_bytes, settings.limits.max_connections) == (4096, 7)
    assert (settings.timeouts.stall_seconds, settings.timeouts.first_event_seconds) == (1.5, 9)
    assert (settings.drain.settle_seconds, settings.drain.timeout_seconds) == (0, 600)
    assert (settings.forward_headers, settings.log_level) == (("accept", "x-tenant"), "debug")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "settings: write a mapping"),
        ({"limit": {}}, "limit: unknown setting; known here: accessLog"),
        ({"limits": []}, "limits: write a mapping"),
        ({"limits": {"maxBody": 1}}, "limits.maxBody: unknown setting"),
        ({"limits": {"maxBodyBytes": "1"}}, "limits.maxBodyBytes: '1' is not a whole number"),
        ({"limits": {"maxBodyBytes": 1.5}}, "limits.maxBodyBytes: 1.5 is not a whole number"),
        ({"limits": {"maxBodyBytes": True}}, "limits.maxBodyBytes: True is not a whole number"),
        ({"limits": {"maxBodyBytes": None}}, "limits.maxBodyBytes: None is not a whole number"),
        ({"limits": {"maxBodyBytes": 1}}, "limits.maxBodyBytes: 1 is not between 1024 and"),
        ({"timeouts": {"stallSeconds": -1}}, "timeouts.stallSeconds: -1 is not between"),
        ({"timeouts": {"stallSeconds": float("nan")}}, "timeouts.stallSeconds: nan is not between"),
        ({"timeouts": {"stallSeconds": float("inf")}}, "timeouts.stallSeconds: inf is not between"),
        ({"timeouts": {"stallSeconds": "1s"}}, "timeouts.stallSeconds: '1s' is not a number of seconds"),
        ({"drain": {"settleSeconds": 1e9}}, "drain.settleSeconds: 1000000000.0 is not between 0 and 300"),
        ({"forwardHeaders": "accept"}, "forwardHeaders: write a list"),
        ({"forwardHeaders": []}, "forwardHeaders: write a list"),
        ({"forwardHeaders": ["a b"]}, "forwardHeaders: 'a b' is not a header name"),
        ({"forwardHeaders": ["a)|(.*"]}, "is not a header name"),
        ({"forwardHeaders": ["X-Request-Id"]}, "forwardHeaders: X-Request-Id is set by the router itself"),
        ({"forwardHeaders": ["Content-Length"]}, "Content-Length is set by the router itself"),
        ({"body": {"unknownFields": "keep"}}, "body.unknownFields: 'keep' is not one of drop, refuse"),
        ({"body": {"cacheSalt": True}}, "body.cacheSalt: True is not one of tenant, off"),
        ({"accessLog": {"enabled": "yes"}}, "accessLog.enabled: 'yes' is not true or false"),
        ({"classes": []}, "classes: write a mapping"),
        ({"classes": {"high": 1}}, "classes: standard is missing"),
        ({"classes": {"standard": 0, "A b": 1}}, "classes: 'A b' is not a name"),
        ({"classes": {"standard": 0.5}}, "classes.standard: 0.5 is not a whole number from -1000 to 1000"),
        ({"forwardHeaders": ["X-Vllm-Priority"]}, "X-Vllm-Priority is set by the router itself"),
        ({"resultCache": {"enabled": True}}, "resultCache.enabled: answers are kept in Redis, and none is named"),
        ({"resultCache": {"enabled": 1}}, "resultCache.enabled: 1 is not true or false"),
        ({"resultCache": {"ttlSeconds": 0}}, "resultCache.ttlSeconds: 0 is not between 1 and 86400"),
        ({"resultCache": {"ttl": 5}}, "resultCache.ttl: unknown setting; known here: enabled, lookupSeconds"),
        ({"logLevel": "loud"}, "logLevel: 'loud' is not one of debug"),
    ],
)
def test_wrong_settings_are_refused_by_their_path(raw, message):
    with pytest.raises(SettingsError) as refused:
        parse_settings(raw)
    assert message in str(refused.value)


def test_files_that_are_no_yaml_are_refused(tmp_path):
    for name, data in (("a", b"limits: [\n"), ("b", b"\xff\xfe\x00"), ("c", b"a: !!python/object:os.system {}")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableSettings):
            read_router_settings(str(tmp_path / name))


def test_connections_are_bound_by_the_open_file_limit_as_each_needs_two():
    assert max_connections(Limits(), 20_000) == (20_000 - 128) // 2
    assert max_connections(Limits(max_connections=100), 20_000) == 100
    assert max_connections(Limits(max_connections=100_000), 1024) == (1024 - 128) // 2
    assert max_connections(Limits(), 64) == 1


def test_every_setting_its_default_and_bounds_are_documented():
    for name in setting_names():
        assert f"`{name}`" in PAGE, name
    for section, kind in (("limits", Limits), ("timeouts", Timeouts), ("drain", Drain)):
        for f in fields(kind):
            row = re.search(rf"^\| `{section}\.{camel(f.name)}` \| ([^|]+) \|", PAGE, re.MULTILINE)
            assert row, f.name
            assert row[1].strip().replace(" ", "") == str(f.default), f.name
    for header in Settings().forward_headers:
        assert header in PAGE, header


def test_every_error_code_and_metric_is_documented():
    for code in Code:
        assert f"`{code}`" in PAGE, code
    gauges = RouterGauges(
        connections=0, max_connections=0, draining=False, generation=0, document_age_seconds=0, endpoints=()
    )
    for family in RouterMetrics(lambda: gauges).collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"`{name}" in PAGE, name
