"""What one instance carries, and what is learned about it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crds.crd_objects import shape
from llmfleet.api.autoscaler import CapacitySpec, Coefficients, Slo, WorkBudget
from llmfleet.api.parse import parse_spec
from llmfleet.capacity.capacity import (
    BUSIEST_PREFILL,
    LEARNED_HIGH,
    LEARNED_LOW,
    Capacity,
    Shape,
    build_capacity,
    for_memory,
    for_slots,
    instances_for,
    tokens_per_step,
)
from llmfleet.capacity.profiles import FALLBACK, PROFILES, StepTime
from llmfleet.scale.learn import learn
from llmfleet.scale.memory import Learned
from llmfleet.scale.work import Rates
from llmfleet.sizing import advice, values

SPEC = parse_spec(shape())
LLAMA = WorkBudget(capacity=CapacitySpec(profile="llama-70b-fp8-h100-tp8"))


def test_a_profile_limits_the_share_of_time_that_may_be_sold() -> None:
    capacity = build_capacity(SPEC, LLAMA)
    assert capacity.known
    assert capacity.rho == pytest.approx(1 - 8.82 / 50)
    assert instances_for(1.0, Shape(), capacity) == pytest.approx(1 / capacity.rho)


def test_an_engine_that_only_prefills_sells_what_full_steps_compute_whatever_a_later_token_may_take() -> None:
    """By the time per output token a step of 1,152 tokens would carry more than it can compute."""
    profile = PROFILES["llama-70b-fp8-h100-tp8"].steps
    for tokens in (512, 1152, 8192):
        spec = parse_spec(shape(role="prefill", inferenceArgs={"maxNumBatchedTokens": tokens}))
        slos = [Slo(tpot_seconds=Decimal(tpot)) for tpot in ("0.01", "0.05", "1")]
        (share,) = {build_capacity(spec, replace(LLAMA, slo=slo)).rho for slo in slos}
        full = profile.c * tokens
        assert share == pytest.approx(BUSIEST_PREFILL * full / (profile.a + full))
    assert build_capacity(parse_spec(shape(role="prefill")), LLAMA).prefill_tokens == 8192
    assert build_capacity(parse_spec(shape(role="decode")), LLAMA).rho == pytest.approx(1 - 8.82 / 50)


def test_the_planner_fills_prefill_engines_as_the_autoscaler_does() -> None:
    assert advice.BUSIEST_PREFILL == BUSIEST_PREFILL
    assert build_capacity(parse_spec(shape(role="prefill")), LLAMA).prefill_tokens == values.MOST_TOKENS


def test_what_is_written_wins_over_the_profile() -> None:
    written = CapacitySpec(profile="llama-70b-fp8-h100-tp8", coefficients=Coefficients(a="0.02"), kv_tokens=7)
    capacity = build_capacity(SPEC, WorkBudget(capacity=written))
    assert (capacity.steps.a, capacity.steps.b) == (0.02, PROFILES["llama-70b-fp8-h100-tp8"].steps.b)
    assert capacity.kv_tokens == 7


def test_auto_is_a_guess_and_says_so() -> None:
    capacity = build_capacity(SPEC, WorkBudget())
    assert not capacity.known
    assert capacity.steps == PROFILES[FALLBACK].steps


def load_of(shape: Shape, capacity: Capacity) -> float:
    return shape.requests * capacity.steps.work(shape.prompt, shape.output)


def test_memory_and_slots_bind_before_time_where_requests_are_long_or_many() -> None:
    capacity = build_capacity(SPEC, LLAMA)
    many = Shape(requests=100.0, prompt=10, output=500)
    load = load_of(many, capacity)
    assert for_slots(load, many, capacity) > load / capacity.rho > for_memory(load, many, capacity)
    assert instances_for(load, many, capacity) == for_slots(load, many, capacity)
    small = replace(capacity, kv_tokens=50_000)
    long = Shape(requests=1.0, prompt=8000, output=2000)
    load = load_of(long, small)
    assert instances_for(load, long, small) == for_memory(load, long, small) > load / small.rho


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rate=st.floats(0.01, 100), prompt=st.floats(1, 20_000), output=st.floats(1, 2000))
def test_with_as_many_instances_as_slots_ask_for_requests_fit_into_them(
    rate: float, prompt: float, output: float
) -> None:
    """At that size the steps are as long as the size makes them, and so is the number of requests at once."""
    capacity, shape = build_capacity(SPEC, LLAMA), Shape(requests=rate, prompt=prompt, output=output)
    load = load_of(shape, capacity)
    size = instances_for(load, shape, capacity)
    step = capacity.steps.a / (1 - load / size)
    assert step <= capacity.tpot * (1 + 1e-9)
    assert rate * output * step <= capacity.slots * size


@given(tpot=st.floats(0.02, 0.5))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_chunk_leaves_room_for_the_requests_beside_it(tpot: float) -> None:
    steps = PROFILES["llama-70b-fp8-h100-tp8"].steps
    chunk = tokens_per_step(steps, tpot, 8192)
    assert 256 <= chunk <= 8192
    assert chunk == 256 or steps.step(20, chunk, 20_000) <= tpot
    assert chunk == 8192 or steps.step(0, chunk + 64, 0) > 0.9 * tpot


def test_a_chunk_of_free_prompts_is_the_greatest_there_is() -> None:
    assert tokens_per_step(StepTime(a=0.01, b=0.001, c=0.0, d=0.0), 0.05, 8192) == 8192


def test_an_objective_below_one_step_still_gives_a_finite_size() -> None:
    capacity = build_capacity(SPEC, WorkBudget(slo=Slo(tpot_seconds=Slo().tpot_seconds / 100)))
    assert instances_for(1.0, Shape(), capacity) == 20.0


def test_work_of_a_request_counts_prompt_output_and_context() -> None:
    steps = PROFILES["llama-70b-fp8-h100-tp8"].steps
    assert steps.work(1000, 100) == pytest.approx(0.0298 + 0.0063 + 1.15e-8 * 100 * 1050)
    assert steps.step(10, 512, 20_000) == pytest.approx(0.00882 + 0.00063 + 512 * 0.0298e-3 + 20_000 * 1.15e-8)


def rates(factor_a: float, factor_work: float, batch: float) -> Rates:
    """An engine of Llama's shape whose steps take so much longer than the table says."""
    steps = PROFILES["llama-70b-fp8-h100-tp8"].steps
    seconds = factor_a * steps.a + factor_work * steps.step(batch, batch * 20, 0) - factor_work * steps.a
    pace = 1 / seconds
    return Rates(
        at=0.0,
        prefill=batch * 20 * pace,
        generated=batch * pace,
        steps=pace,
        itl_seconds=batch * pace * seconds,
        itl_count=batch * pace,
    )


@pytest.mark.parametrize(
    ("factor_a", "factor_work"), [(1.0, 1.0), (1.3, 1.0), (0.8, 1.0), (1.0, 1.3), (1.0, 0.7), (1.3, 1.3)]
)
def test_quiet_and_busy_looks_teach_both_factors(factor_a: float, factor_work: float) -> None:
    capacity, learned = build_capacity(SPEC, LLAMA), Learned()
    for _ in range(400):
        learned = learn(learned, rates(factor_a, factor_work, 1), capacity, 15.0)
        learned = learn(learned, rates(factor_a, factor_work, 60), capacity, 15.0)
    assert learned.a == pytest.approx(factor_a, rel=0.05)
    assert learned.work == pytest.approx(factor_work, rel=0.05)


def test_learning_is_bounded_and_ignores_what_contradicts_the_table() -> None:
    capacity, learned = build_capacity(SPEC, LLAMA), Learned()
    for _ in range(500):
        learned = learn(learned, rates(1.0, 3.0, 60), capacity, 15.0)
    assert LEARNED_LOW <= learned.work <= LEARNED_HIGH
    assert learn(Learned(), rates(1.0, 50.0, 60), capacity, 15.0) == Learned()
    assert learn(Learned(), Rates(at=0.0), capacity, 15.0) == Learned()
