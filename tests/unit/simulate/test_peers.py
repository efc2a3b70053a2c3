"""The peers do what their documentation says, in situations small enough to compute by hand; and all stay in bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity
from llmfleet.scale.fleet import Fleet
from llmfleet.scale.signals import EngineReading, Observation, RouterReading
from llmfleet.simulate.peers import PEERS, Peer, Watching
from unit.scale.builders import PLAIN, START, TICK, fleet_of

QUIET = settings(derandomize=True, max_examples=30, deadline=None)
ABLE = Capacity(steps=PLAIN, kv_tokens=10_000, slots=256, tpot=0.05, known=True)
"""Carries 0.8; a prompt token costs a millisecond."""
MOVING = sorted(set(PEERS) - {"static"})


class Bed:
    """Ready engines that sell so much of their time, hold so many requests and let so many wait."""

    def __init__(self, name: str, ready: int, *, pending: int = 0, **options: float) -> None:
        watching = Watching(role=Role.BOTH, capacity=ABLE, ttft=2.0, low=1, high=12)
        self.peer: Peer = PEERS[name](watching, **options)
        self.fleet, self.now, self.prefilled = fleet_of(ready, pending), START, dict[str, float]()

    def tick(self, load: float, *, running: float = 1.0, waiting: float = 0.0, usage: float = 0.0) -> int:
        self.now += TICK
        names = self.fleet.serving
        readings = []
        for name in names:
            self.prefilled[name] = self.prefilled.get(name, 0.0) + load * TICK / PLAIN.c / len(names)
            readings.append(
                EngineReading(
                    instance=name,
                    at=self.now,
                    prefill=self.prefilled[name],
                    steps=self.now - START,
                    finished=self.prefilled[name] / 1000,
                    running=running / len(names),
                    waiting=waiting / len(names),
                    kv_usage=usage,
                    kv_tokens=10_000.0,
                )
            )
        router = RouterReading(router="r", at=self.now)
        seen = Observation(engines=tuple(readings), routers=(router,), serving=names, routers_expected=1)
        return self.peer.size(self.fleet, seen, self.now)

    def run(self, ticks: int, load: float, **state: float) -> int:
        for _ in range(ticks):
            size = self.tick(load, **state)
        return size

    def follow(self, ticks: int, load: float, **state: float) -> int:
        """Decisions are carried out at once."""
        for _ in range(ticks):
            size = self.tick(load, **state)
            kept = self.fleet.instances[:size]
            self.fleet = replace(self.fleet, instances=(*kept, *fleet_of(size).instances[len(kept) :]))
        return size


@pytest.mark.parametrize("name", MOVING)
@QUIET
@given(
    looks=st.lists(
        st.tuples(st.floats(0, 30), st.floats(0, 5000), st.floats(0, 5000), st.floats(0, 1)), min_size=1, max_size=20
    ),
    ready=st.integers(1, 12),
)
def test_every_peer_stays_within_bounds(name: str, looks: list[tuple[float, float, float, float]], ready: int) -> None:
    bed = Bed(name, ready)
    for load, running, waiting, usage in looks:
        assert 1 <= bed.follow(1, load, running=running, waiting=waiting, usage=usage) <= 12


@pytest.mark.parametrize("name", MOVING)
def test_every_peer_takes_a_quiet_fleet_down_and_holds_a_suited_one(name: str) -> None:
    assert Bed(name, 8).follow(120, 0.0, running=0.0) == 1


def test_hpa_sizes_by_the_ratio_and_leaves_small_deviations_alone() -> None:
    assert Bed("hpa", 4).run(6, 3.6) == math.ceil(4 * 0.9 / 0.6)
    assert Bed("hpa", 4).run(6, 4 * 0.6 * 1.09) == 4
    assert Bed("hpa", 1).run(6, 6.0) == 5


def test_hpa_counts_what_is_not_ready_as_idle_on_the_way_up() -> None:
    assert Bed("hpa", 4).run(6, 3.6) == 6
    assert Bed("hpa", 4, pending=2).run(6, 3.6) == 6


def test_hpa_goes_down_only_after_its_window() -> None:
    bed = Bed("hpa", 6)
    bed.run(6, 3.6)
    assert bed.run(19, 0.6) == 6
    assert bed.run(10, 0.6) == 1


def test_keda_wants_one_instance_for_each_five_that_wait() -> None:
    assert Bed("keda-waiting", 3).run(3, 1.0, waiting=26.0) == 6
    assert Bed("keda-waiting", 3).run(3, 1.0, waiting=60.0) == 3 + 4
    assert Bed("keda-waiting", 3).run(30, 2.9) == 1, "a full fleet in which nobody waits looks idle"


def test_kpa_panics_at_twice_what_instances_should_hold() -> None:
    assert Bed("kpa", 4).run(5, 1.0, running=4 * 70) == 4
    assert Bed("kpa", 4).run(5, 1.0, running=8 * 70) == 8
    calm, panicking = Bed("kpa", 4), Bed("kpa", 4)
    panicking.run(2, 1.0, running=9 * 70)
    assert panicking.run(2, 1.0, running=70) >= 9
    assert calm.run(5, 1.0, running=70) == 2


def test_apa_follows_the_cache_by_at_most_double_or_half() -> None:
    assert Bed("apa", 4).run(6, 1.0, usage=0.75) == 6
    assert Bed("apa", 4).run(6, 1.0, usage=0.53) == 4
    assert Bed("apa", 4).run(6, 1.0, usage=0.01) == 2


def test_wva_is_blind_to_work_that_needs_no_cache() -> None:
    """V2 looks at tokens held; the queueing analyzer at the same moment sees a full fleet."""
    assert Bed("wva-v2", 3).run(8, 2.9, usage=0.4) <= 3
    assert Bed("wva-qm", 3).run(8, 2.9, usage=0.4) == 3 + math.ceil((2.9 / 0.85 - 3 * 0.8) / 0.8)


def test_dynamo_steps_by_one_and_not_while_an_instance_starts() -> None:
    assert Bed("dynamo", 3).run(2, 2.9) == 4
    assert Bed("dynamo", 3, pending=1).run(2, 2.9) == 4
    assert Bed("dynamo", 3).run(2, 0.3) == 2


def test_hysteresis_waits_for_its_windows() -> None:
    bed = Bed("hysteresis", 3)
    assert bed.run(4, 1.5) == 3
    assert bed.follow(20, 2.7) >= 5
    calm = Bed("hysteresis", 3)
    assert calm.run(30, 0.3) == 3
    assert calm.run(30, 0.3) < 3


def test_a_fleet_of_nobody_is_asked_about_too() -> None:
    for name in MOVING:
        watching = Watching(role=Role.BOTH, capacity=ABLE, ttft=2.0, low=1, high=12)
        size = PEERS[name](watching).size(Fleet(role=Role.BOTH), Observation(), START + TICK)
        assert 1 <= size <= 12
