"""What must never happen, whatever is measured."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.api.autoscaler import Victim
from llmfleet.api.types import Role
from llmfleet.scale.fleet import Fleet, Instance
from llmfleet.scale.plan import Ask, plan
from llmfleet.scale.replay import step
from llmfleet.scale.signals import EngineReading, Observation, RouterReading
from llmfleet.scale.victim import victims
from unit.scale.builders import TICK, Toy, capacities_of, fleet_of, instance, spec_of, toy

QUIET = settings(derandomize=True, max_examples=60, deadline=None)
# Figures of an engine gone mad, of a page cut short, of a Prometheus without data.
ODD = st.sampled_from([math.nan, -1.0, 1e308, math.inf, -math.inf, 0.0])
LOADS = st.lists(st.floats(0, 30), min_size=1, max_size=25)


@QUIET
@given(loads=LOADS, ready=st.integers(0, 14), pending=st.integers(0, 3), step_=st.integers(1, 8))
def test_bounds_always_hold(loads: list[float], ready: int, pending: int, step_: int) -> None:
    bed = toy({"behavior.scaleUp": {"step": step_}}, ready=ready, pending=pending)
    for load in loads:
        decision = bed.run(load, 1)
        assert 2 <= decision.instances <= 10, decision


@QUIET
@given(values=st.lists(ODD, min_size=6, max_size=6), ready=st.integers(2, 9), ticks=st.integers(5, 30))
def test_figures_that_cannot_be_true_never_shrink_a_fleet(values: list[float], ready: int, ticks: int) -> None:
    bed = toy(ready=ready)
    bed.run(0.1, 20)
    for _ in range(ticks):
        names = ("prefill", "generated", "steps", "finished", "running", "waiting")
        fields: Any = {**dict(zip(names, values, strict=True)), "kv_usage": math.nan}
        engines = tuple(EngineReading(instance=name, at=bed.now, **fields) for name in bed.fleet.serving)
        routers = (RouterReading(router="r0", at=bed.now, queued=values[0], refused=values[1]),)
        seen = Observation(engines=engines, routers=routers, serving=bed.fleet.serving, routers_expected=1)
        bed.tick(0.0, observation=seen)
    # Readings from before stay believable for three looks; after that nothing is known.
    assert bed.last is not None
    assert bed.last.decisions[Role.BOTH].instances == ready


@QUIET
@given(age=st.floats(46, 10_000), ready=st.integers(2, 9))
def test_old_figures_never_shrink_a_fleet(age: float, ready: int) -> None:
    bed = toy(ready=ready)
    bed.run(0.0, 20)
    for _ in range(30):
        seen = bed.observe(0.0)
        old = tuple(replace(one, at=one.at - age) for one in seen.engines)
        bed.tick(0.0, observation=replace(seen, engines=old))
    assert bed.last is not None
    assert bed.last.decisions[Role.BOTH].instances == ready


@QUIET
@given(silent=st.sets(st.integers(0, 8), min_size=1), load=st.floats(0, 3), ready=st.integers(9, 9))
def test_a_missing_engine_never_shrinks_a_fleet(silent: set[int], load: float, ready: int) -> None:
    bed = toy(ready=ready)
    bed.run(load, 20)
    size = ready
    for _ in range(20):
        decision = bed.run(load, 1, silent=frozenset(f"llama-{n}" for n in silent))
    assert decision.instances >= size


@QUIET
@given(load=st.floats(0, 20), more=st.floats(0, 20), ticks=st.integers(2, 12))
def test_more_load_never_asks_for_less(load: float, more: float, ticks: int) -> None:
    assert toy(ready=5).run(load, ticks).instances <= toy(ready=5).run(load + more, ticks).instances


@QUIET
@given(loads=LOADS)
def test_it_changes_direction_at_most_once_in_a_window(loads: list[float]) -> None:
    bed = toy({"behavior": {"scaleDown": {"stabilizationSeconds": 150, "cooldownSeconds": 0}}}, ready=4)
    sizes = [size for load in loads for size in bed.follow(load, 2)]
    moves = [
        (tick, after > before) for tick, (before, after) in enumerate(itertools.pairwise(sizes)) if after != before
    ]
    for begin, _ in moves:
        window = [up for tick, up in moves if begin <= tick < begin + 10]
        assert sum(left != right for left, right in itertools.pairwise(window)) <= 1, sizes


ROLES = spec_of(
    {"prefill.maxInstances": 6, "decode.maxInstances": 6, "behavior.scaleDown": {"stabilizationSeconds": 30}},
    roles=True,
)


@QUIET
@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from([0.0, 1.0, 4.0]), st.sampled_from([0.0, 1.0, 4.0]), st.integers(0, 3), st.integers(0, 3)
        ),
        min_size=1,
        max_size=12,
    ),
    most=st.integers(1, 3),
)
def test_the_ratio_of_ready_instances_is_never_broken(moves: list[tuple[float, float, int, int]], most: int) -> None:
    """Decisions are planned and carried out; instances get ready late and in any order, and leave late."""
    spec = replace(ROLES, coordination=replace(ROLES.coordination, max_prefill_per_decode=most))
    beds = {role: Toy(spec=spec, fleet=fleet_of(1, role=role, prefix=f"llama-{role}-")) for role in spec.fleets()}
    memories: Any = {}
    for prefill, decode, *ready in (move for move in moves for _ in range(6)):
        seen = {}
        for role, load in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
            beds[role].now += TICK
            seen[role] = beds[role].observe(load)
        fleets = {role: bed.fleet for role, bed in beds.items()}
        done = step(spec, fleets, seen, capacities_of(spec), memories, beds[Role.DECODE].now)
        memories = done.memories
        for role, bed in beds.items():
            ask = ask_for(spec, role, bed.fleet, done.decisions[role].instances, done.ready_may_go.get(role))
            bed.fleet = carried_out(bed.fleet, ask, role)
        for bed, count in zip(beds.values(), ready, strict=True):
            bed.fleet = some_ready(bed.fleet, count)
        ready_prefill = sum(one.ready for one in beds[Role.PREFILL].fleet.instances)
        assert ready_prefill <= most * beds[Role.DECODE].fleet.ready, (
            beds[Role.PREFILL].fleet,
            beds[Role.DECODE].fleet,
        )


def ask_for(spec: Any, role: Role, fleet: Fleet, target: int, may_go: int | None = None, **more: Any) -> Ask:
    scaler = {"metadata": {"name": "s", "namespace": "d", "uid": "s1"}}
    live = {one.name: manifest(one) for one in fleet.instances}
    rules = spec.fleets()[role]
    return Ask(scaler=scaler, rules=rules, fleet=fleet, target=target, live=live, ready_may_go=may_go, **more)


def manifest(one: Instance) -> dict[str, Any]:
    return {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": {"name": one.name, "uid": one.uid}}


def carried_out(fleet: Fleet, ask: Ask, role: Role) -> Fleet:
    moves = plan(ask)
    gone = {one.name for one in moves.deleted}
    kept = [replace(one, leaving=True) if one.name in gone else one for one in fleet.instances if not one.leaving]
    made = [instance(99, name=name, uid=f"{role}-{name}", ready=False) for name in moves.created]
    return Fleet(role=role, instances=(*kept, *made))


def some_ready(fleet: Fleet, count: int) -> Fleet:
    waiting = [one.name for one in fleet.instances if not one.ready and not one.leaving][:count]
    return Fleet(
        role=fleet.role,
        instances=tuple(replace(one, ready=True) if one.name in waiting else one for one in fleet.instances),
    )


INSTANCES = st.lists(
    st.builds(
        lambda n, ready, ours, leaving, load, outdated: instance(
            n, ready=ready, ours=ours, leaving=leaving, load=load, outdated=outdated
        ),
        st.integers(0, 10**6),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.floats(0, 100),
        st.booleans(),
    ),
    max_size=12,
    unique_by=lambda one: one.name,
)


@QUIET
@given(made=INSTANCES, target=st.integers(0, 10), policy=st.sampled_from(list(Victim)))
def test_only_own_instances_are_written_and_pending_ones_go_first(
    made: list[Instance], target: int, policy: Victim
) -> None:
    fleet = Fleet(role=Role.BOTH, instances=tuple(made))
    ask = ask_for(spec_of(), Role.BOTH, fleet, target, victim=policy)
    moves = plan(ask)
    strangers = {one.name for one in made if not one.ours}
    written = {one.name for one in moves.deleted} | set(moves.patched)
    assert not written & strangers
    if fleet.size > target:
        stay = [one for one in made if one.ours and not one.leaving and one not in moves.deleted]
        assert not (any(one.ready for one in moves.deleted) and any(not one.ready for one in stay))
        assert len(moves.deleted) == min(fleet.size - target, sum(one.ours and not one.leaving for one in made))


@QUIET
@given(made=INSTANCES, policy=st.sampled_from(list(Victim)), wanted=st.integers(0, 12))
def test_victims_do_not_depend_on_the_order_of_a_list(made: list[Instance], policy: Victim, wanted: int) -> None:
    assert victims(made, policy, wanted) == victims(list(reversed(made)), policy, wanted)


@QUIET
@given(made=INSTANCES, target=st.integers(0, 10))
def test_a_plan_carried_out_asks_for_nothing_more(made: list[Instance], target: int) -> None:
    own = [replace(one, ours=True, outdated=False) for one in made]
    fleet = Fleet(role=Role.BOTH, instances=tuple(own))
    after = carried_out(fleet, ask_for(spec_of(), Role.BOTH, fleet, target), Role.BOTH)
    again = plan(ask_for(spec_of(), Role.BOTH, after, target))
    assert (again.created, again.deleted) == ((), ())
    assert after.size == target
