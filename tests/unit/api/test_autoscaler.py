"""The spec of an autoscaler: read as the CRD accepts it, refused with a path and what to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import pytest
import yaml

from crds.crd_objects import REMOVED, disaggregated, monolithic
from crds.refused_autoscalers import SCHEDULE, metric, metrics
from crds.test_autoscaler import ACCEPTED
from llmfleet.api.autoscaler import AutoscalerSpec, Mode, parse_autoscaler, selector_text
from llmfleet.api.cron import CronError, is_open, parse_cron
from llmfleet.api.parse import SpecError, schema_of
from llmfleet.api.types import Role

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case[0])
def test_what_the_crd_accepts_is_read(case: tuple[str, dict[str, Any]]) -> None:
    assert parse_autoscaler(case[1]["spec"]).fleets()


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("min above max", monolithic({"minInstances": 11}), "spec.minInstances: 11 is above maxInstances 10"),
    ("no maximum", monolithic({"maxInstances": REMOVED}), "spec.maxInstances: is required in mode monolithic"),
    ("no decode", disaggregated({"decode": REMOVED}), "spec.decode: is required in mode disaggregated"),
    ("another mode's field", disaggregated({"minInstances": 1}), "spec.minInstances: does not belong to mode"),
    ("a wrong role", monolithic({"instanceTemplate.spec.role": "decode"}), "must be both, not decode"),
    (
        "a template that would not be an instance",
        monolithic({"instanceTemplate.spec.replicas": 3}),
        "spec.instanceTemplate.spec.tensorParallelSize: ",
    ),
    (
        "a role's template that would not be an instance",
        disaggregated({"prefill.instanceTemplate.spec.model": ""}),
        "spec.prefill.instanceTemplate.spec.model: must not be empty",
    ),
    ("labels that are not counted", monolithic({"instanceTemplate.labels": {"x": "y"}}), "created without end"),
    ("an empty selector", monolithic({"scaleTargetRef.labelSelector.matchLabels": {}}), "at least one"),
    ("no metric", monolithic({"policy": "Metrics"}), "spec.metrics: policy Metrics needs at least one item"),
    ("a flapping threshold", monolithic(metrics(metric(up="1", down="1"))), "spec.metrics[0].threshold: "),
    ("a query that is missing", monolithic(metrics(metric("Custom"))), "spec.metrics[0].query: "),
    ("a GPU figure without Prometheus", monolithic(metrics(metric("GPUUtilization"))), "comes from Prometheus only"),
    ("External for two fleets", disaggregated({"policy": "External"}), "spec.policy: External works only"),
    ("Prometheus without an address", monolithic({"source": {"type": "Prometheus"}}), "spec.source.prometheus.address"),
    ("a budget of nothing", monolithic({"workBudget.slo.errorBudget": "0"}), "spec.workBudget.slo.errorBudget"),
    ("no time at all", monolithic({"workBudget.slo.tpotSeconds": "0"}), "spec.workBudget.slo.tpotSeconds"),
    (
        "a coefficient that is no number",
        monolithic({"workBudget.capacity.coefficients": {"c": "fast"}}),
        "spec.workBudget.capacity.coefficients.c: ",
    ),
    (
        "a window that never opens",
        monolithic({"workBudget.forecast.schedule": [{**SCHEDULE, "start": "61 * * * *"}]}),
        "spec.workBudget.forecast.schedule[0].start: '61' is outside minute 0-59",
    ),
    (
        "a zone nobody knows",
        monolithic({"workBudget.forecast.schedule": [{**SCHEDULE, "timeZone": "Mars/Olympus"}]}),
        "spec.workBudget.forecast.schedule[0].timeZone: ",
    ),
    ("zero with a minimum", monolithic({"scaleToZero.afterSeconds": 60}), "spec.scaleToZero.afterSeconds: "),
    ("no ratio", disaggregated({"coordination.maxPrefillPerDecode": 0}), "spec.coordination.maxPrefillPerDecode"),
    ("another type", monolithic({"maxInstances": "ten"}), "spec.maxInstances: must be an integer, not 'ten'"),
    ("an unknown policy", monolithic({"policy": "Guess"}), "spec.policy: must be one of WorkBudget, Metrics, External"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[0])
def test_a_mistake_is_refused_with_its_path(case: tuple[str, dict[str, Any], str]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_autoscaler(case[1]["spec"])
    assert case[2] in str(caught.value)


def test_a_role_takes_what_it_leaves_unset_from_the_fleet_and_the_fleet_from_the_defaults() -> None:
    changes = {"behavior": {"scaleUp": {"step": 7}}, "prefill.behavior": {"scaleUp": {"cooldownSeconds": 9}}}
    fleets = parse_autoscaler(disaggregated(changes)["spec"]).fleets()
    prefill, decode = fleets[Role.PREFILL].behavior, fleets[Role.DECODE].behavior
    assert (prefill.scale_up.step, prefill.scale_up.cooldown_seconds) == (7, 9)
    assert (decode.scale_up.step, decode.scale_up.cooldown_seconds) == (7, 0)
    assert (decode.scale_down.stabilization_seconds, decode.max_surge) == (600, 1)


def test_a_template_is_kept_as_it_was_written() -> None:
    written = monolithic()["spec"]
    spec = parse_autoscaler(written)
    assert spec.mode is Mode.MONOLITHIC
    assert spec.instance_template is not None
    assert spec.instance_template.spec == written["instanceTemplate"]["spec"]
    assert selector_text({"b": "2", "a": "1"}) == "a=1,b=2"


def test_the_types_have_the_fields_of_the_schema() -> None:
    crd = yaml.safe_load((ROOT / "charts/llmfleet-crds/crds/serving.ai_llmclusterautoscalers.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert list(differences(AutoscalerSpec, schema, "spec")) == []


def differences(kind: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Fields that only one side has, wherever the types go as deep as the schema."""
    declared = {name: hint for _, name, hint in schema_of(kind)}
    described = schema["properties"]
    yield from (f"{path}.{name}" for name in declared.keys() ^ described.keys())
    for name in declared.keys() & described.keys():
        inner, below = dataclass_in(declared[name]), described[name].get("items", described[name])
        if inner is not None and "properties" in below:
            yield from differences(inner, below, f"{path}.{name}")


def dataclass_in(hint: Any) -> Any:
    if get_origin(hint) in (UnionType, tuple):
        return next((found for one in get_args(hint) if (found := dataclass_in(one))), None)
    return hint if is_dataclass(hint) else None


@pytest.mark.parametrize(
    ("moment", "opened"),
    [
        ("2026-07-06T06:59", False),  # 08:59 on a Monday in Amsterdam
        ("2026-07-06T07:00", True),
        ("2026-07-06T15:59", True),
        ("2026-07-06T16:00", False),
        ("2026-07-04T10:00", False),  # a Saturday
        ("2026-01-05T07:30", False),  # winter time: 08:30
    ],
)
def test_a_window_is_open_between_its_two_moments(moment: str, opened: bool) -> None:
    now = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    assert is_open("0 9 * * mon-fri", "0 18 * * mon-fri", "Europe/Amsterdam", now) is opened


def test_a_window_may_span_midnight_and_days_may_be_restricted_twice() -> None:
    night = datetime(2026, 7, 6, 2, tzinfo=UTC)
    assert is_open("0 22 * * *", "0 6 * * *", "UTC", night)
    assert not is_open("0 22 * * *", "0 6 * * *", "UTC", night.replace(hour=7))
    friday_or_13th = parse_cron("0 0 13 * 5")
    assert friday_or_13th.on(datetime(2026, 7, 13)) and friday_or_13th.on(datetime(2026, 7, 10))
    assert not friday_or_13th.on(datetime(2026, 7, 14))


@pytest.mark.parametrize("text", ["", "* * * *", "x * * * *", "* * 0 * *", "*/0 * * * *", "5-1 * * * *", "* * * 13 *"])
def test_what_is_no_cron_expression_is_refused(text: str) -> None:
    with pytest.raises(CronError):
        parse_cron(text)
