"""Routers on loopback share the slots of a real listener: one each beyond them at most, and slots go where they are
asked for. Processes of their own, because one is killed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable

from bed import CHAT, STREAM, Bed, Raw, scenario
from engine import Engine, ok

from fakes.ports import free_port
from llmfleet.api.document import Document, Endpoint, Model, Peer, State, render, with_generation
from llmfleet.router.keys import hashed
from llmfleet.router.reports import parse_report

KEY = "key-of-the-only-tenant-of-these-tests"
SETTINGS = "drain: {settleSeconds: 0, timeoutSeconds: 4}\nlogLevel: warning\n"


class Routers:
    """Router processes in front of one engine."""

    def __init__(self, engine: Engine, number: int, slots: int, quota: dict[str, int] | None = None) -> None:
        self.engine, self.slots, self.quota = engine, slots, quota
        self.names = [f"router-{i}" for i in range(number)]
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.drained: dict[str, asyncio.Future[bytes]] = {}
        self.ports: dict[str, int] = {}
        self.admin: dict[str, int] = {}
        self._generation = 0

    async def __aenter__(self) -> Routers:
        await self.engine.start()
        self._directory = tempfile.TemporaryDirectory()
        self.publish(peers=False)
        try:
            await asyncio.gather(*map(self.boot, self.names))
            self.publish()
            await self.until(lambda: self.all_heard(), "every router to hear the others")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
        for name, process in self.processes.items():
            await process.wait()
            if name in self.drained:
                await self.drained[name]
        await self.engine.stop()
        self._directory.cleanup()

    def file(self, name: str) -> str:
        return os.path.join(self._directory.name, name)

    async def boot(self, name: str) -> None:
        with open(self.file("settings.yaml"), "w") as file:
            file.write(SETTINGS.replace("warning", "info"))
        command = [sys.executable, "-m", "llmfleet", "router", "--settings", self.file("settings.yaml")]
        command += ["--backends", self.file("backends.json"), "--host", "127.0.0.1"]
        if self.quota is not None:
            with open(self.file("keys.yaml"), "w") as file:
                json.dump({"tenants": {"a": {"keys": [hashed(KEY)], **self.quota}}}, file)
            command += ["--keys", self.file("keys.yaml")]
        port, admin = self.ports.setdefault(name, free_port()), self.admin.setdefault(name, free_port())
        command += ["--port", str(port), "--admin-port", str(admin)]
        self.processes[name] = process = await asyncio.create_subprocess_exec(
            *command, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
            env=os.environ | {"POD_NAME": name},
        )  # fmt: skip
        while line := await process.stderr.readline():
            said = json.loads(line)
            if said["message"] == "listening":
                assert (said["port"], said["adminPort"]) == (port, admin)
                self.drained[name] = asyncio.ensure_future(process.stderr.read())  # a full pipe would stop the router
                return
        raise AssertionError("the router did not start")

    def publish(self, *, peers: bool = True) -> None:
        endpoint = Endpoint(instance="e", address=self.engine.address, pod_uid="uid-e", slots=self.slots)
        listed = [Peer(name=n, address=f"127.0.0.1:{self.admin[n]}") for n in self.names] if peers else []
        document = Document(models={"m": Model(endpoints=(endpoint,))}, peers=tuple(listed))
        document = with_generation(document, previous=self._generation, now_ms=int(time.time() * 1000))
        self._generation = document.generation
        with open(self.file("new"), "wb") as file:
            file.write(render(document))
        os.rename(self.file("new"), self.file("backends.json"))

    async def get(self, name: str, path: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.admin[name])
        writer.write(f"GET {path} HTTP/1.0\r\nHost: a\r\n\r\n".encode())
        data = await reader.read()
        writer.close()
        return data.partition(b"\r\n\r\n")[2]

    async def report(self, name: str):
        return parse_report(json.loads(await self.get(name, "/peers")))

    async def all_heard(self) -> bool:
        reports = [await self.report(name) for name in self.names]
        return all(len(report.sees) == len(self.names) - 1 for report in reports)

    async def limits(self) -> list[int]:
        return [
            json.loads(await self.get(name, "/fleet"))["models"]["m"]["endpoints"][0]["limit"]
            for name, process in self.processes.items()
            if process.returncode is None
        ]

    async def until(self, condition: Callable, what: str) -> None:
        for _ in range(2400):
            true = condition()
            if await true if asyncio.iscoroutine(true) else true:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"waited 120 s in vain for {what}")

    async def ask(self, name: str) -> str:
        """Ask until a slot is free and the quota has room; returns how the answer ended, "lost" with its router."""
        while True:
            try:
                client = Raw(*await asyncio.open_connection("127.0.0.1", self.ports[name]))
                await client.send(STREAM, headers={"Authorization": f"Bearer {KEY}"} if self.quota else None)
                answer = await client.answer()
                client.writer.close()
            except (OSError, EOFError):
                return "lost"
            if answer.status not in (429, 503):
                return answer.ended
            await asyncio.sleep(0.02)


@scenario
async def test_slots_follow_the_requests_and_are_exceeded_by_one_per_router_at_most():
    async with Routers(Engine(behave=ok(5, gap=0.8)), 3, slots=9) as routers:
        engine = routers.engine
        asked = [asyncio.create_task(routers.ask("router-0")) for _ in range(9)]
        await routers.until(lambda: engine.active == 9, "every slot to come to the one router that needs them")
        assert await asyncio.gather(*asked) == ["whole"] * 9
        engine.behave = ok(5, gap=0.2)
        asked = [asyncio.create_task(routers.ask(name)) for name in routers.names for _ in range(12)]
        assert await asyncio.gather(*asked) == ["whole"] * 36
        assert engine.max_active <= 9 + 3
        await routers.until(lambda: engine.active == 0, "the engine to be idle")

        async def all_owned() -> bool:
            reports = [await routers.report(name) for name in routers.names]
            return sum(report.engines[f"uid-e@{engine.address}"].owned for report in reports) == 9

        await routers.until(all_owned, "what was given to have been taken")


@scenario
async def test_a_quota_follows_the_requests_and_is_not_exceeded():
    async with Routers(Engine(behave=ok(5, gap=0.8)), 2, slots=40, quota={"concurrency": 10}) as routers:
        engine = routers.engine
        asked = [asyncio.create_task(routers.ask("router-0")) for _ in range(12)]
        await routers.until(
            lambda: engine.active == 9, "four fifths and half of a fifth to come to the one that is asked"
        )
        asked += [asyncio.create_task(routers.ask("router-1")) for _ in range(12)]
        assert await asyncio.gather(*asked) == ["whole"] * 24
        assert engine.max_active <= 10 + 2  # one each in the time that a word takes


@scenario
async def test_a_killed_routers_slots_come_back_and_so_does_the_router():
    async with Routers(Engine(behave=ok(4, gap=0.3)), 3, slots=9) as routers:
        engine = routers.engine
        lost = [asyncio.create_task(routers.ask("router-1")) for _ in range(3)]
        await routers.until(lambda: engine.active >= 2, "requests at the router to be killed")
        routers.processes["router-1"].kill()
        assert set(await asyncio.gather(*lost)) <= {"lost", "eof", "reset"}
        await routers.until(lambda: engine.active == 0, "the engine to see its connections closed")
        engine.max_active = 0
        asked = [asyncio.create_task(routers.ask("router-0")) for _ in range(40)]
        await routers.until(lambda: engine.active >= 9, "the slots of the dead router to be used")
        assert engine.max_active <= 9 + 3
        await routers.processes["router-1"].wait()
        await routers.boot("router-1")
        await routers.until(routers.all_heard, "the new process to be heard")
        assert await asyncio.gather(*asked, routers.ask("router-1")) == ["whole"] * 41
        assert engine.max_active <= 9 + 3


@scenario
async def test_a_router_says_what_it_has_to_its_peers():
    async with Bed(ok(2, gap=5.0), slots=4) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await bed.until(lambda: bed.in_flight() == 1, "a request in flight")
        report = parse_report(json.loads(await bed.admin("/peers")))
        assert (report.name, report.draining, dict(report.waiting)) == ("router-0", False, {})
        client.writer.close()


@scenario
async def test_peers_nobody_answers_for_leave_an_equal_part():
    async with Bed(ok(), slots=9) as bed:
        bed.peers = tuple(Peer(name=f"router-{i}", address=f"127.0.0.1:{i + 1}") for i in range(3))
        await bed.adopted(bed.publish())
        backend = next(iter(bed.router.fleet.backends.values()))
        assert backend.limit == 3
        assert bed.router.waits.part(9, "m", 0) == 3
        bed.peers = (Peer(name="router-0", address="127.0.0.1:1", state=State.READY),)
        await bed.adopted(bed.publish())
        assert backend.limit == 9
        assert bed.router.waits.part(9, "m", 0) == 9
        assert (await bed.ask(CHAT)).status == 200
        text = (await bed.admin("/metrics")).decode()
        assert 'llmfleet_router_endpoint_limit{llmcluster="e0",role="both"} 9.0' in text
        assert "llmfleet_router_peers 0.0" in text
