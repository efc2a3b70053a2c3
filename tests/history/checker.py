"""Judge a history by the invariants of ARCHITECTURE.md. Pure: a `History` in, violations out.

Every rule is sound: it speaks only of what the logs prove, so a slow machine or a late log line is never a violation.
Where two logs must be compared, the engine's time span is taken from inside: from the bytes it had read to before its
last byte was written, a span in which the router cannot have believed anything else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from itertools import pairwise

from history.records import (
    ABORTED,
    ANSWERED,
    FIN,
    GARBLED,
    HUNG,
    LEFT,
    NOTHING,
    TERMINAL,
    UNREACHABLE,
    WHOLE,
    Call,
    Fault,
    History,
    Try,
    Violation,
)

ATTEMPTS = 2
PATIENCE = 15.0  # seconds until an abort must have reached an engine of a busy machine


def check(history: History, *, patience: float = PATIENCE) -> list[Violation]:
    """Return every violation; `patience` is how many seconds an abort may take on this machine."""
    rules = (answers(history), second_tries(history), left_clients(history, patience), injections(history))
    found = [violation for rule in rules for violation in rule]
    return found + list(slots(history)) + list(idle_refusals(history)) + list(jobs(history))


def _tries(history: History) -> dict[str, list[Try]]:
    found: dict[str, list[Try]] = defaultdict(list)
    for one in sorted(history.tries, key=lambda t: t.received):
        found[one.tag].append(one)
    return found


def _during(
    faults: Iterable[Fault], whats: Container[str], began: float, ended: float, target: str | None = None
) -> bool:
    """Whether something of this kind was done in a span, to one target or to any."""
    return any(f.what in whats and target in (None, f.target) and began <= f.at <= ended for f in faults)


# ---- 1: a 200 is a whole answer, an error event or a reset ----


def answers(history: History) -> Iterator[Violation]:
    """Invariant 1, and that every request gets an answer at all."""
    for call in history.calls:
        # A killed process cannot say anything; what was open on it may end in any way that is not a whole answer.
        killed = _during(history.faults, ("router-killed",), call.began, call.ended, call.router)
        what = _wrong_end(call, killed) or _wrong_content(call)
        if what:
            detail = {"how": call.how, "status": call.status, "pieces": len(call.pieces), "asked": call.asked}
            detail["router"] = call.router
            yield Violation(invariant=1, what=what, tag=call.tag, detail=detail | {"error": call.error})


def _wrong_end(call: Call, killed: bool) -> str:
    if call.how in (HUNG, GARBLED):
        return "no end" if call.how == HUNG else "not HTTP"
    if killed or call.how in (LEFT, UNREACHABLE):
        return ""
    if call.how == NOTHING:
        return "closed without an answer"
    if call.how == FIN and not call.error:
        return "ended by a clean close, without an error event"
    return ""


def _wrong_content(call: Call) -> str:
    """A whole answer has all of one engine's pieces in order, and its end."""
    engines = {engine for engine, _ in call.pieces}
    if len(engines) > 1:
        return "pieces of two engines in one answer"
    if [index for _, index in call.pieces] != list(range(len(call.pieces))):
        return "pieces lost or repeated"
    if call.how == WHOLE and call.status == 200 and not call.error:
        if not call.finished:
            return "truncated without a word"
        if len(call.pieces) != call.asked:
            return "whole, but not all of it"
    return ""


# ---- 2: a second engine only if nothing of the first reached the client ----


def second_tries(history: History) -> Iterator[Violation]:
    """Invariant 2: at most one more try, after the first was over, and never once a piece of it was delivered."""
    calls = {call.tag: call for call in history.calls}
    for tag, tries in _tries(history).items():
        call = calls.get(tag)
        if call is not None and call.job:
            continue  # a job is tried again by rule 6
        if len(tries) > ATTEMPTS:
            yield Violation(invariant=2, what=f"{len(tries)} tries", tag=tag)
        for first, second in pairwise(tries):
            # An engine killed between its log and its socket has noted an answer that nobody has seen.
            told = not _during(history.faults, ("engine-killed",), first.received, second.received, first.engine)
            what = _wrong_second(call, first, second, told)
            if what:
                yield Violation(invariant=2, what=what, tag=tag, detail={"engines": [first.engine, second.engine]})


def _wrong_second(call: Call | None, first: Try, second: Try, told: bool) -> str:
    if first.how == ANSWERED and told:
        return "asked again after a good answer"
    if first.how != ABORTED and first.ended and second.received < first.ended:
        return "two engines at once"
    delivered = {engine for engine, _ in call.pieces} if call is not None else set()
    if first.engine in delivered and first.engine != second.engine:
        return "asked again after a piece was delivered"
    if first.engine == second.engine and call is not None and call.first and call.first < second.received:
        return "asked again after a piece was delivered"
    return ""


# ---- 3: a client that leaves stops its engine, and nothing stays held ----


def left_clients(history: History, patience: float) -> Iterator[Violation]:
    """Invariant 3: work of a client that left ends, none is begun for it, and at rest nothing is held."""
    thaws = [f.at for f in history.faults if f.what == "engine-thawed"]
    calls = {call.tag: call for call in history.calls if call.how == LEFT}
    for one in history.tries:
        call = calls.get(one.tag)
        if call is None:
            continue
        limit = max([call.ended, *(at for at in thaws if at > call.ended)]) + patience
        killed = any(
            f.what == "engine-killed" and f.target == one.engine and f.at >= one.received for f in history.faults
        )
        if one.received > limit:
            late = round(one.received - call.ended, 1)
            yield Violation(invariant=3, what="begun after its client had left", tag=one.tag, detail={"seconds": late})
        elif not killed and (one.ended or history.read_at) > limit:
            yield Violation(invariant=3, what="the engine still worked for a client that had left", tag=one.tag)
    for rest in history.rests:
        if rest.in_flight or rest.waiting:
            detail = {"inFlight": rest.in_flight, "waiting": rest.waiting}
            yield Violation(invariant=3, what="slots or places held at rest", tag=rest.router, detail=detail)


# ---- 4: nothing of a client's reaches an engine but what is listed ----


def injections(history: History) -> Iterator[Violation]:
    """Invariant 4, and that client and engine know a request by the same id, which is the router's."""
    ids = {call.tag: call.request_id for call in history.calls if call.request_id and not call.job}
    for one in history.tries:
        if one.foreign:
            yield Violation(invariant=4, what="reached an engine", tag=one.tag, detail={"fields": one.foreign})
        theirs = ids.get(one.tag)
        if theirs and one.request_id.removesuffix("-r") != theirs.removesuffix("-r"):
            detail = {"client": theirs, "engine": one.request_id}
            yield Violation(invariant=4, what="two names of one request", tag=one.tag, detail=detail)


# ---- 5: slots are exact in one process, and nobody is refused beside a free one ----


def _inner_span(one: Try, call: Call | None, killed: list[float]) -> tuple[float, float]:
    """Return a span in which the router certainly counted this try; an empty one if the logs do not say."""
    ends = [at for at in killed if at >= one.received]
    if not one.ended:
        return one.received, one.received
    ends.append(one.ended)
    if one.how == ABORTED:
        # The router lets go first and the engine sees it later; when is known only if the client's leaving was why.
        if call is None or call.how != LEFT:
            return one.received, one.received
        ends.append(call.ended)
    return one.received, min(ends)


def slots(history: History) -> Iterator[Violation]:
    """Invariant 5: an engine never has more requests of one router process than it has slots."""
    calls = {call.tag: call for call in history.calls}
    edges: dict[tuple[str, str], list[tuple[float, int, str]]] = defaultdict(list)
    for one in history.tries:
        killed = [
            f.at
            for f in history.faults
            if (f.what == "engine-killed" and f.target == one.engine)
            or (f.what == "router-killed" and f.target == _router_of(calls, one))
        ]
        began, ended = _inner_span(one, calls.get(one.tag), killed)
        if ended > began:
            edges[one.router, one.engine] += [(began, 1, one.tag), (ended, -1, one.tag)]
    for (_, engine), found in edges.items():
        now = 0
        for _at, change, tag in sorted(found, key=lambda edge: (edge[0], edge[1])):
            now += change
            if now > history.slots:
                detail = {"engine": engine, "requests": now, "slots": history.slots}
                yield Violation(invariant=5, what="more requests than slots", tag=tag, detail=detail)
                break


def _router_of(calls: dict[str, Call], one: Try) -> str:
    call = calls.get(one.tag)
    return call.router if call is not None else ""


def idle_refusals(history: History) -> Iterator[Violation]:
    """Invariant 5: in a history without faults, nobody is refused while even all open calls leave slots free."""
    if history.faults:
        return
    capacity = history.slots * history.engines
    edges = sorted(edge for c in history.calls for edge in ((c.began, 1), (c.ended, -1)))
    counts: list[tuple[float, int]] = []
    now = 0
    for at, change in edges:
        now += change
        counts.append((at, now))
    for call in history.calls:
        if call.status == 503 and call.error == "server_is_overloaded":
            most = max((count for at, count in counts if call.began <= at <= call.ended), default=0)
            if most < capacity:
                detail = {"open": most, "slots": capacity}
                yield Violation(invariant=5, what="refused beside a free slot", tag=call.tag, detail=detail)


# ---- 6: an accepted job ends once and is never lost ----


def jobs(history: History) -> Iterator[Violation]:
    """Invariant 6: exactly one terminal state per accepted id, which never changes, with what it promises."""
    seen: dict[str, list[tuple[float, str, bool]]] = defaultdict(list)
    for one in history.sightings:
        seen[one.job].append((one.at, one.state, one.whole))
    accepted = {call.job: call for call in history.calls if call.job}
    for job, call in accepted.items():
        states = sorted(seen.get(job, []))
        ends = [state for _, state, _ in states if state in TERMINAL]
        if not ends:
            yield Violation(invariant=6, what="accepted, but never ended", tag=call.tag, detail={"job": job})
            continue
        after = [state for _, state, _ in states[[s for _, s, _ in states].index(ends[0]) :]]
        if len(set(ends)) > 1 or set(after) - TERMINAL:
            yield Violation(invariant=6, what="more than one end", tag=call.tag, detail={"job": job, "states": after})
        if ends[0] == "complete" and not any(whole for _, _, whole in states):
            yield Violation(invariant=6, what="complete without a whole result", tag=call.tag, detail={"job": job})
    waited_for = {call.tag for call in accepted.values()}
    for tag, tries in _tries(history).items():
        good = [one for one in tries if one.how == ANSWERED]
        for first, second in pairwise(good if tag in waited_for else ()):
            # A router that went took with it what it had been told and had not stored.
            if not _during(history.faults, ("router-killed", "router-ended"), first.received, second.received):
                times = {"first": first.ended, "second": second.received, "ids": [first.request_id, second.request_id]}
                yield Violation(invariant=6, what=f"answered {len(good)} times", tag=tag, detail=times)
