"""A spec is spelled as vLLM spells it, and a flag the operator owns is known in every spelling vLLM takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmfleet.api.parse import parse_spec
from llmfleet.deploy.flags import OWNED_FLAGS, OWNED_SHORT, engine_args, owned_flag
from llmfleet.deploy.objects.environment import OWNED_ENV

OWNED = Path(__file__).parents[3] / "charts/llmfleet-crds/schema/owned.yaml"
SMALLEST: Mapping[str, Any] = {
    "model": "org/model",
    "image": "vllm:1",
    "replicas": 1,
    "gpusPerPod": 1,
    "tensorParallelSize": 1,
}


def args(**change: Any) -> list[str]:
    return engine_args(parse_spec({**SMALLEST, **change}), "a")


def value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_an_unset_field_gives_no_flag() -> None:
    assert args() == [
        *("serve", "org/model", "--port", "8000", "--served-model-name", "org/model"),
        *("--tensor-parallel-size", "1", "--shutdown-timeout", "10"),
    ]


def test_a_group_is_told_its_size_its_rank_and_its_leader() -> None:
    arguments = args(replicas=2, tensorParallelSize=2)
    assert value(arguments, "--nnodes") == "2"
    assert value(arguments, "--node-rank") == "$(LLMFLEET_RANK)"
    assert value(arguments, "--master-addr") == "a-0.a-group"
    assert value(arguments, "--master-port") == "8001"


def test_the_first_served_name_comes_first() -> None:
    arguments = args(servedModelNames=["llama", "big"])
    start = arguments.index("--served-model-name")
    assert arguments[start + 1 : start + 3] == ["llama", "big"]


@pytest.mark.parametrize(
    ("field", "switch", "flag"),
    [
        ("enablePrefixCaching", True, "--enable-prefix-caching"),
        ("enablePrefixCaching", False, "--no-enable-prefix-caching"),
        ("enforceEager", True, "--enforce-eager"),
        ("trustRemoteCode", False, "--no-trust-remote-code"),
    ],
)
def test_a_switch_has_two_spellings(field: str, switch: bool, flag: str) -> None:
    assert flag in args(inferenceArgs={field: switch})


def test_speculation_is_one_json_value_without_empty_fields() -> None:
    decoding = {"enabled": True, "method": "ngram", "model": "", "numSpeculativeTokens": 5}
    found = value(args(inferenceArgs={"speculativeDecoding": decoding}), "--speculative-config")
    assert json.loads(found) == {"method": "ngram", "num_speculative_tokens": 5}
    assert "--speculative-config" not in args(inferenceArgs={"speculativeDecoding": {**decoding, "enabled": False}})


@pytest.mark.parametrize(
    ("role", "connector", "kv_role"),
    [
        ("prefill", "NixlConnector", "kv_producer"),
        ("decode", "NixlConnector", "kv_consumer"),
        ("decode", "MultiConnector", "kv_both"),
    ],
)
def test_the_kv_role_follows_from_the_role_and_the_connector(role: str, connector: str, kv_role: str) -> None:
    arguments = args(role=role, kvTransfer={"connector": connector})
    assert json.loads(value(arguments, "--kv-transfer-config"))["kv_role"] == kv_role


def test_extra_arguments_come_last() -> None:
    assert args(inferenceArgs={"extraArgs": ["--stream-interval", "2"]})[-2:] == ["--stream-interval", "2"]


@pytest.mark.parametrize(
    ("argument", "flag"),
    [
        ("--port", "--port"),
        ("--port=1", "--port"),
        ("--por", "--port"),
        ("--tensor_parallel_size", "--tensor-parallel-size"),
        ("--tensor-par", "--tensor-parallel-size"),
        ("--kv-tr.kv_connector", "--kv-transfer-config"),
        ("--no-enforce-eager", "--no-enforce-eager"),
        ("-tp", "-tp"),
        ("-t", "-tp"),
        ("-p=2", "-pp"),
        ("-s", "-sc"),
        ("-d", "-dp"),
        ("-pc", "-pcp"),
        ("-n4", "-n"),
        ("-q=fp8", "-q"),
        ("-tpx", None),
        ("-O3", None),
        ("--no-headless", None),
        ("--stream-interval", None),
        ("--max-log-len=0", None),
        ("value", None),
        ("-", None),
        ("--", None),
        ("2", None),
    ],
)
def test_an_owned_flag_is_known_in_every_spelling(argument: str, flag: str | None) -> None:
    assert owned_flag(argument) == flag


def test_the_operator_and_the_crd_own_the_same_names() -> None:
    owned = yaml.safe_load(OWNED.read_text(encoding="utf-8"))
    flags = [name for item in owned["flags"] for name in (item["flag"], *item.get("aliases", []))]
    assert set(flags) == set(OWNED_FLAGS)
    assert {item["short"] for item in owned["flags"] if "short" in item} == set(OWNED_SHORT)
    assert set(owned["env"]) == set(OWNED_ENV)
