"""Collectors and proxies: every part that is named is defined, and patterns match what routers really write."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from typing import Any

import pytest

from charts.rendering import ROOT, Object, find
from recipes.building import engine, pods, rendered
from recipes.recipes import FOLDER, documents

sys.path.insert(0, str(ROOT / "tests" / "router"))
from bed import Bed, scenario

TRACES = "opentelemetry/collector.yaml"
LOGS = "logs/collector.yaml"
GATEWAY = "oidc/gateway.yaml"
FLAGS = json.loads((ROOT / "tests/crds/vllm_0.32_options.json").read_text())


def the(found: list[Any]) -> Any:
    """The only one."""
    assert len(found) == 1, found
    return found[0]


def collector(path: str) -> Object:
    return the(documents(FOLDER / path))


# -- collectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [TRACES, LOGS])
def test_every_part_of_a_pipeline_is_defined_and_used(path: str) -> None:
    configuration = collector(path)["spec"]["config"]
    pipelines = configuration["service"]["pipelines"].values()
    for part in ("receivers", "processors", "exporters"):
        assert {name for pipeline in pipelines for name in pipeline[part]} == set(configuration[part])


def flags() -> set[str]:
    """Every flag of vLLM 0.32, as recorded from it."""
    text = json.dumps(FLAGS)
    return set(re.findall(r"--[a-z][\w-]*", text))


@pytest.mark.parametrize("recipe", ["opentelemetry", "logs"])
def test_the_flags_that_a_recipe_adds_are_vllms(recipe: str) -> None:
    pod = the(list(pods(rendered(FOLDER / recipe / "values.yaml")).values())[:1])
    spec = find(rendered(FOLDER / recipe / "values.yaml"), "LLMCluster", "llmfleet-llama-3-70b-0")["spec"]
    added = spec["inferenceArgs"]["extraArgs"]
    assert {one.partition("=")[0] for one in added} <= flags()
    assert all(one in engine(pod)["args"] for one in added)


def test_engines_and_routers_send_to_the_ports_that_the_collector_opens() -> None:
    protocols = collector(TRACES)["spec"]["config"]["receivers"]["otlp"]["protocols"]
    ports = {name: one["endpoint"].rsplit(":", 1)[1] for name, one in protocols.items()}
    service = f"{collector(TRACES)['metadata']['name']}-collector.{collector(TRACES)['metadata']['namespace']}.svc"
    [values] = documents(FOLDER / "opentelemetry/values.yaml")
    fleet = values["fleet"]
    assert fleet["router"]["settings"]["otel"]["endpoint"] == f"http://{service}:{ports['http']}"
    [flag] = fleet["engine"]["inferenceArgs"]["extraArgs"]
    assert flag == f"--otlp-traces-endpoint=http://{service}:{ports['grpc']}"


def operators(receiver: str) -> dict[str, Any]:
    """Steps that a log line goes through, by type."""
    found = collector(LOGS)["spec"]["config"]["receivers"][receiver]["operators"]
    return {one["type"]: one for one in found}


@scenario
async def test_the_patterns_match_what_a_running_router_writes_and_what_its_engine_gets() -> None:
    async with Bed() as bed:
        answer = await bed.ask()
        [line] = await bed.access_log()
        [got] = [value for name, value in bed.engines[0].requests[0].headers if name.lower() == "x-request-id"]
    steps = operators("filelog/router")
    field = steps["move"]["from"].removeprefix("attributes.")
    assert line[field] == answer.headers["x-request-id"] == got
    # The layout of the time is Go's for what Python calls this.
    assert steps["time_parser"]["layout"] == "2006-01-02T15:04:05.999Z"
    datetime.strptime(line[steps["time_parser"]["parse_from"].removeprefix("attributes.")], "%Y-%m-%dT%H:%M:%S.%fZ")
    pattern = operators("filelog/engine")["regex_parser"]["regex"]
    for text in (f"Received request chatcmpl-{got}: params", f"Aborted request chatcmpl-{got}-r."):
        found = re.search(pattern, text)
        assert found and found["request_id"] == got
    assert {"tenant", "outcome"} <= set(line)


# -- tokens ----------------------------------------------------------------------------------------------------------


def of(kind: str) -> list[Object]:
    return [one for one in documents(FOLDER / GATEWAY) if one["kind"] == kind]


def test_every_team_gets_its_own_key_in_place_of_its_token() -> None:
    policy, route = the(of("SecurityPolicy"))["spec"], the(of("HTTPRoute"))
    provider = the(policy["jwt"]["providers"])
    header = the(provider["claimToHeaders"])["header"]
    assert provider["recomputeRoute"] is True
    assert the(policy["targetRefs"])["name"] == route["metadata"]["name"]
    filters = {one["metadata"]["name"]: one["spec"]["credentialInjection"] for one in of("HTTPRouteFilter")}
    *teams, rest = route["spec"]["rules"]
    for rule in teams:
        match = the(the(rule["matches"])["headers"])
        injected = filters.pop(the(rule["filters"])["extensionRef"]["name"])
        assert (match["name"], injected["overwrite"]) == (header, True)
        assert injected["credential"]["valueRef"]["name"] == f"gateway-{match['value']}"
    assert (filters, "filters" in rest) == ({}, False)


@scenario
async def test_a_router_takes_a_token_for_a_key_that_nobody_has() -> None:
    tenants = {"team-a": {"keys": ["sha256:" + "0" * 64]}}
    async with Bed(tenants=tenants) as bed:
        answer = await bed.ask(headers={"Authorization": "Bearer eyJhbGciOiJSUzI1NiJ9.eyJ0ZWFtIjoieCJ9.c2ln"})
    assert (answer.status, "x-request-id" in answer.headers) == (401, True)
