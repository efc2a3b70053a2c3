"""Routers with one planted fault each: what the checker must notice.

    python -m history.mutants NAME router ...        (options as of `llmfleet router`)

In: a mutant's name. Out: the real router in this process with one function replaced. Each stands for a mistake that was
made in some router, ours among them, and each breaks one promise and nothing else.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from llmfleet.router import answer, http1, relay
from llmfleet.router.answer import Again, Answer, Broken
from llmfleet.router.engines.relay import Attempt
from llmfleet.router.errors import Code
from llmfleet.router.pick import Backend
from llmfleet.router.relay import Exchange

MUTANTS: dict[str, Callable[[], None]] = {}


def mutant(plant: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[plant.__name__] = plant
    return plant


@mutant
def counts_after_connecting() -> None:
    """A request is counted at an engine only once it is connected: a burst sees stale loads."""
    owed: set[int] = set()
    send, attach = Attempt.send, Attempt._attach

    def late_send(self: Attempt, backend: Any, *, fresh: bool = False) -> None:
        send(self, backend, fresh=fresh)
        if self._connecting is not None:
            owed.add(id(self))
            backend.in_flight -= 1

    def late_attach(self: Attempt, upstream: Any) -> None:
        if id(self) in owed:
            owed.discard(id(self))
            upstream.backend.in_flight += 1
        attach(self, upstream)

    Attempt.send, Attempt._attach = late_send, late_attach  # type: ignore[method-assign]


@mutant
def retries_after_the_first_event() -> None:
    """A stream that broke goes on with the events of another engine."""
    open_stream = Answer._open_stream
    opened: set[int] = set()

    def again(self: Answer, reason: str, code: Code, message: str) -> bytes:
        self.verdict = Again(reason, message, None, status=502, body=b"{}")
        return b""

    def open_once(self: Answer, reader: Any) -> bytes:
        head = open_stream(self, reader)
        if id(self) in opened:
            return b""
        opened.add(id(self))
        return head

    Answer._break, Answer._open_stream = again, open_once  # type: ignore[method-assign]


@mutant
def drops_the_error_event() -> None:
    """A broken stream is closed without a word."""

    def silent(self: Answer, reason: str, code: Code, message: str) -> bytes:
        self.verdict = Broken(reason, False)
        return b""

    Answer._break = silent  # type: ignore[method-assign]


@mutant
def ends_what_is_not_whole() -> None:
    """The last chunk is forwarded before the terminal marker was seen."""

    def end(self: Answer, reason: str, code: Code, message: str) -> bytes:
        self.verdict = Broken(reason, False)
        return http1.LAST_CHUNK

    Answer._break = end  # type: ignore[method-assign]


@mutant
def leaks_the_slot_of_one_that_leaves() -> None:
    """The slot of a client that left in the middle stays taken."""
    cancel = Exchange.cancel

    def leak(self: Exchange) -> None:
        backend = self._backend
        cancel(self)
        if backend is not None:
            backend.in_flight += 1

    Exchange.cancel = leak  # type: ignore[method-assign]


@mutant
def lets_the_engine_work_on() -> None:
    """A client that left frees its slot, but its engine is not told."""
    detach = Attempt.detach
    kept = []

    def keep(self: Attempt, *, failed: bool = False) -> None:
        upstream = self._upstream
        if upstream is not None and not upstream.reader.complete:
            kept.append(upstream)
            upstream.flow(False)
            self._upstream = None
            upstream.begin = upstream.free = None  # type: ignore[assignment,method-assign]
        detach(self, failed=failed)

    Attempt.detach = keep  # type: ignore[method-assign]


@mutant
def asks_two_engines() -> None:
    """Every request is sent to a second engine as well."""
    attach = Attempt._attach

    async def also(address: tuple[str, int], data: bytes) -> None:
        _reader, writer = await asyncio.open_connection(*address)
        writer.write(data)
        await asyncio.sleep(5)
        writer.close()

    def both(self: Attempt, upstream: Any) -> None:
        attach(self, upstream)
        others = [c.backend for c in self.pool.candidates if c.backend is not upstream.backend]
        head = http1.request_head(self._path, b"engine", self.fields, self.request_id, len(self.body))
        self.router.loop.create_task(also((others[0].host, others[0].port), head + self.body))

    Attempt._attach = both  # type: ignore[method-assign]


@mutant
def tries_three_times() -> None:
    """A request that fails twice is sent a third time."""
    relay.MAX_ATTEMPTS = 3  # type: ignore[misc]


@mutant
def gives_more_slots_than_there_are() -> None:
    """An engine is taken to have two slots more."""
    init = Backend.__init__

    def generous(self: Backend, endpoint: Any) -> None:
        init(self, endpoint)
        self.slots += 2
        self.limit += 2

    Backend.__init__ = generous  # type: ignore[method-assign]


@mutant
def passes_on_the_id_of_the_client() -> None:
    """An engine gets the request id that the client sent."""
    request_head = http1.request_head

    def foreign(path: bytes, host: bytes, fields: bytes, request_id: bytes, size: int) -> bytes:
        return request_head(path, host, fields, b"poison" if size % 2 else request_id, size)

    http1.request_head = foreign


@mutant
def takes_any_end_for_a_whole_answer() -> None:
    """A unary answer that was cut is given out as if it were whole."""
    lost = Answer.lost

    def whole(self: Answer, detail: str, *, stale: bool) -> bytes:
        if self.stage is answer.UNARY and self._held:
            return self.whole(200, b"".join(self._held), "complete")
        return lost(self, detail, stale=stale)

    Answer.lost = whole  # type: ignore[method-assign]


if __name__ == "__main__":
    MUTANTS[sys.argv[1]]()
    sys.argv = ["llmfleet", *sys.argv[2:]]
    from llmfleet.cli import main

    main()
