"""The processes of a run: engines, routers, and what is done to them.

In: a folder. Out: running processes on loopback ports, every fault written down at the moment it is done. Engines keep
their ports over a kill; routers take turns on ports of their own, as pods behind a service do.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fakes.ports import free_port
from history.records import Fault, Rest, Try
from llmfleet.api.document import Document, Endpoint, Model, render, with_generation

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS / "router" / "jobs"))

from redis_server import RedisServer, command  # noqa: E402

START_SECONDS = 90

SETTINGS: dict[str, Any] = {
    "timeouts": {"firstEventSeconds": 3, "stallSeconds": 2, "connectSeconds": 2},
    "drain": {"settleSeconds": 5, "timeoutSeconds": 60},
}


class Bed:
    def __init__(
        self,
        folder: str,
        *,
        engines: int,
        slots: int,
        mutant: str = "",
        jobs: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.slots, self.mutant = slots, mutant
        self.ports = {f"e{i}": free_port() for i in range(engines)}
        self.engines: dict[str, asyncio.subprocess.Process] = {}
        self.routers: dict[str, RouterProcess] = {}
        self.current: RouterProcess | None = None
        self.faults: list[Fault] = []
        self.rests: list[Rest] = []
        self.frozen: set[str] = set()
        self._settings = {**SETTINGS, **(settings or {})}
        self.store = RedisServer(command(), self.folder / "redis") if jobs else None
        self._started = 0
        self._leaving: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Bed:
        try:
            await self._start()
        except BaseException:  # what was started must not outlive a router that did not start
            await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        endpoints = tuple(
            Endpoint(instance=name, address=f"127.0.0.1:{port}", pod_uid=f"uid-{name}", slots=self.slots)
            for name, port in self.ports.items()
        )
        document = with_generation(Document(models={"m": Model(endpoints=endpoints)}), previous=0, now_ms=1)
        (self.folder / "backends.json").write_bytes(render(document))
        if self.store is not None:
            await asyncio.to_thread(self.store.start)
            self._settings["redis"] = {"url": self.store.url, "timeoutSeconds": 1}
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(self._settings))
        for name in self.ports:
            await self.start_engine(name)
        self.current = await self.start_router()

    async def __aexit__(self, *_: object) -> None:
        for process in [*self.engines.values(), *(r.process for r in self.routers.values())]:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self.store is not None:
            self.store.stop()

    def _fault(self, what: str, target: str) -> None:
        """Write a fault down before it is done: nothing it causes is earlier."""
        self.faults.append(Fault(what=what, target=target, at=time.monotonic()))

    # ---- engines ----

    async def start_engine(self, name: str) -> None:
        arguments = ["-m", "history.fake_engine", name, str(self.ports[name]), str(self.folder / f"{name}.log")]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=TESTS, stdout=asyncio.subprocess.PIPE
        )
        self.engines[name] = process
        assert process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            await process.stdout.readline()

    async def kill_engine(self, name: str) -> None:
        """Kill without a word and start again on the same port."""
        self._fault("engine-killed", name)
        self.engines[name].kill()
        await self.engines[name].wait()
        await self.start_engine(name)

    async def freeze_engine(self, name: str, seconds: float) -> None:
        """Stop a process without closing anything, for a while."""
        self.frozen.add(name)
        self._fault("engine-frozen", name)
        self.engines[name].send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self.engines[name].send_signal(signal.SIGCONT)
        self._fault("engine-thawed", name)
        self.frozen.discard(name)

    # ---- routers ----

    async def start_router(self) -> RouterProcess:
        self._started += 1
        name = f"router-{self._started}"
        start = ["-m", "history.mutants", self.mutant] if self.mutant else ["-m", "llmfleet"]
        options = ["router", "--settings", str(self.folder / "settings.yaml")]
        options += ["--backends", str(self.folder / "backends.json")]
        options += ["--host", "127.0.0.1", "--port", "0", "--admin-port", "0"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *start,
            *options,
            cwd=TESTS,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        router = self.routers[name] = RouterProcess(name, process)
        async with asyncio.timeout(START_SECONDS):
            await router.listening()
        return router

    async def roll_router(self) -> None:
        """Start a new router, send clients there, end the old one with SIGTERM."""
        old, self.current = self.current, await self.start_router()
        assert old is not None
        self._fault("router-ended", old.name)
        old.process.send_signal(signal.SIGTERM)
        self._leaving.append(asyncio.create_task(old.gone()))

    async def kill_router(self) -> None:
        """Start a new router, then kill the old one with its requests open."""
        old, self.current = self.current, await self.start_router()
        assert old is not None
        self._fault("router-killed", old.name)
        old.process.kill()
        await old.process.wait()

    async def rest(self, seconds: float) -> None:
        """Wait until the last router holds nothing, or say what it holds in the end."""
        router = self.current
        assert router is not None
        for _ in range(int(seconds * 5)):
            in_flight, waiting = await router.held()
            if not in_flight and not waiting:
                break
            await asyncio.sleep(0.2)
        self.rests.append(Rest(router=router.name, in_flight=in_flight, waiting=waiting))
        for task in self._leaving:
            async with asyncio.timeout(120):
                await task

    # ---- the store of jobs ----

    async def kill_store(self, seconds: float) -> None:
        """kill -9, then start on the data that is on disk."""
        assert self.store is not None
        self._fault("store-killed", "redis")
        await asyncio.to_thread(self.store.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.store.start)
        self._fault("store-back", "redis")

    # ---- logs ----

    def tries(self) -> list[Try]:
        """Read what the engines wrote down."""
        found: dict[str, dict[str, Any]] = {}
        for name in self.ports:
            for line in (self.folder / f"{name}.log").read_text().splitlines():
                event = json.loads(line)
                found.setdefault(f"{name} {event['number']}", {})[event["what"]] = event
        return [_try(events["received"], events.get("ended", {})) for events in found.values()]


def _try(received: Mapping[str, Any], ended: Mapping[str, Any]) -> Try:
    return Try(
        tag=received["tag"],
        engine=received["engine"],
        request_id=received["id"],
        received=received["at"],
        foreign=tuple(received["foreign"]),
        ended=ended.get("at", 0.0),
        how=ended.get("how", ""),
        pieces=ended.get("pieces", 0),
    )


class RouterProcess:
    """One router process and where it listens."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name, self.process = name, process
        self.port = self.admin_port = 0

    async def listening(self) -> None:
        assert self.process.stderr is not None
        said_last = b""
        while line := await self.process.stderr.readline():
            said_last = line
            with suppress(ValueError, KeyError):
                said = json.loads(line)
                if said["message"] == "listening":
                    self.port, self.admin_port = said["port"], said["adminPort"]
                    self._drained = asyncio.create_task(self._drain())
                    return
        raise AssertionError(f"the router did not start: {said_last.decode()}")

    async def _drain(self) -> None:
        assert self.process.stderr is not None
        while await self.process.stderr.read(65536):
            pass

    async def held(self) -> tuple[int, int]:
        """Return requests in flight and requests waiting, as `/fleet` tells them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.admin_port)
        writer.write(b"GET /fleet HTTP/1.0\r\nHost: a\r\n\r\n")
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
        writer.close()
        fleet = json.loads(body)
        in_flight = sum(model["inFlight"] for model in fleet["models"].values())
        waiting = sum(model.get("waiting", 0) for model in fleet["models"].values())
        return in_flight, waiting

    async def gone(self) -> None:
        await self.process.wait()
