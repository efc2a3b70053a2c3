"""A proxy in front of a real apiserver that misbehaves on command, for the pods of a cluster and nobody else.

In: the cluster's keys and one `Mood`. Out: what the pods' clients of the Kubernetes API see: their requests go through,
or are refused, delayed, forgotten. Kubelets and the control plane itself talk to the apiserver as ever. Packet filter
rules in every node lead the pods here, and reset the connections they had.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import aiohttp
from aiohttp import web

from e2e.bed import run
from faults_long.world import NODES, World

PORT = 16443
HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length", "te", "trailer"}


class Mood(StrEnum):
    """How the apiserver is today."""

    WELL = "well"
    TOO_MANY = "429 for half of the requests"
    FAILING = "500 for half of the requests"
    FAILING_ALWAYS = "500 for every request"
    GONE = "410 for every watch"
    SLOW = "every piece of a watch 5 s late"
    SILENT = "watches that say nothing"
    CUT = "every answer broken off in the middle"


class Misbehaving:
    """The proxy itself, in a thread of its own."""

    def __init__(self, address: str, upstream: str, keys: Path) -> None:
        self.address, self.upstream, self.keys = address, upstream, keys
        self.mood, self.seen = Mood.WELL, Counter[str]()
        self.loop = asyncio.new_event_loop()
        self.random = random.Random(1)

    async def serve(self) -> web.AppRunner:
        """Listen with the apiserver's own certificate."""
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(self.keys / "kube-apiserver.crt", self.keys / "kube-apiserver.key")
        trust = ssl.create_default_context(cafile=str(self.keys / "ca.crt"))
        connector = aiohttp.TCPConnector(ssl=trust, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self.session = aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=timeout)
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, self.address, PORT, ssl_context=server).start()
        return runner

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer as the mood is."""
        watching = request.query.get("watch") in ("1", "true")
        mood = self.mood
        self.seen[mood.name] += 1
        if mood is Mood.FAILING_ALWAYS or (mood is Mood.FAILING and self.random.random() < 0.5):
            return refusal(500, "InternalError")
        if mood is Mood.TOO_MANY and self.random.random() < 0.5:
            return refusal(429, "TooManyRequests", {"Retry-After": "1"})
        if mood is Mood.GONE and watching:
            return refusal(410, "Expired")
        try:
            return await self.forward(request, watching, mood)
        except ConnectionError:  # its client is gone
            return web.Response()

    async def forward(self, request: web.Request, watching: bool, mood: Mood) -> web.StreamResponse:
        """Pass a request on, and its answer back piece by piece."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        body = await request.read()
        url = f"{self.upstream}{request.path_qs}"
        async with self.session.request(request.method, url, headers=headers, data=body) as found:
            kept = {name: value for name, value in found.headers.items() if name.lower() not in HOP}
            answer = web.StreamResponse(status=found.status, headers=kept)
            await answer.prepare(request)
            async for piece in found.content.iter_any():
                if mood is Mood.CUT:
                    await answer.write(piece[: len(piece) // 2])
                    if request.transport:
                        request.transport.abort()
                    break
                if watching and mood is Mood.SILENT and self.mood is mood:
                    continue
                if watching and mood is Mood.SLOW:
                    await asyncio.sleep(5)
                await answer.write(piece)
            await answer.write_eof()
            return answer

    def run(self, started: threading.Event, stopped: threading.Event) -> None:
        """Serve until told to stop."""
        asyncio.set_event_loop(self.loop)
        runner = self.loop.run_until_complete(self.serve())
        started.set()
        self.loop.run_until_complete(asyncio.to_thread(stopped.wait))
        self.loop.run_until_complete(self.session.close())
        self.loop.run_until_complete(runner.cleanup())
        self.loop.close()


def refusal(code: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    """A Status as the apiserver writes it."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    return web.json_response(body | {"message": f"made up: {reason}"}, status=code, headers=headers)


@contextmanager
def misbehaving(world: World) -> Iterator[Misbehaving]:
    """Lead every pod's requests to the apiserver through the proxy until the block ends."""
    server = next(iter(ground_addresses(world)))
    proxy = Misbehaving(server[0], server[1], world.folder / "pki")
    started, stopped = threading.Event(), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(started, stopped), daemon=True)
    thread.start()
    assert started.wait(20), "the proxy does not listen"
    try:
        for node in NODES:
            lead_here(world, node, proxy.address, add=True)
        yield proxy
    finally:
        for node in NODES:
            lead_here(world, node, proxy.address, add=False)
        stopped.set()
        thread.join(20)


def ground_addresses(world: World) -> list[tuple[str, str]]:
    """This machine's address on the cluster's bridge, and the apiserver's own."""
    server = world.bed.api.configuration.host
    host = server.removeprefix("https://").split(":")[0].rpartition(".")[0] + ".1"
    return [(host, server)]


def lead_here(world: World, node: str, host: str, *, add: bool) -> None:
    """Lead a node's pods to the proxy, or to the apiserver again; their old connections are reset."""
    iptables = [*world.network_of(node), "iptables", "--wait"]
    if add:
        service = world.bed.core.read_namespaced_service("kubernetes", "default").to_dict()["spec"]["cluster_ip"]
        chain = ["-d", str(service), "-p", "tcp", "--dport", "443", "-j", "DNAT", "--to", f"{host}:{PORT}"]
        run([*iptables, "-t", "nat", "-N", NAT])
        run([*iptables, "-t", "nat", "-A", NAT, *chain])
        run([*iptables, "-t", "nat", "-I", "PREROUTING", "1", "-i", "cni0", "-j", NAT])
        direct = ["-p", "tcp", "--dport", "6443", "-i", "cni0", "-j", "REJECT", "--reject-with", "tcp-reset"]
        run([*iptables, "-N", NAT])
        run([*iptables, "-A", NAT, *direct])
        run([*iptables, "-I", "FORWARD", "1", "-j", NAT])
        return
    for table, hook in (("nat", ["PREROUTING", "-i", "cni0"]), ("filter", ["FORWARD"])):
        for words in (["-D", *hook, "-j", NAT], ["-F", NAT], ["-X", NAT]):
            subprocess.run([*iptables, "-t", table, *words], capture_output=True, check=False)


NAT = "LLMFLEET-PROXY"
