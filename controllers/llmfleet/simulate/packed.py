"""A fleet whose engines are rows of arrays: what `fleet.Sim` shows, from what `kernel.py` keeps.

In: requests of a trace, a wanted size now and then, lots for cold starts. Out: instances and readings as an autoscaler
sees them, seconds held, misses by tick. It gives the figures that `fleet.Sim` gives, in the form a compiler can read.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmfleet.api.autoscaler import MetricType
from llmfleet.api.types import Role
from llmfleet.capacity.profiles import Profile
from llmfleet.scale.fleet import Fleet, Instance
from llmfleet.scale.signals import EngineReading, Observation, RouterReading
from llmfleet.simulate import kernel, kernel_fleet
from llmfleet.simulate.compiler import floats, integers, longer
from llmfleet.simulate.engine import TPOT_EDGES, TTFT_EDGES
from llmfleet.simulate.fleet import cold_start_of, cumulative, names_to_go
from llmfleet.simulate.kernel import SUMS, Moments, Pool, Rack, moments_of
from llmfleet.simulate.scenario import EPOCH, Scenario, Tick
from llmfleet.simulate.trace import Draw, Trace

ROWS = 64
"""Engines that a fleet has room for before its arrays grow."""
PLACES = 4096
"""Requests in flight, likewise."""


@dataclass(slots=True, kw_only=True)
class PackedSim:
    """One fleet."""

    profile: Profile
    cold_start: float
    draw: Draw
    begin: float
    role: Role = Role.BOTH
    pool: Pools
    rows: int = ROWS
    numbers: dict[int, int] = field(default_factory=dict)
    """Of rows: which instance it is."""
    made: int = 0
    rack: Rack = field(init=False)

    def __post_init__(self) -> None:
        steps, size, slots = self.profile.steps, self.rows, self.rows * self.profile.sequences
        self.rack = Rack(
            a=steps.a,
            b=steps.b,
            c=steps.c,
            d=steps.d,
            sequences=self.profile.sequences,
            batched=self.profile.batched_tokens,
            kv_tokens=self.profile.kv_tokens,
            forwards=int(self.role is Role.PREFILL),
            clock=floats([0.0] * size),
            due=floats([math.inf] * size),
            itl_seconds=floats([0.0] * size),
            created=floats([-1.0] * size),
            ready_at=floats([0.0] * size),
            leaving_at=floats([math.inf] * size),
            sums=integers([0] * (size * SUMS)),
            ttft=integers([0] * (size * kernel.TTFT_SIZE)),
            tpot=integers([0] * (size * kernel.TPOT_SIZE)),
            heap_end=integers([0] * slots),
            heap_number=integers([0] * slots),
            heap_job=integers([0] * slots),
            filling=integers([0] * slots),
            waiting=integers([0] * slots),
            members=integers([0] * size),
            serving=integers([0] * size),
            marks=integers([0, 0, 0, kernel.NOBODY, kernel.NOBODY, kernel.NOBODY, kernel.NOBODY]),
            moments=floats([0.0, 0.0]),
        )

    @property
    def now(self) -> float:
        return float(self.rack.moments[0])

    def ready_count(self) -> int:
        return int(self.rack.marks[kernel.SERVING])

    def held_count(self) -> int:
        """Instances that cost: starting, ready and draining."""
        return int(self.rack.marks[kernel.MEMBERS])

    def _members(self) -> list[int]:
        return [int(self.rack.members[place]) for place in range(self.held_count())]

    def start(self, count: int, *, ready: bool = False) -> None:
        """Create instances."""
        for _ in range(count):
            seconds = 0.0 if ready else cold_start_of(self.cold_start, self.draw)
            if self.held_count() == self.rows:
                self._grow()
            self._fill(next(row for row in range(self.rows) if self.rack.created[row] < 0), seconds)
        kernel_fleet.enlist(self.rack)

    def _fill(self, row: int, seconds: float) -> None:
        """A new instance in a row nobody uses."""
        rack, now = self.rack, self.now
        rack.created[row], rack.leaving_at[row], rack.due[row] = now, math.inf, math.inf
        rack.ready_at[row] = rack.clock[row] = now + seconds
        rack.itl_seconds[row] = 0.0
        for array, width in ((rack.sums, SUMS), (rack.ttft, kernel.TTFT_SIZE), (rack.tpot, kernel.TPOT_SIZE)):
            for place in range(row * width, (row + 1) * width):
                array[place] = 0
        rack.sums[row * SUMS + kernel.OVER_HEAD] = kernel.NOBODY
        rack.members[self.held_count()] = row
        rack.marks[kernel.MEMBERS] += 1
        self.numbers[row] = self.made
        self.made += 1

    def _grow(self) -> None:
        """Twice the rows."""
        old, rack, sequences = self.rows, self.rack, self.profile.sequences
        widths = {"sums": SUMS, "ttft": kernel.TTFT_SIZE, "tpot": kernel.TPOT_SIZE}
        widths |= dict.fromkeys(("heap_end", "heap_number", "heap_job", "filling", "waiting"), sequences)
        widths |= dict.fromkeys(
            ("clock", "due", "itl_seconds", "created", "ready_at", "leaving_at", "members", "serving"), 1
        )
        self.rows = 2 * old
        grown = {
            name: longer(getattr(rack, name), width * self.rows, -1 if name == "created" else 0)
            for name, width in widths.items()
        }
        self.rack = rack._replace(**grown)

    def resize(self, size: int, *, ready_may_go: int | None = None) -> int:
        """Create or drain until so many stay; returns the change."""
        fleet = self.fleet()
        change = size - fleet.size
        self.start(max(change, 0))
        gone = names_to_go(fleet, -change, ready_may_go)
        for row in self._members():
            if self.name_of(row) in gone:
                self.rack.leaving_at[row] = self.now
        kernel_fleet.bury(self.rack, self.pool.arrays)
        return change if change > 0 else -len(gone)

    def instance_seconds(self) -> float:
        """Seconds of instances held so far: starting, ready and draining."""
        now = self.now
        return float(self.rack.moments[1] + sum(now - self.rack.created[row] for row in self._members()))

    def is_idle(self) -> bool:
        return not self.unanswered()

    def unanswered(self) -> int:
        """Requests that are held or in flight."""
        in_flight = sum(int(self.rack.sums[row * SUMS + kernel.IN_FLIGHT]) for row in self._members())
        return int(self.rack.marks[kernel.HELD]) + in_flight

    def name_of(self, row: int) -> str:
        return f"i-{self.numbers[row]}"

    # What an autoscaler sees.

    def fleet(self) -> Fleet:
        rack, now = self.rack, self.now
        made = []
        for row in self._members():
            created, ready_at = float(rack.created[row]), float(rack.ready_at[row])
            made.append(
                Instance(
                    name=self.name_of(row),
                    uid=self.name_of(row),
                    ordinal=self.numbers[row],
                    created=self.begin + created,
                    ready=ready_at <= now,
                    leaving=math.isfinite(rack.leaving_at[row]),
                    load=float(rack.sums[row * SUMS + kernel.IN_FLIGHT]),
                    load_seconds=ready_at - created if ready_at <= now else 0.0,
                )
            )
        return Fleet(role=self.role, instances=tuple(sorted(made, key=lambda one: one.name)))

    def observe(self) -> Observation:
        """A scrape of everybody, now."""
        rack, now = self.rack, self.now
        rows = [row for row in self._members() if rack.ready_at[row] <= now]
        held = float(rack.marks[kernel.HELD])
        return Observation(
            engines=tuple(self._reading(row, self.begin + now) for row in rows),
            routers=(RouterReading(router="router", at=self.begin + now, queued=held),),
            serving=tuple(sorted(self.name_of(row) for row in rows if rack.leaving_at[row] == math.inf)),
            routers_expected=1,
        )

    def _reading(self, row: int, at: float) -> EngineReading:
        rack = self.rack
        sums = [int(value) for value in rack.sums[row * SUMS : (row + 1) * SUMS]]
        waiting = self._waits(row, sums)
        ttft = [int(n) for n in rack.ttft[row * kernel.TTFT_SIZE : (row + 1) * kernel.TTFT_SIZE]]
        tpot = [int(n) for n in rack.tpot[row * kernel.TPOT_SIZE : (row + 1) * kernel.TPOT_SIZE]]
        return EngineReading(
            instance=self.name_of(row),
            at=at,
            prefill=float(sums[kernel.PREFILLED]),
            generated=float(sums[kernel.GENERATED]),
            steps=float(sums[kernel.COUNT]),
            finished=float(sums[kernel.FINISHED]),
            itl_seconds=float(rack.itl_seconds[row]),
            itl_count=float(sums[kernel.ITL_COUNT]),
            running=float(sums[kernel.IN_FLIGHT] - waiting),
            waiting=float(waiting),
            kv_usage=min(1.0, (sums[kernel.CONTEXT] + sums[kernel.RESERVED]) / self.profile.kv_tokens),
            kv_tokens=float(self.profile.kv_tokens),
            buckets={
                MetricType.TTFT: cumulative(TTFT_EDGES, ttft),
                MetricType.TPOT: cumulative(TPOT_EDGES, tpot),
            },
        )

    def _waits(self, row: int, sums: list[int]) -> int:
        """Requests that have arrived and were not let in."""
        sequences, at = self.profile.sequences, self.pool.arrays.at
        jobs = (
            self.rack.waiting[row * sequences + (sums[kernel.WAIT_AT] + place) % sequences]
            for place in range(sums[kernel.WAITS])
        )
        return sum(bool(at[job] <= self.now) for job in jobs)


@dataclass(slots=True, kw_only=True)
class Pools:
    """The trace, requests in flight, misses by tick."""

    trace: Trace
    arrays: Pool
    moments: Moments

    @staticmethod
    def of(trace: Trace, *, ttft: float, tpot: float, width: float, ticks: int) -> Pools:
        arrays = Pool(
            ttft=ttft,
            tpot=tpot,
            width=width,
            **{name: floats([0.0] * PLACES) for name in ("arrived", "at", "first", "ended", "travel_at")},
            **{
                name: integers([0] * PLACES)
                for name in ("prompt", "output", "answer", "left", "done", "begun", "behind")
            },
            free=integers(range(PLACES)),
            travel_number=integers([0] * PLACES),
            travel_job=integers([0] * PLACES),
            late=integers([0] * ticks),
            slow=integers([0] * ticks),
            missed=integers([0] * ticks),
            marks=integers([PLACES, 0, 0, 0, 0, 0]),
        )
        return Pools(trace=trace, arrays=arrays, moments=moments_of(trace))

    @property
    def place(self) -> int:
        """How many requests of the trace have arrived."""
        return int(self.arrays.marks[kernel.PLACE])

    def under_way(self) -> int:
        """Requests of two roles between their arrival and their decode instance."""
        return int(self.arrays.marks[kernel.LEGS] + self.arrays.marks[kernel.TRAVELS])

    def make_room(self, until: float) -> None:
        """Places for whoever arrives until then."""
        coming = bisect_right(self.trace.at, until, lo=self.place) - self.place
        while self.arrays.marks[kernel.FREE] < coming:
            self._grow()

    def _grow(self) -> None:
        arrays, old = self.arrays, len(self.arrays.free)
        names = set(Pool._fields) - {"ttft", "tpot", "width", "late", "slow", "missed", "marks"}
        self.arrays = arrays._replace(**{name: longer(getattr(arrays, name), 2 * old, 0) for name in sorted(names)})
        free, marks = self.arrays.free, self.arrays.marks
        for job in range(old, 2 * old):
            free[marks[kernel.FREE]] = job
            marks[kernel.FREE] += 1


@dataclass(slots=True, kw_only=True)
class PackedDrive:
    """A run under way."""

    pools: Pools
    sims: Mapping[Role, PackedSim]
    ticks: list[Tick] = field(default_factory=list)

    @staticmethod
    def of(trace: Trace, scenario: Scenario, draw: Draw) -> PackedDrive:
        pools = Pools.of(
            trace,
            ttft=scenario.ttft,
            tpot=scenario.tpot,
            width=scenario.tick,
            ticks=math.ceil(trace.end / scenario.tick) + 2,
        )
        sims = {
            role: PackedSim(
                profile=scenario.profile_of(role),
                cold_start=scenario.cold_start,
                draw=draw,
                begin=EPOCH,
                role=role,
                pool=pools,
            )
            for role in scenario.first
        }
        return PackedDrive(pools=pools, sims=sims)

    @property
    def now(self) -> float:
        return next(iter(self.sims.values())).now

    def pass_until(self, until: float) -> None:
        """Everything that happens until then, and who of it missed."""
        pools, last, tick = self.pools, len(self.ticks) - 1, self.ticks[-1]
        before = pools.place
        pools.make_room(until)
        arrays = pools.arrays
        arrays.marks[kernel.LAST] = last
        if Role.PREFILL in self.sims:
            racks = self.sims[Role.PREFILL].rack, self.sims[Role.DECODE].rack
            tick.work += kernel_fleet.pass_time_of_two(*racks, arrays, pools.moments, until)
        else:
            tick.work += kernel_fleet.pass_time_of_one(self.sims[Role.BOTH].rack, arrays, pools.moments, until)
        tick.requests += pools.place - before

    def is_over(self) -> bool:
        """Nobody will come, and nobody is under way. Misses are read when it is."""
        for place, tick in enumerate(self.ticks):
            arrays = self.pools.arrays
            tick.late, tick.slow = int(arrays.late[place]), int(arrays.slow[place])
            tick.missed = int(arrays.missed[place])
        idle = all(sim.is_idle() for sim in self.sims.values())
        return idle and self.pools.place >= len(self.pools.trace) and not self.pools.under_way()

    def lost(self) -> int:
        """Requests that have no answer."""
        pools, last = self.pools, list(self.sims.values())[-1]
        return len(pools.trace) - pools.place + pools.under_way() + last.unanswered()
