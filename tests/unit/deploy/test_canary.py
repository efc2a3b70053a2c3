"""A canary is judged by what the routers saw, and not without having been seen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from llmfleet.api.types import Canary
from llmfleet.deploy.canary import judge_trial
from llmfleet.deploy.records import Figures, Trial
from llmfleet.deploy.samples import engine_load, router_figures
from llmfleet.telemetry import EndpointGauges, RouterGauges, RouterMetrics

SINCE = datetime(2026, 1, 1, tzinfo=UTC)
TRIAL = Trial(template="t", since=SINCE, canary=Figures(requests=10, errors=1), rest=Figures(requests=10))
REST = Figures(requests=110, ttft_sum=50, ttft_count=100)


@pytest.mark.parametrize(
    ("case", "seconds", "seen", "passed"),
    [
        ("too early", 299, Figures(requests=110), None),
        ("good enough", 300, Figures(requests=110, errors=2, ttft_sum=60, ttft_count=100), True),
        ("exactly at the limit", 300, Figures(requests=110, errors=2), True),
        ("too many errors", 300, Figures(requests=110, errors=3), False),
        ("too slow", 300, Figures(requests=110, ttft_sum=76, ttft_count=100), False),
        ("nobody asked", 300, Figures(requests=10, errors=1), None),
        ("a router restarted and counts anew", 300, Figures(requests=5, errors=5), False),
    ],
)
def test_judge_trial(case: str, seconds: int, seen: Figures, passed: bool | None) -> None:
    verdict = judge_trial(Canary(), TRIAL, (seen, REST), SINCE + timedelta(seconds=seconds))
    assert verdict.passed is passed, case


def test_silent_routers_decide_nothing() -> None:
    assert judge_trial(Canary(), TRIAL, None, SINCE + timedelta(hours=1)).passed is None
    assert judge_trial(Canary(), None, (REST, REST), SINCE + timedelta(hours=1)).passed is None


def page() -> str:
    """What a real router exports for two instances, one of them with an old pod beside the new."""
    old = EndpointGauges(llmcluster="a", role="both", in_flight=0, slots=8, picks=3, failures=1)
    new = EndpointGauges(
        llmcluster="a", role="both", in_flight=1, slots=8, picks=8, failures=2, ttft_count=3, ttft_sum=1.5
    )
    other = EndpointGauges(llmcluster="b", role="both", in_flight=0, slots=8, picks=4)
    state = RouterGauges(
        connections=0,
        max_connections=1,
        draining=False,
        generation=1,
        document_age_seconds=0.0,
        endpoints=(old, new, other),
    )
    registry = CollectorRegistry()
    registry.register(RouterMetrics(lambda: state))
    return generate_latest(registry).decode()


def test_router_figures_are_counted_by_instance() -> None:
    assert router_figures(page() + "nonsense\n") == {
        "a": Figures(requests=11, errors=3, ttft_sum=1.5, ttft_count=3),
        "b": Figures(requests=4),
    }


def test_the_load_of_an_engine_is_what_runs_and_what_waits() -> None:
    page = 'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'
    waiting = 'vllm:num_requests_waiting_by_reason{reason="capacity"} 1.0\n'
    assert engine_load(page + waiting) == 3


def test_a_page_without_figures_is_no_idle_engine() -> None:
    with pytest.raises(ValueError, match="num_requests_running"):
        engine_load("up 1\n")
