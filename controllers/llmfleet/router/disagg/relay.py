"""A request over two engines: the first computes its prompt, the second reads that and answers.

In: a request whose model has prefill and decode engines. Out: the same answer as from one engine. A slot of the decode
engine is held from before the first leg until the answer is over; a hand-off is sent once, to the engine it was made
for. It never passes on a hand-off it has not checked, and never one whose lease may be over.
"""

from __future__ import annotations

import logging
from typing import Final

import orjson
from mypy_extensions import mypyc_attr

from llmfleet.api.document import Role
from llmfleet.router import errors
from llmfleet.router.answer import EVENTS, PASSING, RETRYABLE, STREAMING, Again
from llmfleet.router.client import Upstream
from llmfleet.router.disagg import plan
from llmfleet.router.disagg.ledger import Fate
from llmfleet.router.disagg.plan import Handoff, NoHandoff, Way
from llmfleet.router.engines.relay import GONE, Attempt, Requester, Services
from llmfleet.router.errors import Code, Refusal
from llmfleet.router.pick import Backend, ModelPool, pick
from llmfleet.router.policy import Admitted, Origin
from llmfleet.router.relay import MAX_ATTEMPTS, Exchange
from llmfleet.router.sse import Dialect
from llmfleet.router.waits import SATURATED
from llmfleet.telemetry import ModelStats

log = logging.getLogger(__name__)

MAX_FIRST_LEGS: Final = 2  # for one second leg
# The decode engine was not there: its prefill engine is not to blame.
_DECODE_GONE: Final = GONE | {"reset"}


def exchange_for(pool: ModelPool) -> type[Exchange]:
    """Return the kind of exchange that the requests of a model need."""
    return SplitExchange if pool.disaggregated else Exchange


class LegOne(Attempt):
    """The first leg: one token, unary; what it says is read by its exchange."""

    __slots__ = ("_exchange", "_held", "_size")

    def __init__(self, exchange: SplitExchange, body: bytes) -> None:
        path = exchange.route.path
        super().__init__(exchange.router, exchange.pool, path, exchange.fields, exchange.request_id, body)
        self.attempts = exchange.attempts  # both legs bear one id
        self._exchange = exchange
        self._held: list[bytes] = []
        self._size = 0

    def progress(self, upstream: Upstream) -> None:
        """More of the answer was read."""
        self.last = self.router.loop.time()
        reader = upstream.reader
        if not reader.head:
            return
        piece = reader.take_body()
        self._held.append(piece)
        self._size += len(piece)
        if reader.complete:
            self._exchange.prefilled(reader.status, b"".join(self._held))
        elif self._size > self.router.settings.limits.max_event_bytes:
            self._exchange.not_prefilled("too_long", "the answer is longer than the limit of an event")

    def lost(self, upstream: Upstream, detail: str) -> None:
        """The engine connection is gone before the answer was whole."""
        self._upstream = None
        stale = not upstream.fresh and not upstream.reader.head
        self._exchange.not_prefilled("reset", detail, stale=stale)

    def unreachable(self, reason: str, detail: str) -> None:
        """There is no connection to the engine."""
        self._exchange.not_prefilled(reason, detail)


@mypyc_attr(allow_interpreted_subclasses=True)  # traced ones
class SplitExchange(Exchange):
    """One request of a disaggregated model; those that cannot be split go to one engine."""

    __slots__ = (
        "_arriving",
        "_asked_at",
        "_event_at",
        "_handoff",
        "_leg",
        "_legs",
        "_partner",
        "_prefill",
        "_rules",
        "_sent_at",
        "_shared",
        "_streams",
        "_way",
        "_whole_body",
    )

    def __init__(
        self,
        router: Services,
        client: Requester,
        origin: Origin,
        admitted: Admitted,
        pool: ModelPool,
        stats: ModelStats,
        request_id: bytes,
        keep_alive: bool,
        now: float,
    ) -> None:
        super().__init__(router, client, origin, admitted, pool, stats, request_id, keep_alive, now)
        route = origin.route
        self._rules = router.settings.disaggregation
        self._whole_body = admitted.body
        dialect = route.dialect if route.streams else Dialect.PLAIN
        self._way = plan.way_of(dialect, admitted.document, admitted.choices, len(admitted.body), self._rules)
        self._streams = admitted.streams
        self._partner: Backend | None = None  # chosen for the first leg that is about to be sent
        self._prefill: Backend | None = None  # has had the last first leg
        self._leg: LegOne | None = None
        self._legs = 0
        self._handoff: Handoff | None = None
        self._arriving: Backend | None = None  # the decode engine that waits for this prompt
        self._shared = False  # the failure at hand may be either engine's
        self._asked_at = self._sent_at = self._event_at = 0.0

    # ---- which engines ----

    def _choose(self) -> Backend | None:
        """Return the engine that decodes; the one that prefills is remembered beside it."""
        self._partner = None
        if self._way is not Way.SPLIT:
            return self._one()
        if (decode := plan.cached(self.pool, self._rules, self.keys)) is not None:
            self._way = Way.BYPASS
            return decode
        # Not one that this request was lost with, if there is another.
        decode = self._pair(self._avoid) or (self._pair() if self._avoid is not None else None)
        if decode is None and plan.any_prefill(self.pool, self._rules, self.router.loop.time()):
            return pick(self.pool)  # pairs are busy, not gone; engines that need no partner help out
        return decode or (self._one() if self._may_fall_back() else pick(self.pool, keys=self.keys))

    def _pair(self, avoid_decode: Backend | None = None, avoid_prefill: Backend | None = None) -> Backend | None:
        now = self.router.loop.time()
        found = plan.pair(
            self.pool, self._rules, now, self.keys, avoid_decode=avoid_decode, avoid_prefill=avoid_prefill
        )
        self._partner = None if found is None else found.prefill
        return None if found is None else found.decode

    def _one(self, avoid: Backend | None = None) -> Backend | None:
        """Return an engine for the whole request."""
        self._partner = None
        return pick(self.pool, avoid, keys=self.keys) or pick(self.pool.decode, avoid, keys=self.keys)

    def _may_fall_back(self) -> bool:
        return self._rules.fallback == "prefillOnDecode"

    def no_slot(self) -> Refusal:
        """Say which half of a pair is missing."""
        pool, now = self.pool, self.router.loop.time()
        fallen = self._way is Way.SPLIT and not self._may_fall_back() and not plan.any_prefill(pool, self._rules, now)
        if fallen and pool.decode.open and not pool.open:
            return errors.overloaded(Code.NO_ENDPOINT, "no prefill engine of this model takes requests now")
        if pool.decode.open:
            return errors.overloaded(Code.OVERLOADED, f"{SATURATED}, try again soon")
        return super().no_slot()

    def _other(self, verdict: Again) -> Backend | None:
        """Return the engine for another attempt; what it would need again of the failed one is counted as free."""
        failed = self._backend
        if failed is None or self.attempts >= MAX_ATTEMPTS:
            return None
        arriving = self._arriving is failed
        failed.in_flight -= 1
        failed.arriving -= arriving
        try:
            return self._next(verdict, failed)
        finally:
            failed.in_flight += 1
            failed.arriving += arriving

    def _next(self, verdict: Again, failed: Backend) -> Backend | None:
        """Choose by what failed: a decode engine that is gone, or the hand-off between the two."""
        same = failed if verdict.same_engine and failed.listed else None
        if self._way is not Way.SPLIT or self._sent_at == 0.0:
            return self._one(avoid=failed) or same
        if verdict.reason in _DECODE_GONE:
            found = self._pair(avoid_decode=failed) or (self._pair() if same else None)
            return found or (self._one(avoid=failed) if self._may_fall_back() else None)
        prefill = self._prefill
        found = self._pair(failed, prefill) or self._pair(None, prefill)
        if found is None and self._may_fall_back():
            found = self._one(avoid=failed) or self._one()
        return found or self._pair(avoid_decode=failed)

    # ---- the first leg ----

    def _dispatch(self, backend: Backend) -> None:
        """Send the request to the engine that was chosen, or its first leg to the partner of that one."""
        partner, self._partner = self._partner, None
        self._legs = 0
        self._sent_at = 0.0
        self._shared = False
        if partner is None:
            way = Way.FALLBACK if self._way is Way.SPLIT and backend.role is Role.DECODE else self._way
            self.stats.ways[way] += 1
            self.body = self._whole_body
            super()._dispatch(backend)
            return
        self.stats.ways[Way.SPLIT] += 1
        self.engine = self._backend = backend
        backend.in_flight += 1  # from now on; a prefill without a slot to decode it would be for nothing
        backend.arriving += 1
        self._arriving = backend
        self._ask(partner)

    def _ask(self, prefill: Backend, *, fresh: bool = False) -> None:
        """Send the first leg."""
        try:
            body = plan.leg_one(self.route.dialect, orjson.loads(self._whole_body))
        except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
            self.detach()
            message = "the body is nested too deeply"
            self._refuse(Refusal(status=400, code=Code.INVALID_JSON, message=message), "refused")
            return
        now = self.router.loop.time()
        prefill.breaker.taken(now)
        self._prefill, self._asked_at = prefill, now
        self._legs += 1
        self._leg = leg = LegOne(self, body)
        leg.send(prefill, fresh=fresh or self._legs > 1)

    def prefilled(self, status: int, body: bytes) -> None:
        """The first leg was answered."""
        if status == 200:
            self._take(body)
        elif 400 <= status < 500:
            # What is wrong with the request is wrong on any engine.
            self._say(self.answer.whole(status, body, "complete"))
        else:
            confession = errors.confession(errors.error_in(body))
            if confession is not None and self._prefill is not None:
                self.router.confessed(self._prefill)
            reason = confession or ("status" if status in RETRYABLE else "not_an_answer")
            self.not_prefilled(reason, f"status {status}")

    def _take(self, body: bytes) -> None:
        now = self.router.loop.time()
        try:
            self._handoff = plan.read_handoff(body, now, self._rules)
        except NoHandoff as error:
            self.not_prefilled("no_handoff", str(error))
            return
        if self._prefill is not None:
            self._prefill.ledger.opened()
        self._part()
        self._read(now)

    def _part(self, failure: str | None = None) -> None:
        """Be done with the first leg: drop it if it still runs."""
        leg, self._leg = self._leg, None
        if leg is not None:
            if failure is not None:
                leg.blame(failure)
            leg.detach()

    def not_prefilled(self, reason: str, detail: str, *, stale: bool = False) -> None:
        """A first leg came to nothing: ask another prefill engine, or have the decode engine do it all."""
        prefill, decode = self._prefill, self._backend
        if prefill is None or decode is None:
            self._part(None if stale else reason)
            return
        prefill.in_flight += stale  # who waits gets no slot that is wanted again at once
        self._part(None if stale else reason)
        prefill.in_flight -= stale
        fields = {"requestId": self.request_id.decode(), "llmcluster": prefill.instance}
        log.info("prefill failed", extra={"fields": fields | {"reason": reason, "detail": detail}})
        self.stats.retries[f"prefill_{reason}"] += 1
        if stale:  # nobody's failure: a kept connection had gone
            self._legs -= 1
            self._ask(prefill, fresh=True)
            return
        now = self.router.loop.time()
        prefill.breaker.failed(now, self._rules.breaker_failures, self._rules.breaker_seconds)
        if reason == "reset" and self.router.quarantine.strike(self.asked(), prefill.pod_uid, now):
            self._give_up(self._quarantined())
            return
        other = None
        if self._legs < MAX_FIRST_LEGS and (reason in GONE or self._affordable()):
            other = plan.prefill_for(self.pool, decode, self._rules, now, self.keys, avoid=prefill)
        if other is not None:
            self._ask(other)
        elif self._may_fall_back():
            self._decode_alone(decode)
        else:
            self._give_up(None)

    def _give_up(self, refusal: Refusal | None) -> None:
        self.detach()
        self._refuse(refusal or errors.lost(Code.UPSTREAM_LOST, "no prefill engine computed the prompt"), "failed")

    def _decode_alone(self, decode: Backend) -> None:
        """Let the engine that is reserved do it all."""
        self.stats.ways[Way.FALLBACK] += 1
        self._arrived()
        self.body = self._whole_body
        self._send_reserved(decode)

    def _send_reserved(self, decode: Backend) -> None:
        """Send to the engine whose slot is held already; sending takes one."""
        decode.in_flight -= 1
        self._backend = None
        self.send(decode, fresh=self.attempts > 0)

    # ---- the second leg ----

    def _read(self, now: float) -> None:
        """Send the second leg."""
        decode, handoff = self._backend, self._handoff
        if decode is None or handoff is None:
            return
        self._sent_at = now
        self.body = plan.leg_two(self._whole_body, handoff)
        self._send_reserved(decode)

    def _attach(self, upstream: Upstream) -> None:
        """Use a connection; a hand-off that grew old while it was made is not sent."""
        handoff = self._handoff
        if handoff is not None and self.router.loop.time() >= handoff.expires_at:
            self._upstream = upstream
            self._close(Fate.EXPIRED)
            refusal = errors.lost(Code.UPSTREAM_TIMEOUT, "the prompt's KV had gone before it could be read", status=504)
            self._again(Again("expired", "the lease ended", refusal))
            return
        super()._attach(upstream)

    def progress(self, upstream: Upstream) -> None:
        """More of the answer was read."""
        super().progress(upstream)
        if self._handoff is not None and self.answer.stage in (STREAMING, PASSING):
            self._event_at = self.last
            self._close(Fate.USED)
            self._arrived()

    def _first_token(self) -> None:
        super()._first_token()
        if self._sent_at and self._prefill is not None:
            event_at = self._event_at or self.last
            observe = self.stats.phase
            observe("queue", self._asked_at - self.started)
            observe("prefill", self._sent_at - self._asked_at)
            observe("transfer", event_at - self._sent_at)
            observe("decode_first_token", self.last - event_at)

    def _again(self, verdict: Again) -> None:
        """The answer failed before anything of it was forwarded; a hand-off is used once, whatever became of it."""
        if self._handoff is not None:
            self._close(Fate.FAILED)
            self._shared = verdict.reason not in _DECODE_GONE
            if self._shared and self._prefill is not None:
                now = self.router.loop.time()
                self._prefill.breaker.failed(now, self._rules.breaker_failures, self._rules.breaker_seconds)
        super()._again(verdict)

    def blame(self, reason: str = "") -> None:
        """Count a lost attempt against the decode engine, unless the other half of the pair may have caused it."""
        if not self._shared:
            super().blame(reason)

    def at(self, backend: Backend) -> bool:
        """Whether the request is at this engine now, with the leg that runs."""
        return super().at(backend) if self._leg is None else self._leg.at(backend)

    def engine_lost(self) -> None:
        """The engine this request is at was declared lost."""
        if self._leg is None:
            super().engine_lost()
        else:
            self.not_prefilled("lost", "the engine does not answer its health checks")

    def asked(self) -> bytes:
        """Return what the client asked for."""
        return self._whole_body

    def _committed(self) -> None:
        super()._committed()
        self._whole_body = b""

    def check(self, now: float) -> None:
        """Give up on a hand-off that takes too long; only a stream tells when it has arrived."""
        handoff = self._handoff
        if handoff is not None and self._streams and self.answer.stage <= EVENTS:
            allowed = plan.transfer_seconds(handoff, self._rules)
            if now - self._sent_at > allowed:
                refusal = errors.lost(Code.UPSTREAM_TIMEOUT, "the prompt's KV did not arrive in time", status=504)
                self._again(Again("kv_timeout", f"no event in {allowed:.3g} s", refusal))
                return
        super().check(now)

    # ---- ends ----

    def _close(self, fate: Fate) -> None:
        """Record what became of the hand-off, once."""
        handoff, self._handoff = self._handoff, None
        if handoff is not None and self._prefill is not None:
            self._prefill.ledger.closed(fate, handoff.expires_at)
            if fate is Fate.USED:
                self._prefill.breaker.succeeded()

    def _arrived(self) -> None:
        """No prompt is on its way any more: another one may be."""
        decode, self._arriving = self._arriving, None
        if decode is not None:
            decode.arriving -= 1
            self.router.released(self.pool, decode)

    def detach(self, *, failed: bool = False) -> None:
        """Part from both engines."""
        self._part()
        decode, self._arriving = self._arriving, None
        if decode is not None:
            decode.arriving -= 1
        super().detach(failed=failed)

    def _over(self, outcome: str, *, keep_alive: bool, answered: bool = True) -> None:
        self._close({"complete": Fate.USED, "aborted": Fate.ABANDONED}.get(outcome, Fate.FAILED))
        self._whole_body = b""
        super()._over(outcome, keep_alive=keep_alive, answered=answered)
