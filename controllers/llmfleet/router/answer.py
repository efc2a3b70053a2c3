"""What becomes of an engine's answer: held until it can be judged, then forwarded, and its end believed or not.

In: an engine's answer as it is read. Out: the bytes a client may have now, and once something must be decided, a
verdict: ask another engine (`Again`), the answer broke (`Broken`), it is over (`Ended`). The head is held until the
first event, a unary answer while it fits, the last chunk until the route's terminal marker was seen. It never opens a
connection, reads a clock, waits or logs.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol, cast

import orjson

from llmfleet.router import errors, http1, usage
from llmfleet.router.errors import Code, Confession, Refusal
from llmfleet.router.limits import Settings
from llmfleet.router.policy import Admitted, Origin
from llmfleet.router.response import ResponseReader, answer_head
from llmfleet.router.sse import EventTooLong, Scanner
from llmfleet.router.usage import Usage

RETRYABLE: Final = frozenset({500, 503})  # a draining or failing engine; never 429
MAX_FAILURE: Final = 1 << 16  # bytes of such an answer that are read to see what the engine says of itself
CHUNKED: Final = b"\r\ntransfer-encoding: chunked"
_CONFESSED: Final = frozenset(Confession)
# A unary 200 that is in truth a request the engine gave up; quotes inside an answer's text are escaped.
_ABORTED: Final = re.compile(rb'"finish_reason":\s*"(?:abort|error)"')


def _aborted(body: bytes) -> bool:
    """Whether a unary answer says that the engine gave the request up; most hold neither word."""
    return (b'"abort"' in body or b'"error"' in body) and _ABORTED.search(body) is not None


class Stage(IntEnum):
    """How far an answer is."""

    WAITING = 0  # no head yet
    FAILING = 1  # a status for which another engine is asked: held until it is known what the engine says of itself
    EVENTS = 2  # a stream without its first event: held
    UNARY = 3  # a unary answer: held while it fits
    STREAMING = 4  # events are being forwarded
    PASSING = 5  # a unary answer too large to hold is being forwarded
    OVER = 6


# An enum member costs a lookup in its class each time; these are read several times per event.
WAITING: Final = Stage.WAITING
FAILING: Final = Stage.FAILING
EVENTS: Final = Stage.EVENTS
UNARY: Final = Stage.UNARY
STREAMING: Final = Stage.STREAMING
PASSING: Final = Stage.PASSING
OVER: Final = Stage.OVER


class Again(NamedTuple):
    """Nothing was forwarded: ask another engine, or if none may be asked, answer with what is given here.

    Without `refusal` and `status` the engine's own answer is taken after all: see `Answer.accept`.
    """

    reason: str
    detail: str = ""
    refusal: Refusal | None = None
    status: int = 0
    body: bytes = b""
    same_engine: bool = False  # nobody's failure: the same engine may be asked again

    @property
    def certain(self) -> bool:
        """Whether the engine failed for sure: its answer may still be taken, and a stale connection is no fault."""
        return (self.refusal is not None or self.status > 0) and not self.same_engine

    @property
    def confessed(self) -> bool:
        """Whether the engine said itself that it is of no use any more."""
        return self.reason in _CONFESSED


class Broken(NamedTuple):
    """Bytes were forwarded and the rest will not come."""

    reason: str
    reset: bool  # nothing but a reset can say so


class Ended(NamedTuple):
    """The answer is over and the client can tell how."""

    outcome: str
    failed: bool  # by the engine
    keep_alive: bool


Verdict = Again | Broken | Ended


class Surroundings(Protocol):
    """What all answers of a process share."""

    settings: Settings
    draining: bool


class Answer:
    """One answer on its way to one client. After each call look at `verdict`."""

    __slots__ = (
        "_choices",
        "_chunked",
        "_drops_usage",
        "_failure",
        "_held",
        "_held_size",
        "_keep_alive",
        "_opened",
        "_request_id",
        "_route",
        "_router",
        "_scanner",
        "_tail",
        "_told",
        "_version_10",
        "confession",
        "stage",
        "status",
        "streams",
        "token_seen",
        "verdict",
    )

    def __init__(
        self,
        router: Surroundings,
        origin: Origin,
        admitted: Admitted,
        request_id: bytes,
        keep_alive: bool,
    ) -> None:
        self._router, self._route = router, origin.route
        self._request_id = request_id  # may be followed by another header line
        self._opened = False  # a 200 of our own went out while the request waited
        self._drops_usage = admitted.drops_usage
        self._told: Usage | None = None  # by a unary answer
        self._tail = b""  # of an answer too large to hold: its usage comes last
        self._choices, self.streams = admitted.choices, admitted.streams
        self._keep_alive, self._version_10 = keep_alive, origin.version_10
        self._chunked = False
        self._scanner: Scanner | None = None
        self._failure = 0  # the status of an answer that is FAILING
        self._held: list[bytes] = []
        self._held_size = 0
        self.stage = WAITING
        self.confession: Confession | None = None  # what the engine said of itself
        self.status = 0
        self.token_seen = False  # a delta that is not empty was forwarded
        self.verdict: Verdict | None = None

    def waited(self, seconds: float) -> None:
        """Say on the answer how long the request waited for a slot."""
        self.note(b"x-llmfleet-queued-ms", b"%d" % (seconds * 1000))

    def note(self, name: bytes, value: bytes) -> None:
        """Put a header line of ours on the answer, in place of what it said before."""
        ident, *lines = self._request_id.split(b"\r\n")
        others = (line for line in lines if not line.startswith(name + b":"))
        self._request_id = b"\r\n".join((ident, *others, b"%b: %b" % (name, value)))

    def comment(self) -> bytes:
        """Keep a stream's client with us while there is no engine; the first comment commits to a 200."""
        text = b": waiting for an engine\n\n"
        head = b""
        if not self._opened:
            self._opened = True
            self.status = 200
            self._chunked = not self._version_10
            self._keep_alive = self._keep_alive and self._chunked and not self._router.draining
            head = http1.stream_head(self._request_id, CHUNKED if self._chunked else b"", self._keep_alive)
        return head + (http1.chunk(text) if self._chunked else text)

    def restart(self) -> None:
        """Forget what was held: another engine answers from the start."""
        self.stage = WAITING
        self.verdict = self.confession = None
        self._scanner = None
        self._held.clear()
        self._held_size = 0

    # ---- the engine's answer ----

    def feed(self, reader: ResponseReader) -> bytes:
        """Look at what was read; returns what the client may have now."""
        stage = self.stage
        if stage is STREAMING:
            return self._stream(reader)
        if stage is WAITING:
            if not reader.head:
                return b""
            self._judge_head(reader)
            stage = self.stage
        if self.verdict is not None:
            return b""
        if stage is UNARY:
            return self._hold_unary(reader)
        if stage is EVENTS:
            return self._hold_events(reader)
        if stage is FAILING:
            self._hold_failure(reader)
            return b""
        return self._pass(reader) if stage is PASSING else b""

    def accept(self, reader: ResponseReader) -> bytes:
        """Take an answer that another engine would have been asked for, had there been one."""
        self.verdict = None
        self.stage = UNARY
        return self._hold_unary(reader)

    def judge_failure(self) -> None:
        """Judge an answer by its status that does not come to its end."""
        self.verdict = Again("status", f"status {self._failure}")

    def lost(self, detail: str, *, stale: bool) -> bytes:
        """The engine's connection is gone before its answer was; `stale` means it was a kept one."""
        if self.stage is STREAMING:
            scanner = cast(Scanner, self._scanner)
            if scanner.terminal or scanner.error is not None:
                return self._end_stream(whole=scanner.terminal)
            return self._break("lost", Code.UPSTREAM_LOST, "the engine was lost in the middle of the answer")
        if self.stage is PASSING:
            self.verdict = Broken("lost", True)
        else:
            self._again("reset", detail, same_engine=stale and self.stage is WAITING)
        return b""

    def cut_off(self, reason: str, code: Code, message: str) -> bytes:
        """End an answer of which bytes were forwarded; one that is whole but for its end is whole."""
        if self.stage is PASSING:
            self.verdict = Broken(reason, True)
            return b""
        if cast(Scanner, self._scanner).terminal:
            return self._end_stream()
        return self._break(reason, code, message)

    def _again(self, reason: str, detail: str, *, same_engine: bool = False) -> None:
        refusal = errors.lost(Code.UPSTREAM_LOST, "the engine was lost before it answered")
        self.verdict = Again(reason, detail, refusal, same_engine=same_engine)

    def _judge_head(self, reader: ResponseReader) -> None:
        """Decide by the head whether this is a stream, a unary answer, or a reason to ask another engine."""
        status = reader.status
        if not self._opened:
            self.status = status
        if status in RETRYABLE:
            self.stage, self._failure = FAILING, status
        elif status == 200 and reader.events:
            self.stage = EVENTS
            limit = self._router.settings.limits.max_event_bytes
            self._scanner = Scanner(
                self._route.dialect, expected=self._choices, max_event=limit, drops_usage=self._drops_usage
            )
        elif (status == 200 and self.streams) or 200 < status < 400:
            # SDKs read a stream that is none, an empty answer and a redirect as an answer without a word.
            self._again("not_an_answer", f"status {status}, a stream was asked for: {self.streams}")
        else:
            self.stage = UNARY

    def _hold_failure(self, reader: ResponseReader) -> None:
        """Hold a failure until it is whole: it may say that the engine is dead."""
        piece = reader.take_body()
        self._held.append(piece)
        self._held_size += len(piece)
        if not reader.complete:
            if self._held_size > MAX_FAILURE:
                self.judge_failure()
            return
        self.confession = errors.confession(errors.error_in(b"".join(self._held)))
        self.verdict = Again(self.confession or "status", f"status {self._failure}")

    # ---- streams ----

    def _scan(self, reader: ResponseReader, scanner: Scanner) -> bytes | None:
        """Return the bytes to forward, or None if the stream has to be given up."""
        payload = reader.take_body()
        try:
            ready = scanner.feed(payload) if payload else b""
            return ready + scanner.flush() if reader.complete else ready
        except EventTooLong:
            return None

    def _hold_events(self, reader: ResponseReader) -> bytes:
        """Hold a stream's head until its first event: an error there still gets another engine or a real status."""
        scanner = cast(Scanner, self._scanner)
        ready = self._scan(reader, scanner)
        if ready is None:
            self._again("event_too_long", "an event is longer than the limit")
            return b""
        if ready:
            self._held.append(ready)
            self._held_size += len(ready)
        if not scanner.started:
            if reader.complete or scanner.broken:
                self._again("truncated", "the stream ended before its first event")
            elif self._held_size > self._router.settings.limits.max_event_bytes:
                self._again("event_too_long", "more than an event's limit came before the first event")
            return b""
        if scanner.error is not None:
            return self._first_event_is_error(scanner.error)
        return self._open_stream(reader) + self._forward(b"".join(self._held), scanner, reader)

    def _first_event_is_error(self, error: dict[str, Any]) -> bytes:
        status = errors.engine_status(error)
        body = orjson.dumps({"error": error})
        if status in RETRYABLE:
            self.confession = errors.confession(error)
            self.verdict = Again(self.confession or "error_event", f"status {status}", status=status, body=body)
            return b""
        return self.whole(status, body, "failed")

    def _open_stream(self, reader: ResponseReader) -> bytes:
        self.stage = STREAMING
        if self._opened:
            return b""
        self._chunked = not self._version_10
        self._keep_alive = self._keep_alive and self._chunked and not self._router.draining
        framing = CHUNKED if self._chunked else b""
        return answer_head(reader, self._request_id, framing, self._keep_alive)

    def _stream(self, reader: ResponseReader) -> bytes:
        scanner = cast(Scanner, self._scanner)
        ready = self._scan(reader, scanner)
        if ready is None:
            message = "the engine sent an event that is too long"
            return self._break("event_too_long", Code.UPSTREAM_FAILED, message)
        return self._forward(ready, scanner, reader)

    def _forward(self, ready: bytes, scanner: Scanner, reader: ResponseReader) -> bytes:
        self.token_seen = scanner.token_seen
        if ready and self._chunked:
            ready = http1.chunk(ready)
        if scanner.broken:
            message = "the engine ended the answer before it was finished"
            return ready + self._break("unfinished", Code.UPSTREAM_LOST, message)
        if not reader.complete:
            return ready
        if scanner.terminal or scanner.error is not None:
            return ready + self._end_stream(whole=True)
        return ready + self._break("no_terminal", Code.UPSTREAM_LOST, "the engine ended the answer early")

    def _end_stream(self, *, whole: bool = True) -> bytes:
        """The answer is over and the client can tell how: forward the last chunk that was withheld."""
        scanner = cast(Scanner, self._scanner)
        if scanner.error is not None:
            self.confession = errors.confession(scanner.error)
        outcome = "failed" if scanner.failed else "complete"
        self.verdict = Ended(outcome, scanner.failed, self._keep_alive and whole)
        return http1.LAST_CHUNK if self._chunked and whole else b""

    def _break(self, reason: str, code: Code, message: str) -> bytes:
        """Tell a client that has events of a broken answer: an error event, and no terminating chunk."""
        self.verdict = Broken(reason, False)
        event = errors.event(errors.lost(code, message), self._route.dialect)
        return http1.chunk(event) if self._chunked else event

    # ---- unary answers ----

    def _hold_unary(self, reader: ResponseReader) -> bytes:
        """Hold a unary answer while it fits: a cut one can then still be asked for again."""
        piece = reader.take_body()
        if reader.complete:
            return self._finish_unary(reader, b"".join([*self._held, piece]) if self._held else piece)
        if piece:
            self._held.append(piece)
            self._held_size += len(piece)
            if self._held_size > self._router.settings.limits.max_held_answer_bytes:
                return self._open_unary(reader)
        return b""

    def _finish_unary(self, reader: ResponseReader, body: bytes) -> bytes:
        """Forward a whole answer, unless it is one that the engine gave up."""
        status = reader.status
        if self._opened:
            return self._say_in_stream(body, "failed")
        if status == 200 and self._route.counts_choices and _aborted(body):
            refusal = errors.lost(Code.UPSTREAM_FAILED, "the engine gave the request up")
            self.verdict = Again("aborted", "finish reason of a failure", refusal)
            return b""
        keep_alive = self._keep_alive and not self._router.draining
        framing = None if reader.sized else b"\r\ncontent-length: %d" % len(body)
        if status == 200:
            self._told = usage.find(body)
        self.verdict = self._whole(status, keep_alive)
        return answer_head(reader, self._request_id, framing, keep_alive) + body

    def _open_unary(self, reader: ResponseReader) -> bytes:
        """Start forwarding an answer that is too large to hold."""
        if self._opened:
            return self._say_in_stream(b"{}", "failed")
        self.stage = PASSING
        sized = reader.sized
        self._chunked = not sized and not self._version_10
        self._keep_alive = self._keep_alive and (sized or self._chunked) and not self._router.draining
        framing = None if sized else CHUNKED if self._chunked else b""
        head = answer_head(reader, self._request_id, framing, self._keep_alive)
        body = b"".join(self._held)
        self._held.clear()
        return head + (http1.chunk(body) if self._chunked else body)

    def _pass(self, reader: ResponseReader) -> bytes:
        piece = reader.take_body()
        self._tail = (self._tail + piece[-usage.WINDOW :])[-usage.WINDOW :]
        if piece and self._chunked:
            piece = http1.chunk(piece)
        if reader.complete:
            self._told = usage.find(self._tail)
            self.verdict = self._whole(self.status, self._keep_alive)
            if self._chunked:
                piece += http1.LAST_CHUNK
        return piece

    def _whole(self, status: int, keep_alive: bool) -> Ended:
        failed = status >= 500
        return Ended("failed" if failed else "complete", failed, keep_alive)

    def used(self, size: int, broken: bool) -> Usage | None:
        """Return what an engine counted, or for an answer that broke an estimate; `size` is the request's."""
        scanner = self._scanner
        counted = self._told if scanner is None else scanner.usage
        if not broken or (counted is not None and (scanner is None or scanner.terminal)):
            return counted
        return usage.estimate(size, 0 if scanner is None else scanner.tokens(), counted)

    # ---- the router's own words ----

    def refusal(self, refusal: Refusal, outcome: str) -> bytes:
        """Write an error of the router's own; nothing was forwarded."""
        if self._opened:
            event = errors.event(refusal, self._route.dialect)
            self.verdict = Ended(outcome, False, False)
            return http1.chunk(event) if self._chunked else event
        status, extra, body = errors.render(refusal, self._route.dialect)
        return self.whole(status, body, outcome, extra)

    def whole(
        self, status: int, body: bytes, outcome: str, extra: bytes = b"", content_type: bytes = http1.JSON
    ) -> bytes:
        """Write a whole answer in place of an engine's."""
        if self._opened:
            return self._say_in_stream(body, outcome)
        self.status = status
        keep_alive = self._keep_alive and not self._router.draining
        self.verdict = Ended(outcome, status >= 500, keep_alive)
        return http1.reply(
            status, body, request_id=self._request_id, keep_alive=keep_alive, extra=extra, content_type=content_type
        )

    def _say_in_stream(self, body: bytes, outcome: str) -> bytes:
        """Put an engine's error into the stream that was promised: an event, and no terminating chunk."""
        message = errors.error_in(body).get("message")
        words = message if isinstance(message, str) else "the engine did not answer with a stream"
        event = errors.event(errors.lost(Code.UPSTREAM_FAILED, words), self._route.dialect)
        self.verdict = Ended(outcome, False, False)
        return http1.chunk(event) if self._chunked else event
