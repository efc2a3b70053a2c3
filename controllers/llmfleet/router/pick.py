"""Choose an engine: hard slots, best tier, least loaded, fair turns among equals.

In: candidates with their load. Out: one of them, or None when every slot is taken. A `Backend` is one engine and is
shared by all models it serves, so its slots are exact; it outlives the documents that name it until its last request
is over. It never waits, opens a connection or reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final

from llmfleet.api.document import Document, Endpoint, Model, ModelState, Role, State
from llmfleet.router.affinity import Affinity, nearest
from llmfleet.router.disagg.ledger import Breaker, Ledger
from llmfleet.router.health import Vitals, deceiving, may_eject
from llmfleet.router.queue import WaitingRoom
from llmfleet.router.retries import Budget

LAST_TIER: Final = 1 << 20  # added to the rank of an engine that looks bad and is used all the same
LOT_SLACK: Final = 8  # requests that one revision may be ahead of its part for the sake of their prefixes
MAX_TURNS: Final = 8  # that an engine can be ahead of its turn, by requests that came for its cache

_numbers = count()


class Backend:
    """One engine as this process sees it; `in_flight` is counted from the choice, before any connection."""

    __slots__ = (
        "address",
        "arriving",
        "breaker",
        "elsewhere",
        "failures",
        "host",
        "host_field",
        "idle",
        "in_flight",
        "instance",
        "ledger",
        "limit",
        "listed",
        "number",
        "picks",
        "pod_uid",
        "port",
        "revision",
        "role",
        "served",
        "slots",
        "ttft_count",
        "ttft_sum",
        "vitals",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self.number = next(_numbers)  # no other engine of this process ever has it
        self.pod_uid = endpoint.pod_uid
        self.address = endpoint.address
        self.host_field = endpoint.address.encode()
        host, _, port = endpoint.address.rpartition(":")
        self.host = host.strip("[]")
        self.port = int(port)
        self.in_flight = 0
        self.elsewhere = 0  # requests that other routers have there
        self.picks = 0
        self.failures = 0  # attempts this engine lost, also those that another engine then answered
        self.ttft_count = 0
        self.ttft_sum = 0.0
        self.vitals = Vitals()
        self.idle: list[Any] = []  # kept connections, the most recent last; the relay owns what is in it
        self.arriving = 0  # prompts whose KV is on its way here, from the choice of this engine to their first event
        self.ledger = Ledger()
        self.breaker = Breaker()
        self.update(endpoint)

    def update(self, endpoint: Endpoint) -> None:
        """Take over what a new document says of the same engine."""
        self.instance = endpoint.instance
        self.role = endpoint.role
        self.revision = endpoint.engine_revision
        self.served = endpoint.served_revision
        self.slots = endpoint.slots
        self.limit = endpoint.slots  # this router's part of them; the exchange with its peers says less
        self.listed = True


class Candidate:
    """A backend in the light of one model."""

    __slots__ = ("backend", "draining", "lot", "rank", "tier", "turn", "weight")

    def __init__(self, backend: Backend, endpoint: Endpoint, turn: float) -> None:
        self.backend = backend
        self.tier = endpoint.tier
        self.rank = 2 * endpoint.tier  # odd: after the others of its tier
        self.weight = endpoint.weight
        self.draining = endpoint.state is State.DRAINING
        self.turn = turn
        self.lot: Lot | None = None


class Lot:
    """The engines of one revision beside those of another: how much of the work they have had, by weight."""

    __slots__ = ("had", "weight")

    def __init__(self, had: float) -> None:
        self.had = had
        self.weight = 0


class Group:
    """The candidates of one model and one role, and the clock of their turns."""

    __slots__ = ("affinity", "candidates", "clock", "hits", "level", "lots", "misses", "open", "panic", "spread")

    def __init__(self, affinity: Affinity | None = None) -> None:
        self.affinity = affinity
        self.hits = self.misses = self.spread = 0  # prefixes: went where it is known; not known; known, but busy
        self.lots: dict[str, Lot] = {}  # by revision, if there are several
        self.candidates: list[Candidate] = []
        self.open: list[Candidate] = []  # those that take new requests, free or not
        self.clock = 0.0
        self.level = True  # all that take requests are of one rank
        self.panic = False  # so many look bad that they are used all the same, last

    def close(self) -> None:
        """Offer nothing more: a request that still holds the pool must not reach an engine nobody counts."""
        self.candidates, self.open = [], []

    def reopen(self, panic_share: float) -> None:
        """Decide anew which candidates take requests: those that look good, or if few do all that are not dead."""
        takers = [c for c in self.candidates if c.weight and not (c.draining or c.backend.vitals.dead)]
        good = [c for c in takers if c.backend.vitals.why is None]
        self.panic = deceiving(len(good), len(takers), panic_share)
        for candidate in takers:
            vitals = candidate.backend.vitals
            candidate.rank = 2 * candidate.tier + vitals.doubted + (0 if vitals.why is None else LAST_TIER)
        self.open = takers if self.panic else good
        self.level = len({candidate.rank for candidate in self.open}) < 2
        self._divide()

    def _divide(self) -> None:
        """Keep account of each revision's part while there are several."""
        before, self.lots = self.lots, {}
        for candidate in self.open:
            lot = self.lots.setdefault(candidate.backend.revision, Lot(0.0))
            lot.weight += candidate.weight
            candidate.lot = lot
        for revision, lot in self.lots.items():
            lot.had = before[revision].had if revision in before else max((b.had for b in before.values()), default=0.0)
        if len(self.lots) < 2:
            self.lots = {}
            for candidate in self.open:
                candidate.lot = None

    def ahead(self, candidate: Candidate) -> bool:
        """Whether a revision has had more than its weight gives it; for a prefix alone it gets no more then."""
        lot = candidate.lot
        if lot is None or not self.lots:
            return False
        slack = LOT_SLACK / sum(other.weight for other in self.lots.values())
        return lot.had > min(other.had for other in self.lots.values()) + slack

    def account(self, candidate: Candidate) -> None:
        """Count one request for a revision; one that could not take its part for long does not catch up."""
        lot = candidate.lot
        if lot is not None:
            lot.had += 1.0 / lot.weight
            behind = lot.had - 4 * LOT_SLACK / sum(other.weight for other in self.lots.values())
            for other in self.lots.values():
                other.had = max(other.had, behind)


class ModelPool(Group):
    """The candidates of one model: here those that serve a request alone, and those that share one."""

    __slots__ = ("budget", "decode", "name", "prefill", "room", "state")

    def __init__(self, name: str, affinity: Affinity | None = None) -> None:
        super().__init__(affinity)
        self.name = name
        self.state = ModelState.SERVING
        self.budget = Budget()
        self.room: WaitingRoom | None = None  # once somebody had to wait
        self.prefill = Group(affinity)
        self.decode = Group(affinity)

    def slots(self) -> int:
        """Count the slots that requests of this model may get."""
        return sum(c.backend.limit for group in (self, self.decode) for c in group.open)

    def groups(self) -> tuple[Group, Group, Group]:
        """Return every group."""
        return self, self.prefill, self.decode

    @property
    def restarting(self) -> bool:
        """Whether there are engines which said that they are dead: another one is on its way in their place."""
        return any(c.backend.vitals.dead for group in self.groups() for c in group.candidates)

    @property
    def disaggregated(self) -> bool:
        """Whether requests may be split; without a prefill engine decode engines serve alone, or nobody does."""
        return bool(self.prefill.candidates or self.decode.candidates)


def pick(
    pool: Group, avoid: Backend | None = None, among: list[Candidate] | None = None, keys: Sequence[int] = ()
) -> Backend | None:
    """Return the engine for the next request and count its turn, or None when no slot is free.

    Lowest tier first, in it those whose last attempt did not fail; there the engine that knows the longest prefix, if
    it has no more than its part of the load; else the least in-flight per weight, then whose turn it is. Turns advance
    by 1/weight, so idle engines are used in proportion to their weights; one that was away does not catch up.
    """
    candidates = pool.open if among is None else among
    next_one = best = _next_in_turn(pool, candidates, avoid)
    if best is None:
        return None
    if keys and pool.affinity is not None:
        best = _near(pool, pool.affinity, candidates, avoid, keys, best)
    turn = max(best.turn, pool.clock)
    if best is next_one:
        pool.clock = turn
    else:
        turn = min(turn, pool.clock + MAX_TURNS / best.weight)
    best.turn = turn + 1.0 / best.weight
    if pool.lots:
        pool.account(best)
    best.backend.picks += 1
    return best.backend


def _next_in_turn(pool: Group, candidates: Sequence[Candidate], avoid: Backend | None) -> Candidate | None:
    best: Candidate | None = None
    best_tier, best_load, best_turn = 0, 0.0, 0.0
    clock = pool.clock
    for candidate in candidates:
        backend = candidate.backend
        busy = backend.in_flight
        if busy >= backend.limit or backend is avoid:
            continue
        tier, load, turn = candidate.rank, (busy + backend.elsewhere) / candidate.weight, candidate.turn
        if turn < clock:
            turn = clock
        if best is not None:
            if tier != best_tier:
                if tier > best_tier:
                    continue
            elif load > best_load or (load == best_load and turn >= best_turn):
                continue
        best, best_tier, best_load, best_turn = candidate, tier, load, turn
    return best


def _near(
    pool: Group,
    affinity: Affinity,
    candidates: Sequence[Candidate],
    avoid: Backend | None,
    keys: Sequence[int],
    best: Candidate,
) -> Candidate:
    """Return the engine that knows the prefix, or whose turn it is; either knows it from now on."""
    rank = best.rank
    if pool.level and avoid is None:
        alike = candidates
    else:
        alike = [c for c in candidates if c.rank == rank and c.backend is not avoid]
    if len(alike) > 1:
        found, known = nearest(affinity.index, keys, alike, affinity.factor)
        if found is not None and not pool.ahead(found):
            pool.hits += 1
            best = found
        elif known:
            pool.spread += 1
            if found is not None:
                best = _next_in_turn(pool, [c for c in alike if not pool.ahead(c)], avoid) or best
        else:
            pool.misses += 1
    affinity.index.learn(keys, best.backend.number)
    return best


class Fleet:
    """Every model of the current document and every engine that still has work."""

    __slots__ = ("_panic_share", "affinity", "backends", "generation", "models")

    def __init__(self, panic_share: float = 0.5, affinity: Affinity | None = None) -> None:
        self.affinity = affinity
        self._panic_share = panic_share
        self.models: dict[str, ModelPool] = {}
        self.backends: dict[tuple[str, str], Backend] = {}
        self.generation = 0

    def apply(self, document: Document) -> list[Backend]:
        """Adopt a document; returns the engines it no longer names. In-flight counts survive."""
        before = dict(self.backends)
        for backend in before.values():
            backend.listed = False
        for pool in self.models.values():
            if pool.name not in document.models:
                for group in pool.groups():
                    group.close()
        self.models = {name: self._pool(name, document) for name in document.models}
        self.generation = document.generation
        gone = [backend for backend in before.values() if not backend.listed]
        self.forget_idle()
        return gone

    def forget_idle(self) -> None:
        """Drop engines that left the document and have no request left."""
        self.backends = {key: b for key, b in self.backends.items() if b.listed or b.in_flight}

    def reopen(self) -> None:
        """Take a change of health into account."""
        for group in self._groups():
            group.reopen(self._panic_share)

    def may_eject(self, backend: Backend, share: float) -> bool:
        """Say whether an engine may be left out for its failures: each model it serves keeps enough others."""
        for group in self._groups():
            engines = [c.backend for c in group.candidates if c.weight and not c.draining]
            out = sum(engine.vitals.why is not None for engine in engines)
            if backend in engines and not may_eject(out, len(engines), share):
                return False
        return True

    def panics(self, backend: Backend) -> bool:
        """Whether a model uses this engine however it looks."""
        return any(group.panic and any(c.backend is backend for c in group.open) for group in self._groups())

    def _groups(self) -> Iterator[Group]:
        return (group for pool in self.models.values() for group in pool.groups())

    def _pool(self, name: str, document: Document) -> ModelPool:
        model = document.models[name]
        pool = self.models.get(name) or ModelPool(name, self.affinity)
        pool.state = model.state
        for group, role in zip(pool.groups(), (Role.BOTH, Role.PREFILL, Role.DECODE), strict=True):
            self._fill(group, model, role)
        return pool

    def _fill(self, group: Group, model: Model, role: Role) -> None:
        turns = {(c.backend.pod_uid, c.backend.address): c.turn for c in group.candidates}
        group.candidates = [
            Candidate(self._backend(e), e, turns.get((e.pod_uid, e.address), group.clock))
            for e in model.endpoints
            if e.role is role
        ]
        group.reopen(self._panic_share)

    def _backend(self, endpoint: Endpoint) -> Backend:
        key = (endpoint.pod_uid, endpoint.address)
        backend = self.backends.get(key)
        if backend is None:
            backend = self.backends[key] = Backend(endpoint)
        else:
            backend.update(endpoint)
        return backend


def view(fleet: Fleet) -> Mapping[str, Any]:
    """Describe the fleet for `/fleet`: what this router sends where, right now."""
    return {
        "models": {name: _model_view(pool) for name, pool in fleet.models.items()},
        "leaving": [_backend_view(b) for b in fleet.backends.values() if not b.listed],
    }


def _model_view(pool: ModelPool) -> dict[str, Any]:
    engines = [(c, c.backend) for group in pool.groups() for c in group.candidates]
    serving = [(c, b) for c, b in engines if b.role is not Role.PREFILL]  # a prefill is part of a request counted there
    return {
        "state": str(pool.state),
        "panic": any(group.panic for group in pool.groups()),
        "inFlight": sum(b.in_flight for _, b in serving),
        "slots": sum(b.slots for c, b in serving if not c.draining and c.weight),
        "endpoints": [
            _backend_view(b)
            | {"tier": c.tier, "weight": c.weight, "state": str(State.DRAINING if c.draining else State.READY)}
            for c, b in engines
        ],
    }


def _backend_view(backend: Backend) -> dict[str, Any]:
    return {
        "instance": backend.instance,
        "address": backend.address,
        "podUID": backend.pod_uid,
        "role": str(backend.role),
        "inFlight": backend.in_flight,
        "slots": backend.slots,
        "limit": backend.limit,
        "out": str(backend.vitals.why or ""),
    }


def key_of(backend: Backend) -> str:
    """Name an engine as all routers do."""
    return f"{backend.pod_uid}@{backend.address}"


def busy(backends: Iterable[Backend]) -> int:
    """Count requests in flight."""
    return sum(backend.in_flight for backend in backends)
