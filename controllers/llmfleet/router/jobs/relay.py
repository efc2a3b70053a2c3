"""The client side of a job's exchange: what would be written to a connection is collected.

In: the bytes of an HTTP/1.1 answer. Out: a `Result`, once it is whole; None when it broke, was reset, or is too long to
be kept. It never waits, and takes every byte at once, so an engine is never held up by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from llmfleet.router.answer import Ended
from llmfleet.router.jobs.entry import Result
from llmfleet.router.relay import Exchange
from llmfleet.router.response import ResponseReader

_TYPE: Final = re.compile(rb"\r\ncontent-type:[ \t]*([^\r]*)", re.IGNORECASE)


class Collector:
    """Collects one answer; `over` is called once, with what it came to."""

    blocked = False

    def __init__(self, limit: int, over: Callable[[Result | None], None]) -> None:
        self._reader = ResponseReader()
        self._pieces: list[bytes] = []
        self._size = 0
        self._limit, self._over = limit, over
        self.too_long = False
        self._told = False

    def write(self, data: bytes) -> None:
        """Take bytes of the answer."""
        if self.too_long:
            return
        self._reader.feed(data)
        piece = self._reader.take_body()
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
            if self._size > self._limit:
                self.too_long = True
                self._pieces.clear()

    def reset(self) -> None:
        """The answer broke in a way only a reset can tell."""
        self._tell(None)

    def answered(self, keep_alive: bool) -> None:
        """The exchange is over; whole is what its framing says is whole."""
        reader = self._reader
        whole = reader.complete and not self.too_long
        self._tell(self._result() if whole else None)

    def patient(self) -> bool:
        """Nobody waits here."""
        return False

    def _result(self) -> Result:
        reader = self._reader
        found = _TYPE.search(reader.head)
        kind = found[1].strip() if found else b"application/json"
        return Result(status=reader.status, content_type=kind, body=b"".join(self._pieces))

    def _tell(self, result: Result | None) -> None:
        if not self._told:
            self._told = True
            self._reader.close()
            self._over(result)


def is_whole(exchange: Exchange) -> bool:
    """Whether the engine said that its answer is whole, and meant it."""
    verdict = exchange.answer.verdict
    return isinstance(verdict, Ended) and verdict.outcome == "complete"
