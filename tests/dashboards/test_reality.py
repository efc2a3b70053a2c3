"""Every panel before a running fleet: a real Prometheus scrapes it, and each target must show what it says it shows."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator

import pytest

from dashboards.asking import Range, Series, choose, found, judge, show
from dashboards.fleet import CONTROLLERS, NAMESPACE, Fleet
from dashboards.pages import Query, every_query, pages, queries, variables
from dashboards.scraping import Prometheus
from dashboards.traffic import Traffic

pytestmark = [pytest.mark.apiserver, pytest.mark.helm]

# The traffic goes on until Prometheus has seen all of this: pictures of a quiet fleet prove little.
HAPPENED = {
    "answers came whole": 'sum(llmfleet_router_requests_total{outcome="complete"}) > 20',
    "clients left": 'sum(llmfleet_router_requests_total{outcome="aborted"}) > 1',
    "requests were refused": "count(count by (reason) (llmfleet_router_refusals_total)) > 3",
    "a queue was full": 'sum(llmfleet_router_requests_total{outcome="refused", code=~"5.."}) > 1',
    "answers were truncated": 'sum(llmfleet_router_requests_total{outcome="truncated"}) > 1',
    "requests were sent again": "sum(llmfleet_router_retries_total) > 1",
    "a tenant reached its quota": "sum(llmfleet_router_quota_refusals_total) > 1",
    "requests waited": "max(max_over_time(llmfleet_queue_requests[1h])) > 1",
    "requests were preempted": "sum(vllm:num_preemptions_total) > 1",
    "requests were split": 'sum(llmfleet_router_disaggregated_requests_total{way="split"}) > 3',
    "short ones were not": 'sum(llmfleet_router_disaggregated_requests_total{way="bypass"}) > 1',
    "jobs ended": 'sum(llmfleet_queue_jobs_ended_total{state="complete"}) > 1',
    "a fleet grew": 'sum(llmfleet_autoscaler_decisions_total{fleet="serving/llama", decision="grow"}) > 0',
    "the new engine works": 'sum(vllm:generation_tokens_total{llmcluster="llama-2"}) > 0',
}
TRAFFIC_SECONDS = 600  # of a machine that is busy with other things; some 15 otherwise
SETTLED_SECONDS = 8  # of scrapes after the last of it, so that rates have their points

# Targets without data, with the reason why nothing is missing.
WITHOUT_DATA: dict[str, str] = {}

PAGES = pages()
EVERYTHING: dict[str, str] = {}
ONE_FLEET = {"namespace": NAMESPACE, "fleet": "llama", "model": "llama", "controllers": CONTROLLERS}
SPLIT_FLEET = {**ONE_FLEET, "fleet": "qwen", "model": "qwen"}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Range]]:
    """A fleet under mixed traffic, scraped every second; it still runs while the panels are asked."""
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder) as fleet, Prometheus(fleet, folder / "prometheus") as prometheus:
        begin = time.time()
        yield prometheus, drive(fleet, prometheus, begin)


def drive(fleet: Fleet, prometheus: Prometheus, begin: float) -> Range:
    """Send traffic until everything has happened; returns the time it took."""
    with Traffic(fleet):
        fleet.grow("llama", 3)
        deadline = time.monotonic() + TRAFFIC_SECONDS
        missing = list(HAPPENED)
        while missing:
            assert time.monotonic() < deadline, f"never happened: {missing}\n{fleet.logs()}"
            time.sleep(0.5)
            prometheus.discover()
            missing = [what for what in missing if not prometheus.value(HAPPENED[what])]
        time.sleep(SETTLED_SECONDS)
        return Range(start=begin, end=well_scraped(prometheus, deadline))


def well_scraped(prometheus: Prometheus, deadline: float) -> float:
    """A moment at which no scrape of the exporters was just missed: instant panels are asked for that moment alone."""
    missed = 'min_over_time(up{job=~"dcgm-exporter|kube-state-metrics"}[4s]) == 0'
    while True:
        end = time.time() - 1
        if not prometheus.ask("query", query=missed, time=end)["data"]["result"]:
            return end
        assert time.monotonic() < deadline, "exporters of this process are not scraped in time"
        time.sleep(0.5)


@pytest.mark.parametrize("uid", PAGES)
def test_every_target_shows_data_without_an_annotation(uid: str, scraped: tuple[Prometheus, Range]) -> None:
    prometheus, span = scraped
    values = choose(prometheus, PAGES[uid], EVERYTHING)
    shown = [show(prometheus, query, values, span) for query in queries(PAGES[uid])]
    wrong = {one.query.name: one.problems for one in shown if one.problems and one.query.name not in WITHOUT_DATA}
    assert wrong == {}


# ---- what the judgement itself sees ----


def line(*values: float, name: str = "a") -> Series:
    return Series(name=name, labels={}, points=tuple(enumerate(values)))


@pytest.mark.parametrize(
    "unit, series, problem",
    [
        ("short", [], "no data"),
        ("short", [line(1.0, math.nan)], "a value that is no number"),
        ("percentunit", [line(0.5, 97.0)], "values from 0.5 to 97.0 are not percentunit"),
        ("s", [line(-1.0)], "values from -1.0 to -1.0 are not s"),
        ("short", [line(1.0), line(2.0)], "several lines are called ['a', 'a']"),
    ],
)
def test_a_wrong_picture_is_seen(unit: str, series: list[Series], problem: str) -> None:
    query = Query(page="p", panel="q", letter="A", expr="", legend="", instant=False, unit=unit)
    assert judge(tuple(series), query) == [problem]


def test_a_right_picture_has_no_problem() -> None:
    query = Query(page="p", panel="q", letter="A", expr="", legend="", instant=False, unit="percentunit")
    assert judge((line(0.0, 1.0), line(0.5, name="b")), query) == []


def test_an_annotation_of_prometheus_is_seen(scraped: tuple[Prometheus, Range]) -> None:
    prometheus, span = scraped
    expr = 'sum(rate(llmfleet_queue_requests{model=~".+"}[$__rate_interval]))'  # a gauge
    query = Query(page="p", panel="q", letter="A", expr=expr, legend="", instant=False, unit="short")
    [problem] = show(prometheus, query, {}, span).problems
    assert "might not be a counter" in problem


@pytest.mark.parametrize(
    "uid, chosen",
    [(uid, SPLIT_FLEET if uid == "llmfleet-disaggregation" else ONE_FLEET) for uid in PAGES],
    ids=list(PAGES),
)
def test_one_fleet_alone_has_its_data(uid: str, chosen: dict[str, str], scraped: tuple[Prometheus, Range]) -> None:
    prometheus, span = scraped
    values = choose(prometheus, PAGES[uid], chosen)
    every = [show(prometheus, query, values, span) for query in queries(PAGES[uid])]
    wrong = {one.query.name: one.problems for one in every if one.problems and one.query.name not in WITHOUT_DATA}
    assert wrong == {}
    other = "llama" if chosen is SPLIT_FLEET else "qwen"
    seen = {text for one in every for series in one.series for text in series.labels.values()}
    assert not [text for text in seen if text.startswith(other)], seen


@pytest.mark.parametrize("uid", PAGES)
def test_the_drop_downs_offer_what_is_there(uid: str, scraped: tuple[Prometheus, Range]) -> None:
    prometheus, _ = scraped
    page = PAGES[uid]
    values = choose(prometheus, page, EVERYTHING)
    offered = {one["name"]: found(prometheus, one, values) for one in variables(page) if one["type"] == "query"}
    expected = {
        "namespace": [NAMESPACE],
        "fleet": ["llama", "qwen"],
        "controllers": [CONTROLLERS],
        "instance": ["llama-0", "llama-1", "llama-2", "qwen-decode-0", "qwen-prefill-0"],
    }
    for name, values_offered in offered.items():
        if name == "model":
            assert {"llama", "qwen"} <= set(values_offered)
        else:
            assert values_offered == expected[name], name


def test_every_metric_that_a_panel_names_is_exported_by_somebody(scraped: tuple[Prometheus, Range]) -> None:
    prometheus, _ = scraped
    known = prometheus.metrics()
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "count", "sum", "total")}
    named = {name for query in every_query() for name in re.findall(r"([a-zA-Z_][\w:]*)\{", query.expr)}
    named |= {name for query in every_query() for name in re.findall(r"\bDCGM_\w+", query.expr)}
    assert named - known == set()


def test_gpus_of_pods_outside_the_fleets_are_in_no_panel(scraped: tuple[Prometheus, Range]) -> None:
    prometheus, span = scraped
    page = PAGES["llmfleet-gpu"]
    values = choose(prometheus, page, EVERYTHING)
    asked = {query.name: show(prometheus, query, values, span) for query in queries(page)}
    instances = {one.name for one in asked["llmfleet-gpu: GPU utilisation A"].series}
    assert instances == {"llama-0", "llama-1", "llama-2", "qwen-decode-0", "qwen-prefill-0"}
    [idle] = asked["llmfleet-gpu: GPUs without an engine that serves A"].series
    # Those of mistral-0 are always among them; a busy machine misses scrapes, and an engine may be for a moment.
    assert min(value for _, value in idle.points) == 2


def test_the_list_of_targets_without_data_holds_nothing_else() -> None:
    assert set(WITHOUT_DATA) <= {query.name for query in every_query()}
