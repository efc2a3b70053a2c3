"""The simulated fleet: steps as they are defined, nothing lost, the same every time, the very code of a real one."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.api.autoscaler import parse_template
from llmfleet.api.types import Role
from llmfleet.capacity.capacity import build_capacity
from llmfleet.capacity.profiles import PROFILES, Profile, StepTime
from llmfleet.kube.refs import LLMCLUSTER, Key
from llmfleet.scale.signals import Observation
from llmfleet.simulate.engine import Engine, Job, steps_within
from llmfleet.simulate.fleet import Sim
from llmfleet.simulate.main import build_spec, command
from llmfleet.simulate.oracle import needed, oracle_seconds
from llmfleet.simulate.policies import PolicyError, Setting, WorkBudget, build_policy, parse_policy
from llmfleet.simulate.run import EPOCH, Scenario, run
from llmfleet.simulate.trace import Request, TraceError, parse_trace, thicken
from unit.scale.world import World

SMALL = Profile(steps=StepTime(a=0.01, b=0.001, c=0.0001, d=1e-7), kv_tokens=20_000, gpus=2, batched_tokens=512)
LLAMA = PROFILES["llama-70b-fp8-h100-tp8"]
HARDWARE = "llama-70b-fp8-h100-tp8"


def requests_of(rate: float, seconds: float, seed: int = 1) -> list[Request]:
    """A day in small: Poisson arrivals whose rate doubles in the middle."""
    draw, now, made = random.Random(seed), 0.0, []
    while now < seconds:
        now += draw.expovariate(rate * (2 if seconds / 3 < now < 2 * seconds / 3 else 1))
        made.append(Request(now, int(draw.lognormvariate(7, 0.7)) + 1, int(draw.lognormvariate(4.5, 0.7)) + 1))
    return made


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
    assert engine.context == pytest.approx(0.0)
    assert engine.reserved == pytest.approx(0.0)
    assert engine.generated == sum(job.output for job in jobs)


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


# A trace.


def test_a_trace_is_read_by_its_columns_and_sorted() -> None:
    text = ["out_tok,t_s,in_tok,client", "5,2.5,100,a", "7,1.0,0,b"]
    assert parse_trace(text) == [Request(1.0, 1, 7), Request(2.5, 100, 5)]


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


def test_thickening_keeps_lengths_and_stays_within_the_trace() -> None:
    thin = requests_of(1.0, 600)
    thick = thicken(thin, 7, 300.0, random.Random(3))
    assert len(thick) == 7 * len(thin)
    assert sum(one.prompt for one in thick) == 7 * sum(one.prompt for one in thin)
    assert all(0 <= one.at <= thin[-1].at for one in thick)
    assert thick == thicken(thin, 7, 300.0, random.Random(3))


# A fleet.


def setting_of(low: int = 1, high: int = 20) -> Setting:
    spec = build_spec(HARDWARE, 2.0, 0.05, 0.01, 120, low, high)
    template = parse_template(spec.fleets()[Role.BOTH].instance_template, "spec")
    return Setting(spec=spec, capacity=build_capacity(template, spec.work_budget), low=low, high=high)


SCENARIO = Scenario(profile=LLAMA, cold_start=120.0, ttft=2.0, tpot=0.05, first=2)


@pytest.mark.parametrize("policy", ["work-budget", "hpa", "hysteresis", "static:instances=3"])
def test_no_policy_loses_a_request_and_all_stay_within_bounds(policy: str) -> None:
    requests = requests_of(12.0, 1800)
    found = run(requests, SCENARIO, build_policy(policy, setting_of(1, 5)), random.Random(1))
    assert found.requests == len(requests)
    assert found.dropped == 0
    assert 1 <= found.max_instances <= 6
    assert found.missed >= max(found.missed_ttft, found.missed_tpot)
    assert found.slo_attainment == pytest.approx(1 - found.missed / found.requests)


def test_the_same_seed_gives_the_same_report() -> None:
    requests, scenario = requests_of(14.0, 600), replace(SCENARIO, first=1)
    first, again, other = (
        run(requests, scenario, build_policy("work-budget", setting_of()), random.Random(seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.actions > 0
    assert first != other


def test_our_policy_misses_less_than_one_instance_and_costs_less_than_four() -> None:
    requests = requests_of(14.0, 2400)
    ours, one, four = (
        run(requests, SCENARIO, build_policy(policy, setting_of()), random.Random(1))
        for policy in ("work-budget", "static:instances=1", "static:instances=4")
    )
    assert ours.max_instances > 2
    assert ours.missed < one.missed / 2
    assert ours.gpu_seconds < four.gpu_seconds


def test_an_instance_drains_before_it_goes_and_costs_until_then() -> None:
    sim = Sim(profile=LLAMA, cold_start=60.0, draw=random.Random(1), begin=EPOCH)
    sim.start(2, ready=True)
    jobs = [Job(0.0, 100, 500) for _ in range(2)]
    for job in jobs:
        sim.arrive(job)
    sim.move(1.0)
    assert sim.resize(1) == -1
    assert len(sim.members) == 2
    sim.move(60.0)
    assert len(sim.members) == 1
    assert all(math.isfinite(job.ended) for job in jobs)
    assert sim.instance_seconds() == pytest.approx(120.0)


def test_a_fleet_without_an_instance_holds_its_requests() -> None:
    sim = Sim(profile=LLAMA, cold_start=60.0, draw=random.Random(1), begin=EPOCH)
    sim.arrive(Job(0.0, 100, 5))
    assert sim.observe().routers[0].queued == 1
    sim.start(1)
    sim.move(300.0)
    assert not sim.held


def test_who_knows_the_trace_needs_least() -> None:
    requests = requests_of(14.0, 3600)
    setting = setting_of()
    need = needed(requests, setting.capacity, 1)
    cost = oracle_seconds(requests, setting.capacity, 120.0, 1)
    assert sum(need) * 10 <= cost <= max(need) * len(need) * 10 + max(need) * 150
    ours = run(requests, SCENARIO, build_policy("work-budget", setting), random.Random(1))
    assert cost < ours.instance_seconds


# The same code as on a cluster.


class Recorder(WorkBudget):
    """Our policy, keeping what it was asked."""

    asked: list[tuple[Any, Observation, float]]

    def decide(self, fleet: Any, seen: Observation, now: float) -> int:
        self.asked.append((fleet, seen, now))
        return super().decide(fleet, seen, now)


def test_the_controller_decides_byte_for_byte_what_the_simulator_decides() -> None:
    setting = setting_of()
    policy = Recorder(spec=setting.spec, capacity=setting.capacity)
    policy.asked = []
    run(requests_of(14.0, 2700), SCENARIO, policy, random.Random(1))
    assert len(policy.asked) > 150
    assert len({decision.reason for decision in policy.decisions}) >= 3
    assert list(decided_by_the_controller(policy.asked)) == [repr(decision) for decision in policy.decisions]


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
        world.source_of = lambda spec, seen=seen: Scripted(seen)  # type: ignore[method-assign, misc]
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
    assert lines[0].endswith("GPU-hours")
    assert [line.split()[0] for line in lines[1:]] == ["policy", "work-budget", "hpa", "hysteresis"]


def test_the_command_prints_one_object_that_is_the_same_every_time(trace: Path) -> None:
    arguments = ["--trace", str(trace), "--policy", "work-budget", "--json", "--seed", "7"]
    first, again = (json.loads(CliRunner().invoke(command, arguments).output) for _ in range(2))
    assert first | {"run_seconds": 0} == again | {"run_seconds": 0}
    wanted = {"slo_attainment", "gpu_seconds", "oracle_gpu_seconds", "cost_ratio", "actions_per_day", "max_instances"}
    assert wanted | {"dropped", "seconds"} <= first.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "guess"], "'guess' is no policy: write one of work-budget, hpa, hysteresis, static"),
        (["--policy", "hpa:aim=1"], "hpa has no option 'aim'; it has target"),
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
