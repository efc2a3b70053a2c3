"""How many requests each router may have on each engine, so that all of them together keep to the engine's slots.

In: what every router last said of itself (requests in flight, wanted slots, owned slots) and who the routers are. Out:
per engine, how many requests this router may have in flight. It never sends anything, reads a clock or picks an engine.

Every slot has an owner. Owners hand slots over; nobody takes one. A hand-over is a counter that only grows, in the
report of who gave and confirmed in the report of who got, so a lost or repeated report creates and loses nothing, and
what all routers own never adds up to more than the slots. Who should own how many follows the demand that everybody
reports: in proportion to it when it exceeds the slots, else what is needed and an equal part of the rest. A wish is
read within one interval and its answer within another. So that nobody waits for two intervals beside an idle engine,
a router may have one request more than it owns while the reports show a free slot.

Slots whose owner is gone are adopted by the others once everybody had time to see it, in halves, so that two who
disagree do not take the same. A router that sees nobody keeps to its equal part of every engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from llmfleet.router.division import Row, cut, equal_part, handovers, targets
from llmfleet.router.reports import Asked, Line, Report

INTERVAL_SECONDS: Final = 0.25
UNSEEN_SECONDS: Final = 2.0  # without a report for so long, a peer counts as gone
ADOPT_TICKS: Final = 4  # a slot without owner must be seen in so many intervals: it may only be on its way


class Load(NamedTuple):
    """One engine as this router sees it."""

    slots: int
    in_flight: int


class Room(NamedTuple):
    """The waiting requests of one model and the engines that could serve them."""

    engines: Sequence[str]
    waiting: int
    oldest: float = 0.0  # seconds
    beside: int = 0  # others that want slots: turned away just now, or stored


class _Own:
    """What this router owns of one engine."""

    __slots__ = ("given", "got", "listed_at", "owned", "short", "ticks")

    def __init__(self, owned: int) -> None:
        self.owned = owned
        self.listed_at = 0.0
        self.given: dict[str, int] = {}
        self.got: dict[str, int] = {}
        self.short = 0  # slots without owner, the fewest seen in `ticks` intervals
        self.ticks = 0


class Shares:
    """The slots this router owns. `peers` changes with the document, `heard` with every report, `tick` decides."""

    def __init__(self, name: str, incarnation: str, linger: float) -> None:
        self.name, self.incarnation = name, incarnation
        self._linger = linger  # how long the streams of a silent peer may go on
        self._peers: Mapping[str, bool] = {}  # listed in the document, and whether it leaves
        self._since = 0.0  # when the list changed
        self._heard: dict[str, Report] = {}
        self._own: dict[str, _Own] = {}
        self._sequence = 0

    # ---- what comes in ----

    def peers(self, listed: Mapping[str, bool], now: float) -> None:
        """Take over who the other routers are; the value says which of them leave."""
        others = {name: leaving for name, leaving in listed.items() if name != self.name}
        if others.keys() != self._peers.keys():
            self._since = now
        self._peers = others

    def heard(self, report: Report, now: float) -> None:
        """Take over a report, and the slots that it hands to this router."""
        name = report.name
        if name not in self._peers:
            return
        known = self._heard.get(name)
        if known is not None and known.incarnation != report.incarnation:
            self._forget(name)
        elif known is not None and report.sequence < known.sequence:
            return
        self._heard[name] = replace(report, at=now, place={peer: i for i, peer in enumerate(report.sees)})
        if report.sees.get(self.name) == self.incarnation:
            self._take(name, report.engines, list(report.sees).index(self.name))

    def _take(self, giver: str, engines: Mapping[str, Line], place: int) -> None:
        for key, line in engines.items():
            given = line.given[place]
            own = self._own.get(key)
            if own is not None and given > own.got.get(giver, 0):
                own.owned += given - own.got.get(giver, 0)
                own.got[giver] = given

    def _forget(self, name: str) -> None:
        self._heard.pop(name, None)
        for own in self._own.values():
            own.given.pop(name, None)
            own.got.pop(name, None)

    # ---- what goes out ----

    def report(self, loads: Mapping[str, Load], rooms: Mapping[str, Room], *, draining: bool, now: float) -> Report:
        """Describe this router to its peers."""
        self._sequence += 1
        wanted, oldest = self._wanted(loads, rooms, self._live(now))
        idle = Load(0, 0)
        return Report(
            name=self.name,
            incarnation=self.incarnation,
            sequence=self._sequence,
            draining=draining,
            sees={name: heard.incarnation for name, heard in self._heard.items()},
            engines={
                key: Line(
                    loads.get(key, idle).in_flight,
                    wanted.get(key, 0),
                    own.owned,
                    round(oldest.get(key, 0.0), 3),
                    [own.given.get(name, 0) for name in self._heard],
                    [own.got.get(name, 0) for name in self._heard],
                )
                for key, own in self._own.items()
            },
            waiting={model: room.waiting for model, room in rooms.items()},
        )

    # ---- decisions ----

    def tick(
        self, loads: Mapping[str, Load], rooms: Mapping[str, Room], *, draining: bool, now: float
    ) -> dict[str, int]:
        """Decide once per interval; returns how many requests this router may have on each engine."""
        if not self._peers:
            self._own.clear()
            return {key: load.slots for key, load in loads.items()}
        live = self._live(now)
        if not live:
            return {key: self._alone(key, load, now) for key, load in loads.items()}
        gone = self._gone(now)
        # A peer that was never heard may own slots; it gets as long to speak as one that fell silent.
        settled = now - self._since >= UNSEEN_SECONDS or self._heard.keys() >= self._peers.keys()
        wanted, oldest = self._wanted(loads, rooms, live)
        allowed = {}
        for key, load in loads.items():
            # What a silent router had may still be running.
            slots = max(0, load.slots - sum(r.engines[key].in_flight for r in gone if key in r.engines))
            own = self._owned(key, load.slots, slots, live)
            own.listed_at = now
            quiet = self._quiet(key, load, own, slots, live) if key not in wanted else None
            if quiet is None:
                rows = self._rows(key, load, wanted.get(key, 0), oldest.get(key, 0.0), live, draining)
                quiet = self._decide(own, slots, rows, settled)
            allowed[key] = quiet
        self._forget_old(now)
        return allowed

    def _gone(self, now: float) -> list[Report]:
        """Return the last words of silent routers whose streams may go on; a pod not listed any more has no process."""
        return [
            h for name, h in self._heard.items() if UNSEEN_SECONDS <= now - h.at < self._linger and name in self._peers
        ]

    def _forget_old(self, now: float) -> None:
        """Counters outlive a gap: begun again on one side only, they would hand the same slots over twice."""
        for name, heard in list(self._heard.items()):
            if name not in self._peers and now - heard.at >= self._linger:
                self._forget(name)
        for key, own in list(self._own.items()):
            if now - own.listed_at >= self._linger:
                del self._own[key]

    def _live(self, now: float) -> list[Report]:
        return [heard for heard in self._heard.values() if now - heard.at < UNSEEN_SECONDS]

    def _alone(self, key: str, load: Load, now: float) -> int:
        part = equal_part(load.slots, [self.name, *self._peers], self.name)
        own = self._own.get(key)
        if own is None:
            own = self._own[key] = _Own(part)
        own.owned, own.listed_at = part, now
        return max(1, part)  # a model that no router serves would be worse than a slot too many

    def _owned(self, key: str, total: int, slots: int, live: Sequence[Report]) -> _Own:
        """Return what is owned of an engine; of one that is new here, the equal part, as far as nobody has it."""
        own = self._own.get(key)
        if own is None:
            elsewhere = sum(r.engines[key].owned for r in live if key in r.engines)
            part = equal_part(total, [self.name, *self._peers], self.name)
            own = self._own[key] = _Own(max(0, min(part, slots - elsewhere)))
        return own

    def _quiet(self, key: str, load: Load, own: _Own, slots: int, live: Sequence[Report]) -> int | None:
        """Answer the common case cheaply: every slot has an owner, nobody waits, everybody has half a reserve."""
        owned, busy, least = own.owned, load.in_flight, own.owned - load.in_flight
        for report in live:
            line = report.engines.get(key)
            if line is None or line.wanted:
                return None
            owned += line.owned
            busy += line.in_flight
            least = min(least, line.owned - line.in_flight)
        if owned != slots or least < ((slots - busy) // (len(live) + 1) + 1) // 2:
            return None
        own.ticks = 0
        return own.owned + (busy < slots)

    def _rows(
        self, key: str, load: Load, wanted: int, oldest: float, live: Sequence[Report], draining: bool
    ) -> list[Row]:
        own = self._own[key]
        rows = [Row(self.name, load.in_flight, wanted, own.owned, oldest, draining)]
        for report in live:
            line = report.engines.get(key) or Line(0, 0, 0, 0.0, [0] * len(report.sees), [0] * len(report.sees))
            owned = line.owned + self._underway(key, report, line, live)
            leaving = report.draining or self._peers.get(report.name, False)
            rows.append(Row(report.name, line.in_flight, line.wanted, owned, line.oldest, leaving))
        return rows

    def _underway(self, key: str, to: Report, line: Line, live: Sequence[Report]) -> int:
        """Count the slots handed to a peer that its own report does not show yet."""
        name, amount = to.name, self._own[key].given.get(to.name, 0)
        if amount and to.sees.get(self.name) == self.incarnation:
            amount -= line.got[to.place[self.name]]
        for report in live:
            place = report.place.get(name)
            if place is None or key not in report.engines or report.sees[name] != to.incarnation:
                continue
            given = report.engines[key].given[place]
            if given and to.sees.get(report.name) == report.incarnation:
                given -= line.got[to.place[report.name]]
            amount += max(0, given)
        return max(0, amount)

    def _decide(self, own: _Own, slots: int, rows: Sequence[Row], settled: bool) -> int:
        mine = rows[0]
        owned = sum(row.owned for row in rows)
        self._balance(own, slots - owned, rows, settled)
        parts = targets(slots, rows)
        for taker, amount in handovers(self.name, [mine._replace(owned=own.owned), *rows[1:]], parts).items():
            own.owned -= amount
            own.given[taker] = own.given.get(taker, 0) + amount
        if own.owned > parts[0] and any(r.wanted and r.owned < p for r, p in zip(rows[1:], parts[1:], strict=True)):
            return parts[0]  # what ends here is for those who wait elsewhere
        free = slots - sum(row.in_flight for row in rows)
        return own.owned + (free > 0 and own.owned < slots)

    def _balance(self, own: _Own, short: int, rows: Sequence[Row], settled: bool) -> None:
        """Give up slots that do not exist; adopt those that nobody owned for several intervals."""
        if short <= 0 or not settled:
            own.ticks = 0
            if short < 0:
                own.owned = max(0, own.owned - cut(-short, rows, self.name))
            return
        own.short = min(own.short, short) if own.ticks else short
        own.ticks += 1
        if own.ticks < ADOPT_TICKS:
            return
        own.ticks = 0
        rank = sum(row.name < self.name for row in rows)
        own.owned += own.short // (2 * len(rows)) or int(rank < own.short)

    def _wanted(
        self, loads: Mapping[str, Load], rooms: Mapping[str, Room], live: Sequence[Report]
    ) -> tuple[dict[str, int], dict[str, float]]:
        """Say on which engines slots are wanted for those who wait: where peers have unused ones, else on all alike."""
        wanted: dict[str, int] = {}
        oldest: dict[str, float] = {}
        for room in rooms.values():
            engines = [key for key in room.engines if key in loads]
            number = room.waiting + room.beside
            if not number or not engines:
                continue
            for key, amount in _spread(number, engines, self._unused(engines, live)).items():
                wanted[key] = wanted.get(key, 0) + amount
                oldest[key] = max(oldest.get(key, 0.0), room.oldest)
        return wanted, oldest

    def _unused(self, engines: Sequence[str], live: Sequence[Report]) -> dict[str, int]:
        return {
            key: sum(max(0, line.owned - line.in_flight) for r in live if (line := r.engines.get(key)) is not None)
            for key in engines
        }

    # ---- what else is shared ----

    def routers(self, now: float) -> int:
        """Count the routers that share the load."""
        return 1 + sum(not r.draining for r in self._live(now)) if self._live(now) else 1 + len(self._peers)

    def part_of(self, limit: int, model: str, waiting: int, now: float) -> int:
        """Return this router's part of a bound on what waits for a model: its own and an equal part of the rest."""
        live = self._live(now)
        elsewhere = sum(r.waiting.get(model, 0) for r in live)
        return max(1, min(limit, waiting) + max(0, limit - waiting - elsewhere) // self.routers(now))

    def tenants(self, now: float) -> list[Mapping[str, Asked] | None]:
        """Return what each of the other routers is asked for, by tenant; None of one that does not say."""
        said = {report.name: report.tenants for report in self._live(now)}
        return [said.get(name) for name in self._peers]

    def elsewhere(self, now: float) -> dict[str, int]:
        """Count the requests that other routers have on each engine."""
        counts: dict[str, int] = {}
        for report in self._live(now):
            for key, line in report.engines.items():
                counts[key] = counts.get(key, 0) + line.in_flight
        return counts

    def seen(self, now: float) -> int:
        """Count the peers that were heard lately."""
        return len(self._live(now))


def _spread(waiting: int, engines: Sequence[str], unused: Mapping[str, int]) -> dict[str, int]:
    """Distribute wishes over engines: the most unused slots first, what is left evenly."""
    spread: dict[str, int] = {}
    for key in sorted(engines, key=lambda k: (-unused[k], k)):
        amount = min(waiting, unused[key])
        if amount:
            spread[key] = amount
            waiting -= amount
    each, rest = divmod(waiting, len(engines))
    for index, key in enumerate(engines):
        amount = each + (index < rest)
        if amount:
            spread[key] = spread.get(key, 0) + amount
    return spread
