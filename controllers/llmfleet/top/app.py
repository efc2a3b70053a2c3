"""Serve the page on a router's admin port.

In: an aiohttp application, and a function that says what the router knows now. Out: two routes, `/` and `/live`. It
answers GET and HEAD only, and looks at the router once a second at most, however many look at the page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from aiohttp import web
from prometheus_client.core import Metric

from llmfleet.top.page import HEADERS, PAGE, live_json
from llmfleet.top.samples import samples_of

Now = Callable[[], tuple[Mapping[str, Any], Iterable[Metric]]]
"""The object behind `/fleet`, and the families behind `/metrics`."""


LOOK_SECONDS: Final = 1.0


def add_page(app: web.Application, now: Now) -> None:
    """Add the page, and what its script asks for, to an application."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html", charset="utf-8", headers=HEADERS)

    last: list[tuple[float, dict[str, Any]]] = []

    async def live(request: web.Request) -> web.Response:
        at = asyncio.get_running_loop().time()
        if not last or at - last[0][0] >= LOOK_SECONDS:
            fleet, families = now()
            last[:] = [(at, live_json(fleet, samples_of(families)))]
        return web.json_response(last[0][1], headers=HEADERS)

    app.router.add_get("/", page)
    app.router.add_get("/live", live)
