"""What a job is: its states, what is stored of it, and how clients see it.

In: the fields of a request, or what Redis answered. Out: frozen values and the JSON of `/v1/requests/{id}`. A job ends
in exactly one terminal state; the scripts see to that, this module only names the states. It never waits or reads a
clock, and no description of a job carries its prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

ID_PREFIX: Final = "job_"
ID_BYTES: Final = 20  # 160 random bits: an id is as good as a password, and belongs to one tenant besides
_ID: Final = re.compile(rf"{ID_PREFIX}[0-9a-f]{{{2 * ID_BYTES}}}")


class State(StrEnum):
    """Where a job is; the last five are final."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DEAD = "dead"


FINAL: Final = frozenset({State.COMPLETE, State.FAILED, State.EXPIRED, State.CANCELLED, State.DEAD})


class Verdict(StrEnum):
    """What became of an admission."""

    STORED = "stored"
    AGAIN = "again"  # the same idempotency key and body: the job that is there already
    CONFLICT = "conflict"  # the same key with another body
    FULL = "full"
    SHARE = "share"  # the tenant's share of the queue is used up


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to be stored. `body` is the client's own, so that whoever runs it admits it by the same rules."""

    id: str
    tenant: str
    model: str
    klass: str
    path: bytes
    body: bytes
    fields: bytes = b""
    idempotency: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The answer to a request to be stored; `id` is of the job that now stands for it."""

    verdict: Verdict
    id: str
    state: State = State.QUEUED
    held: int = 0
    created_ms: int = 0
    deadline_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job in the hands of one worker: only who holds its newest `fence` may end it.

    One that is not `safe` may be forgotten by a failover, and must be given back unrun.
    """

    id: str
    fence: str
    attempts: int
    waited_ms: int
    tenant: str
    model: str
    klass: str
    path: bytes
    body: bytes
    fields: bytes
    safe: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """A job that was found with its attempts used up: its worker died in the last one."""

    id: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole answer as an engine, or the router in its place, gave it."""

    status: int
    content_type: bytes
    body: bytes

    @property
    def events(self) -> bool:
        """Whether it is a stream of server-sent events."""
        return self.content_type.startswith(b"text/event-stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A job as it is now."""

    id: str
    state: State
    model: str
    attempts: int
    created_ms: int
    deadline_ms: int
    started_ms: int = 0
    finished_ms: int = 0
    result: Result | None = None


def job_id(random: bytes) -> str:
    """Spell a new id."""
    return ID_PREFIX + random.hex()


def is_job_id(text: str) -> bool:
    """Whether a text can be an id at all; only such reach Redis."""
    return _ID.fullmatch(text) is not None


def admission_of(answer: Sequence[Any]) -> Admission:
    """Read what the admission script returned."""
    verdict, ident, state, held, created, deadline = answer
    return Admission(
        verdict=Verdict(verdict.decode()),
        id=ident.decode(),
        state=State(state.decode()),
        held=int(held),
        created_ms=int(created),
        deadline_ms=int(deadline),
    )


def claim_of(answer: Sequence[Any]) -> Claim | Dead:
    """Read what the claim script returned."""
    if len(answer) == 2:
        return Dead(id=answer[0].decode(), model=answer[1].decode())
    ident, fence, attempts, waited, tenant, model, klass, path, body, fields = answer
    return Claim(
        id=ident.decode(),
        fence=fence.decode(),
        attempts=int(attempts),
        waited_ms=max(0, int(waited)),
        tenant=tenant.decode(),
        model=model.decode(),
        klass=klass.decode(),
        path=path,
        body=body,
        fields=fields,
    )


def view_of(ident: str, answer: Sequence[Any]) -> View:
    """Read what the look script returned."""
    state, model, attempts, created, deadline, started, finished, status, content_type, body = answer
    result = None
    if status is not None:
        result = Result(status=int(status), content_type=content_type or b"", body=body or b"")
    return View(
        id=ident,
        state=State(state.decode()),
        model=model.decode(),
        attempts=int(attempts),
        created_ms=int(created),
        deadline_ms=int(deadline),
        started_ms=int(started or 0),
        finished_ms=int(finished or 0),
        result=result,
    )


def location(ident: str) -> str:
    """Path of a job."""
    return f"/v1/requests/{ident}"


def describe(view: View) -> dict[str, Any]:
    """Return a job as clients see it."""
    body: dict[str, Any] = {
        "id": view.id,
        "object": "request",
        "status": str(view.state),
        "model": view.model,
        "created_at": view.created_ms // 1000,
        "expires_at": view.deadline_ms // 1000,
        "attempts": view.attempts,
    }
    if view.started_ms:
        body["started_at"] = view.started_ms // 1000
    if view.finished_ms:
        body["finished_at"] = view.finished_ms // 1000
        body["result"] = location(view.id) + "/result"
    if view.result is not None:
        body["result_status"] = view.result.status
    return body
