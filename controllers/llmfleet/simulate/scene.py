"""What a simulation is of: the fleet's spec, the trace, the first size, the clairvoyant's schedule.

In: what a person chose. Out: a `Scene`, from which any policy can be built and run. It reads no file and prints
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmfleet.api.autoscaler import AutoscalerSpec, Mode, parse_autoscaler, parse_template
from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity, build_capacity, tokens_per_step
from llmfleet.capacity.profiles import Profile
from llmfleet.simulate.oracle import BIN, least_seconds, loads, needed, oracle_seconds, ordered
from llmfleet.simulate.policies import Policy, Scheduled, Setting, build_policy, parse_policy
from llmfleet.simulate.run import ideal, run
from llmfleet.simulate.scenario import EPOCH, Scenario, Tick
from llmfleet.simulate.trace import Draw, Trace

LABELS = {"serving.ai/fleet": "simulated"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a person chose."""

    hardware: str
    mode: Mode = Mode.MONOLITHIC
    cold_start: float = 300.0
    ttft: float = 2.0
    tpot: float = 0.05
    budget: float = 0.001
    low: int = 1
    high: int = 60
    seed: int = 1
    batched_tokens: int = 0
    """Of a step, `--max-num-batched-tokens`; 0 means sized for the objective."""
    believed: float = 1.0
    """Factor on the coefficients that policies believe; what the engines really do is the profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that is the same for all policies."""

    trace: Trace
    choice: Choice
    scenario: Scenario
    setting: Setting
    oracle: float
    """GPU seconds."""
    least: float
    """A bound of them from below."""
    ceiling: float


def build_spec(choice: Choice, profile: Profile) -> AutoscalerSpec:
    """The spec our own policy would have on a cluster."""
    shape = {"model": "simulated", "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1, "image": "none"}
    common: dict[str, Any] = {
        "mode": str(choice.mode),
        "scaleTargetRef": {"labelSelector": {"matchLabels": LABELS}},
        "workBudget": {
            "slo": {
                "ttftSeconds": f"{choice.ttft:f}",
                "tpotSeconds": f"{choice.tpot:f}",
                "errorBudget": f"{choice.budget:f}",
            },
            "capacity": {"profile": choice.hardware} | believed(profile, choice.believed),
            "coldStartSeconds": int(choice.cold_start),
        },
    }
    bounds = {"minInstances": choice.low, "maxInstances": choice.high}
    if choice.mode is Mode.MONOLITHIC:
        template = {"namePrefix": "i-", "labels": LABELS, "spec": shape}
        return parse_autoscaler({**common, **bounds, "instanceTemplate": template})
    steps = {"prefill": {"inferenceArgs": {"maxNumBatchedTokens": profile.batched_tokens}}, "decode": {}}
    fleets = {
        role: {
            **bounds,
            "instanceTemplate": {"namePrefix": f"{role}-", "labels": LABELS, "spec": {**shape, "role": role, **more}},
        }
        for role, more in steps.items()
    }
    return parse_autoscaler({**common, **fleets, "coordination": {"maxPrefillPerDecode": 100}})


def believed(profile: Profile, factor: float) -> dict[str, Any]:
    """Wrong coefficients to start from."""
    if factor == 1:
        return {}
    steps = asdict(profile.steps)
    return {"coefficients": {name: f"{value * factor:.12f}" for name, value in steps.items() if value}}


def build_scene(trace: Trace, choice: Choice, profile: Profile) -> Scene:
    """A scene for this trace."""
    chunk = choice.batched_tokens or tokens_per_step(profile.steps, choice.tpot, profile.batched_tokens)
    # Nobody's next token waits for a prefill instance: its steps are as long as its engines make them.
    prefill = replace(profile, batched_tokens=choice.batched_tokens or profile.batched_tokens)
    profile = replace(profile, batched_tokens=chunk)
    spec = build_spec(choice, prefill)
    capacities = {
        role: build_capacity(parse_template(rules.instance_template, "spec"), spec.work_budget)
        for role, rules in spec.fleets().items()
    }
    true = {role: true_capacity(capacity, profile) for role, capacity in capacities.items()}
    offered = {role: loads(trace, capacity, role) for role, capacity in true.items()}
    oracle = least = 0.0
    for role, capacity in true.items():
        need = needed(offered[role], capacity.rho, choice.low)
        oracle += oracle_seconds(need, choice.cold_start, choice.low)
        least += least_seconds(offered[role], capacity.rho, choice.cold_start, choice.low)
    scenario = Scenario(
        profile=profile,
        prefill=prefill,
        cold_start=choice.cold_start,
        ttft=choice.ttft,
        tpot=choice.tpot,
        first={role: first_size(offered[role], capacity.rho, choice) for role, capacity in true.items()},
    )
    setting = Setting(spec=spec, capacities=capacities, ttft=choice.ttft, schedule=schedule_of(offered, true, choice))
    return Scene(
        trace=trace,
        choice=choice,
        scenario=scenario,
        setting=setting,
        oracle=oracle * profile.gpus,
        least=least * profile.gpus,
        ceiling=ideal(trace, profile, choice.ttft, choice.tpot),
    )


def true_capacity(capacity: Capacity, profile: Profile) -> Capacity:
    return replace(capacity, steps=profile.steps, kv_tokens=profile.kv_tokens, known=True)


def schedule_of(
    offered: Mapping[Role, Sequence[float]], capacities: Mapping[Role, Capacity], choice: Choice
) -> Callable[[float], Policy]:
    """How to make the clairvoyant's policy."""

    def schedule(fill: float) -> Policy:
        needs = {
            role: ordered(needed(offered[role], capacity.rho, choice.low, fill), choice.cold_start)
            for role, capacity in capacities.items()
        }
        return Scheduled(begin=EPOCH, width=BIN, needs=needs)

    return schedule


def first_size(load: Sequence[float], rho: float, choice: Choice) -> int:
    """What the first hour needs on average, with some room: nobody begins a comparison with an empty fleet."""
    hour = load[: int(3600 / BIN)]
    mean = sum(hour) / len(hour)
    return min(max(round(mean / rho * 1.4 + 0.5), choice.low), choice.high)


def play(
    scene: Scene, text: str, draw: Draw, progress: Callable[[float], None] = lambda _share: None
) -> tuple[dict[str, Any], list[Tick]]:
    """Run one policy; what it did, as the JSON has it, and tick by tick."""
    scenario = scene.scenario
    name, options = parse_policy(text)
    if name == "static":
        scenario = replace(
            scenario, first=dict.fromkeys(scenario.first, int(options.get("instances", scene.choice.high)))
        )
    found, ticks = run(scene.trace, scenario, build_policy(text, scene.setting), draw, progress)
    made = {
        "policy": text,
        **{key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(found).items()},
        "oracle_gpu_seconds": round(scene.oracle, 3),
        "lower_bound_gpu_seconds": round(scene.least, 3),
        "cost_ratio": round(found.gpu_seconds / scene.oracle, 4) if scene.oracle else 0.0,
        "batched_tokens": scene.scenario.profile.batched_tokens,
        "slo_ceiling": round(scene.ceiling, 6),
        "error_budget": scene.choice.budget,
        "first_instances": sum(scenario.first.values()),
        "seed": scene.choice.seed,
    }
    return made, ticks
