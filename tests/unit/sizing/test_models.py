"""Parameters and bytes of models are what their makers say."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.sizing.model import read_model
from llmfleet.sizing.quantization import ConfigError

from .shared import config, model


# Billions of parameters as the model cards state them, all and for one token.
@pytest.mark.parametrize(
    ("name", "all_of_them", "active"),
    [
        ("llama-3.1-8b", 8.03, 8.03),
        ("llama-3.3-70b", 70.6, 70.6),
        ("qwen3-32b", 32.8, 32.8),
        ("qwen3-30b-a3b", 30.5, 3.3),
        ("mixtral-8x7b", 46.7, 12.9),
        ("deepseek-v3", 671.0, 37.0),
        ("gpt-oss-120b", 116.8, 5.1),
        ("mistral-7b", 7.25, 7.25),
        ("qwen2.5-1.5b", 1.54, 1.54),
        ("qwen2.5-0.5b", 0.494, 0.494),
        ("gemma-3-27b", 27.0, 27.0),
    ],
)
def test_parameters_are_those_of_the_model_card(name: str, all_of_them: float, active: float) -> None:
    found = model(name)
    assert found.parameters / 1e9 == pytest.approx(all_of_them, rel=0.01)
    # Cards differ in whether the embedding table counts as active.
    assert found.active_parameters / 1e9 == pytest.approx(active, rel=0.10)


# GiB of the published checkpoints.
@pytest.mark.parametrize(
    ("name", "gib"),
    [("llama-3.1-8b", 14.96), ("gpt-oss-120b", 60.8), ("mistral-7b-awq", 3.88), ("deepseek-v3", 627.0)],
)
def test_weights_take_what_the_checkpoint_takes(name: str, gib: float) -> None:
    assert model(name).weight_bytes / 2**30 == pytest.approx(gib, rel=0.02)


@pytest.mark.parametrize(
    ("name", "kind", "token"),
    [
        ("llama-3.1-8b", "GQA", 131_072),
        ("llama-3.3-70b", "GQA", 327_680),
        ("deepseek-v3", "MLA", 61 * 576 * 2),
        ("mixtral-8x7b", "GQA", 131_072),
    ],
)
def test_kv_of_a_token_follows_the_kind_of_attention(name: str, kind: str, token: int) -> None:
    found = model(name)
    assert found.attention.kind == kind
    assert found.kv_bytes(2, 8192) == token
    assert found.kv_bytes(1, 8192) == token / 2


def test_a_sliding_layer_keeps_only_its_window() -> None:
    found = model("gpt-oss-120b")
    full = 36 * 2 * 8 * 64 * 2
    assert found.kv_bytes(2, 64) == full
    assert found.kv_bytes(2, 12_800) == pytest.approx(full / 2 * 1.01)


def test_five_of_six_layers_of_gemma_slide() -> None:
    assert model("gemma-3-27b").attention.sliding_layers == 52


def test_mla_is_stored_on_every_gpu_and_few_kv_heads_are_repeated() -> None:
    assert model("deepseek-v3").kv_copies(8) == 8
    assert model("llama-3.3-70b").kv_copies(8) == 1
    assert model("qwen3-30b-a3b").kv_copies(8) == 2


@pytest.mark.parametrize(("name", "tensor", "works"), [("qwen2.5-0.5b", 4, False), ("qwen2.5-0.5b", 2, True)])
def test_heads_must_divide(name: str, tensor: int, works: bool) -> None:
    assert (not model(name).splits(tensor)) is works


def test_a_batch_reads_the_experts_that_its_tokens_chose() -> None:
    experts = model("gpt-oss-120b").experts
    assert experts is not None
    assert experts.touched(1) == pytest.approx(4 / 128)
    assert experts.touched(32) == pytest.approx(0.638, rel=0.01)
    assert model("gpt-oss-120b").read_bytes(1) < 0.1 * model("gpt-oss-120b").read_bytes(1000)


def test_fp8_on_load_halves_matrices_and_leaves_embeddings() -> None:
    plain, small = model("llama-3.3-70b"), model("llama-3.3-70b", "fp8")
    assert plain.weight_bytes - small.weight_bytes == plain.attention_parameters + plain.dense_parameters


def test_the_index_of_the_checkpoint_wins_over_counting() -> None:
    assert read_model(config("llama-3.1-8b"), checkpoint_bytes=123).weight_bytes == 123


def test_the_index_does_not_count_when_weights_change_on_load() -> None:
    found = read_model(config("llama-3.1-8b"), quantization="fp8", checkpoint_bytes=123)
    assert found.weight_bytes == found.counted_bytes


@pytest.mark.parametrize(
    ("written", "name", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq", 4.156),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq", 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", 4.5),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", 8),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 8, "type": "float"}, "input_activations": {"num_bits": 8}}
                },
            },
            "fp8",
            8,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}},
            },
            "w4a16",
            4.125,
        ),
    ],
)
def test_quantization_of_checkpoints_is_understood(written: dict[str, Any], name: str, bits: float) -> None:
    found = read_model({**config("llama-3.1-8b"), "quantization_config": written}).quantization
    assert (found.name, found.bits) == (name, pytest.approx(bits, abs=0.01))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": None}, "hidden_size: missing"),
        ({"hidden_size": "big"}, "hidden_size: 'big' is not a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is too small"),
        ({"num_key_value_heads": 7}, "num_key_value_heads: 7 does not divide"),
        ({"model_type": "mamba2"}, "mamba2: layers without a KV cache"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention: layers without"),
        ({"quantization_config": {"quant_method": "magic"}}, "quantization_config.quant_method: magic is not one of"),
        ({"quantization_config": {"quant_method": "awq", "bits": "four"}}, "quantization_config.bits: 'four'"),
        ({"num_local_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok: 5 is more than"),
    ],
)
def test_a_fault_names_the_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_model({**config("llama-3.1-8b"), **change})
    assert said in str(caught.value)


def test_a_quantized_checkpoint_is_not_quantized_again() -> None:
    with pytest.raises(ConfigError, match="the checkpoint is awq already"):
        read_model(config("mistral-7b-awq"), quantization="fp8")


ODD = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(), max_size=2)
)
KEYS = sorted({*config("deepseek-v3"), *config("gpt-oss-120b"), *config("qwen3-30b-a3b"), "layer_types", "text_config"})
QUANTIZED = st.fixed_dictionaries(
    {"quant_method": st.sampled_from(["awq", "fp8", "compressed-tensors", "modelopt", ""])},
    optional={"bits": ODD, "group_size": ODD, "config_groups": ODD | st.just({"a": {"weights": {"num_bits": 4}}})},
)


@given(
    name=st.sampled_from(["llama-3.1-8b", "deepseek-v3", "gpt-oss-120b", "gemma-3-27b"]),
    changes=st.dictionaries(st.sampled_from(KEYS), ODD, max_size=3),
    quantized=st.none() | QUANTIZED,
)
def test_whatever_a_config_says_it_is_a_model_or_a_fault(
    name: str, changes: dict[str, Any], quantized: dict[str, Any] | None
) -> None:
    written = {**config(name), **changes, **({"quantization_config": quantized} if quantized else {})}
    try:
        found = read_model(written)
    except ConfigError as error:
        assert ": " in str(error)
        return
    assert found.parameters > 0
    assert found.kv_bytes(2, 1000) > 0
    assert 0 < found.weight_bytes < math.inf
    assert found.kv_copies(8) >= 1


def test_a_list_is_no_config() -> None:
    with pytest.raises(ConfigError, match="not an object"):
        read_model([])  # type: ignore[arg-type]
