"""The router process: its listeners, the timers, the health checks and the way it ends.

In: settings and paths. Out: a serving process that leaves gracefully on SIGTERM. Its files are in `files/`, what it
says of itself in `admin/`. It never answers a request itself.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from llmfleet.names import VERSION
from llmfleet.router.admin.app import admin, gauges, registry_of, start_drain
from llmfleet.router.client import check
from llmfleet.router.clients.proxy import Client
from llmfleet.router.files.app import AccessLog, KeysWatch, Watch
from llmfleet.router.limits import Settings, max_connections
from llmfleet.router.peers.client import Gossip
from llmfleet.router.pick import Backend
from llmfleet.router.proxy import Router
from llmfleet.telemetry import RouterMetrics

if TYPE_CHECKING:  # only for routers with a collector of spans
    from llmfleet.router.tracing.client import Exporter

log = logging.getLogger(__name__)

WATCH_SECONDS: Final = 0.1
SWEEP_SECONDS: Final = 0.25
DRAIN_POLL_SECONDS: Final = 0.1
FLUSH_SECONDS: Final = 1.0
BACKLOG: Final = 4096
STDOUT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the process listens; port 0 lets the kernel choose."""

    host: str | None
    port: int
    admin_port: int


async def repeat(seconds: float, step: Callable[[], None]) -> None:
    """Call a step for ever; one that fails is logged and called again."""
    while True:
        await asyncio.sleep(seconds)
        try:
            step()
        except Exception:
            log.exception("periodic step failed")


class Checks:
    """Asks every engine for its health in turn, each at its own moment of the interval."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._running: set[asyncio.Task[None]] = set()
        self._due: dict[tuple[str, str], float] = {}

    def look(self) -> None:
        """Start the checks that are due; called a few times a second."""
        router, health = self._router, self._router.settings.health
        if not health.check_seconds:
            return
        now = router.loop.time()
        known = {key: b for key, b in router.fleet.backends.items() if b.listed}
        self._due = {key: self._due.get(key, now) for key in known}
        for number, (key, backend) in enumerate(known.items()):
            if now >= self._due[key]:
                # A part of the interval that differs from engine to engine spreads them over it.
                self._due[key] = now + health.check_seconds * (1 + 0.1 * (number % 5 - 2) / 2)
                task = router.loop.create_task(self._check(backend, health.check_timeout_seconds))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _check(self, backend: Backend, seconds: float) -> None:
        alive = await check(backend, seconds)
        if backend.listed:
            self._router.checked(backend, alive=alive)

    def stop(self) -> None:
        """Give up what is under way."""
        for task in self._running:
            task.cancel()


def raise_open_files() -> int:
    """Use the hard limit of open files and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def notice_lost_clients(listener: Any, seconds: float) -> None:
    """Have the kernel end connections whose client is gone without a word; accepted sockets inherit this.

    Probes find a client that is only waiting; the user timeout one that does not take what was sent.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(seconds * 0.4)))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(seconds * 0.2)))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


class App:
    """One router with its listeners and timers."""

    def __init__(
        self,
        *,
        settings: Settings,
        backends: str,
        listen: Listen,
        pod: str,
        wall_clock: Callable[[], float],
        keys: str | None = None,
        access_log: int = STDOUT,
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._listen = listen
        metrics = RouterMetrics(lambda: gauges(self.router, self.watch, self.gossip))
        self.router = Router(loop, settings, metrics, keyed=keys is not None)
        self.router.max_connections = max_connections(settings.limits, raise_open_files())
        self.watch = Watch(backends, self.router, wall_clock)
        self.gossip = self.watch.gossip = Gossip(self.router, pod, settings.drain.timeout_seconds)
        self.router.waits.part = self.gossip.part
        self.keys = KeysWatch(keys, self.router) if keys is not None else None
        self.access_log = AccessLog(self.router, access_log, wall_clock)
        registry = registry_of(metrics)
        application = admin(self.router, registry, pod, self.gossip)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        if settings.redis.wanted:
            from llmfleet.router.jobs.app import Jobs

            self.router.jobs = Jobs(self.router, pod)
            registry.register(self.router.jobs.metrics)
        if settings.result_cache.enabled:
            from llmfleet.router.results.relay import Results

            self.router.results = Results(self.router)
        self.spans = spans_of(self.router, pod)
        self.checks = Checks(self.router)
        self._timers: list[asyncio.Task[None]] = []
        self.port = self.admin_port = 0

    async def start(self) -> None:
        """Read the files once, then listen."""
        self.watch.look()
        if self.keys is not None:
            self.keys.look()
        self.access_log.flush()
        await self.gossip.round()
        loop, listen = self._loop, self._listen
        self._server = await loop.create_server(lambda: Client(self.router), listen.host, listen.port, backlog=BACKLOG)
        for sock in self._server.sockets:
            notice_lost_clients(sock, self.router.settings.timeouts.client_lost_seconds)
        await self._runner.setup()
        await web.TCPSite(self._runner, listen.host, listen.admin_port).start()
        self.port = self._server.sockets[0].getsockname()[1]
        self.admin_port = self._runner.addresses[0][1]
        if self.router.jobs is not None:
            self.router.jobs.start()
        if self.router.results is not None:
            self.router.results.start()
        if self.spans is not None:
            self.spans.start()
        self._timers = [
            loop.create_task(repeat(WATCH_SECONDS, self.watch.look)),
            loop.create_task(repeat(FLUSH_SECONDS / 4, self.access_log.flush)),
            loop.create_task(repeat(SWEEP_SECONDS, lambda: self.router.sweep(loop.time()))),
            loop.create_task(self.gossip.run()),
            loop.create_task(repeat(SWEEP_SECONDS, self.checks.look)),
        ]
        if self.keys is not None:
            self._timers.append(loop.create_task(repeat(WATCH_SECONDS, self.keys.look)))

    async def leave(self, now_exit: asyncio.Event) -> None:
        """Unready first, then no new connections, then wait for the open requests."""
        router, drain = self.router, self.router.settings.drain
        start_drain(router)
        await wait(now_exit, drain.settle_seconds)
        await self._stop_listening()
        expected = router.close_idle()
        deadline = self._loop.time() + drain.timeout_seconds
        while (router.busy() or expected) and self._loop.time() < deadline and not now_exit.is_set():
            await wait(now_exit, DRAIN_POLL_SECONDS)
            expected = router.close_idle()
        log.info("leaving", extra={"fields": {"unfinished": router.busy()}})
        await self._give_up()

    async def _stop_listening(self) -> None:
        """Close the listening sockets without a reset for those that the kernel has let in and nobody has accepted."""
        doors = [socket.socket(fileno=os.dup(sock.fileno())) for sock in self._server.sockets]
        self._server.close()
        await asyncio.sleep(0)  # the loop stops accepting before we do it
        for door in doors:
            for accepted in let_in(door):
                await self._loop.connect_accepted_socket(lambda: Client(self.router), accepted)
            door.close()

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
        self.checks.stop()
        self._server.close()
        if self.router.jobs is not None:
            await self.router.jobs.close()
        if self.router.results is not None:
            await self.router.results.close()
        for client in list(self.router.clients):
            client.reset()
        for backend in self.router.fleet.backends.values():
            while backend.idle:
                backend.idle.pop().transport.abort()
        self.gossip.close()
        await self._runner.cleanup()
        await self.access_log.close()
        if self.spans is not None:
            await self._loop.run_in_executor(None, self.spans.close)


def spans_of(router: Router, pod: str) -> Exporter | None:
    """Have the router tell its requests in spans, if there is a collector for them."""
    otel = router.settings.otel
    if not otel.endpoint:
        return None
    from llmfleet.router.tracing.client import Exporter
    from llmfleet.router.tracing.relay import Tracer

    resource = {"service.name": otel.service_name, "service.version": VERSION, "service.instance.id": pod}
    exporter = Exporter(otel.endpoint, router.metrics, resource, VERSION, max_queue=otel.max_queued_spans)
    router.tracer = Tracer(router, otel.sample_ratio, exporter.offer)
    return exporter


def let_in(door: socket.socket) -> Iterator[socket.socket]:
    """Accept every connection that waits at a listening socket."""
    door.setblocking(False)
    while True:
        try:
            accepted, _ = door.accept()
        except OSError:  # nobody is left, or no descriptor is
            return
        yield accepted


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Sleep, but wake when the event is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def serve(
    settings: Settings,
    backends: str,
    listen: Listen,
    pod: str,
    wall_clock: Callable[[], float],
    keys: str | None = None,
) -> None:
    """Run until told to stop, then drain."""
    app = App(settings=settings, backends=backends, listen=listen, pod=pod, wall_clock=wall_clock, keys=keys)
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
