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
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from llmfleet.api.document import DocumentError, Role, parse_document
from llmfleet.router.client import check
from llmfleet.router.keys import KeysError, parse_keys
from llmfleet.router.limits import DEFAULT_CLASS, Settings, max_connections
from llmfleet.router.peers.client import Gossip
from llmfleet.router.pick import Backend, view
from llmfleet.router.proxy import Client, Router
from llmfleet.router.usage import Record, line, rfc3339
from llmfleet.settings import UnreadableSettings, parse_yaml
from llmfleet.telemetry import EndpointGauges, HandoffGauges, RouterGauges, RouterMetrics

log = logging.getLogger(__name__)

WATCH_SECONDS: Final = 0.1
SWEEP_SECONDS: Final = 0.25
DRAIN_POLL_SECONDS: Final = 0.1
FLUSH_SECONDS: Final = 1.0
BACKLOG: Final = 4096
STDOUT: Final = 1
MAX_RECORDS: Final = 100_000  # of the access log that wait while it cannot be written


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the process listens; port 0 lets the kernel choose."""

    host: str | None
    port: int
    admin_port: int


class FileWatch(ABC):
    """Looks at a file and hands over what it holds when it is another one; one `stat` per look."""

    what = ""  # the file is, in log lines

    def __init__(self, path: str, router: Router) -> None:
        self._path, self._router = path, router
        self._seen: tuple[int, int, int] | None = None
        self._complained = ""

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

    @abstractmethod
    def _adopt(self, data: bytes) -> None:
        """Use what the file holds, or complain."""

    def _complain(self, message: str, *, counted: bool) -> None:
        """Say once why the file is not used; what was last good stays."""
        if message != self._complained:
            self._complained = message
            fields = {"path": self._path, "reason": message, "counted": counted}
            log.warning(f"{self.what} not adopted, keeping the last good one", extra={"fields": fields})


class Watch(FileWatch):
    """Keeps the router's fleet equal to the last valid backends file."""

    what = "backends document"

    def __init__(self, path: str, router: Router, wall_clock: Callable[[], float]) -> None:
        super().__init__(path, router)
        self._wall_clock = wall_clock
        self.adopted_at: float | None = None
        self.gossip: Gossip | None = None

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
        router.quotas.fraction = 1 / max(1, len(document.peers))
        if self.gossip is not None:
            self.gossip.adopted(document.peers)
        router.adopted()
        router.loaded = True
        router.loaded_at = self._wall_clock()
        self.adopted_at = router.loop.time()
        router.metrics.document_loads += 1
        fields = {"generation": document.generation, "models": len(document.models)}
        log.info("backends document adopted", extra={"fields": fields})


class KeysWatch(FileWatch):
    """Keeps the router's keyring equal to the last valid keys file; without one nobody is let in."""

    what = "keys file"

    def _adopt(self, data: bytes) -> None:
        router = self._router
        settings = router.settings
        try:
            salted = settings.body.cache_salt == "tenant"
            keyring = parse_keys(parse_yaml(data), settings.classes, DEFAULT_CLASS, salted=salted)
        except (KeysError, UnreadableSettings) as error:
            router.metrics.keys_errors += 1
            self._complain(str(error), counted=True)
            return
        self._complained = ""
        router.keyring = keyring
        router.quotas.keep(keyring.tenants)
        router.metrics.keys_loads += 1
        log.info("keys file adopted", extra={"fields": {"tenants": len(keyring.tenants)}})


class AccessLog:
    """Writes what the router recorded, a few times a second and beside the event loop: a slow reader stops nobody."""

    def __init__(self, router: Router, descriptor: int, wall_clock: Callable[[], float]) -> None:
        self._router, self._descriptor, self._wall_clock = router, descriptor, wall_clock
        self._writing: asyncio.Future[None] | None = None

    def flush(self) -> None:
        """Hand over what there is; while the last lot is still being written, records wait, but not without end."""
        router = self._router
        router.wall_offset = self._wall_clock() - router.loop.time()
        if not router.records:
            return
        if self._writing is not None and not self._writing.done():
            surplus = len(router.records) - MAX_RECORDS
            if surplus > 0:
                del router.records[:surplus]
                router.metrics.access_log_dropped += surplus
            return
        records, router.records = router.records, []
        self._writing = router.loop.run_in_executor(None, self._write, records)

    def close(self) -> None:
        """Write what is left."""
        if self._router.records:
            self._write(self._router.records)
            self._router.records = []

    def _write(self, records: list[Record]) -> None:
        data = memoryview(b"".join(line(record, rfc3339(record.at)) for record in records))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            self._router.metrics.access_log_dropped += len(records)
            log.warning("access log not written", extra={"fields": {"reason": error.strerror}})


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
        "waiting": {name: router.waiting(name) for name in router.waits.pools},
        **view(router.fleet),
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
        start_drain(router)
        return web.json_response({"draining": True, "busy": router.busy()})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/fleet", fleet)
    app.router.add_get("/peers", peers)
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
        if settings.redis.url:
            from llmfleet.router.jobs.app import Jobs

            self.router.jobs = Jobs(self.router, pod)
            registry.register(self.router.jobs.metrics)
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
        for client in list(self.router.clients):
            client.reset()
        for backend in self.router.fleet.backends.values():
            while backend.idle:
                backend.idle.pop().transport.abort()
        self.gossip.close()
        await self._runner.cleanup()
        self.access_log.close()


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
        await asyncio.wait_for(event.wait(), seconds)
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


def registry_of(metrics: RouterMetrics) -> CollectorRegistry:
    """Register the router's metrics beside those of the process."""
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
