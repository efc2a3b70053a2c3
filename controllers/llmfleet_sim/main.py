"""One engine process from start to end: rendezvous, load, listen, serve, and leave as vLLM leaves.

In: an EngineConfig. Out: the exit code. The times after a signal or a death are those measured on
vLLM 0.32.0, times --sim-teardown-scale.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from time import time

from llmfleet_sim.admin.app import Admin, kill_process
from llmfleet_sim.app import Api
from llmfleet_sim.config import EngineConfig
from llmfleet_sim.errors import engine_dead
from llmfleet_sim.execute import Engine
from llmfleet_sim.faults import Faults
from llmfleet_sim.group.app import LeaderGroup, RendezvousError
from llmfleet_sim.group.client import follow
from llmfleet_sim.telemetry import Telemetry, set_up_log

log = logging.getLogger("llmfleet_sim")
_DEATH_SECONDS = 2.5
_DEAF_SECONDS = 1.0
_EXIT_SECONDS = 0.2
_DRAINED_SECONDS = 6.0


def run(config: EngineConfig) -> int:
    """Run until the end; gives the exit code."""
    set_up_log(rank=config.rank, level=config.env.log_level)
    log.info("vLLM API server version %s (simulated), model %s", config.version, config.model)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_main(config))
    return uvloop.run(_main(config))


async def _main(config: EngineConfig) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    if config.headless:
        faults = Faults()
        await _open_admin(config, faults, None)
        return await follow(config, stop, faults)
    try:
        bound = bind(config.host, config.port)
    except OSError as error:
        log.error("cannot bind %s:%d: %s", config.host or "*", config.port, error.strerror)
        return 1
    lead = asyncio.create_task(_lead(config, bound, stop))
    return await lead


async def _lead(config: EngineConfig, bound: socket.socket, stop: asyncio.Event) -> int:
    """Be rank 0: start the group, load, serve, leave."""
    group = LeaderGroup(nodes=config.nodes, port=config.master_port) if config.nodes > 1 else None
    started = asyncio.create_task(_start(config, group))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({started, stopped}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not started.done():
            started.cancel()
            return 0
        started.result()
        return await serve(config, group, bound, stop)
    except RendezvousError as error:
        log.error("%s", error)
        return 1
    finally:
        stopped.cancel()
        if group is not None:
            group.close()


async def _start(config: EngineConfig, group: LeaderGroup | None) -> None:
    """Meet the other ranks and load the model."""
    if group is not None:
        await group.rendezvous(config.rendezvous_timeout)
    log.info("loading the model takes %.1f s (simulated)", config.load_seconds)
    await asyncio.sleep(config.load_seconds)


async def serve(config: EngineConfig, group: LeaderGroup | None, bound: socket.socket, stop: asyncio.Event) -> int:
    """Serve until a signal or the engine's death."""
    telemetry, faults = _telemetry(config), Faults()
    engine = Engine(config, telemetry, faults, group)
    api = Api(config, engine, telemetry)
    died = asyncio.Event()
    engine.on_death, engine.on_crash = died.set, kill_process
    worker = asyncio.create_task(engine.run())
    await engine.start()
    await _open_admin(config, faults, engine.die)
    await api.listen(bound)
    log.info("Application startup complete, listening on port %d", config.port)
    await _first(stop, died)
    if config.sigterm_ends == "silence" and not died.is_set():
        worker.cancel()
    code = await (_leave_dead(config, api) if died.is_set() else _leave(config, api, died))
    worker.cancel()
    engine.close()
    return code


async def _open_admin(config: EngineConfig, faults: Faults, kill: Callable[[str], None] | None) -> None:
    """Open the admin port where one is asked for; it lives as long as the process."""
    if config.admin_port:
        await Admin(faults, kill_engine=kill).listen(config.admin_host, config.admin_port)


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _leave_dead(config: EngineConfig, api: Api) -> int:
    """After an engine death the API server goes away by itself, with exit code 0."""
    await asyncio.sleep(_DEAF_SECONDS * config.teardown_scale)
    api.stop_listening()
    await asyncio.sleep((_DEATH_SECONDS - _DEAF_SECONDS) * config.teardown_scale)
    return 0


async def _leave(config: EngineConfig, api: Api, died: asyncio.Event) -> int:
    """After SIGTERM: fail what runs, or let it finish within --shutdown-timeout."""
    log.info("shutting down, %d requests in flight", api.open_requests)
    if not config.shutdown_timeout:
        api.stop_listening()
        end_all(config, api.engine)
        while config.sigterm_ends == "silence" and api.open_requests:
            await asyncio.sleep(0.02)
        await asyncio.sleep(_EXIT_SECONDS * config.teardown_scale)
        return 0
    api.draining = True
    loop = asyncio.get_running_loop()
    end = loop.time() + config.shutdown_timeout
    while api.in_flight() and loop.time() < end and not died.is_set():
        await asyncio.sleep(0.02)
    end_all(config, api.engine)
    await asyncio.sleep(_DRAINED_SECONDS / 2 * config.teardown_scale)
    api.stop_listening()
    await asyncio.sleep(_DRAINED_SECONDS / 2 * config.teardown_scale)
    return 0


def end_all(config: EngineConfig, engine: Engine) -> None:
    """End what still runs. Real engines race here; seen were an error for a lone request, aborts for several, and
    silence: the core is killed before its last outputs are out, and the server waits for its clients to go."""
    if config.sigterm_ends == "silence":
        return
    running = len(engine.scheduler.running) + len(engine.scheduler.waiting)
    if config.sigterm_ends == "error" or (config.sigterm_ends == "auto" and running == 1):
        engine.fail_all(engine_dead())
    else:
        engine.interrupt_all()


def bind(host: str | None, port: int) -> socket.socket:
    """Bind without listening: the port is taken, and refuses connections until the engine is up."""
    family = socket.AF_INET6 if host and ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host or "0.0.0.0", port))
    bound.setblocking(False)
    return bound


def _telemetry(config: EngineConfig) -> Telemetry:
    """Make the metrics of this engine."""
    blocks = config.blocks
    shown = {
        "block_size": str(config.block_size),
        "effective_attention_block_size": str(config.block_size),
        "enable_prefix_caching": str(config.prefix_caching),
        "num_gpu_blocks": str(blocks),
        "kv_cache_size_tokens": str(blocks * config.block_size),
        "kv_cache_max_concurrency": str(blocks * config.block_size / config.max_model_len),
    }
    return Telemetry(
        model=config.names[0],
        max_model_len=config.max_model_len,
        custom_buckets=config.custom_buckets,
        cache_config=shown,
        connector=config.connector is not None,
        consumer=config.connector is not None and config.connector.consumes,
        started=time(),
    )
