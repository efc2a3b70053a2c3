"""What `top` shows is what a real router said, and rates are differences of two looks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from crds.crd_objects import disaggregated, monolithic
from llmfleet.top.live import Live, Model, merge, percentile, rates, read_live
from llmfleet.top.samples import RouterState, Samples, parse_fleet, parse_metrics
from llmfleet.top.screen import draw
from llmfleet.top.view import Look, View, as_json, build_view

RECORDED = Path(__file__).parent / "recorded"
FLEET = (RECORDED / "fleet.json").read_text(encoding="utf-8")
METRICS = (RECORDED / "metrics.txt").read_text(encoding="utf-8")
Object = dict[str, Any]


def state(fleet: Object | None = None, metrics: str = METRICS, pod: str = "router-1") -> RouterState:
    return RouterState(namespace="d", pod=pod, fleet=fleet or json.loads(FLEET), samples=parse_metrics(metrics))


def model(**changes: Any) -> Model:
    return replace(read_live(json.loads(FLEET), parse_metrics(METRICS)).models[0], **changes)


def scaler(name: str = "llama", changes: Object | None = None, **status: Any) -> Object:
    made = monolithic(changes, name=name)
    made["metadata"]["namespace"] = "d"
    made["status"] = {
        "currentInstances": 2,
        "readyInstances": 2,
        "desiredInstances": 3,
        "decision": {"reason": "QueueAboveCapacity", "message": "load now 2.66 instances -> 3"},
        **status,
    }
    return made


def printed(view: View, width: int = 200) -> str:
    console = Console(width=width, file=None, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(draw(view))
    return captured.get()


def test_a_recorded_router_is_read_whole() -> None:
    live = read_live(json.loads(FLEET), parse_metrics(METRICS))
    llama, qwen = live.models
    assert (llama.name, llama.ready, llama.slots, llama.state) == ("llama", 2, 32, "serving")
    assert (qwen.name, qwen.ready, qwen.slots) == ("qwen", 1, 16)
    assert llama.requests > 0 and llama.output_tokens > 0 and llama.prompt_tokens > llama.output_tokens
    assert llama.ttft[float("inf")] > 0
    assert {engine.instance for engine in llama.engines} == {"127.0.0.1-18101", "127.0.0.1-18102"}
    assert all(0 < (engine.ttft or 0) < 1 for engine in llama.engines)
    assert live.connections == 12


def test_rates_are_what_happened_in_between() -> None:
    after = model(
        requests=110.0,
        bad=3.0,
        prompt_tokens=5000.0,
        output_tokens=900.0,
        ttft={0.1: 8.0, 1.0: 10.0, float("inf"): 10.0},
    )
    before = replace(after, requests=100.0, bad=1.0, prompt_tokens=1000.0, output_tokens=500.0, ttft={0.1: 0.0})
    found = rates(before, after, 2.0)
    assert (found.requests, found.prompt_tokens, found.output_tokens) == (5.0, 2000.0, 200.0)
    assert found.bad_share == pytest.approx(0.2)
    assert found.ttft_median == pytest.approx(0.0625)
    assert found.ttft_p95 == pytest.approx(0.775)


def test_nothing_is_told_of_a_first_look_a_restart_or_a_silence() -> None:
    now = model()
    assert rates(None, now, 2.0).requests is None
    assert rates(replace(now, requests=now.requests + 1), now, 2.0).requests is None
    quiet = rates(now, now, 2.0)
    assert (quiet.requests, quiet.bad_share, quiet.ttft_p95) == (0.0, None, None)


@given(st.dictionaries(st.floats(0.001, 100), st.integers(0, 50), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_a_percentile_lies_within_the_edges(counts: dict[float, int], share: float) -> None:
    total, cumulative = 0.0, {}
    for edge in sorted(counts):
        total += counts[edge]
        cumulative[edge] = total
    found = percentile({**cumulative, float("inf"): total}, share)
    assert found is None if not total else 0 <= (found or 0) <= max(counts)


def test_several_routers_are_one_fleet() -> None:
    found = merge([read_live(json.loads(FLEET), parse_metrics(METRICS))] * 2)
    alone = read_live(json.loads(FLEET), parse_metrics(METRICS))
    assert found.connections == 2 * alone.connections
    assert found.models[0].in_flight == 2 * alone.models[0].in_flight
    assert found.models[0].slots == alone.models[0].slots
    assert len(found.models[0].engines) == 2
    assert found.models[0].engines[0].in_flight == 2 * alone.models[0].engines[0].in_flight


def test_an_engine_that_one_router_leaves_out_is_shown_so() -> None:
    good = read_live(json.loads(FLEET), Samples()).models[0].engines[0]
    one, other = model(engines=(good,)), model(engines=(replace(good, state="unhealthy"),))
    found = merge([Live(models=(one,)), Live(models=(other,))])
    assert found.models[0].engines[0].state == "unhealthy"
    assert found.models[0].ready == 0


def test_with_another_set_of_routers_differences_tell_nothing() -> None:
    before = Look(at=0.0, routers=(state(),))
    view = build_view(before, Look(at=2.0, routers=(state(), state(pod="router-2"))))
    assert view.models[0].rates.requests is None
    assert build_view(before, Look(at=2.0, routers=(state(),))).models[0].rates.requests == 0.0


def test_the_last_decision_stands_beside_its_model() -> None:
    spec = {"model": "org/x", "servedModelNames": ["llama"]}
    template = {"namePrefix": "llama-", "labels": {"serving.ai/fleet": "prod"}, "spec": spec}
    look = Look(at=0.0, routers=(state(),), scalers=(scaler(changes={"instanceTemplate": template}),))
    view = build_view(None, look)
    assert [one.reason for one in view.models[0].decisions] == ["QueueAboveCapacity"]
    assert view.models[1].decisions == ()
    assert view.others == ()
    assert "2 -> 3 QueueAboveCapacity: load now 2.66 instances -> 3" in printed(view)


def test_an_engine_tells_whose_it_is_by_the_label_of_its_instance() -> None:
    made = {"metadata": {"name": "127.0.0.1-18103", "namespace": "d", "labels": {"serving.ai/autoscaler": "llama"}}}
    view = build_view(None, Look(at=0.0, routers=(state(),), scalers=(scaler(),), clusters=(made,)))
    assert [len(row.decisions) for row in view.models] == [0, 1]


def test_fleets_that_no_router_knows_are_shown_too() -> None:
    view = build_view(None, Look(at=0.0, scalers=(scaler("asleep"),)))
    assert [one.scaler for one in view.others] == ["d/asleep"]
    assert "d/asleep" in printed(view)


def test_both_roles_of_a_split_fleet_are_shown() -> None:
    made = disaggregated()
    made["metadata"]["namespace"] = "d"
    part = {"currentInstances": 1, "readyInstances": 1, "desiredInstances": 1, "decision": {"reason": "OnTarget"}}
    made["status"] = {"decision": {"reason": "OnTarget"}, "prefill": part, "decode": part}
    view = build_view(None, Look(at=0.0, scalers=(made,)))
    assert [one.role for one in view.others] == ["prefill", "decode"]


def test_trouble_is_shown_and_the_rest_stays() -> None:
    away = RouterState(namespace="d", pod="r2", problem="timed out")
    view = build_view(None, Look(at=0.0, routers=(state(), away), problems=("llmclusters: 403",)))
    assert view.problems == ("llmclusters: 403", "router r2: timed out")
    assert "! router r2: timed out" in printed(view)
    assert len(view.models) == 2


def test_a_name_that_looks_like_markup_is_printed_as_it_is() -> None:
    fleet = {"models": {"[red]x[/red]": {"state": "serving", "inFlight": 0, "slots": 0, "endpoints": []}}}
    assert "[red]x[/red]" in printed(build_view(None, Look(at=0.0, routers=(state(fleet, ""),))))


KEYS = st.sampled_from(["models", "m", "endpoints", "waiting", "inFlight", "connections"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(ANYTHING)
def test_whatever_stands_behind_fleet_is_read_without_a_failure(raw: object) -> None:
    found = read_live(parse_fleet(json.dumps(raw)), Samples())
    assert all(one.requests == 0 for one in found.models)


def test_json_has_null_where_nothing_can_be_told() -> None:
    found = as_json(build_view(None, Look(at=0.0, routers=(state(),))))
    assert found["models"][0]["requestsPerSecond"] is None
    assert found["models"][0]["ready"] == 2
    json.dumps(found, allow_nan=False)
