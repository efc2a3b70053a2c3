"""Exchanges that tell what they do in spans: one of the request, one of each attempt or leg at an engine.

In: requests and jobs, with the context their clients or entries bear. Out: the fields that make an engine's spans
children of ours, and spans that are over, for whoever sends them. A request of a trace that is not recorded is a plain
exchange with such fields. No span holds a prompt, a key or words of a client; tenants and models are names of ours.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

from llmfleet.router.answer import Again, Broken
from llmfleet.router.disagg.relay import SplitExchange
from llmfleet.router.engines.relay import Attempt
from llmfleet.router.keys import Tenant
from llmfleet.router.pick import Backend
from llmfleet.router.policy import Origin
from llmfleet.router.relay import Exchange
from llmfleet.router.tracing import context
from llmfleet.router.tracing.context import Context
from llmfleet.router.tracing.spans import Asked, Event, Kind, Span, Value

log = logging.getLogger(__name__)

MAX_LEGS: Final = 16  # spans of one request; one that waits for engines that cannot be reached may try more often
MAX_NAMES: Final = 1000  # of tenants
OTHERS: Final = "other"
UNFINISHED: Final = ("truncated", "aborted")


class Clock(Protocol):
    """What is asked of the router for the time."""

    @property
    def loop(self) -> Any: ...

    wall_offset: float


class Leg:
    """One engine asked, once."""

    __slots__ = ("backend", "ended", "name", "reason", "span_id", "started", "status")

    def __init__(self, name: str, backend: Backend, span_id: bytes, now: float) -> None:
        self.name, self.backend, self.span_id = name, backend, span_id
        self.started, self.ended = now, 0.0
        self.status = 0
        self.reason = ""

    def end(self, now: float, status: int, reason: str = "") -> None:
        """It is over; only the first word counts."""
        self.reason = self.reason or reason
        if not self.ended:
            self.ended, self.status = now, status


class Trace:
    """The spans of one request, while it is on its way."""

    __slots__ = ("_here", "_kind", "_legs", "_parent", "_started", "_tracer", "_unseen")

    def __init__(self, tracer: Tracer, here: Context, parent: bytes, kind: Kind) -> None:
        self._tracer, self._here, self._parent, self._kind = tracer, here, parent, kind
        self._started = tracer.now()
        self._legs: list[Leg] = []
        self._unseen = 0  # attempts that have no span

    def leg(self, name: str, backend: Backend) -> bytes:
        """A request goes to an engine: return the fields that it bears there."""
        span_id = self._tracer.span_id()
        if len(self._legs) < MAX_LEGS:
            self._legs.append(Leg(name, backend, span_id, self._tracer.now()))
        else:
            self._unseen += 1
        return context.written(self._here._replace(span_id=span_id))

    def fault(self, reason: str) -> None:
        """Remember why the newest leg comes to nothing."""
        if self._legs and not self._unseen:
            self._legs[-1].reason = self._legs[-1].reason or reason

    def end_leg(self, status: int, reason: str = "") -> None:
        """The newest leg is over."""
        if self._legs and not self._unseen:
            self._legs[-1].end(self._tracer.now(), status, reason)

    def over(self, exchange: Exchange, outcome: str) -> None:
        """The request is over: hand over its spans."""
        answer, route = exchange.answer, exchange.route.path.decode()
        self.end_leg(0, exchange.reason)
        attributes = self._common("POST", route, answer.status, exchange.tenant, exchange.request_id)
        attributes |= {
            "gen_ai.request.model": exchange.pool.name,
            "llmfleet.outcome": outcome,
            "llmfleet.attempts": exchange.attempts,
            "llmfleet.queued_ms": round(exchange.queued * 1000, 3),
        }
        if exchange.reason:
            attributes["error.type"] = str(exchange.reason)
        events: tuple[Event, ...] = ()
        if exchange.ttft is not None:
            attributes["llmfleet.ttft_ms"] = round(exchange.ttft * 1000, 3)
            events = (Event("first token", self._tracer.wall(exchange.started + exchange.ttft)),)
        used = answer.used(exchange.size, outcome in UNFINISHED) if exchange.engine is not None else None
        if used is not None:
            attributes |= {"gen_ai.usage.input_tokens": used.prompt, "gen_ai.usage.output_tokens": used.completion}
        failed = answer.status >= 500 or outcome in ("failed", "truncated")
        verb = "job" if self._kind is Kind.CONSUMER else "POST"
        span = self._span(f"{verb} {route}", attributes, failed, events)
        self._tracer.hand_over([span, *map(self._leg_span, self._legs)])

    def answered(self, asked: Asked, status: int, reason: str) -> None:
        """The request was answered by the router itself: refused, or about a job."""
        attributes = self._common(asked.verb, asked.route, status, asked.tenant, asked.request_id)
        attributes["llmfleet.outcome"] = "refused" if reason else "job"
        if reason:
            attributes["error.type"] = str(reason)
        name = f"{asked.verb} {asked.route}".rstrip()
        self._tracer.hand_over([self._span(name, attributes, status >= 500)])

    def _common(self, method: str, route: str, status: int, tenant: Tenant, request_id: bytes) -> dict[str, Value]:
        return {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "llmfleet.tenant": self._tracer.name_of(tenant),
            "llmfleet.request_id": request_id.decode(),
        }

    def _span(self, name: str, attributes: dict[str, Value], failed: bool, events: tuple[Event, ...] = ()) -> Span:
        return Span(
            name=name,
            kind=self._kind,
            trace_id=self._here.trace_id,
            span_id=self._here.span_id,
            parent_id=self._parent,
            started=self._tracer.wall(self._started),
            ended=self._tracer.wall(self._tracer.now()),
            attributes=attributes,
            failed=failed,
            state=self._here.state,
            remote=bool(self._parent),
            events=events,
        )

    def _leg_span(self, leg: Leg) -> Span:
        backend = leg.backend
        attributes: dict[str, Value] = {
            "llmfleet.llmcluster": backend.instance,
            "llmfleet.role": str(backend.role),
            "server.address": backend.host,
            "server.port": backend.port,
        }
        if leg.status:
            attributes["http.response.status_code"] = leg.status
        if leg.reason:
            attributes["error.type"] = str(leg.reason)
        return Span(
            name=leg.name,
            kind=Kind.CLIENT,
            trace_id=self._here.trace_id,
            span_id=leg.span_id,
            parent_id=self._here.span_id,
            started=self._tracer.wall(leg.started),
            ended=self._tracer.wall(leg.ended or leg.started),
            attributes=attributes,
            failed=bool(leg.reason) or leg.status >= 400,
            state=self._here.state,
        )


class Tracer:
    """Begins the traces of a process and takes what they come to."""

    def __init__(self, router: Clock, ratio: float, hand_over: Callable[[list[Span]], None]) -> None:
        self._router, self._ratio = router, ratio
        self.hand_over = hand_over
        self._bits = random.Random(secrets.randbits(128)).getrandbits
        self._names: set[str] = set()

    def now(self) -> float:
        """Return the time as the loop has it."""
        return float(self._router.loop.time())

    def wall(self, moment: float) -> int:
        """Return a moment of the loop's clock in nanoseconds of the wall's."""
        return int((moment + self._router.wall_offset) * 1e9)

    def span_id(self) -> bytes:
        """Return a new id; 0 is none."""
        return b"%016x" % (self._bits(64) or 1)

    def name_of(self, tenant: Tenant) -> str:
        """Return a tenant's name, as long as there are not too many of them."""
        if tenant.name not in self._names:
            if len(self._names) >= MAX_NAMES:
                return OTHERS
            self._names.add(tenant.name)
        return tenant.name

    def begin(self, head: bytes, kind: Kind = Kind.SERVER) -> tuple[Trace | None, bytes]:
        """Begin our span of a request, below its client's or as the first, and write it as fields for others.

        There is no span where the trace is not recorded.
        """
        above = context.read(head)
        if above is None:
            trace_id = b"%032x" % (self._bits(128) or 1)
            here = Context(trace_id, self.span_id(), context.chosen(trace_id, self._ratio))
        else:
            here = above._replace(span_id=self.span_id())
        fields = context.written(here)
        if not here.sampled:
            return None, fields
        return Trace(self, here, b"" if above is None else above.span_id, kind), fields

    def adopt(self, kind: type[Exchange], origin: Origin, head: bytes) -> tuple[Any, Origin]:
        """Return what makes the exchange of a request whose head says where it stands in a trace."""
        return self._made(kind, origin, *self.begin(head))

    def resume(self, kind: type[Exchange], origin: Origin) -> tuple[Any, Origin]:
        """Return what makes the exchange of a job: its entry says in its fields who stored it."""
        plain = replace(origin, fields=context.without(origin.fields))
        return self._made(kind, plain, *self.begin(origin.fields, Kind.CONSUMER))

    def _made(self, kind: type[Exchange], origin: Origin, trace: Trace | None, fields: bytes) -> tuple[Any, Origin]:
        if trace is None:
            return kind, replace(origin, fields=origin.fields + fields)
        traced = TracedSplitExchange if issubclass(kind, SplitExchange) else TracedExchange

        def made(*rest: Any) -> Exchange:
            exchange = traced(*rest)
            exchange.trace, exchange._plain = trace, exchange.fields
            return exchange

        return made, origin

    def refused(self, call: Asked, head: bytes, status: int, reason: str) -> None:
        """A request was refused before it came to an exchange."""
        trace, _ = self.begin(head)
        if trace is not None:
            trace.answered(call, status, reason)


def _status(attempt: Attempt) -> int:
    """Return the status that an engine answered with, if it did."""
    upstream = attempt._upstream
    return upstream.reader.status if upstream is not None and upstream.reader.head else 0


class _Traced(Exchange):
    """An exchange whose attempts are spans; beside `Exchange` in the line of what is made of it."""

    __slots__ = ()

    trace: Trace
    _plain: bytes  # fields that an engine gets from the client

    def _step(self) -> str:
        """Name what is sent to an engine."""
        return "attempt"

    def _told(self) -> int:
        return _status(self)

    def send(self, backend: Backend, *, fresh: bool = False) -> None:
        """Take a slot and send the request, as a span of its own."""
        self.fields = self._plain + self.trace.leg(self._step(), backend)
        super().send(backend, fresh=fresh)

    def _again(self, verdict: Again) -> None:
        self.trace.fault(verdict.reason)
        super()._again(verdict)

    def _broken(self, verdict: Broken) -> None:
        self.trace.fault(verdict.reason)
        super()._broken(verdict)

    def detach(self, *, failed: bool = False) -> None:
        """Part from the engine."""
        self.trace.end_leg(self._told())
        super().detach(failed=failed)

    def _over(self, outcome: str, *, keep_alive: bool, answered: bool = True) -> None:
        try:
            self.trace.over(self, outcome)
        except Exception:  # a client is answered whether or not it can be told of
            log.exception("a request could not be traced")
        super()._over(outcome, keep_alive=keep_alive, answered=answered)


class TracedExchange(_Traced):
    """One engine at a time."""

    __slots__ = ("_plain", "trace")


class TracedSplitExchange(_Traced, SplitExchange):
    """A prefill leg, and then a decode leg."""

    __slots__ = ("_plain", "trace")

    def _step(self) -> str:
        return "attempt" if self._handoff is None else "decode"

    def _told(self) -> int:
        return _status(self if self._leg is None else self._leg)

    def _ask(self, prefill: Backend, *, fresh: bool = False) -> None:
        self.fields = self._plain + self.trace.leg("prefill", prefill)
        super()._ask(prefill, fresh=fresh)

    def not_prefilled(self, reason: str, detail: str, *, stale: bool = False) -> None:
        """A first leg came to nothing."""
        self.trace.fault(reason)
        super().not_prefilled(reason, detail, stale=stale)

    def _part(self, failure: str | None = None) -> None:
        if self._leg is not None:
            self.trace.end_leg(self._told(), failure or "")
        super()._part(failure)
