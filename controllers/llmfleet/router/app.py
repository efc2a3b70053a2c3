"""The router process: its listeners, the backends file, the timers and the way it ends.

In: settings and a path. Out: a serving process that leaves gracefully on SIGTERM. The admin listener (`/metrics`,
`/fleet`, `/drain`) runs on aiohttp; nothing a client waits for does. It never writes a file.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from llmfleet.api.document import DocumentError, Role, parse_document
from llmfleet.router.limits import Settings, max_connections
from llmfleet.router.pick import view
from llmfleet.router.proxy import Client, Router
from llmfleet.telemetry import EndpointGauges, HandoffGauges, RouterGauges, RouterMetrics

log = logging.getLogger(__name__)

WATCH_SECONDS: Final = 0.1
SWEEP_SECONDS: Final = 0.25
DRAIN_POLL_SECONDS: Final = 0.1
FLUSH_SECONDS: Final = 1.0
BACKLOG: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the process listens; port 0 lets the kernel choose."""

    host: str | None
    port: int
    admin_port: int


class Watch:
    """Keeps the router's fleet equal to the last valid backends file; one `stat` per look."""

    def __init__(self, path: str, router: Router, wall_clock: Callable[[], float]) -> None:
        self._path, self._router, self._wall_clock = path, router, wall_clock
        self._seen: tuple[int, int, int] | None = None
        self._complained = ""
        self.adopted_at: float | None = None

    def look(self) -> None:
        """Read the file if it is another one than last time."""
        try:
            stat = os.stat(self._path)
            mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if mark == self._seen:
                return
            with open(self._path, "rb") as file:
                data = file.read()
        except OSError as error:
            self._seen = None
            self._complain(f"cannot be read: {error.strerror}", counted=False)
            return
        self._seen = mark
        self._adopt(data)

    def _adopt(self, data: bytes) -> None:
        router = self._router
        try:
            document = parse_document(data)
        except DocumentError as error:
            router.metrics.document_errors += 1
            self._complain(str(error), counted=True)
            return
        self._complained = ""
        for backend in router.fleet.apply(document):
            while backend.idle:
                backend.idle.pop().transport.abort()
        router.loaded = True
        router.loaded_at = self._wall_clock()
        self.adopted_at = router.loop.time()
        router.metrics.document_loads += 1
        fields = {"generation": document.generation, "models": len(document.models)}
        log.info("backends document adopted", extra={"fields": fields})

    def _complain(self, message: str, *, counted: bool) -> None:
        """Say once why the file is not used; the last good document stays."""
        if message != self._complained:
            self._complained = message
            fields = {"path": self._path, "reason": message, "counted": counted}
            log.warning("backends document not adopted, keeping the last good one", extra={"fields": fields})


def gauges(router: Router, watch: Watch) -> RouterGauges:
    """Read the router's state for a scrape."""
    return RouterGauges(
        connections=len(router.clients),
        max_connections=router.max_connections,
        draining=router.draining,
        generation=router.fleet.generation,
        document_age_seconds=-1.0 if watch.adopted_at is None else router.loop.time() - watch.adopted_at,
        endpoints=tuple(
            EndpointGauges(
                llmcluster=b.instance,
                role=str(b.role),
                in_flight=b.in_flight,
                slots=b.slots,
                picks=b.picks,
                failures=b.failures,
                ttft_count=b.ttft_count,
                ttft_sum=b.ttft_sum,
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
        **view(router.fleet),
    }


def admin(router: Router, registry: CollectorRegistry, pod: str) -> web.Application:
    """Build the admin application; it is not behind the client Service."""

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def fleet(request: web.Request) -> web.Response:
        return web.json_response(fleet_answer(router, pod))

    async def drain(request: web.Request) -> web.Response:
        start_drain(router)
        return web.json_response({"draining": True, "busy": router.busy()})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/fleet", fleet)
    app.router.add_post("/drain", drain)
    return app


def start_drain(router: Router) -> None:
    """Turn unready; requests are still taken, on connections that close after their answer."""
    if not router.draining:
        router.draining = True
        log.info("draining", extra={"fields": {"busy": router.busy(), "connections": len(router.clients)}})


async def repeat(seconds: float, step: Callable[[], None]) -> None:
    """Call a step for ever; one that fails is logged and called again."""
    while True:
        await asyncio.sleep(seconds)
        try:
            step()
        except Exception:
            log.exception("periodic step failed")


def raise_open_files() -> int:
    """Use the hard limit of open files and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class App:
    """One router with its listeners and timers."""

    def __init__(
        self, *, settings: Settings, backends: str, listen: Listen, pod: str, wall_clock: Callable[[], float]
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._listen = listen
        metrics = RouterMetrics(lambda: gauges(self.router, self.watch))
        self.router = Router(loop, settings, metrics)
        self.router.max_connections = max_connections(settings.limits, raise_open_files())
        self.watch = Watch(backends, self.router, wall_clock)
        registry = registry_of(metrics)
        self._runner = web.AppRunner(admin(self.router, registry, pod), access_log=None, shutdown_timeout=1)
        if settings.redis.url:
            from llmfleet.router.jobs.app import Jobs

            self.router.jobs = Jobs(self.router, pod)
            registry.register(self.router.jobs.metrics)
        self._timers: list[asyncio.Task[None]] = []
        self.port = self.admin_port = 0

    async def start(self) -> None:
        """Read the backends once, then listen."""
        self.watch.look()
        loop, listen = self._loop, self._listen
        self._server = await loop.create_server(lambda: Client(self.router), listen.host, listen.port, backlog=BACKLOG)
        await self._runner.setup()
        await web.TCPSite(self._runner, listen.host, listen.admin_port).start()
        self.port = self._server.sockets[0].getsockname()[1]
        self.admin_port = self._runner.addresses[0][1]
        if self.router.jobs is not None:
            self.router.jobs.start()
        self._timers = [
            loop.create_task(repeat(WATCH_SECONDS, self.watch.look)),
            loop.create_task(repeat(SWEEP_SECONDS, lambda: self.router.sweep(loop.time()))),
        ]

    async def leave(self, now_exit: asyncio.Event) -> None:
        """Unready first, then no new connections, then wait for the open requests."""
        router, drain = self.router, self.router.settings.drain
        start_drain(router)
        await wait(now_exit, drain.settle_seconds)
        self._server.close()
        router.close_idle()
        deadline = self._loop.time() + drain.timeout_seconds
        while router.busy() and self._loop.time() < deadline and not now_exit.is_set():
            await wait(now_exit, DRAIN_POLL_SECONDS)
            router.close_idle()
        log.info("leaving", extra={"fields": {"unfinished": router.busy()}})
        await self._give_up()

    async def _give_up(self) -> None:
        """Tell every client whose answer is not whole, and give the words a moment to get out."""
        router = self.router
        if router.jobs is not None:
            router.jobs.give_up()
        for client in list(router.clients):
            client.give_up()
        deadline = self._loop.time() + FLUSH_SECONDS
        while router.busy() and self._loop.time() < deadline:
            await asyncio.sleep(FLUSH_SECONDS / 50)

    async def close(self) -> None:
        """Close everything at once."""
        for timer in self._timers:
            timer.cancel()
        self._server.close()
        if self.router.jobs is not None:
            await self.router.jobs.close()
        for client in list(self.router.clients):
            client.reset()
        for backend in self.router.fleet.backends.values():
            while backend.idle:
                backend.idle.pop().transport.abort()
        await self._runner.cleanup()


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Sleep, but wake when the event is set."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


async def serve(settings: Settings, backends: str, listen: Listen, pod: str, wall_clock: Callable[[], float]) -> None:
    """Run until told to stop, then drain."""
    app = App(settings=settings, backends=backends, listen=listen, pod=pod, wall_clock=wall_clock)
    stop, now_exit = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (now_exit if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await app.start()
    # What is alive now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    fields = {"port": app.port, "adminPort": app.admin_port, "maxConnections": app.router.max_connections}
    log.info("listening", extra={"fields": fields})
    await stop.wait()
    await app.leave(now_exit)
    await app.close()


def registry_of(metrics: RouterMetrics) -> CollectorRegistry:
    """Register the router's metrics beside those of the process."""
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
