"""From a page of metrics to offered load: prefixes, resets, odd figures."""

from __future__ import annotations

import pytest

from llmfleet.api.autoscaler import MetricType
from llmfleet.api.types import Role
from llmfleet.router.errors import Code
from llmfleet.scale.propose import percentile
from llmfleet.scale.samples import ENGINE_NAMES, WANT_OF_CAPACITY, engine_from_text, read_text, router_from_text
from llmfleet.scale.signals import EngineReading
from llmfleet.scale.work import grown, rates_between, total
from unit.scale.builders import PLAIN

ENGINE = """# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 1000.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="external_kv_transfer"} 7000.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 9000.0
vllm:generation_tokens_total{engine="0",model_name="m"} 500.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 100.0
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 250.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:cache_config_info{engine="0",block_size="16",kv_cache_size_tokens="524288",num_gpu_blocks="32768"} 1.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 8.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 10.0
process_cpu_seconds_total 12.5
"""


def test_a_page_becomes_a_reading() -> None:
    reading = engine_from_text(ENGINE, "a", 7.0)
    assert reading == EngineReading(
        instance="a",
        at=7.0,
        prefill=1000.0,
        prompts=9000.0,
        generated=400.0,
        steps=250.0,
        finished=10.0,
        running=3.0,
        waiting=2.0,
        kv_usage=0.25,
        kv_tokens=524288.0,
        buckets={MetricType.TTFT: ((0.5, 4.0), (float("inf"), 10.0))},
    )


def test_an_older_engine_has_no_sources_but_cache_hits() -> None:
    lines = [line for line in ENGINE.splitlines() if "by_source" not in line]
    reading = engine_from_text("\n".join([*lines, 'vllm:prefix_cache_hits_total{engine="0"} 4000.0']), "a", 0.0)
    assert reading is not None
    assert reading.prefill == 5000.0


@pytest.mark.parametrize("value", ["NaN", "-1.0", "1e308", "+Inf"])
@pytest.mark.parametrize("name", ["generation_tokens_total", "num_requests_waiting", "kv_cache_usage_perc"])
def test_a_figure_that_cannot_be_true_is_no_reading(name: str, value: str) -> None:
    lines = [line.rsplit(" ", 1)[0] + f" {value}" if name + "{" in line else line for line in ENGINE.splitlines()]
    assert engine_from_text("\n".join(lines), "a", 0.0) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>502</html>",
        "vllm:num_requests_running 1.0",
        "vllm:num_requests_running{ x",
        "\n".join(line for line in ENGINE.splitlines() if "prompt_tokens" not in line),
    ],
)
def test_a_page_that_is_no_engines_is_no_reading(text: str) -> None:
    assert engine_from_text(text, "a", 0.0) is None


def test_a_routers_figures_are_those_of_the_models_asked_for() -> None:
    text = """llmfleet_queue_requests{model="m"} 4.0
llmfleet_queue_requests{model="other"} 9.0
llmfleet_queue_prompt_bytes{model="m"} 5000.0
llmfleet_router_refusals_total{model="m",reason="server_is_overloaded"} 3.0
llmfleet_router_refusals_total{model="m",reason="invalid_json"} 50.0
llmfleet_router_in_flight_requests{model="m"} 2.0
"""
    reading = router_from_text(text, "r", frozenset({"m"}), 1.0)
    assert reading is not None
    assert (reading.queued, reading.queued_bytes) == (4.0, 5000.0)
    assert (reading.refused, reading.in_flight) == (3.0, 2.0)


def test_a_counter_that_went_down_began_again() -> None:
    assert grown(100.0, 130.0) == 30.0
    assert grown(100.0, 7.0) == 7.0
    before = EngineReading(instance="a", at=0.0, prefill=9000.0, buckets={MetricType.TTFT: ((1.0, 5.0),)})
    after = EngineReading(instance="a", at=10.0, prefill=1000.0, buckets={MetricType.TTFT: ((1.0, 2.0),)})
    rates = rates_between(before, after)
    assert rates is not None
    assert rates.prefill == 100.0
    assert rates.buckets == ((MetricType.TTFT, ((1.0, 0.2),)),)


def test_two_looks_at_the_same_moment_say_nothing() -> None:
    reading = EngineReading(instance="a", at=5.0)
    assert rates_between(reading, reading) is None


def test_a_role_is_charged_for_what_it_does() -> None:
    rates = total([], 0.0)
    before = EngineReading(instance="a", at=0.0)
    after = EngineReading(instance="a", at=1.0, prefill=500.0, generated=10.0)
    found = rates_between(before, after) or rates
    assert found.work(PLAIN, Role.PREFILL) == 0.5
    assert found.work(PLAIN, Role.BOTH) == 0.5


def test_lines_of_other_names_are_skipped() -> None:
    found = list(read_text(ENGINE, ENGINE_NAMES))
    assert len(found) == 14
    assert not [name for name, _, _ in found if name.startswith("process_") or name.endswith("by_reason")]


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        ((), 0.0),
        (((1.0, 0.0), (float("inf"), 0.0)), 0.0),
        (((1.0, 100.0), (float("inf"), 100.0)), 0.95),
        (((1.0, 90.0), (2.0, 100.0), (float("inf"), 100.0)), 1.5),
        (((1.0, 10.0), (float("inf"), 100.0)), 1.0),
    ],
)
def test_a_percentile_is_interpolated_as_prometheus_does(
    buckets: tuple[tuple[float, float], ...], expected: float
) -> None:
    assert percentile(buckets, 0.95, quiet=True) == pytest.approx(expected)


def test_the_words_for_want_of_capacity_are_the_routers_own() -> None:
    assert {str(code) for code in Code} >= WANT_OF_CAPACITY
