"""The simulated fleet: steps as they are defined, nothing lost, the same every time, the very code of a real one."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.api.autoscaler import Mode
from llmfleet.api.types import Role
from llmfleet.capacity.profiles import PROFILES, Profile, StepTime
from llmfleet.kube.refs import LLMCLUSTER, Key
from llmfleet.scale.signals import Observation
from llmfleet.simulate import compiler
from llmfleet.simulate.engine import Engine, Job, steps_within
from llmfleet.simulate.fleet import Sim
from llmfleet.simulate.grid import summary
from llmfleet.simulate.main import command, jitter_of
from llmfleet.simulate.oracle import BIN, least_seconds, loads, needed, oracle_seconds, ordered, relaxed
from llmfleet.simulate.policies import OPTIONS, PolicyError, Wanted, WorkBudget, build_policy, parse_policy
from llmfleet.simulate.run import run
from llmfleet.simulate.scenario import EPOCH, Tick
from llmfleet.simulate.scene import Choice, Scene, build_scene, play
from llmfleet.simulate.trace import Request, Trace, TraceError, cut, parse_trace, thicken, trace_of
from unit.scale.world import World

SMALL = Profile(steps=StepTime(a=0.01, b=0.001, c=0.0001, d=1e-7), kv_tokens=20_000, gpus=2, batched_tokens=512)
LLAMA = PROFILES["llama-70b-fp8-h100-tp8"]
HARDWARE = "llama-70b-fp8-h100-tp8"


def requests_of(rate: float, seconds: float, seed: int = 1) -> Trace:
    """A day in small: Poisson arrivals whose rate doubles in the middle."""
    draw, now, made = random.Random(seed), 0.0, []
    while now < seconds:
        now += draw.expovariate(rate * (2 if seconds / 3 < now < 2 * seconds / 3 else 1))
        made.append(Request(now, int(draw.lognormvariate(7, 0.7)) + 1, int(draw.lognormvariate(4.5, 0.7)) + 1))
    return trace_of(made)


# One engine.


def slowly(jobs: list[Job], profile: Profile, until: float) -> None:
    """The same engine, one step at a time and without sums: the definition."""
    steps, clock, running, waiting = profile.steps, 0.0, list[list[Any]](), sorted(jobs, key=lambda job: job.arrived)
    filling: list[list[Any]] = []
    while clock < until:
        while waiting and waiting[0].arrived <= clock:
            filling.append([waiting.pop(0), 0])
        if not running and not filling:
            clock = waiting[0].arrived if waiting else until
            continue
        budget, chunk, ready = profile.batched_tokens - len(running), 0, []
        for entry in filling:
            part = min(entry[0].prompt - entry[1], budget - chunk)
            entry[1] += part
            chunk += part
            if entry[1] < entry[0].prompt:
                break
            ready.append(entry)
            if chunk >= budget:
                break
        context = sum(job.prompt + done for job, done in running)
        clock += steps.step(len(running) + len(ready), chunk, context)
        for entry in running:
            entry[1] += 1
        for entry in ready:
            filling.remove(entry)
            entry[0].first = clock
            running.append([entry[0], 1])
        for job, done in list(running):
            if done >= job.output:
                job.ended = clock
                running.remove([job, done])


def fed(jobs: list[Job], profile: Profile, until: float) -> Engine:
    engine = Engine(profile, 0.0)
    for job in sorted(jobs, key=lambda job: job.arrived):
        engine.advance(job.arrived)
        engine.add(job, job.arrived)
    engine.advance(until)
    return engine


ROOMY = Profile(steps=SMALL.steps, kv_tokens=10**9, gpus=1, batched_tokens=512)
ARRIVALS = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 1500), st.integers(1, 80)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(made=ARRIVALS)
def test_sums_of_steps_give_the_times_of_single_steps(made: list[tuple[float, int, int]]) -> None:
    quick, slow = [Job(*one) for one in made], [Job(*one) for one in made]
    fed(quick, ROOMY, 1000.0)
    slowly(slow, ROOMY, 1000.0)
    for left, right in zip(quick, slow, strict=True):
        assert left.first == pytest.approx(right.first, abs=1e-6)
        assert left.ended == pytest.approx(right.ended, abs=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(made=ARRIVALS)
def test_an_engine_short_of_memory_preempts_and_still_answers_everybody(made: list[tuple[float, int, int]]) -> None:
    jobs = [Job(*one) for one in made]
    tight = Profile(steps=SMALL.steps, kv_tokens=2000, gpus=1, batched_tokens=512)
    engine = fed(jobs, tight, 100_000.0)
    assert all(math.isfinite(job.ended) and job.first <= job.ended for job in jobs)
    assert engine.finished == len(jobs)
    assert engine.context == 0
    assert engine.reserved == 0
    assert engine.generated == sum(job.output for job in jobs)


def test_a_prompt_that_another_engine_computed_takes_its_place_in_memory() -> None:
    """Nothing of it is left to compute, and all of it is held: a gauge below nothing is a figure nobody believes."""
    jobs = [Job(0.0, 1500, 200) for _ in range(3)]
    for job in jobs:
        job.left = 0
    engine = Engine(replace(SMALL, kv_tokens=4000), 0.0)
    for job in jobs:
        engine.add(job, 0.0)
    engine.advance(0.5)
    assert engine.prefilled == 0
    assert (engine.reserved, len(engine.running), engine.waits(0.5)) == (0, 2, 1)
    assert engine.kv_usage == pytest.approx(3000 / 4000, abs=0.05)
    engine.advance(100.0)
    assert (engine.finished, engine.context, engine.reserved) == (3, 0, 0)


def test_steps_within_a_time_that_grow() -> None:
    assert steps_within(1.0, 0.1, 0.0) == 10
    assert steps_within(0.35, 0.1, 0.1) == 3
    assert steps_within(0.0, 0.1, 0.1) == 0


def test_a_lone_request_takes_what_its_profile_says() -> None:
    job = Job(0.0, 1000, 101)
    engine = fed([job], LLAMA, 100.0)
    assert job.first == pytest.approx(LLAMA.steps.step(1, 1000, 0))
    context = sum(1001 + step for step in range(100))
    assert job.ended - job.first == pytest.approx(100 * LLAMA.steps.step(1, 0, 0) + LLAMA.steps.d * context)
    assert (engine.prefilled, engine.generated, engine.finished) == (1000, 101, 1)


def test_nobody_ends_before_the_moment_an_engine_is_due() -> None:
    """What the router relies on when it leaves engines alone; and being left alone changes no time."""
    draw, now, pairs = random.Random(2), 0.0, list[tuple[Job, Job]]()
    eager, lazy = Engine(SMALL, 0.0), Engine(SMALL, 0.0)
    left_alone = 0
    for _ in range(400):
        now += draw.expovariate(6)
        prompt, output = int(draw.expovariate(1 / 300)) + 1, int(draw.expovariate(1 / 20)) + 1
        eager.advance(now)
        if lazy.due <= now:
            lazy.advance(now)
        else:
            left_alone += 1
        assert all(math.isfinite(right.ended) for left, right in pairs if left.ended <= now)
        pairs.append((Job(now, prompt, output), Job(now, prompt, output)))
        eager.add(pairs[-1][0], now)
        lazy.add(pairs[-1][1], now)
    eager.advance(1e6)
    lazy.advance(1e6)
    assert left_alone > 50
    for left, right in pairs:
        assert (left.first, left.ended) == (pytest.approx(right.first), pytest.approx(right.ended))


# A trace.


def test_a_trace_is_read_by_its_columns_and_sorted() -> None:
    text = ["out_tok,t_s,in_tok,client", "5,2.5,100,a", "7,1.0,0,b"]
    assert list(parse_trace(text)) == [Request(1.0, 1, 7), Request(2.5, 100, 5)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1 must name"),
        (["a,b,c"], "line 1 must name"),
        (["t_s,in_tok,out_tok", "1,2,3", "1,x,3"], "line 3: '1,x,3' is no request"),
        (["t_s,in_tok,out_tok", "1,2"], "line 2"),
        (["t_s,in_tok,out_tok", "nan,2,3"], "is no moment"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_its_line(lines: list[str], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        parse_trace(lines)


def test_thickening_keeps_pairs_of_lengths_and_stays_within_the_trace() -> None:
    thin = requests_of(1.0, 600)
    thick = thicken(thin, 7, 300.0, random.Random(3))
    assert len(thick) == 7 * len(thin)
    pairs = sorted((one.prompt, one.output) for one in thin for _ in range(7))
    assert sorted((one.prompt, one.output) for one in thick) == pairs
    assert all(0 <= one.at <= thin.end for one in thick)
    assert all(before.at <= after.at for before, after in itertools.pairwise(thick))
    assert list(thick) == list(thicken(thin, 7, 300.0, random.Random(3)))
    assert list(thick) != list(thicken(thin, 7, 300.0, random.Random(4)))


def test_thickening_is_the_same_as_machine_code_and_as_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it draws as `random.gauss` does, two at a time: the moments of an odd number of copies are known."""
    thin = trace_of([Request(float(n), n + 1, 1) for n in range(501)])
    plain = thicken(thin, 3, 40.0, random.Random(5))
    monkeypatch.setattr(compiler, "WORTH", 1)
    assert list(thicken(thin, 3, 40.0, random.Random(5))) == list(plain)
    draw = random.Random(5)
    moved = sorted(min(abs(at), 1000 - abs(at)) for _ in range(3) for at in (n + draw.gauss(0, 40) for n in range(501)))
    assert list(plain.at) == pytest.approx(moved, abs=1e-6)


def test_a_copy_keeps_its_time_of_day_and_the_lengths_of_it() -> None:
    """Long prompts in the first half, short ones in the second: a copy does not mix them."""
    thin = trace_of([Request(float(n), 1000 if n < 500 else 10, 1) for n in range(1000)])
    thick = list(thicken(thin, 5, 1.0, random.Random(1)))
    assert all(one.prompt == (1000 if one.at < 500 else 10) for one in thick if abs(one.at - 500) > 15 and one.at < 990)


def test_a_slice_of_a_trace_begins_at_zero() -> None:
    assert list(cut(trace_of([Request(1.0, 1, 1), Request(5.0, 2, 2), Request(9.0, 3, 3)]), 4.0, 2.0)) == [
        Request(1.0, 2, 2)
    ]


def test_the_jitter_follows_from_the_name_of_the_file() -> None:
    names = (
        "azure2024_code_d0-3_x1-30.csv.gz",
        "servegen_m-large_d0.csv.gz",
        "servegen_deepseek-r1_h0.csv",
        "mine.csv",
    )
    assert [jitter_of(f"/traces/{name}") for name in names] == [300.0, 150.0, 30.0, 300.0]


# A fleet.


def scene_of(trace: Trace, seed: int = 1, **changes: Any) -> Scene:
    choice = Choice(**{"hardware": HARDWARE, "cold_start": 120.0, "budget": 0.01, "high": 20, "seed": seed, **changes})
    return build_scene(trace, choice, LLAMA)


def play_it(scene: Scene, policy: str) -> tuple[dict[str, Any], list[Tick]]:
    return play(scene, policy, random.Random(scene.choice.seed))


def played(trace: Trace, policy: str, **changes: Any) -> dict[str, Any]:
    return play_it(scene_of(trace, **changes), policy)[0]


@pytest.mark.parametrize("policy", [*OPTIONS, "static:instances=3"])
@pytest.mark.parametrize("mode", list(Mode))
def test_no_policy_loses_a_request_and_all_stay_within_bounds(policy: str, mode: Mode) -> None:
    trace = requests_of(8.0, 400)
    found, ticks = play_it(scene_of(trace, high=5, mode=mode), policy)
    roles = 1 if mode is Mode.MONOLITHIC else 2
    assert found["requests"] == len(trace) == sum(tick.requests for tick in ticks)
    assert found["dropped"] == 0
    assert all(tick.ready <= 6 * roles for tick in ticks)
    assert found["missed"] >= max(found["missed_ttft"], found["missed_tpot"])
    assert found["slo_attainment"] == pytest.approx(1 - found["missed"] / found["requests"], abs=1e-6)


def test_the_same_seed_gives_the_same_report() -> None:
    trace = requests_of(14.0, 300)
    first, again, other = (play_it(scene_of(trace, seed=seed, cold_start=60.0), "hpa:target=0.3") for seed in (1, 1, 2))
    assert first == again
    assert first[0]["actions"] > 0
    assert first[1] != other[1]


def test_our_policy_misses_less_than_one_instance_and_costs_less_than_four() -> None:
    trace = requests_of(14.0, 900)
    ours, one, four = (played(trace, policy) for policy in ("work-budget", "static:instances=1", "static:instances=4"))
    assert ours["max_instances"] >= 2
    assert ours["missed"] < one["missed"] / 2
    assert ours["gpu_seconds"] < four["gpu_seconds"]


def test_a_step_that_fits_the_objective_saves_short_answers_from_long_prompts() -> None:
    """Thousands of tokens in one step hold up a decode beside it longer than its whole answer may take."""
    draw = random.Random(1)
    trace = trace_of([Request(draw.uniform(0, 600), 4000, 3) for _ in range(3000)])
    sized, default = (played(trace, "static:instances=2", batched_tokens=tokens) for tokens in (0, 8192))
    assert sized["batched_tokens"] < 2048
    assert sized["missed_tpot"] == 0
    assert default["missed_tpot"] > 30


def test_what_no_policy_could_meet_is_the_ceiling() -> None:
    trace = trace_of([Request(float(n), 100 if n % 4 else 200_000, 5) for n in range(100)])
    found = played(trace, "static:instances=3")
    assert found["slo_ceiling"] == 0.75
    assert found["slo_attainment"] <= 0.75


def sim_of(**changes: Any) -> Sim:
    return Sim(**{"profile": LLAMA, "cold_start": 60.0, "draw": random.Random(1), "begin": EPOCH, **changes})


def test_an_instance_drains_before_it_goes_and_costs_until_then() -> None:
    sim = sim_of()
    sim.start(2, ready=True)
    jobs = [Job(0.0, 100, 500) for _ in range(2)]
    for job in jobs:
        sim.arrive(job, 0.0)
    sim.move(1.0)
    assert sim.resize(1) == -1
    assert len(sim.members) == 2
    sim.move(60.0)
    assert len(sim.members) == 1
    assert all(math.isfinite(job.ended) for job in jobs)
    assert set(sim.taken()) == set(jobs)
    assert sim.instance_seconds() == pytest.approx(120.0)


def test_an_instance_that_never_got_ready_goes_at_once() -> None:
    sim = sim_of()
    sim.start(1, ready=True)
    sim.start(1)
    sim.move(10.0)
    sim.resize(1)
    assert [one.number for one in sim.members] == [0]
    assert sim.instance_seconds() == pytest.approx(20.0)


def test_a_fleet_without_an_instance_holds_its_requests_in_order() -> None:
    sim = sim_of()
    jobs = [Job(0.0, 100, 5) for _ in range(3)]
    for job in jobs:
        sim.arrive(job, 0.0)
    assert sim.observe().routers[0].queued == 3
    assert list(sim.held) == jobs
    sim.start(1)
    sim.move(300.0)
    assert not sim.held


def test_who_has_no_slot_waits_in_the_router() -> None:
    profile = Profile(steps=LLAMA.steps, kv_tokens=10**6, gpus=1, sequences=2)
    sim = sim_of(profile=profile)
    sim.start(1, ready=True)
    jobs = [Job(0.0, 10, 10) for _ in range(5)]
    for job in jobs:
        sim.arrive(job, 0.0)
    assert len(sim.held) == 3
    while not sim.is_idle():
        sim.move(sim.next_look(sim.now) if sim.held else sim.now + 1)
    assert sorted(job.ended for job in jobs) == [job.ended for job in jobs]


def test_who_knows_the_trace_needs_least() -> None:
    trace = requests_of(14.0, 1200)
    scene = scene_of(trace)
    capacity = scene.setting.capacities[Role.BOTH]
    need = needed(loads(trace, capacity, Role.BOTH), capacity.rho, 1)
    cost = oracle_seconds(need, 120.0, 1)
    assert sum(need) * BIN <= cost <= max(need) * len(need) * BIN + max(need) * 150
    ours = play_it(scene, "work-budget")[0]
    assert cost < ours["instance_seconds"]
    assert ours["cost_ratio"] == pytest.approx(ours["instance_seconds"] / cost, abs=1e-3)


NEEDS = st.lists(st.integers(1, 6), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(need=NEEDS, cold_start=st.sampled_from([10.0, 45.0, 300.0]), low=st.integers(1, 3))
def test_the_linear_program_has_the_optimum_of_whole_instances_when_needs_are_whole(
    need: list[int], cold_start: float, low: int
) -> None:
    """Its matrix is of intervals: with whole needs fractions do not help, and two ways to the optimum must agree."""
    need = [max(low, wanted) for wanted in need]
    assert relaxed(need, BIN, cold_start + 30, low) == pytest.approx(oracle_seconds(need, cold_start, low))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(load=st.lists(st.floats(0, 5), min_size=1, max_size=100), cold_start=st.sampled_from([45.0, 600.0]))
def test_the_clairvoyant_never_costs_less_than_the_bound(load: list[float], cold_start: float) -> None:
    cost = oracle_seconds(needed(load, 0.8, 1), cold_start, 1)
    assert least_seconds(load, 0.8, cold_start, 1) <= cost + 1e-6


def test_no_schedule_of_a_short_trace_is_cheaper_than_the_linear_program() -> None:
    """Every schedule in halves of an instance, tried one by one."""
    need, width, restart = [0.5, 2.0, 0.0, 0.5, 1.5], 10.0, 15.0
    levels = [half / 2 for half in range(5)]
    costs = [
        sum(kept) * width + restart * sum(max(0.0, after - before) for before, after in itertools.pairwise([0, *kept]))
        for kept in itertools.product(levels, repeat=len(need))
        if all(have >= wanted for have, wanted in zip(kept, need, strict=True))
    ]
    assert relaxed(need, width, restart, 0) == pytest.approx(min(costs))


def test_a_report_has_the_bound_below_the_clairvoyant() -> None:
    found = played(requests_of(14.0, 1200), "oracle")
    assert 0 < found["lower_bound_gpu_seconds"] < found["oracle_gpu_seconds"]


def test_the_clairvoyant_orders_ahead_and_lets_go_over_long_gaps_only() -> None:
    need = [1] * 40 + [2] + [1] * 5 + [2] + [1] * 60
    plan = ordered(need, 60.0)
    ahead = math.ceil((60 * 1.2 + 15) / BIN)
    assert [place for place, wanted in enumerate(plan) if wanted == 2] == list(range(40 - ahead, 47))
    assert len(plan) == len(need)


def test_a_request_of_two_roles_is_answered_after_its_cache_has_travelled() -> None:
    trace = trace_of([Request(10.0, 1000, 50)])
    scene = scene_of(trace, mode=Mode.DISAGGREGATED)
    report, _ = run(trace, scene.scenario, build_policy("static:instances=1", scene.setting), random.Random(1))
    assert (report.requests, report.missed, report.max_instances) == (1, 0, 2)
    steps = LLAMA.steps
    least = steps.step(1, 1000, 0) + 0.001 + 8e-6 * 1000 + steps.a
    late = replace(scene.scenario, ttft=least)
    assert run(trace, late, build_policy("static:instances=1", scene.setting), random.Random(1))[0].missed_ttft == 1


def test_a_policy_that_only_grows_decode_is_not_asked_for_prefill() -> None:
    """Roles are sized apart: many tokens in need prefill instances, many out decode instances."""
    long_prompts = trace_of([Request(n / 20, 4000, 4) for n in range(2400)])
    long_answers = trace_of([Request(n / 20, 50, 900) for n in range(2400)])
    scenes = [scene_of(trace, mode=Mode.DISAGGREGATED) for trace in (long_prompts, long_answers)]
    first, second = (scene.scenario.first for scene in scenes)
    assert first[Role.PREFILL] > first[Role.DECODE]
    assert second[Role.PREFILL] < second[Role.DECODE]


def test_both_fleets_of_two_roles_follow_their_load() -> None:
    """Both begin too small; a decode fleet whose figures nobody believes would hold its first size for good."""
    trace = trace_of([Request(n / 16, 3000, 800) for n in range(16 * 300)])
    scene = scene_of(trace, mode=Mode.DISAGGREGATED, cold_start=60.0)
    policy = build_policy("work-budget", scene.setting)
    small = replace(scene.scenario, first=dict.fromkeys(scene.scenario.first, 1))
    run(trace, small, policy, random.Random(1))
    assert isinstance(policy, WorkBudget)
    for decision in policy.decisions[-3].values():
        assert decision.instances > 1
        assert "no fresh figures" not in decision.message


def test_steps_are_sized_for_the_objective_only_where_engines_answer() -> None:
    scene = scene_of(trace_of([Request(1.0, 1000, 50)]), mode=Mode.DISAGGREGATED)
    assert scene.scenario.profile_of(Role.DECODE).batched_tokens < 2048
    assert scene.scenario.profile_of(Role.PREFILL).batched_tokens == LLAMA.batched_tokens
    assert scene.setting.capacities[Role.PREFILL].prefill_tokens == LLAMA.batched_tokens
    told = scene_of(trace_of([Request(1.0, 1000, 50)]), mode=Mode.DISAGGREGATED, batched_tokens=512)
    assert {told.scenario.profile_of(role).batched_tokens for role in (Role.PREFILL, Role.DECODE)} == {512}
    assert told.setting.capacities[Role.PREFILL].prefill_tokens == 512


# The same code as on a cluster.


class Recorder(WorkBudget):
    """Our policy, keeping what it was asked."""

    asked: list[tuple[Any, Observation, float]]

    def decide(self, fleets: Any, seen: Any, now: float) -> Wanted:
        self.asked.append((fleets[Role.BOTH], seen[Role.BOTH], now))
        return super().decide(fleets, seen, now)


def test_the_controller_decides_byte_for_byte_what_the_simulator_decides() -> None:
    scene = scene_of(requests_of(14.0, 2700))
    policy = Recorder(spec=scene.setting.spec, capacities=scene.setting.capacities)
    policy.asked = []
    run(scene.trace, scene.scenario, policy, random.Random(1))
    decisions = [decided[Role.BOTH] for decided in policy.decisions]
    assert len(policy.asked) > 150
    assert len({decision.reason for decision in decisions}) >= 3
    assert list(decided_by_the_controller(policy.asked)) == [repr(decision) for decision in decisions]


def decided_by_the_controller(asked: list[tuple[Any, Observation, float]]) -> Iterator[str]:
    """The real controller before the recorded fleets and figures, moment by moment."""
    world = World()
    labels = {"serving.ai/fleet": "simulated"}
    shape = {"model": "simulated", "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1, "image": "none"}
    spec = {
        "mode": "monolithic",
        "scaleTargetRef": {"labelSelector": {"matchLabels": labels}},
        "minInstances": 1,
        "maxInstances": 20,
        "instanceTemplate": {"namePrefix": "i-", "labels": labels, "spec": shape},
        "workBudget": {
            "slo": {"ttftSeconds": "2.000000", "tpotSeconds": "0.050000", "errorBudget": "0.010000"},
            "capacity": {"profile": HARDWARE},
            "coldStartSeconds": 120,
        },
    }
    kind = {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMClusterAutoscaler", "metadata": {"name": "s"}}
    world.now = datetime.fromtimestamp(asked[0][2], UTC)
    world.create({**kind, "spec": spec})
    key = next(iter(world.objects))
    for fleet, seen, now in asked:
        world.now = datetime.fromtimestamp(now, UTC)
        for where in [where for where in world.objects if where[0] == LLMCLUSTER.plural]:
            del world.objects[where]
        for one in fleet.instances:
            world.store(LLMCLUSTER, manifest_of(one, labels, shape, world.scaler("s")["metadata"]["uid"]))
        world.source_of = lambda *asked, seen=seen: Scripted(seen)  # type: ignore[method-assign, misc]
        world.controller._source_of = world.source_of
        known = world.controller._known
        place = Key("d", key[2])
        if place in known:
            # The world is the recorded one: what this controller would have deleted was not.
            known[place].looked, known[place].deleted = float("-inf"), frozenset()
        world.controller.reconcile(place)
        last = known[place].last
        assert last is not None
        yield repr(last.decisions[Role.BOTH])


class Scripted:
    """A source that answers what was recorded."""

    def __init__(self, seen: Observation) -> None:
        self.seen = seen

    def observe(self, targets: Any) -> Observation:
        return self.seen


def manifest_of(one: Any, labels: dict[str, str], shape: dict[str, Any], owner: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(one.created, UTC).isoformat()
    metadata: dict[str, Any] = {
        "name": one.name,
        "uid": one.uid,
        "labels": labels,
        "creationTimestamp": created,
        "ownerReferences": [{"uid": owner}],
    }
    if one.leaving:
        metadata["deletionTimestamp"] = created
    status = {"conditions": [{"type": "Ready", "status": "True" if one.ready else "False", "reason": "x"}]}
    return {
        "apiVersion": "serving.ai/v1alpha1",
        "kind": "LLMCluster",
        "metadata": metadata,
        "spec": shape,
        "status": {**status, "modelLoadSeconds": one.load_seconds},
    }


# The command.


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    rows = [f"{one.at:.2f},{one.prompt},{one.output}" for one in requests_of(6.0, 900)]
    path.write_text("\n".join(["t_s,in_tok,out_tok", *rows]))
    return path


def test_the_command_prints_a_table(trace: Path) -> None:
    done = CliRunner().invoke(command, ["--trace", str(trace), "--cold-start", "60"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "GPU-hours" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["policy", "work-budget", "hpa", "hysteresis"]


def test_the_command_prints_one_object_that_is_the_same_every_time(trace: Path) -> None:
    arguments = ["--trace", str(trace), "--policy", "work-budget", "--json", "--seed", "7"]
    first, again = (json.loads(CliRunner().invoke(command, arguments).output) for _ in range(2))
    assert first | {"run_seconds": 0} == again | {"run_seconds": 0}
    assert json.loads(json.dumps(first)) == first
    wanted = {"slo_attainment", "gpu_seconds", "oracle_gpu_seconds", "cost_ratio", "actions_per_day", "max_instances"}
    assert wanted | {"dropped", "seconds", "slo_ceiling"} <= first.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "guess"], "'guess' is no policy: write one of work-budget, hysteresis, hpa, keda-waiting"),
        (["--policy", "hpa:aim=1"], "hpa has no option 'aim'; it has down, target, tolerance"),
        (["--policy", "hpa:target=x"], "write target=NUMBER"),
        (["--hardware", "abacus"], "'abacus' is no profile"),
        (["--thicken", "many"], "'many' is not K or K:SECONDS"),
        (["--min-instances", "9", "--max-instances", "8"], "is above --max-instances"),
    ],
)
def test_wrong_input_is_one_line_that_says_what_to_write(trace: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(command, ["--trace", str(trace), *arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_a_file_that_is_no_trace_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("hello\n")
    done = CliRunner().invoke(command, ["--trace", str(path)])
    assert (done.exit_code, "line 1 must name the columns" in done.output) == (2, True)


def test_a_policy_is_a_name_and_its_options() -> None:
    assert parse_policy("hysteresis:up=0.7,down=0.4") == ("hysteresis", {"up": 0.7, "down": 0.4})
    with pytest.raises(PolicyError):
        parse_policy("static:instances=")


@pytest.mark.parametrize("kind", ["html", "svg"])
def test_a_run_is_drawn_over_time(trace: Path, tmp_path: Path, kind: str) -> None:
    picture = tmp_path / f"run.{kind}"
    arguments = ["--policy", "hpa", "--policy", "static:instances=1", "--plot", str(picture)]
    done = CliRunner().invoke(command, ["--trace", str(trace), *arguments])
    assert done.exit_code == 0, done.output
    text = picture.read_text()
    assert text.startswith("<!doctype html>" if kind == "html" else "<svg")
    root = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    titles = [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert sum(title.startswith(("hpa:", "static:instances=1:")) for title in titles) == 2


def test_a_picture_of_another_kind_is_refused_before_anything_runs(trace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "run.png"
    done = CliRunner().invoke(command, ["--trace", str(trace), "--plot", str(picture)])
    assert (done.exit_code, picture.exists()) == (2, False)
    assert "write FILE.html or FILE.svg" in " ".join(done.output.split())


def test_a_grid_says_mean_and_worst_of_each_policy_and_draws_them(trace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "frontier.svg"
    policies = ["--policy", "static:instances=1", "--policy", "static:instances=2"]
    more = ["--seed", "1", "--seed", "2", "--begin", "0", "--begin", "100", "--seconds", "200"]
    done = CliRunner().invoke(
        command, ["compare", "--trace", f"{trace}@2:10", *policies, *more, "--plot", str(picture)]
    )
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines()]
    assert [(row[0], row[1]) for row in rows[1:]] == [("static:instances=1", "4"), ("static:instances=2", "4")]
    assert len(ElementTree.fromstring(picture.read_text()).findall("{http://www.w3.org/2000/svg}circle")) == 4


def test_a_row_counts_every_cell_alike() -> None:
    cells = [
        {"policy": "a", "slo_attainment": slo, "cost_ratio": cost, "actions_per_day": 4}
        for slo, cost in ((1, 2), (0.5, 1))
    ]
    row = summary(cells)[0]
    assert (row.slo, row.worst_slo, row.cost, row.worst_cost, row.actions) == (0.75, 0.5, 1.5, 2, 4)


def test_a_trace_that_is_no_file_is_said_by_the_grid() -> None:
    done = CliRunner().invoke(command, ["compare", "--trace", "nowhere.csv@3"])
    assert (done.exit_code, "'nowhere.csv' is no file" in done.output) == (2, True)
