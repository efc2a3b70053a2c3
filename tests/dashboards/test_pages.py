"""What every page and panel must have, read from the files that are shipped."""

from __future__ import annotations

import json
import re
from itertools import combinations

import pytest

from charts.rendering import of_kind, render
from dashboards.pages import ROOT, every_query, pages, panels, queries, units_of_columns, variables

PAGES = pages()
EVERY_PAGE = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
# Grafana's own ids; another word would be shown as plain text behind every value.
UNITS = {"s", "bytes", "Bps", "percentunit", "short", "reqps", "cps", "ops", "watt", "celsius", "currencyUSD"}
BUILT_IN = {"__rate_interval", "__range"}
# Burn rates are about these windows, whatever the zoom.
WINDOWS = {"5m", "1h"}


def test_there_are_the_six_pages_the_docs_name() -> None:
    text = (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8")
    assert len(PAGES) == 6
    for uid, page in PAGES.items():
        assert f"`{uid}`" in text, uid
        assert page["title"] in text, page["title"]


def test_uids_and_titles_of_pages_are_unique() -> None:
    assert len({page["title"] for page in PAGES.values()}) == len(PAGES)
    files = {path.stem for path in (ROOT / "charts/llmfleet-monitoring/dashboards").glob("*.json")}
    assert files == set(PAGES)


@EVERY_PAGE
def test_panels_have_ids_and_titles_of_their_own(page: dict) -> None:
    ids = [panel["id"] for panel in page["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in panels(page)]
    assert {title for title in titles if titles.count(title) > 1} == set()


@EVERY_PAGE
def test_panels_lie_on_the_grid_and_not_on_each_other(page: dict) -> None:
    cells = {}
    for panel in page["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24, panel["title"]
        cells[panel["id"]] = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
    for (one, left), (other, right) in combinations(cells.items(), 2):
        assert not left & right, (one, other)


@EVERY_PAGE
def test_panels_say_what_they_show_and_in_which_unit(page: dict) -> None:
    for panel in panels(page):
        assert len(panel["description"]) > 20 and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        if panel["type"] == "table":
            columns = units_of_columns(panel)
            assert set(columns) == {target["refId"] for target in panel["targets"]}, panel["title"]
            assert set(columns.values()) <= UNITS


@EVERY_PAGE
def test_everything_is_asked_of_the_chosen_prometheus(page: dict) -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(page):
        assert panel["datasource"] == source, panel["title"]
        assert all(target["datasource"] == source for target in panel["targets"]), panel["title"]
    for variable in variables(page):
        if variable["type"] == "query":
            assert variable["datasource"] == source
            assert variable["refresh"] == 2, "a fleet of yesterday is in the list when yesterday is shown"


@EVERY_PAGE
def test_every_page_has_the_variables_and_uses_each(page: dict) -> None:
    names = [variable["name"] for variable in variables(page)]
    assert names[:3] == ["datasource", "namespace", "fleet"]
    assert all(variable["description"] for variable in variables(page))
    asked = [query.expr for query in queries(page)]
    asked += [variable["query"]["query"] for variable in variables(page) if variable["type"] == "query"]
    used = {name for text in asked for name in re.findall(r"\$([a-z_]\w*)", text)}
    assert used == set(names) - {"datasource"} | used & BUILT_IN


@EVERY_PAGE
def test_ranges_follow_the_zoom_and_the_scrape_interval(page: dict) -> None:
    for query in queries(page):
        ranges = set(re.findall(r"\[([^\]]+)\]", re.sub(r'"[^"]*"', "", query.expr)))
        allowed = {"$__range"} if query.instant else {"$__rate_interval"}
        if query.panel == "Error budget burn rate":
            allowed = WINDOWS
        if query.instant and "$__range" not in ranges:
            allowed = {"$__rate_interval"}
        if "present_over_time" in query.expr:  # whose a GPU is, for panels that join
            allowed = allowed | {"15m", "$__rate_interval"}
        assert ranges <= allowed, query.name


@EVERY_PAGE
def test_counters_are_only_looked_at_as_rates(page: dict) -> None:
    for query in queries(page):
        for counter in re.finditer(r"[\w:]+_(?:total|bucket|sum|count)\{", query.expr):
            before = query.expr[: counter.start()]
            assert before.endswith(("rate(", "increase(")), f"{query.name}: {counter[0]}"


@EVERY_PAGE
def test_lines_are_named_after_labels_that_the_query_keeps(page: dict) -> None:
    for query in queries(page):
        kept = {label for labels in re.findall(r"by \(([^)]*)\)", query.expr) for label in re.split(r",\s*", labels)}
        named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        assert named <= kept, query.name
        assert query.legend or query.instant, query.name


@EVERY_PAGE
def test_a_page_is_changed_in_its_source_and_not_in_grafana(page: dict) -> None:
    assert page["editable"] is False
    [link] = page["links"]
    assert (link["tags"], link["includeVars"], link["keepTime"]) == (["llmfleet"], True, True)
    assert page["tags"] == ["llmfleet"]


def test_the_choices_of_the_ttft_objective_are_bounds_of_the_routers_histogram() -> None:
    from llmfleet.telemetry import SECONDS

    [objective] = [one for one in variables(PAGES["llmfleet-overview"]) if one["name"] == "ttft"]
    assert {option["value"] for option in objective["options"]} <= {repr(bound) for bound in SECONDS}


@pytest.mark.helm
def test_the_chart_ships_each_page_as_it_is() -> None:
    objects = render(chart="llmfleet-monitoring", apis=["monitoring.coreos.com/v1"])
    maps = [one for one in of_kind(objects, "ConfigMap") if "grafana_dashboard" in one["metadata"]["labels"]]
    shipped = {name: json.loads(text) for one in maps for name, text in one["data"].items()}
    assert shipped == {f"{uid}.json": page for uid, page in PAGES.items()}


def test_no_two_targets_of_a_panel_ask_the_same() -> None:
    for uid, page in PAGES.items():
        for panel in panels(page):
            asked = [target["expr"] for target in panel["targets"]]
            assert len(asked) == len(set(asked)), f"{uid}: {panel['title']}"
    assert len(every_query()) > 100
