"""What is planned fits, is fast enough, and agrees with what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.capacity.profiles import PROFILES
from llmfleet.sizing.advice import advise
from llmfleet.sizing.cost import cost_of
from llmfleet.sizing.gpus import GPUS, Gpu, find_gpu
from llmfleet.sizing.memory import Cut, Engine, split_memory
from llmfleet.sizing.mig import fits, partition
from llmfleet.sizing.model import Model
from llmfleet.sizing.plan import CannotPlan, make_plan
from llmfleet.sizing.speed import DOUBTFUL, estimate, find_speed

from .shared import ENGINE, model, workload

MODELS = {
    "llama-70b-fp8": ("llama-3.3-70b", "fp8"),
    "qwen3-32b-bf16": ("qwen3-32b", ""),
    "llama-8b-bf16": ("llama-3.1-8b", ""),
    "gpt-oss-120b-fp4": ("gpt-oss-120b", ""),
}


def measured(name: str) -> tuple[Model, Gpu, Cut]:
    family, gpu, tensor = name.rsplit("-", 2)
    return model(*MODELS[family]), GPUS[gpu], Cut(tensor=int(tensor.removeprefix("tp")))


@pytest.mark.parametrize("name", PROFILES)
def test_the_estimated_fixed_part_of_a_step_is_close_to_the_measured_one(name: str) -> None:
    found = estimate(*measured(name), ENGINE, batch=8, context=2000)
    assert found.a == pytest.approx(PROFILES[name].steps.a, rel=0.15)


@pytest.mark.parametrize("name", [name for name in PROFILES if name not in DOUBTFUL])
def test_the_estimated_prefill_is_close_to_the_measured_one(name: str) -> None:
    found = estimate(*measured(name), ENGINE, batch=8, context=2000)
    assert found.c == pytest.approx(PROFILES[name].steps.c, rel=0.22)


@pytest.mark.parametrize("name", [name for name in PROFILES if "gpt" not in name])
def test_kv_tokens_are_close_to_those_of_the_profiles(name: str) -> None:
    found = split_memory(*measured(name), ENGINE).tokens
    assert found == pytest.approx(PROFILES[name].kv_tokens, rel=0.20)


def test_what_was_measured_is_used_as_it_is() -> None:
    found = find_speed(*measured("llama-70b-fp8-h100-tp8"), ENGINE, batch=8, context=2000)
    assert (found.profile, found.steps) == ("llama-70b-fp8-h100-tp8", PROFILES["llama-70b-fp8-h100-tp8"].steps)


def test_a_doubtful_measurement_is_not_used() -> None:
    assert not find_speed(*measured("llama-70b-fp8-h100-tp2"), ENGINE, batch=8, context=2000).profile


def test_seventy_billion_parameters_need_two_gpus_of_eighty_gib_in_fp8() -> None:
    plan = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload())
    assert plan.chosen.cut == Cut(tensor=2)
    assert plan.options[0].problem == "KV for 7117 tokens, one request may have 8192"


def test_in_sixteen_bit_they_need_four() -> None:
    plan = make_plan(model("llama-3.3-70b"), GPUS["h100"], ENGINE, workload())
    assert plan.chosen.cut.tensor >= 4
    assert plan.options[0].problem == "61.6 GiB too little memory on each GPU"


def test_a_strict_objective_takes_a_wider_cut() -> None:
    wide = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload(tpot=0.015))
    assert wide.chosen.cut.tensor >= 4
    assert "a step takes 16.6 ms by itself" in wide.options[1].problem


def test_a_model_larger_than_a_node_becomes_a_pipeline_over_nodes() -> None:
    plan = make_plan(model("deepseek-v3"), GPUS["h100"], ENGINE, workload())
    assert plan.chosen.cut.tensor == 8
    assert plan.chosen.cut.pipeline >= 2


def test_on_one_node_of_larger_gpus_it_needs_no_pipeline() -> None:
    assert make_plan(model("deepseek-v3"), GPUS["h200"], ENGINE, workload()).chosen.cut == Cut(tensor=8)


def test_an_objective_nobody_meets_is_refused_with_each_reason() -> None:
    with pytest.raises(CannotPlan) as caught:
        make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload(tpot=0.004))
    assert "TP8: a step takes 8.8 ms by itself, the objective is 4 ms" in str(caught.value)


def test_a_prompt_that_takes_too_long_by_itself_is_refused() -> None:
    with pytest.raises(CannotPlan, match="the prompt alone takes"):
        make_plan(model("llama-3.1-8b"), GPUS["l4"], Engine(max_model_len=32768), workload(prompt=30000, tpot=0.2))


def test_prompt_tokens_that_are_cached_are_not_computed() -> None:
    cold = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload())
    warm = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload(cached=0.8))
    assert warm.chosen.gpus < cold.chosen.gpus


def test_long_contexts_are_limited_by_memory() -> None:
    long = workload(rate=5, prompt=60_000, output=2000, ttft=30, cached=0.95)
    plan = make_plan(model("llama-3.1-8b"), GPUS["a100-40"], Engine(max_model_len=65536), long, [Cut()])
    assert plan.chosen.sized is not None
    assert plan.chosen.sized.limit == "memory"


def test_few_sequences_limit_by_slots() -> None:
    few = Engine(max_model_len=8192, max_num_seqs=4)
    plan = make_plan(model("llama-3.1-8b"), GPUS["h100"], few, workload(), [Cut()])
    assert plan.chosen.sized is not None
    assert plan.chosen.sized.limit == "slots"


@given(rate=st.floats(0.1, 500), more=st.floats(1, 10), prompt=st.floats(50, 6000), output=st.floats(10, 1500))
def test_more_load_never_needs_fewer_gpus(rate: float, more: float, prompt: float, output: float) -> None:
    small, large = (
        make_plan(
            model("llama-3.1-8b"),
            GPUS["h100"],
            ENGINE,
            workload(rate=found, mean_rate=0.1, prompt=prompt, output=output),
        )
        for found in (rate, rate * more)
    )
    assert large.chosen.gpus >= small.chosen.gpus


@given(
    tokens=st.sampled_from([2048, 4096, 8192, 16384]), share=st.floats(0.5, 0.98), tensor=st.sampled_from([1, 2, 4, 8])
)
def test_the_parts_of_the_memory_are_all_of_it(tokens: int, share: float, tensor: int) -> None:
    engine = Engine(max_model_len=8192, max_num_batched_tokens=tokens, utilization=share)
    found = split_memory(model("llama-3.1-8b"), GPUS["h100"], Cut(tensor=tensor), engine)
    assert found.weights + found.activations + found.runtime + found.kv == pytest.approx(found.total * share)


def test_cost_follows_from_the_price_of_a_gpu_hour() -> None:
    plan = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload())
    found = cost_of(plan.chosen, plan.work, 3.0)
    assert (found.peak_hour, found.mean_hour) == (30.0, 12.0)
    assert found.million_output == pytest.approx(12.0 / (8 * 250 * 3600) * 1e6)


def test_no_step_with_a_prompt_in_it_outlasts_the_objective() -> None:
    plan = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload())
    for option in plan.options:
        if option.problem or option.speed is None:
            continue
        tokens = option.engine.max_num_batched_tokens
        assert ENGINE.max_num_seqs <= tokens <= 8192
        assert option.speed.steps.a + option.speed.steps.c * tokens <= 0.05


def test_a_step_that_was_asked_for_stays() -> None:
    told = Engine(max_model_len=8192, max_num_batched_tokens=2048)
    plan = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], told, workload())
    assert {option.engine.max_num_batched_tokens for option in plan.options} == {2048}


def test_short_prompts_and_a_small_fleet_stay_whole() -> None:
    plan = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload(rate=1, mean_rate=1, prompt=200))
    found = advise(plan, network_gbit=400)
    assert found.mode == "monolithic"
    assert found.reasons[0].startswith("1 whole instances carry the peak")
    assert found.reasons[-1].endswith("no answer waits for a prompt: splitting gains nothing")


def test_long_prompts_on_a_large_fleet_are_split() -> None:
    plan = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload(rate=60, prompt=6000, output=200))
    found = advise(plan, network_gbit=400)
    assert found.mode == "disaggregated", found.reasons
    assert found.prefill is not None and found.decode is not None
    assert found.prefill.cut.tensor <= found.decode.cut.tensor
    assert "apart, neither waits for the other" in found.reasons[0]


def test_a_slow_network_speaks_against_splitting() -> None:
    plan = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload(rate=60, prompt=6000, output=200))
    found = advise(plan, network_gbit=10)
    assert found.mode == "monolithic"
    assert any("moving a prompt's KV takes" in reason for reason in found.reasons)


def test_kv_of_seventy_billion_travels_eight_microseconds_a_token() -> None:
    plan = make_plan(model("llama-3.3-70b", "fp8"), GPUS["h100"], ENGINE, workload(prompt=1000))
    assert advise(plan, network_gbit=400).transfer / 1000 == pytest.approx(8e-6, rel=0.01)


def test_three_models_share_one_gpu_by_slices() -> None:
    """A chat model that answers quickly, and two small ones beside it."""
    chat = fits(model("mistral-7b"), GPUS["h100"], ENGINE, workload(rate=4, mean_rate=4, prompt=1000, output=200))
    calm = workload(rate=1, mean_rate=1, prompt=1000, output=200)
    rest = [fits(model(name), GPUS["h100"], ENGINE, calm) for name in ("qwen2.5-1.5b", "qwen2.5-0.5b")]
    found = partition(["chat", "embed", "classify"], [chat, *rest])
    assert [one.profile.name for one in found.fits if one] == ["3g.40gb", "1g.10gb", "1g.10gb"]
    assert not found.problem


def test_a_longer_context_needs_a_larger_slice() -> None:
    calm = workload(rate=0.2, mean_rate=0.2, prompt=1000, output=200)
    names = []
    for length in (8192, 32768, 131072):
        rows = fits(model("mistral-7b"), GPUS["h100"], Engine(max_model_len=length), calm)
        names.append(next(one.profile.name for one in rows if not one.problem))
    assert names == ["1g.20gb", "3g.40gb", "3g.40gb"]


def test_too_many_slices_are_refused_with_their_sum() -> None:
    rows = fits(model("mistral-7b"), GPUS["h100"], ENGINE, workload(rate=4, mean_rate=4, prompt=1000, output=200))
    assert partition(["a", "b", "c"], [rows] * 3).problem == "9 of 7 compute and 12 of 8 memory slices"


@pytest.mark.parametrize("said", ["H100", "h100", "nvidia-h100-sxm5", "a100", "A10G", "h200"])
def test_a_gpu_is_found_however_it_is_written(said: str) -> None:
    assert find_gpu(said) is not None


def test_every_slice_fits_its_gpu() -> None:
    for gpu in GPUS.values():
        assert all(one.gib <= gpu.gib and one.compute <= 7 and one.slices <= 8 for one in gpu.mig)
