"""The fleet in arrays is the fleet of objects: every figure of every tick, to the last bit."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from typing import Any

import pytest

from llmfleet.api.autoscaler import Mode
from llmfleet.capacity.profiles import PROFILES, Profile
from llmfleet.simulate import kernel, packed
from llmfleet.simulate.compiler import integers
from llmfleet.simulate.policies import build_policy
from llmfleet.simulate.run import run
from llmfleet.simulate.scene import Choice, build_scene
from llmfleet.simulate.trace import Request, Trace, trace_of

HARDWARE = "llama-70b-fp8-h100-tp8"
LLAMA = PROFILES[HARDWARE]


def burst(rate: float, seconds: float, seed: int = 1) -> Trace:
    """A calm, a burst, a calm."""
    draw, now, made = random.Random(seed), 0.0, []
    while now < seconds:
        now += draw.expovariate(rate * (4 if seconds / 3 < now < 2 * seconds / 3 else 1))
        made.append(Request(now, int(draw.lognormvariate(7, 0.9)) + 1, int(draw.lognormvariate(4.5, 0.9)) + 1))
    return trace_of(made)


def both(trace: Trace, policy: str, profile: Profile = LLAMA, **changes: Any) -> tuple[Any, Any]:
    choice = Choice(**{"hardware": HARDWARE, "cold_start": 40.0, "budget": 0.01, "high": 20, **changes})
    scene = build_scene(trace, choice, profile)
    # Steps of the size the profile says; the scene would size them for the objective.
    scenario = replace(scene.scenario, profile=profile)
    found = []
    for form in (True, False):
        report, ticks = run(trace, scenario, build_policy(policy, scene.setting), random.Random(5), packed=form)
        found.append((asdict(report), [asdict(tick) for tick in ticks]))
    return found[0], found[1]


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("policy", ["work-budget", "hpa:target=0.3", "static:instances=1"])
def test_arrays_give_what_objects_give(policy: str, mode: Mode) -> None:
    arrays, objects = both(burst(8.0, 300), policy, mode=mode)
    assert arrays == objects
    assert policy != "work-budget" or arrays[0]["actions"] > 0


def test_arrays_preempt_and_hold_as_objects_do() -> None:
    """Little memory and few slots: requests are computed again, wait in the engine and wait in the router."""
    tight = replace(LLAMA, kv_tokens=9000, sequences=12, batched_tokens=700)
    trace = trace_of([Request(n / 6, 300 + 97 * n % 3000, 1 + 31 * n % 400) for n in range(900)])
    arrays, objects = both(trace, "static:instances=2", tight)
    assert arrays == objects
    assert objects[0]["missed_ttft"] > 100


def test_arrays_grow_when_more_is_under_way_than_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "PLACES", 2)
    monkeypatch.setattr(packed.PackedSim, "__init__", small(packed.PackedSim.__init__))
    arrays, objects = both(burst(8.0, 200), "hpa:target=0.1")
    assert arrays == objects
    assert objects[0]["max_instances"] > 2


def small(made: Any) -> Any:
    """A fleet that begins with room for one."""
    return lambda self, **values: made(self, **{**values, "rows": 1})


def test_a_heap_in_arrays_gives_the_least_first() -> None:
    draw = random.Random(3)
    ends, numbers, jobs = (integers([0] * 40) for _ in range(3))
    wanted = [(draw.randrange(9), number) for number in range(40)]
    for size, (end, number) in enumerate(wanted):
        kernel.push(ends, numbers, jobs, 0, size, end, number, number)
    found = [kernel.pop(ends, numbers, jobs, 0, size) for size in range(40, 0, -1)]
    assert found == [number for _, number in sorted(wanted)]
