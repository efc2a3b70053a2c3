"""The admin listener of a router process: `/metrics`, `/fleet`, `/peers`, `/drain`, and a page for people on `/`.

In: a router. Out: what it says of itself, on aiohttp; nothing that a client of the API waits for is here. It is not
behind the client Service and never writes a file.
"""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from llmfleet.api.document import Role
from llmfleet.router.files.app import Watch
from llmfleet.router.peers.client import Gossip
from llmfleet.router.pick import view
from llmfleet.router.proxy import Router
from llmfleet.telemetry import EndpointGauges, HandoffGauges, RouterGauges, RouterMetrics
from llmfleet.top.app import add_page

log = logging.getLogger(__name__)


def gauges(router: Router, watch: Watch, gossip: Gossip) -> RouterGauges:
    """Read the router's state for a scrape."""
    peers, heard = gossip.gauges()
    return RouterGauges(
        connections=len(router.clients),
        max_connections=router.max_connections,
        draining=router.draining,
        peers=peers,
        peers_heard=heard,
        prefixes=tuple(
            (name, result, count)
            for name, pool in router.fleet.models.items()
            for result, count in (("hit", pool.hits), ("miss", pool.misses), ("spread", pool.spread))
        ),
        quarantined=router.quarantine.refused,
        panic=tuple((pool.name, pool.panic, pool.budget.refused) for pool in router.fleet.models.values()),
        queues=tuple(
            (name, router.waiting(name), pool.room.bytes if pool.room is not None else 0)
            for name, pool in router.fleet.models.items()
        ),
        generation=router.fleet.generation,
        document_age_seconds=-1.0 if watch.adopted_at is None else router.loop.time() - watch.adopted_at,
        endpoints=tuple(
            EndpointGauges(
                llmcluster=b.instance,
                role=str(b.role),
                in_flight=b.in_flight,
                slots=b.slots,
                limit=b.limit,
                picks=b.picks,
                failures=b.failures,
                ttft_count=b.ttft_count,
                ttft_sum=b.ttft_sum,
                out=str(b.vitals.why or ""),
                ejections=b.vitals.ejections,
            )
            for b in router.fleet.backends.values()
        ),
        handoffs=tuple(
            HandoffGauges(
                llmcluster=b.instance,
                outstanding=b.ledger.outstanding(router.loop.time()),
                fates=b.ledger.fates,
                breaker_opened=b.breaker.opened,
            )
            for b in router.fleet.backends.values()
            if b.role is Role.PREFILL
        ),
    )


def fleet_answer(router: Router, pod: str) -> dict[str, Any]:
    """Describe the router for `/fleet`; the drain handshake reads `generation`."""
    return {
        "generation": router.fleet.generation,
        "pod": pod,
        "draining": router.draining,
        "connections": len(router.clients),
        "waiting": {name: count for name in router.fleet.models if (count := router.waiting(name))},
        **view(router.fleet),
        **({} if router.jobs is None else {"jobs": router.jobs.described()}),
        **({} if router.results is None else {"resultCache": router.results.described()}),
    }


def admin(router: Router, registry: CollectorRegistry, pod: str, gossip: Gossip) -> web.Application:
    """Build the admin application; it is not behind the client Service."""

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def fleet(request: web.Request) -> web.Response:
        return web.json_response(fleet_answer(router, pod))

    async def peers(request: web.Request) -> web.Response:
        return web.Response(body=gossip.answer(), content_type="application/json")

    async def drain(request: web.Request) -> web.Response:
        if "Origin" in request.headers or "Sec-Fetch-Site" in request.headers:
            # Somebody looks at the page through a tunnel; another page in the same browser may not give orders.
            return web.json_response({"error": "not from a web page"}, status=403)
        start_drain(router)
        return web.json_response({"draining": True, "busy": router.busy()})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/fleet", fleet)
    app.router.add_get("/peers", peers)
    app.router.add_post("/drain", drain)
    add_page(app, lambda: (fleet_answer(router, pod), registry.collect()))
    return app


def start_drain(router: Router) -> None:
    """Turn unready; requests are still taken, on connections that close after their answer."""
    if not router.draining:
        router.draining = True
        log.info("draining", extra={"fields": {"busy": router.busy(), "connections": len(router.clients)}})


def registry_of(metrics: RouterMetrics) -> CollectorRegistry:
    """Register the router's metrics beside those of the process."""
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
