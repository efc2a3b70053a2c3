"""LLMClusterAutoscaler on the real apiserver: refusals, defaults, changes and the scale subresource."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from crds.crd_objects import AUTOSCALERS, FLEET, Object, disaggregated, monolithic, shape, template
from crds.refused_autoscalers import CASES, FROM_PROMETHEUS, SCHEDULE, Case, metric, metrics
from fakes.apiserver import Answer, Apiserver

pytestmark = pytest.mark.apiserver

DRY = {"dryRun": "All"}
MERGE = "application/merge-patch+json"
SCALED = f"{AUTOSCALERS}/scaled"
DEFAULTS: Object = {
    "paused": False,
    "dryRun": False,
    "policy": "WorkBudget",
    "coordination": {"maxPrefillPerDecode": 2},
    "source": {"type": "Direct"},
    "behavior": {
        "scaleUp": {"stabilizationSeconds": 0, "cooldownSeconds": 0, "step": 4},
        "scaleDown": {"stabilizationSeconds": 600, "cooldownSeconds": 60, "step": 1},
        "maxSurge": 1,
    },
    "victim": "LeastUtilized",
    "scaleToZero": {"afterSeconds": 0},
}
SOURCED = {"source": FROM_PROMETHEUS}
ALL_DIRECT = ["QueueLength", "TTFT", "TPOT", "RequestLatency", "RequestRate", "TokenRate", "RunningRequests"]

ACCEPTED: list[tuple[str, Object]] = [
    ("a fleet of one size", monolithic({"minInstances": 10})),
    ("a fleet that may be empty", monolithic({"minInstances": 0, "scaleToZero.afterSeconds": 600})),
    ("the largest fleet", monolithic({"minInstances": 10_000, "maxInstances": 10_000})),
    ("a role that is said", monolithic({"instanceTemplate.spec.role": "both"})),
    ("a prefix of 31 characters", monolithic({"instanceTemplate.namePrefix": "p" * 31})),
    ("a label value of 63 characters", monolithic({"instanceTemplate.labels": {**FLEET, "team": "t" * 63}})),
    ("a policy set from outside", monolithic({"policy": "External", "instances": 0})),
    ("a policy set from outside, not yet", monolithic({"policy": "External"})),
    ("every metric that needs no Prometheus", monolithic(metrics(*(metric(kind) for kind in ALL_DIRECT)))),
    ("thresholds a hair apart", monolithic(metrics(metric(up="0.000000002", down="0.000000001")))),
    ("a metric of one instance", monolithic(metrics(metric("KVCacheUtilization", "0.9", "0.5", per="Instance")))),
    ("a query", monolithic({**metrics(metric("Custom", query="sum(up)")), **SOURCED})),
    ("GPU figures from Prometheus", monolithic({**metrics(metric("GPUUtilization")), **SOURCED})),
    (
        "both fleets by metrics",
        disaggregated({"policy": "Metrics", "prefill.metrics": [metric()], "decode.metrics": [metric()]}),
    ),
    (
        "both fleets down to zero",
        disaggregated({"prefill.minInstances": 0, "decode.minInstances": 0, "scaleToZero.afterSeconds": 1}),
    ),
    ("a role's own behavior", disaggregated({"prefill.behavior": {"scaleUp": {"step": 2}}})),
    ("a cron window", monolithic({"workBudget.forecast.schedule": [{**SCHEDULE, "timeZone": "Europe/Amsterdam"}]})),
    (
        "capacity by hand",
        monolithic({"workBudget.capacity": {"profile": "auto", "coefficients": {"a": "", "b": "0.000012"}}}),
    ),
    (
        "an objective",
        monolithic({"workBudget.slo": {"ttftSeconds": "2", "tpotSeconds": "0.05", "errorBudget": ".001"}}),
    ),
    ("a budget just below everything", monolithic({"workBudget.slo.errorBudget": "0.999"})),
    (
        "a connector for both",
        disaggregated(
            {
                "prefill.instanceTemplate.spec.kvTransfer": {"connector": "NixlConnector"},
                "decode.instanceTemplate.spec.kvTransfer": {"connector": "NixlConnector"},
            }
        ),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_bad_autoscaler_is_refused_with_the_field_and_the_remedy(server: Apiserver, case: Case) -> None:
    _, bad, message, path = case
    answer = server.call("POST", AUTOSCALERS, bad, params=DRY)
    assert answer.status in (400, 422), answer.body
    assert message in answer.message
    assert path in answer.message


def test_the_table_names_every_case_once() -> None:
    assert len({case[0] for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case[0])
def test_a_good_autoscaler_is_accepted(server: Apiserver, case: tuple[str, Object]) -> None:
    answer = server.call("POST", AUTOSCALERS, case[1], params=DRY)
    assert answer.status == 201, answer.message


@pytest.mark.parametrize("made", [monolithic(), disaggregated()], ids=["monolithic", "disaggregated"])
def test_exactly_the_documented_defaults_are_filled(server: Apiserver, made: Object) -> None:
    answer = server.call("POST", AUTOSCALERS, made, params=DRY)
    assert answer.body["spec"] == {**made["spec"], **DEFAULTS}
    assert answer.body["status"] == {"observedGeneration": -1}


def test_two_templates_filled_to_their_bounds_stay_within_the_cost_of_one_request(server: Apiserver) -> None:
    arguments = [f"--x-{index}=".ljust(3800, "v") for index in range(64)]
    variables = [{"name": f"A{index}", "value": "v"} for index in range(128)]
    adapters = [{"name": f"a{index}", "path": f"/adapters/{index}"} for index in range(64)]
    quantities = {f"example.com/r{index}": "1" for index in range(16)}
    full = {
        "inferenceArgs": {"extraArgs": arguments, "lora": {"adapters": adapters}},
        "env": variables,
        "resources": {"limits": quantities, "requests": quantities},
        "network": {"resources": quantities},
        "servedModelNames": [f"m{index}" for index in range(16)],
    }
    labels = {**FLEET, **{f"l{index}": "v" * 63 for index in range(15)}}
    made = disaggregated({"scaleTargetRef.labelSelector.matchLabels": labels})
    for role in ("prefill", "decode"):
        part = made["spec"][role]["instanceTemplate"]
        part["labels"] = labels
        part["spec"] |= full
    answer = server.call("POST", AUTOSCALERS, made, params=DRY)
    assert answer.status == 201, answer.message


def test_a_partial_behavior_is_completed(server: Apiserver) -> None:
    made = monolithic({"behavior": {"scaleUp": {"step": 8}}})
    behavior = server.call("POST", AUTOSCALERS, made, params=DRY).body["spec"]["behavior"]
    assert behavior == {**DEFAULTS["behavior"], "scaleUp": {**DEFAULTS["behavior"]["scaleUp"], "step": 8}}


def test_a_metric_is_for_the_fleet_over_a_minute_unless_said(server: Apiserver) -> None:
    spec = server.call("POST", AUTOSCALERS, monolithic(metrics(metric())), params=DRY).body["spec"]
    assert spec["metrics"] == [{**metric(), "per": "Fleet", "windowSeconds": 60}]


def test_a_role_block_is_left_as_written(server: Apiserver) -> None:
    made = disaggregated({"prefill.behavior": {"scaleUp": {}}})
    spec = server.call("POST", AUTOSCALERS, made, params=DRY).body["spec"]
    assert spec["prefill"] == made["spec"]["prefill"]


@pytest.fixture
def scaled(server: Apiserver) -> Iterator[Object]:
    """An autoscaler that an HPA drives, there for the length of a test."""
    answer = server.call("POST", AUTOSCALERS, monolithic({"policy": "External", "instances": 2}, name="scaled"))
    assert answer.status == 201, answer.message
    yield answer.body
    server.call("DELETE", SCALED)


def set_scale(server: Apiserver, replicas: int) -> Answer:
    """What an HPA does."""
    return server.call("PATCH", f"{SCALED}/scale", {"spec": {"replicas": replicas}}, content_type=MERGE)


@pytest.mark.usefixtures("scaled")
def test_the_scale_subresource_sets_whole_instances(server: Apiserver) -> None:
    assert set_scale(server, 5).status == 200
    assert server.call("GET", SCALED).body["spec"]["instances"] == 5


@pytest.mark.usefixtures("scaled")
def test_the_scale_subresource_tells_count_and_selector(server: Apiserver) -> None:
    status = {"currentInstances": 3, "selector": "serving.ai/fleet=prod"}
    server.call("PATCH", f"{SCALED}/status", {"status": status}, content_type=MERGE)
    scale = server.call("GET", f"{SCALED}/scale").body
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 3, "selector": "serving.ai/fleet=prod"}


@pytest.mark.usefixtures("scaled")
def test_a_negative_scale_is_refused(server: Apiserver) -> None:
    assert set_scale(server, -1).status == 422


@pytest.mark.usefixtures("scaled")
def test_an_hpa_cannot_drive_a_fleet_that_is_not_external(server: Apiserver) -> None:
    answer = server.call("PATCH", SCALED, {"spec": {"policy": "WorkBudget"}}, content_type=MERGE)
    assert answer.status == 200, answer.message  # the value an HPA left behind does not block the switch
    refusal = set_scale(server, 7)
    assert refusal.status == 422
    assert "instances is only for policy External, where an HPA or KEDA sets it" in refusal.message
    again = server.call("PATCH", SCALED, {"spec": {"maxInstances": 20}}, content_type=MERGE)
    assert again.status == 200, again.message


@pytest.mark.usefixtures("scaled")
def test_a_template_may_change_its_shape(server: Apiserver) -> None:
    other = {**shape(), "role": "both", "replicas": 1, "gpusPerPod": 8, "pipelineParallelSize": 1}
    changed = {"spec": {"instanceTemplate": {**template("llama-"), "spec": other}}}
    answer = server.call("PATCH", SCALED, changed, content_type=MERGE)
    assert answer.status == 200, answer.message


@pytest.mark.usefixtures("scaled")
def test_the_table_shows_the_last_decision(server: Apiserver) -> None:
    decision = {"reason": "ForecastAboveCapacity", "message": "offered load 1.83 instances"}
    observed = [{"name": "offeredLoad", "value": "1.83", "unit": "instances", "ageSeconds": 4}]
    counts: dict[str, Any] = {"currentInstances": 2, "readyInstances": 1, "desiredInstances": 3}
    status = {**counts, "decision": decision, "observedMetrics": observed, "lastScaleTime": None}
    answer = server.call("PATCH", f"{SCALED}/status", {"status": status}, content_type=MERGE)
    assert answer.status == 200, answer.message
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    shown = server.session.get(server.url + SCALED, headers=accept, timeout=10).json()
    names = [column["name"] for column in shown["columnDefinitions"]]
    assert names == ["Name", "Mode", "Min", "Max", "Current", "Ready", "Desired", "Reason", "Age"]
    assert shown["rows"][0]["cells"][1:8] == ["monolithic", 2, 10, 2, 1, 3, "ForecastAboveCapacity"]


def test_a_name_that_is_no_label_is_refused(server: Apiserver) -> None:
    answer = server.call("POST", AUTOSCALERS, monolithic(name="a" * 64), params=DRY)
    assert "metadata.name must have at most 63 characters" in answer.message
    assert server.call("POST", AUTOSCALERS, monolithic(name="a" * 63), params=DRY).status == 201


def test_a_status_has_no_room_for_other_fields(server: Apiserver) -> None:
    made = {**monolithic(), "status": {"phase": "Good"}}
    assert 'unknown field "status.phase"' in server.call("POST", AUTOSCALERS, made, params=DRY).message
