"""Ask the other routers four times a second what they do, and keep this router's part of every engine's slots.

In: the peers of the backends document and their answers on `/peers`. Out: `Backend.limit` and `Backend.elsewhere` of
every engine, and this router's own answer. A peer that does not answer in time is asked again next time; what its
silence means is for `shares` to say. It never picks an engine.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

import orjson

from llmfleet.api.document import Peer, State
from llmfleet.router.division import equal_part
from llmfleet.router.pick import Fleet, key_of
from llmfleet.router.quota import Quotas
from llmfleet.router.reports import ReportError, parse_report, render_report
from llmfleet.router.shares import INTERVAL_SECONDS, Load, Room, Shares

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 0.2  # an answer that takes longer is not waited for
MAX_ANSWER: Final = 16 << 20
MAX_HEAD: Final = 16384


class Host(Protocol):
    """What gossip needs of the router it runs in."""

    loop: asyncio.AbstractEventLoop
    fleet: Fleet
    draining: bool
    quotas: Quotas

    def rooms(self) -> Mapping[str, Room]:
        """Who waits, by model."""

    def decided(self, more: bool) -> None:
        """The slots of this router were set anew; `more` of some engine than before."""


class PeerConnection:
    """A kept connection to the admin port of one peer."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> Any:
        """Return the peer's report as JSON values."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if self._streams is None:
                    host, _, port = self.peer.address.rpartition(":")
                    self._streams = await asyncio.open_connection(host.strip("[]"), int(port), limit=MAX_HEAD)
                return orjson.loads(await self._get(*self._streams))
        except BaseException:  # cancelled too: half an answer may be left in it
            self.close()
            raise

    async def _get(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET /peers HTTP/1.1\r\nhost: %b\r\n\r\n" % self.peer.address.encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if not head.startswith(b"http/1.1 200 ") or not 0 <= length <= MAX_ANSWER:
            raise ValueError("not a report")
        return await reader.readexactly(length)

    def close(self) -> None:
        """Drop the connection."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()


class Gossip:
    """The exchange of reports, and the slots that follow from it."""

    def __init__(self, host: Host, name: str, linger: float) -> None:
        self._host, self._name = host, name
        self.shares = Shares(name, secrets.token_hex(8), linger)
        self._peers: dict[str, PeerConnection] = {}
        self._asked = False  # every peer was asked once: what it owns is known before anything is decided
        self._complained: dict[str, str] = {}

    # ---- the document ----

    def adopted(self, peers: Iterable[Peer]) -> None:
        """Take over the peers of a new document, and its engines."""
        listed = {peer.name: peer for peer in peers}
        self.shares.peers({p.name: p.state is State.DRAINING for p in listed.values()}, self._host.loop.time())
        for name, connection in list(self._peers.items()):
            if name not in listed or listed[name].address != connection.peer.address:
                connection.close()
                del self._peers[name]
        for name, peer in listed.items():
            if name != self._name and name not in self._peers:
                self._peers[name] = PeerConnection(peer)
        if self._asked or not self._peers:
            self.decide()
        else:
            names = [self._name, *self._peers]
            for backend in self._host.fleet.backends.values():
                backend.limit = max(1, equal_part(backend.slots, names, self._name))

    # ---- the exchange ----

    def answer(self) -> bytes:
        """Say to a peer what this router does."""
        now = self._host.loop.time()
        report = self.shares.report(self._loads(), self._host.rooms(), draining=self._host.draining, now=now)
        tenants = self._host.quotas.demands(now, draining=self._host.draining)
        return orjson.dumps(render_report(replace(report, tenants=tenants)))

    async def round(self) -> None:
        """Ask every peer once, then decide."""
        await asyncio.gather(*map(self._ask, list(self._peers.values())))
        self._asked = True
        self.decide()

    async def run(self) -> None:
        """Exchange for ever; a round that fails is logged and the next one comes."""
        loop = self._host.loop
        due = loop.time()
        while True:
            due = max(due + INTERVAL_SECONDS, loop.time())
            await asyncio.sleep(due - loop.time())
            try:
                await self.round()
            except Exception:
                log.exception("exchange with peers failed")

    async def _ask(self, connection: PeerConnection) -> None:
        name = connection.peer.name
        try:
            report = parse_report(await connection.ask())
            if report.name != name:
                raise ReportError(f"{connection.peer.address} is {report.name}, not {name}")
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            self._complain(name, str(error) or type(error).__name__)
            return
        self._complained.pop(name, None)
        if self._peers.get(name) is connection:
            self.shares.heard(report, self._host.loop.time())

    def _complain(self, name: str, why: str) -> None:
        """Say once why a peer is not heard."""
        if self._complained.get(name) != why:
            self._complained[name] = why
            log.info("peer does not answer", extra={"fields": {"peer": name, "reason": why}})

    def part(self, bound: int, model: str, waiting: int) -> int:
        """Return this router's part of a bound on what waits for a model."""
        return self.shares.part_of(bound, model, waiting, self._host.loop.time())

    def gauges(self) -> tuple[int, int]:
        """Return how many peers are listed, and how many were heard lately."""
        return len(self._peers), self.shares.seen(self._host.loop.time())

    def close(self) -> None:
        """Drop every connection."""
        for connection in self._peers.values():
            connection.close()

    # ---- what follows ----

    def decide(self) -> None:
        """Set how many requests this router may have on each engine, and what others have there."""
        host = self._host
        now = host.loop.time()
        allowed = self.shares.tick(self._loads(), host.rooms(), draining=host.draining, now=now)
        host.quotas.divide(host.quotas.demands(now, draining=host.draining), self.shares.tenants(now))
        elsewhere = self.shares.elsewhere(now)
        more = False
        for backend in host.fleet.backends.values():
            key = key_of(backend)
            limit = allowed.get(key, backend.slots)
            more |= limit > backend.limit
            backend.limit = limit
            backend.elsewhere = elsewhere.get(key, 0)
        host.decided(more)

    def _loads(self) -> dict[str, Load]:
        return {key_of(b): Load(b.slots, b.in_flight) for b in self._host.fleet.backends.values()}
