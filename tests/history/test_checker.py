"""The checker on histories with one planted fault each: it must be silent on the good one and see every other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from history.checker import check
from history.records import Call, Fault, History, Rest, Sighting, Try


def call(tag: str, began: float = 0.0, **changes: object) -> Call:
    whole = Call(
        tag=tag,
        began=began,
        ended=began + 1,
        how="whole",
        stream=True,
        status=200,
        pieces=(("e0", 0), ("e0", 1)),
        asked=2,
        finished=True,
        first=began + 0.2,
        request_id=f"req-0123456789abcdef{tag}",
        router="router-1",
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def attempt(tag: str, began: float = 0.0, **changes: object) -> Try:
    good = Try(
        tag=tag,
        engine="e0",
        request_id=f"req-0123456789abcdef{tag}",
        received=began + 0.1,
        ended=began + 0.9,
        how="answered",
        pieces=2,
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def good() -> History:
    """Three requests: one whole, one retried, one that left; and one job."""
    return History(
        calls=[
            call("a"),
            call("b", pieces=(("e1", 0), ("e1", 1)), first=0.8),
            call("c", how="left", ended=0.3, finished=False, pieces=(("e0", 0),)),
            call("j", status=202, pieces=(), asked=0, job="job-1", stream=False),
        ],
        tries=[
            attempt("a"),
            attempt("b", how="error", ended=0.2),
            attempt("b", engine="e1", received=0.3, request_id="req-0123456789abcdefb-r"),
            attempt("c", how="aborted", ended=0.4),
            attempt("j"),
        ],
        sightings=[
            Sighting(job="job-1", at=0.5, state="queued"),
            Sighting(job="job-1", at=1.0, state="complete", whole=True),
            Sighting(job="job-1", at=2.0, state="complete"),
        ],
        rests=[Rest(router="router-1", in_flight=0)],
        read_at=100.0,
        slots=8,
        engines=2,
    )


def test_a_history_that_keeps_every_promise_is_clean():
    assert check(good()) == []


@pytest.mark.parametrize(("at", "violations"), [(0.95, 0), (0.05, 1), (3.0, 1)])
def test_an_answer_that_a_killed_router_had_not_stored_may_be_made_again(at: float, violations: int):
    """Invariant 6 is about ids: nobody can know of an answer that its only reader did not live to write down."""
    history = good()
    history.tries.append(attempt("j", began=2.0))
    history.faults.append(Fault(what="router-killed", target="router-7", at=at))
    assert [v.invariant for v in check(history)] == [6] * violations


def changed(change: Callable[[History], None]) -> History:
    history = good()
    change(history)
    return history


def put_call(tag: str, **changes: object) -> Callable[[History], None]:
    def change(history: History) -> None:
        history.calls = [replace(c, **changes) if c.tag == tag else c for c in history.calls]  # type: ignore[arg-type]

    return change


def put_try(number: int, **changes: object) -> Callable[[History], None]:
    def change(history: History) -> None:
        history.tries[number] = replace(history.tries[number], **changes)  # type: ignore[arg-type]

    return change


def both(*changes: Callable[[History], None]) -> Callable[[History], None]:
    def change(history: History) -> None:
        for one in changes:
            one(history)

    return change


def crowd(history: History) -> None:
    history.tries += [attempt(f"x{i}", began=10.0) for i in range(9)]


def idle_refusal(history: History) -> None:
    history.calls.append(call("r", began=20.0, status=503, error="server_is_overloaded", pieces=(), asked=2))


def sighted(state: str) -> Callable[[History], None]:
    return lambda history: history.sightings.append(Sighting(job="job-1", at=3.0, state=state))


NO_EVENT = "ended by a clean close, without an error event"
DELIVERED = "asked again after a piece was delivered"
TWO_ENGINES = "pieces of two engines in one answer"

PLANTED: list[tuple[str, int, Callable[[History], None], str]] = [
    ("a truncated stream that looks whole", 1, put_call("a", finished=False), "truncated without a word"),
    ("a piece that never came", 1, put_call("a", pieces=(("e0", 0),)), "whole, but not all of it"),
    ("a piece out of order", 1, put_call("a", pieces=(("e0", 1), ("e0", 0))), "pieces lost or repeated"),
    ("two engines in one answer", 1, put_call("b", pieces=(("e0", 0), ("e1", 1))), TWO_ENGINES),
    ("a dropped error event", 1, put_call("a", how="fin", finished=False), NO_EVENT),
    ("a request without an answer", 1, put_call("a", how="nothing", status=0), "closed without an answer"),
    ("a client that waits for ever", 1, put_call("a", how="hung"), "no end"),
    ("bytes that are not HTTP", 1, put_call("a", how="garbled"), "not HTTP"),
    ("a retry after a good answer", 2, put_try(1, how="answered"), "asked again after a good answer"),
    ("two engines at once", 2, put_try(1, ended=0.9), "two engines at once"),
    ("a retry after a delivered event", 2, put_call("b", pieces=(("e0", 0),), asked=1), DELIVERED),
    ("a third try", 2, lambda h: h.tries.append(attempt("b", began=0.85)), "3 tries"),
    ("an engine that works on", 3, put_try(3, ended=60.0), "the engine still worked for a client that had left"),
    ("an engine that never stops", 3, put_try(3, ended=0.0), "the engine still worked for a client that had left"),
    ("work begun for nobody", 3, put_try(3, received=50.0, ended=51.0), "begun after its client had left"),
    ("a leaked slot", 3, lambda h: h.rests.append(Rest(router="r", in_flight=1)), "slots or places held at rest"),
    ("a field of the client's", 4, put_try(0, foreign=("body.cache_salt",)), "reached an engine"),
    ("a request id of the client's", 4, put_try(0, request_id="poison"), "two names of one request"),
    ("one request too many at an engine", 5, crowd, "more requests than slots"),
    ("a refusal beside free slots", 5, idle_refusal, "refused beside a free slot"),
    ("a lost job", 6, lambda h: h.sightings.clear(), "accepted, but never ended"),
    ("a job that ended twice", 6, sighted("expired"), "more than one end"),
    ("a job that came back to life", 6, sighted("running"), "more than one end"),
    ("a completed job without its result", 6, lambda h: h.sightings.pop(1), "complete without a whole result"),
    ("a job answered twice", 6, lambda h: h.tries.append(attempt("j", began=2.0)), "answered 2 times"),
]


@pytest.mark.parametrize(("name", "invariant", "plant", "what"), PLANTED, ids=[name for name, *_ in PLANTED])
def test_a_planted_fault_is_seen(name, invariant, plant, what):
    found = check(changed(plant))
    assert (invariant, what) in {(v.invariant, v.what) for v in found}, found


def test_what_was_open_on_a_killed_router_may_end_any_way_but_whole():
    killed = Fault(what="router-killed", target="router-1", at=0.5)
    cut = put_call("a", how="nothing", status=0, pieces=(), finished=False)
    assert check(changed(both(cut, lambda h: h.faults.append(killed)))) == []
    truncated = put_call("a", finished=False)
    assert check(changed(both(truncated, lambda h: h.faults.append(killed))))


def test_an_engine_that_was_frozen_gets_its_time_after_it_thawed():
    late = put_try(3, ended=60.0)
    assert (
        check(changed(both(late, lambda h: h.faults.append(Fault(what="engine-thawed", target="e0", at=55.0))))) == []
    )
