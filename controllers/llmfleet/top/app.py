"""Serve the page on a router's admin port.

In: an aiohttp application, and a function that says what the router knows now. Out: two routes, `/` and `/live`. It
answers GET and HEAD only and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client.core import Metric

from llmfleet.top.page import HEADERS, PAGE, live_json
from llmfleet.top.samples import samples_of

Now = Callable[[], tuple[Mapping[str, Any], Iterable[Metric]]]
"""The object behind `/fleet`, and the families behind `/metrics`."""


def add_page(app: web.Application, now: Now) -> None:
    """Add the page, and what its script asks for, to an application."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html", charset="utf-8", headers=HEADERS)

    async def live(request: web.Request) -> web.Response:
        fleet, families = now()
        return web.json_response(live_json(fleet, samples_of(families)), headers=HEADERS)

    app.router.add_get("/", page)
    app.router.add_get("/live", live)
