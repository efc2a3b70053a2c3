"""What a client may ask of jobs, when one may run, and what became of it.

In: header lines, targets, loads, answers. Out: what to do. It never waits, reads a clock or speaks to Redis.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Final
from urllib.parse import parse_qsl

from llmfleet.router.errors import Code, Refusal
from llmfleet.router.jobs.entry import FINAL, Result, State, View, is_job_id, location

MAX_ATTEMPTS: Final = 2  # dispatches to engines, over all workers
PREFIX: Final = b"/v1/requests/"
RESULT: Final = b"/result"
MAX_WAIT_SECONDS: Final = 60.0
# Clients that follow a redirect are sent in a circle: below idle timeouts of usual balancers, and below the 20
# redirects both official SDKs follow. Together it is their default timeout of 600 s.
HOP_SECONDS: Final = 50
MAX_HOPS: Final = 12
MAX_KEY_BYTES: Final = 255
_LATER: Final = frozenset({503, 529})

_PREFER: Final = re.compile(rb"\r\nprefer:[ \t]*([^\r]*)", re.IGNORECASE)
_IDEMPOTENCY: Final = re.compile(rb"\r\nidempotency-key:[ \t]*([^\r]*)", re.IGNORECASE)
_LAST_EVENT: Final = re.compile(rb"\r\nlast-event-id:[ \t]*([^\r]*)", re.IGNORECASE)
_SDK: Final = re.compile(rb"\r\nx-stainless-", re.IGNORECASE)
# Wanted for itself, and stored with the job: the worker's request looks to an engine as the client's did.
_RESPOND_ASYNC: Final = re.compile(rb"(?:^|[,;])[ \t]*respond-async[ \t]*(?:$|[,;])", re.IGNORECASE)


class Redirect(StrEnum):
    """Who gets a 303 to the result instead of a 202."""

    SDK = "sdk"  # who sends the header fields of the official SDKs: these follow, and take a 202 for an empty answer
    ALWAYS = "always"
    NEVER = "never"


class End(StrEnum):
    """What to do with a job whose attempt is over."""

    FINISH = "finish"
    RETRY = "retry"
    RETURN = "return"  # no engine was reached: as if it had not been tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a request under `/v1/requests/` asks for."""

    id: str
    result: bool = False
    wait: float = 0.0
    hop: int = 0  # how often the client was redirected here


def wants_job(head: bytes) -> bool:
    """Whether the client prefers `respond-async`."""
    return any(_RESPOND_ASYNC.search(value) is not None for value in _PREFER.findall(head))


def follows(head: bytes, redirect: Redirect) -> bool:
    """Whether the client is known to follow a 303."""
    return redirect is Redirect.ALWAYS or (redirect is Redirect.SDK and _SDK.search(head) is not None)


def idempotency_key(head: bytes) -> bytes:
    """Return the client's key, or nothing."""
    found = _IDEMPOTENCY.findall(head)
    if not found:
        return b""
    key: bytes = found[0].strip()
    if len(found) > 1 or not 0 < len(key) <= MAX_KEY_BYTES:
        message = f"write one Idempotency-Key of 1 to {MAX_KEY_BYTES} bytes"
        raise Refusal(status=400, code=Code.INVALID_REQUEST, message=message)
    return key


def last_event(head: bytes) -> int:
    """Return how many events the client has; what is no number of ours means none."""
    found = _LAST_EVENT.search(head)
    text = found[1].strip() if found else b""
    return int(text) if text.isdigit() and len(text) < 10 else 0


def digest(*parts: bytes) -> str:
    """Return one value for parts whose lengths matter."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(b"%d:" % len(part))
        whole.update(part)
    return whole.hexdigest()


def target_of(raw: bytes) -> Target | None:
    """Read a request target, or return None for what cannot be a job."""
    path, _, query = raw.partition(b"?")
    if not path.startswith(PREFIX):
        return None
    rest = path[len(PREFIX) :]
    result = rest.endswith(RESULT)
    ident = (rest[: -len(RESULT)] if result else rest).decode("latin-1")
    if not is_job_id(ident):
        return None
    asked = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if result and query else {}
    return Target(id=ident, result=result, wait=_wait(asked), hop=_hop(asked))


def _wait(asked: Mapping[str, str]) -> float:
    text = asked.get("wait", "0")
    if not re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text):
        message = f"wait is a number of seconds from 0 to {MAX_WAIT_SECONDS:.0f}"
        raise Refusal(status=400, code=Code.INVALID_REQUEST, message=message, param="wait")
    return min(float(text), MAX_WAIT_SECONDS)


def _hop(asked: Mapping[str, str]) -> int:
    text = asked.get("hop", "0")
    return min(int(text), MAX_HOPS) if re.fullmatch(r"\d{1,2}", text) else 0


def result_location(ident: str, hop: int) -> str:
    """Where a client that follows is sent next."""
    return f"{location(ident)}/result?wait={HOP_SECONDS}&hop={hop}"


def refuse_size(size: int, limit: int) -> None:
    """Refuse a body too large to be stored."""
    if size > limit:
        message = f"a request that is stored may have {limit} bytes, this one has {size}: send it without Prefer"
        raise Refusal(status=413, code=Code.REQUEST_TOO_LARGE, message=message)


def may_start(*, slots: int, in_flight: int, jobs: int, waiting: int, share: float, headroom: float) -> bool:
    """Whether another job may take a slot now.

    Direct traffic comes first: while any waits, or only the headroom is free, no job starts, except up to the share
    that jobs always have, which is one slot at least.
    """
    free = slots - in_flight
    if free <= 0:
        return False
    if jobs < floor(slots, share):
        return True
    return not waiting and free > ceil(slots * headroom)


def ranked(classes: Mapping[str, int]) -> tuple[str, ...]:
    """Return one class for each priority, the most urgent first; a tenant's rank is an index into it."""
    names = {priority: name for name, priority in reversed(list(classes.items()))}
    return tuple(names[priority] for priority in sorted(names))


def floor(slots: int, share: float) -> int:
    """Return how many slots jobs may have whatever else waits."""
    return max(1, int(slots * share)) if slots else 0


def judge(result: Result | None, *, whole: bool, dispatched: bool) -> End:
    """Decide what follows an attempt; `whole` means that an engine gave the answer and meant it."""
    if not dispatched:
        # Without a free slot it is as if nothing had been tried; any other refusal would be the same next time.
        return End.RETURN if result is None or result.status in _LATER else End.FINISH
    return End.FINISH if whole and result is not None and result.status < 500 and result.status != 429 else End.RETRY


def final_state(result: Result) -> State:
    """Return the state that an answer is filed under."""
    return State.COMPLETE if result.status < 400 else State.FAILED


def missing() -> Refusal:
    """Refuse an id that is unknown, no longer kept, or somebody else's: the three look the same."""
    message = "there is no such request, or it is no longer kept"
    return Refusal(status=404, code=Code.NOT_FOUND, message=message)


def no_result(view: View) -> Refusal:
    """Say why a job that is over has no answer."""
    match view.state:
        case State.EXPIRED:
            message = "the request waited longer than it may and was not started"
            return Refusal(status=503, code=Code.JOB_EXPIRED, message=message, kind="server_error")
        case State.CANCELLED:
            return Refusal(status=410, code=Code.JOB_CANCELLED, message="the request was cancelled")
        case _:
            message = f"the request was tried {view.attempts} times and never answered"
            return Refusal(status=502, code=Code.JOB_DEAD, message=message, kind="server_error")


def is_over(view: View) -> bool:
    """Whether a job has its final state."""
    return view.state in FINAL
