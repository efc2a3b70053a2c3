"""`null` takes a value away: what a template cannot do without is refused by name, everything else may go.

Helm drops such a key before the schema is looked at, the default with it, so nothing but `required` can notice it.
Without that an alert had no threshold and a network policy no ports, which means all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from charts.rendering import CHARTS, PROMETHEUS_OPERATOR, Object, RenderError, nested, render

pytestmark = pytest.mark.helm

SUBCHARTS = {"controllers": "llmfleet-controllers", "fleet": "llmfleet-fleet", "monitoring": "llmfleet-monitoring"}
MONITORED: Mapping[str, Any] = {"monitoring": {"enabled": True}}
# What a model needs may be said by the model, so only a template can miss it.
ELSEWHERE = {"fleet.engine.image.repository", "fleet.engine.image.tag"}


def merged(one: Any, other: Any) -> Any:
    """Two trees of values as Helm puts them together."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    return one | {key: merged(one.get(key), value) for key, value in other.items()}


def removable(values: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Every key with a default that the schema lets go."""
    for key, value in values.items():
        if key not in schema.get("required", []):
            yield f"{path}.{key}"
        elif isinstance(value, dict):
            yield from removable(value, schema.get("properties", {}).get(key, {}), f"{path}.{key}")


def all_removable() -> set[str]:
    """The same of all charts; a key of the umbrella chart is one of theirs."""
    found: set[str] = set()
    for name, chart in SUBCHARTS.items():
        values = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
        schema = json.loads((CHARTS / chart / "values.schema.json").read_text())
        found |= set(removable(values, schema, name))
    return found - ELSEWHERE


def install(values: Mapping[str, Any], binary: str = "helm") -> list[Object]:
    return render("dev", merged(MONITORED, values), apis=PROMETHEUS_OPERATOR, binary=binary)


def test_everything_that_may_be_taken_away_may_be_taken_away_at_once() -> None:
    paths = all_removable()
    assert {"controllers.operator.resources", "fleet.router.settings", "monitoring.rules.alertLabels"} <= paths
    values: dict[str, Any] = {}
    for path in paths - {"fleet.models"}:
        values = merged(values, nested(path, None))
    objects = install(values)
    assert len(objects) > 40
    assert not [word for word in ("%!", "<nil>", "<no value>") if word in json.dumps(objects)]


@pytest.mark.parametrize("binary", ["helm", "helm3"])
@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("monitoring.alerts.LlmfleetHighQueueDepth.threshold", "/alerts/LlmfleetHighQueueDepth"),
        ("monitoring.alerts.LlmfleetDrainStuck.for", "/alerts/LlmfleetDrainStuck"),
        ("monitoring.slo.availability.objective", "/slo/availability"),
        ("monitoring.slo.timeToFirstToken", "/slo"),
        ("controllers.networkPolicy.egress.apiserverPorts", "/networkPolicy/egress"),
        ("controllers.autoscaler.intervalSeconds", "/autoscaler"),
        ("fleet.router.service.port", "/router/service"),
        ("fleet.engine.image", "/engine"),
        ("fleet.redis.maxmemory", "/redis"),
        ("crds.upgrade", ""),
    ],
)
def test_what_a_template_needs_is_refused_by_its_name(path: str, place: str, binary: str) -> None:
    with pytest.raises(RenderError) as refused:
        install(nested(path, None), binary=binary)
    assert f"at '{place}': missing property '{path.rpartition('.')[2]}'" in str(refused.value)


def test_every_number_and_word_of_an_alert_is_needed() -> None:
    schema = json.loads((CHARTS / "llmfleet-monitoring/values.schema.json").read_text())
    alerts = schema["properties"]["alerts"]
    assert "required" not in alerts, "null is how an alert is left out"
    for name, alert in alerts["properties"].items():
        assert set(alert["required"]) == set(alert["properties"]), name


def test_null_leaves_an_alert_out() -> None:
    text = json.dumps(install(nested("monitoring.alerts.LlmfleetHighGPUUtil", None)))
    assert '"LlmfleetHighQueueDepth"' in text
    assert '"LlmfleetHighGPUUtil"' not in text
