"""One `Exchange` per request: from the choice of an engine to the account of how it ended.

In: an admitted request and a client to answer. Out: the engine's answer as `Answer` judges it, or before its first byte
was forwarded a second engine's. It never parses a request, accepts a connection or opens one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from mypy_extensions import mypyc_attr

from llmfleet.router import errors
from llmfleet.router.answer import FAILING, OVER, PASSING, STREAMING, UNARY, Again, Answer, Broken, Verdict
from llmfleet.router.client import Upstream
from llmfleet.router.engines.relay import GONE, Attempt, Requester, Services
from llmfleet.router.errors import Code, Confession, Refusal
from llmfleet.router.pick import Backend, ModelPool, pick
from llmfleet.router.policy import Admitted, Origin
from llmfleet.router.queue import Waiting
from llmfleet.router.quota import Lease
from llmfleet.telemetry import ModelStats

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 2
RETRY_SOON: Final = 5  # seconds, for a client that an engine is being started for
REST_SECONDS: Final = 0.5  # in which the rest of a failure comes, or it is judged without


@mypyc_attr(allow_interpreted_subclasses=True)  # traced ones
class Exchange(Attempt):
    """One request on its way to its answer; when it is over it is the record of what happened."""

    __slots__ = (
        "_avoid",
        "_client",
        "_hold",
        "_misses",
        "_parked_at",
        "_said_at",
        "_ttft_seen",
        "_until",
        "answer",
        "engine",
        "keys",
        "lease",
        "queued",
        "reason",
        "route",
        "size",
        "started",
        "stats",
        "tenant",
        "ticket",
        "tries",
        "ttft",
        "waits",
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
        route = origin.route
        super().__init__(router, pool, route.path, origin.fields, request_id, admitted.body)
        self._client, self.route, self.tenant, self.stats = client, route, origin.tenant, stats
        self.answer = Answer(router, origin, admitted, request_id, keep_alive)
        self.started = self.last = now
        self.engine: Backend | None = None  # the last that was asked
        self._ttft_seen = False
        self.keys: Sequence[int] = ()  # of the prefixes of its prompt
        self.lease: Lease | None = None  # of the tenant's quota
        self.size = admitted.size
        self.reason = ""  # why the answer is not whole, or not an engine's
        self.ttft: float | None = None
        self.queued = 0.0  # seconds it waited for a slot
        self.waits = True  # for a slot, when there is none
        self.ticket: Waiting | None = None  # while it waits
        self._avoid: Backend | None = None
        self._hold = False  # it waits for an engine to appear
        self._parked_at = self._said_at = 0.0
        self._misses = 0  # attempts without a connection since it last waited
        self.tries = False  # whether an engine can be reached, for all who wait for that
        self._until = 0.0  # the end of its waiting after its first attempt
        self._paused = client.blocked
        stats.in_flight += 1
        router.held += admitted.size

    # ---- towards an engine ----

    def start(self) -> None:
        """Send the request to an engine, or refuse it when no slot is free."""
        if self.router.quarantine.suspects and (refusal := self._quarantined()) is not None:
            self._refuse(refusal, "refused")
            return
        self.pool.budget.requests += 1
        # Nobody passes those who wait already, but a job that is due: it waited in Redis.
        backend = None if self.waits and self.pool.room else self._choose()
        if backend is not None:
            self._dispatch(backend)
        elif (refusal := self._wait()) is not None:
            self._refuse(refusal, "refused")

    def repeat(self, body: bytes, content_type: bytes, extra: bytes) -> None:
        """Answer with what was answered before: no engine is asked."""
        self.last = self.router.loop.time()
        self._say(self.answer.whole(200, body, "complete", extra, content_type))

    def overheard(self, by: Callable[[Requester], Requester]) -> None:
        """Let somebody hear what the client gets."""
        self._client = by(self._client)

    # ---- waiting ----

    def choose(self) -> Backend | None:
        """Return an engine with a free slot, if there is one; not one that this request was lost with."""
        avoid, pool = self._avoid, self.pool
        if avoid is None or pool.disaggregated or not any(c.backend is not avoid for c in pool.open):
            return self._choose()
        return pick(pool, avoid=avoid, keys=self.keys)

    def _wait(self) -> Refusal | None:
        """Wait for a slot, or say why not."""
        if not self.waits:
            return self.no_slot()
        now = self.router.loop.time()
        self._hold = self.no_slot().code is Code.NO_ENDPOINT
        self._parked_at = self._said_at = now
        refusal = self.router.park(self, now, hold=self._hold)
        if refusal is None:
            self.router.serve()
        return refusal

    def go(self, backend: Backend, now: float) -> None:
        """A slot is there."""
        self.queued += now - self._parked_at
        self.answer.waited(self.queued)
        try:
            self._dispatch(backend)
        except Exception:  # whoever freed the slot is not to pay for it, and this client is to hear of it
            log.exception("a request that waited could not be sent")
            self.detach()
            self._refuse(errors.lost(Code.UPSTREAM_FAILED, "the request could not be sent", status=500), "failed")

    def expired(self, retry_after: int) -> None:
        """It waited as long as it may."""
        waited = self.router.loop.time() - self._parked_at + self.queued
        what = "an engine" if self._hold else "a free slot of an engine"
        code = Code.NO_ENDPOINT if self._hold else Code.OVERLOADED
        refusal = errors.overloaded(code, f"the request waited {waited:.0f} s for {what}, try again later")
        refusal.extra = b"retry-after: %d\r\n" % retry_after
        self._refuse(refusal, "refused")

    def _check_waiting(self, now: float) -> None:
        """Let a client that waits for an engine to appear know that it does."""
        queue = self.router.settings.queue
        if not self._hold:
            return
        if self.answer.streams:
            if now - self._said_at >= queue.comment_seconds:
                self._said_at = now
                self._client.write(self.answer.comment())
        elif now - self._parked_at + self.queued >= queue.unary_hold_seconds and not self._client.patient():
            self.router.unpark(self)
            self.expired(RETRY_SOON)

    def _choose(self) -> Backend | None:
        """Return the engine for the first attempt; its model may have been given engines with roles since it came."""
        return pick(self.pool, keys=self.keys) or pick(self.pool.decode, keys=self.keys)

    def _dispatch(self, backend: Backend) -> None:
        """Send the request to an engine that was picked for it."""
        self.engine = backend
        self.send(backend, fresh=self.attempts > 0)

    def asked(self) -> bytes:
        """Return what the client asked for, whatever is sent of it."""
        return self.body

    def _quarantined(self) -> Refusal | None:
        quarantine = self.router.quarantine
        if not quarantine.holds(self.asked(), self.router.loop.time()):
            return None
        quarantine.refused += 1
        message = "engines were lost each time they were given this request, it is not sent to another one"
        return errors.lost(Code.QUARANTINED, message)

    def no_slot(self) -> Refusal:
        """Say that there is no slot, or no engine."""
        if self.pool.open:
            return errors.overloaded(Code.OVERLOADED, "every engine of this model is busy, try again soon")
        message = f"no engine of this model takes requests now (model state: {self.pool.state})"
        return errors.overloaded(Code.NO_ENDPOINT, message)

    def _retry(self, verdict: Again) -> bool:
        """Send the request to another engine if it may be; never once a byte of an answer was forwarded."""
        failed = self._backend
        over = self._poisonous(verdict) or self.attempts >= MAX_ATTEMPTS
        other = None if over else self._other(verdict)
        if other is None or not (other is failed or self._free(verdict) or self._affordable()):
            return False
        if not verdict.certain and other is not failed:
            self.blame(verdict.reason)
        other.in_flight += 1  # those who wait get the slot that becomes free, not the one that was just chosen
        self.detach()
        other.in_flight -= 1
        self.stats.retries[verdict.reason] += 1
        self.answer.restart()
        # Kept connections of a second engine may be as stale as the first one's was.
        self._dispatch(other)
        return True

    def _wait_again(self, verdict: Again) -> bool:
        """Wait for a slot of another engine if all are busy; what never reached one, also until one can be reached."""
        if not self.waits or self.router.settings.queue.overflow == "reject" or not self.router.serves(self.pool):
            return False
        if self._unsent(verdict):
            return self._wait_to_reach(verdict)
        if self.attempts >= MAX_ATTEMPTS:
            return False
        others = (c.backend for group in (self.pool, self.pool.decode) for c in group.open)
        if not (verdict.confessed or any(o is not self._backend and not o.vitals.lost for o in others)):
            return False
        if self.router.quarantine.suspects and self.router.quarantine.holds(self.asked(), self.router.loop.time()):
            return False
        if not (self._free(verdict) or self._affordable()):
            return False
        if not verdict.certain:
            self.blame(verdict.reason)
        self._park_again(verdict)
        return True

    def _unsent(self, verdict: Again) -> bool:
        """Whether no engine can have begun with this attempt."""
        return verdict.reason in ("connect", Confession.LEAVING)

    def _wait_to_reach(self, verdict: Again) -> bool:
        """Hold what no engine was reached for until one can be: nothing can be done twice."""
        now = self.router.loop.time()
        self._until = self._until or now + self.router.settings.queue.ttl_seconds
        if not self.router.park_unreached(self, self._until):
            return False
        self._hold, self._said_at = True, self._said_at or now
        self.attempts -= self._misses
        self._misses = 0
        self._leave_for(verdict, now)
        return True

    def _park_again(self, verdict: Again) -> None:
        now, queue = self.router.loop.time(), self.router.settings.queue
        self._hold = not self.pool.open and not self.pool.decode.open
        self._said_at = self._said_at or now
        self._until = self._until or now + (queue.wake_timeout_seconds if self._hold else queue.ttl_seconds)
        self._leave_for(verdict, now)
        self.router.park_again(self, self._until)

    def _leave_for(self, verdict: Again, now: float) -> None:
        """Leave the engine of an attempt that came to nothing."""
        self._avoid, self._parked_at = self._backend, now
        self.stats.retries[verdict.reason] += 1
        self.answer.restart()
        self.detach()

    def _other(self, verdict: Again) -> Backend | None:
        """Return the engine for another attempt."""
        failed = self._backend
        other = pick(self.pool, avoid=failed, keys=self.keys)
        if other is None and verdict.same_engine and failed is not None and failed.listed:
            other = failed
        return other

    def _poisonous(self, verdict: Again) -> bool:
        """Whether this body was now on so many engines when they were lost that it goes to no other."""
        if verdict.reason != "reset" or self._backend is None:
            return False
        return self.router.quarantine.strike(self.asked(), self._backend.pod_uid, self.router.loop.time())

    def _free(self, verdict: Again) -> bool:
        """What never reached its engine, or was on one that is gone, may be sent again at no charge."""
        return verdict.reason in GONE or (self._backend is not None and self._backend.vitals.lost)

    def _affordable(self) -> bool:
        budget, retries = self.pool.budget, self.router.settings.retries
        return budget.spend(
            self.router.loop.time(), ratio=retries.share, floor=retries.floor, window=retries.window_seconds
        )

    def engine_lost(self) -> None:
        """The engine this request is at was declared lost: if nothing was forwarded yet, another one is asked."""
        if self.answer.stage <= UNARY and self._backend is not None:
            refusal = errors.lost(Code.UPSTREAM_LOST, "the engine was lost before it answered")
            self._again(Again("lost", "the engine does not answer its health checks", refusal))

    def unreachable(self, reason: str, detail: str) -> None:
        """There is no connection to the engine."""
        refusal = errors.lost(Code.UPSTREAM_LOST, "the engine was lost before it answered")
        self._again(Again(reason, detail, refusal))

    # ---- from the engine ----

    def progress(self, upstream: Upstream) -> None:
        """More of the answer was read."""
        self.last = self.router.loop.time()
        answer = self.answer
        ready = answer.feed(upstream.reader)
        if answer.verdict is not None:
            self._settle(answer.verdict, ready)
        elif ready:
            if self.body:
                self._committed()
            self._client.write(ready)
            if not self._ttft_seen and answer.token_seen:
                self._first_token()

    def _committed(self) -> None:
        """Something is forwarded: the engine is well, and nobody needs the request any more."""
        if self._backend is not None and self._backend.vitals.streak:
            self._backend.vitals.answered()
        if self.router.quarantine.suspects:
            self.router.quarantine.passed(self.asked())
        self._let_go()

    def _let_go(self) -> None:
        """Hold the body no longer."""
        if self.body:
            self.router.held -= self.size
            self.body = b""

    def lost(self, upstream: Upstream, detail: str) -> None:
        """The engine connection is gone in the middle of an answer."""
        self._upstream = None
        answer = self.answer
        if answer.stage is not OVER:
            ready = answer.lost(detail, stale=not upstream.fresh)
            if answer.verdict is not None:
                self._settle(answer.verdict, ready)

    def _settle(self, verdict: Verdict, ready: bytes) -> None:
        """Do what an answer needs done."""
        if self.answer.confession is not None and self._backend is not None:
            self.router.confessed(self._backend)
        if isinstance(verdict, Again):
            self._again(verdict)
            return
        if ready:
            if not self._ttft_seen and self.answer.token_seen:
                self._first_token()
            self._client.write(ready)
        if isinstance(verdict, Broken):
            self._broken(verdict)
        else:
            if self.body and not verdict.failed:
                self._committed()
            self.detach(failed=verdict.failed)
            self._over(verdict.outcome, keep_alive=verdict.keep_alive)

    def _again(self, verdict: Again) -> None:
        """An attempt failed before anything was forwarded."""
        instance = self.engine.instance if self.engine is not None else ""
        fields = {"requestId": self.request_id.decode(), "llmcluster": instance}
        fields |= {"reason": verdict.reason, "detail": verdict.detail}
        self._misses += self._unsent(verdict)
        if verdict.certain:
            self.blame(verdict.reason)  # first: it may be the one that shows the engine to be gone
        if self._retry(verdict):
            log.info("retrying on another engine", extra={"fields": fields})
        elif (verdict.refusal is not None or verdict.confessed) and self._wait_again(verdict):
            log.info("waiting for another engine", extra={"fields": fields})
        elif verdict.refusal is not None:
            log.warning("engine lost", extra={"fields": fields})
            if not verdict.certain:
                self.blame(verdict.reason)
            self.detach()
            self._refuse(self._quarantined() or verdict.refusal, "failed")
        elif verdict.status:
            self.detach()
            self._say(self.answer.whole(verdict.status, verdict.body, "failed"))
        elif self._upstream is not None:
            reader = self._upstream.reader
            ready = self.answer.accept(reader)
            if self.answer.verdict is not None:
                self._settle(self.answer.verdict, ready)
            elif ready:
                self._committed()
                self._client.write(ready)

    def _first_token(self) -> None:
        self._ttft_seen = True
        self.ttft = seconds = self.last - self.started
        self.stats.ttft.observe(seconds)
        if self.engine is not None:
            self.engine.ttft_count += 1
            self.engine.ttft_sum += seconds

    # ---- ends ----

    def _refuse(self, refusal: Refusal, outcome: str) -> None:
        """Answer with an error of the router's own; nothing was forwarded."""
        self.stats.refusals[refusal.code] += 1
        self.reason = refusal.code
        self._say(self.answer.refusal(refusal, outcome))

    def _say(self, ready: bytes) -> None:
        """Send what ends the answer."""
        if self.answer.verdict is not None:
            self._settle(self.answer.verdict, ready)

    def _broken(self, verdict: Broken) -> None:
        """An answer broke after bytes of it were forwarded: an event said so, or a reset will."""
        self.blame(verdict.reason)
        self.detach()
        self.stats.truncated[verdict.reason] += 1
        self.reason = verdict.reason
        fields = {"requestId": self.request_id.decode(), "model": self.pool.name, "reason": verdict.reason}
        log.warning("answer truncated", extra={"fields": fields})
        self._over("truncated", keep_alive=False, answered=not verdict.reset)
        if verdict.reset:
            self._client.reset()

    def cancel(self) -> None:
        """The client left: free the slot and stop the engine's work at once."""
        if self.answer.stage is not OVER:
            self.answer.status = 499
            self.detach()
            self._over("aborted", keep_alive=False, answered=False)

    def _over(self, outcome: str, *, keep_alive: bool, answered: bool = True) -> None:
        if self.ticket is not None:
            self.router.unpark(self)
        self.answer.stage = OVER
        self._let_go()
        self.router.account(self, outcome)
        if answered:
            self._client.answered(keep_alive)

    # ---- time ----

    def check(self, now: float) -> None:
        """Give up on an engine that is silent for too long; called a few times a second."""
        timeouts = self.router.settings.timeouts
        if self.ticket is not None:
            self._check_waiting(now)
        elif self.answer.stage is FAILING and now - self.last > REST_SECONDS:
            self.answer.judge_failure()
            self._say(b"")
        elif self.answer.stage <= UNARY:
            if now - self.started - self.queued > timeouts.first_event_seconds:
                self.detach(failed=True)
                message = "the engine did not answer in time"
                self._refuse(errors.lost(Code.UPSTREAM_TIMEOUT, message, status=504), "failed")
        elif now - self.last > timeouts.stall_seconds and not self._client.blocked:
            message = "the engine stopped in the middle of the answer"
            self._say(self.answer.cut_off("stalled", Code.UPSTREAM_TIMEOUT, message))

    def give_up(self) -> None:
        """The process ends: tell the client in whatever way its answer still allows."""
        message = "the router stopped before the answer was whole"
        if self.answer.stage <= UNARY:
            self.detach()
            self._refuse(errors.overloaded(Code.NOT_READY, message), "failed")
        elif self.answer.stage in (STREAMING, PASSING):
            self._say(self.answer.cut_off("shutdown", Code.NOT_READY, message))
