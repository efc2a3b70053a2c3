"""The page is whole by itself, allows nothing but itself, and is served as it says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry, Counter

from llmfleet.telemetry import RouterGauges, RouterMetrics
from llmfleet.top.app import add_page
from llmfleet.top.page import HEADERS, PAGE, POLICY, live_json
from llmfleet.top.samples import parse_metrics, samples_of

from .test_live import FLEET, METRICS


def between(tag: str) -> str:
    [found] = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return str(found)


def test_the_policy_allows_this_very_style_and_script_and_nothing_else() -> None:
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        digest = base64.b64encode(hashlib.sha256(between(tag).encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in POLICY
    assert POLICY.startswith("default-src 'none'; ")
    assert "connect-src 'self'" in POLICY
    assert "unsafe" not in POLICY
    assert "frame-ancestors 'none'" in POLICY


def test_nothing_is_loaded_from_elsewhere() -> None:
    assert not re.search(r"https?:|//\w+\.|@import|url\(|\bsrc=|\bhref=", PAGE.replace("// ", ""))


def test_no_markup_is_ever_made_from_text() -> None:
    script = between("script")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|\.style\b|setAttribute", script
    )
    assert not re.search(r"\son\w+=|\sstyle=", PAGE)


def test_it_fits_a_phone() -> None:
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in PAGE
    assert "overflow-x: auto" in between("style")


def test_what_the_script_asks_for_has_every_field_that_it_reads() -> None:
    found = live_json(json.loads(FLEET), parse_metrics(METRICS))
    script = between("script")
    for name in ("model", "engine", "now", "old"):
        own = {"model": found["models"][0], "old": found["models"][0], "engine": found["models"][0]["engines"][0]}
        read = set(re.findall(rf"\b{name}\.(\w+)", script))
        assert read <= set(own.get(name, found)) | {"length"}, name
    json.dumps(found, allow_nan=False)


def test_buckets_end_with_null_for_infinity() -> None:
    buckets = live_json(json.loads(FLEET), parse_metrics(METRICS))["models"][0]["ttft"]
    assert buckets[-1][0] is None
    assert [edge for edge, _ in buckets[:-1]] == sorted(edge for edge, _ in buckets[:-1])


def test_families_read_as_the_text_they_would_become() -> None:
    registry = CollectorRegistry()
    counter = Counter("llmfleet_router_requests", "x", ["model", "outcome"], registry=registry)
    counter.labels("m", "complete").inc(3)
    assert samples_of(registry.collect()).total("llmfleet_router_requests_total", model="m") == 3


def test_a_router_without_a_request_is_a_page_without_figures() -> None:
    idle = RouterGauges(
        connections=0, max_connections=10, draining=False, generation=0, document_age_seconds=-1, endpoints=()
    )
    found = live_json({"pod": "p", "models": {}}, samples_of(RouterMetrics(lambda: idle).collect()))
    assert found == {"pod": "p", "generation": 0, "draining": False, "connections": 0, "models": []}


def test_both_routes_are_served_with_the_policy_and_only_for_reading() -> None:
    async def scenario() -> None:
        app = web.Application()
        add_page(app, lambda: (json.loads(FLEET), ()))
        async with TestClient(TestServer(app)) as client:
            page = await client.get("/")
            assert (page.status, page.content_type, await page.text()) == (200, "text/html", PAGE)
            live = await client.get("/live")
            assert (await live.json())["models"][0]["name"] == "llama"
            for answer in (page, live):
                assert {name: answer.headers[name] for name in HEADERS} == HEADERS
            assert (await client.post("/")).status == 405
            assert (await client.post("/live")).status == 405

    asyncio.run(scenario())
