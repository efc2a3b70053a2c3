"""A model with prefill and decode blocks: what it renders, that it pairs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from charts.rendering import Object, find, of_kind, refusal, render
from llmfleet.api.autoscaler import Mode, parse_autoscaler
from llmfleet.api.parse import parse_spec
from llmfleet.deploy.objects.revision import engine_revision
from llmfleet.router.limits import parse_settings

pytestmark = pytest.mark.helm

CONNECTOR = {"connector": "NixlConnector", "port": 5600}
SHARED = {"instances": None, "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1, "kvTransfer": CONNECTOR}


def model(**fields: Any) -> dict[str, Any]:
    """Values over the dev profile, whose model gets other fields."""
    return {"fleet": {"models": {"tiny": SHARED | fields}}}


def fixed(**fields: Any) -> list[Object]:
    """The LLMClusters of a model of fixed size."""
    blocks = {"prefill": {"instances": 1}, "decode": {"instances": 2}}
    return of_kind(render("dev", model(**blocks | fields)), "LLMCluster")


def test_each_block_is_that_many_instances_of_its_role_in_one_fleet() -> None:
    clusters = fixed()
    assert [o["metadata"]["name"] for o in clusters] == [
        "demo-tiny-decode-0",
        "demo-tiny-decode-1",
        "demo-tiny-prefill-0",
    ]
    assert [o["spec"]["role"] for o in clusters] == ["decode", "decode", "prefill"]
    assert {o["metadata"]["labels"]["serving.ai/fleet"] for o in clusters} == {"demo-tiny"}
    assert len({engine_revision(parse_spec(o["spec"]), o["spec"]["image"]) for o in clusters}) == 1, (
        "they can be paired"
    )


def test_a_block_says_what_differs_and_merges_environment_variables_by_name() -> None:
    env = [{"name": "A", "value": "shared"}, {"name": "B", "value": "shared"}]
    clusters = fixed(
        env=env,
        inferenceArgs={"maxModelLen": 512, "maxNumSeqs": 8},
        prefill={"instances": 1, "inferenceArgs": {"maxNumSeqs": 2}, "env": [{"name": "B", "value": "own"}]},
    )
    decode, prefill = clusters[0]["spec"], clusters[-1]["spec"]
    assert prefill["inferenceArgs"] == decode["inferenceArgs"] | {"maxNumSeqs": 2}
    own = {v["name"]: v["value"] for v in prefill["env"]}
    assert (own["A"], own["B"]) == ("shared", "own")
    assert {v["name"]: v["value"] for v in decode["env"]}["B"] == "shared"


def test_blocks_that_scale_are_one_autoscaler_with_a_template_for_each_role() -> None:
    objects = render("production-disaggregated")
    assert of_kind(objects, "LLMCluster") == []
    scaler = find(objects, "LLMClusterAutoscaler", "demo-llama-3-70b")["spec"]
    spec = parse_autoscaler(scaler)
    assert spec.mode is Mode.DISAGGREGATED and len(spec.fleets()) == 2
    specs = [parse_spec(scaler[role]["instanceTemplate"]["spec"]) for role in ("prefill", "decode")]
    assert [s.role for s in specs] == ["prefill", "decode"]
    assert len({engine_revision(s, s.image) for s in specs}) == 1, "they can be paired"
    for role in ("prefill", "decode"):
        template = scaler[role]["instanceTemplate"]
        assert scaler["scaleTargetRef"]["labelSelector"]["matchLabels"].items() <= template["labels"].items()
        assert template["namePrefix"].endswith(f"{role}-") and len(template["namePrefix"]) <= 31


def test_the_router_takes_the_settings_of_the_profile() -> None:
    config = find(render("production-disaggregated"), "ConfigMap", "demo-router-settings")
    (text,) = config["data"].values()
    rules = parse_settings(yaml.safe_load(text)).disaggregation
    assert (rules.fallback, rules.bypass_prefill.min_prompt_tokens) == ("prefillOnDecode", 256)


def test_engines_of_a_fleet_reach_each_other_whatever_their_role() -> None:
    policy = find(render("production-disaggregated"), "NetworkPolicy", "demo-llama-3-70b-engine")["spec"]
    among = policy["ingress"][0]
    assert "ports" not in among and among["from"] == [{"podSelector": policy["podSelector"]}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefill": {"instances": 1}}, "models.tiny: prefill and decode belong together"),
        (
            {"prefill": {"instances": 1}, "decode": {"instances": 1}, "instances": 2},
            "sizes and roles belong into them, not beside them",
        ),
        (
            {"prefill": {"instances": 1}, "decode": {"instances": 1}, "role": "decode"},
            "sizes and roles belong into them, not beside them",
        ),
        ({"prefill": {"instances": 1}, "decode": {"env": []}}, "models.tiny.decode needs one size"),
        (
            {"prefill": {"instances": 1}, "decode": {"instances": 1, "autoscaling": {"minInstances": 1}}},
            "models.tiny.decode needs one size",
        ),
        (
            {"prefill": {"instances": 1}, "decode": {"autoscaling": {"minInstances": 1, "maxInstances": 2}}},
            "prefill and decode are scaled together",
        ),
        (
            {
                "prefill": {"autoscaling": {"minInstances": 3, "maxInstances": 2}},
                "decode": {"autoscaling": {"minInstances": 1, "maxInstances": 2}},
            },
            "models.tiny.prefill.autoscaling needs minInstances",
        ),
        (
            {"prefill": {"instances": 1}, "decode": {"instances": 1}, "autoscaling": {"policy": "WorkBudget"}},
            "models.tiny.autoscaling is what the autoscaling of both blocks has in common",
        ),
        ({"prefill": {"instances": 1}, "decode": {"instances": 1, "gpusPerPod": 2}}, "must equal replicas (1) x gpus"),
        ({"prefill": {"instances": 1, "role": "decode"}, "decode": {"instances": 1}}, "properties 'role' not allowed"),
        ({"prefill": {"size": 1}, "decode": {"instances": 1}}, "additional properties 'size' not allowed"),
    ],
)
def test_blocks_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    assert message in refusal(model(**fields))


def test_split_requests_need_the_router() -> None:
    values = model(prefill={"instances": 1}, decode={"instances": 1})
    values["fleet"] |= {"router": {"enabled": False}, "redis": {"enabled": False}}
    assert "only the router can split requests" in refusal(values)


def test_a_prefill_engine_without_a_connector_is_refused() -> None:
    values = model(prefill={"instances": 1}, decode={"instances": 1})
    del values["fleet"]["models"]["tiny"]["kvTransfer"]
    assert "write kvTransfer, such as {connector: NixlConnector, port: 5600}" in refusal(values)
