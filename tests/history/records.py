"""What a history is made of. Pure.

Three logs on one clock (CLOCK_MONOTONIC, one machine): what each client sent and saw (`Call`), what each engine
received and answered (`Try`), and what was done to them (`Fault`). The checker reads nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# How a client's call ended, as the client could tell.
WHOLE = "whole"  # framed to its end
FIN = "fin"  # the connection was closed in the middle, cleanly
RESET = "reset"  # the connection was reset in the middle
NOTHING = "nothing"  # the connection ended without a single byte of an answer
UNREACHABLE = "unreachable"  # nothing accepted the connection
LEFT = "left"  # the client itself went away
GARBLED = "garbled"  # what came is not HTTP
HUNG = "hung"  # no end within the client's patience

# How an engine's try ended, as the engine could tell.
ANSWERED = "answered"  # a whole, good answer was written
ERROR = "error"  # an error status, or an error event
BROKEN = "broken"  # the engine broke its own answer
ABORTED = "aborted"  # the router went away

TERMINAL = frozenset({"complete", "failed", "expired", "cancelled", "dead"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as its client saw it."""

    tag: str
    began: float
    ended: float
    how: str
    stream: bool = False
    status: int = 0
    pieces: tuple[tuple[str, int], ...] = ()  # (engine, index) of each piece of content, in order
    asked: int = 0  # pieces the engine was asked for
    finished: bool = False  # a finish reason (and, of a stream, [DONE]) was seen
    error: str = ""  # code of an error event or body
    first: float = 0.0  # when the first piece came
    request_id: str = ""
    router: str = ""  # which router process was asked
    job: str = ""  # the id a 202 promised


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One request as an engine saw it."""

    tag: str
    engine: str
    request_id: str
    received: float
    ended: float = 0.0  # before the last byte was written; 0 while unknown
    how: str = ""
    pieces: int = 0  # pieces written
    foreign: tuple[str, ...] = ()  # what reached it that no client may send

    @property
    def router(self) -> str:
        """The part of a request id that is one router process's own."""
        return self.request_id[:20]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that was done on purpose."""

    what: str  # engine-killed, engine-frozen, engine-thawed, router-killed, router-ended, store-killed, store-back
    target: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What a client was told of an accepted job at one moment."""

    job: str
    at: float
    state: str
    whole: bool = False  # with a result that is a whole answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What a router says it holds after everything has ended."""

    router: str
    in_flight: int
    waiting: int = 0


@dataclass(slots=True)
class History:
    """Everything the checker reads."""

    calls: list[Call] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    read_at: float = 0.0  # when the engines' logs were read
    slots: int = 0  # per engine
    engines: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One promise that one request shows broken."""

    invariant: int
    what: str
    tag: str
    detail: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.what}: {self.tag} {self.detail}"
