"""Which slice of a GPU is enough for a model, and whether several models fit one GPU.

In: models with their workloads, a GPU. Out: `Fit` for each profile, and a `Partition`. A slice is planned as a small
GPU: its memory, its share of bandwidth (memory eighths) and of compute (sevenths). Sums of slices are checked; where on
the GPU they may lie is for `nvidia-smi mig -lgipp` to say. It never cuts a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmfleet.sizing.gpus import Gpu, MigProfile
from llmfleet.sizing.memory import Cut, Engine
from llmfleet.sizing.model import Model
from llmfleet.sizing.plan import Option, Workload, look


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One model on one profile."""

    profile: MigProfile
    option: Option
    problem: str
    """Why it is not enough; empty when it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One GPU for several models."""

    names: tuple[str, ...]
    fits: tuple[Fit | None, ...]
    problem: str


def fits(model: Model, gpu: Gpu, engine: Engine, work: Workload) -> list[Fit]:
    """Every profile of the GPU, the smallest first."""
    return [fit(model, gpu, engine, work, profile) for profile in gpu.mig]


def fit(model: Model, gpu: Gpu, engine: Engine, work: Workload, profile: MigProfile) -> Fit:
    """Whether one slice of this profile carries the whole workload."""
    option = look(model, slice_of(gpu, profile), engine, work, Cut())
    problem = option.problem
    if not problem and option.sized and option.sized.peak > 1:
        problem = f"carries {option.sized.requests:.2f} requests/s of {work.rate:g}"
    return Fit(profile=profile, option=option, problem=problem)


def slice_of(gpu: Gpu, profile: MigProfile) -> Gpu:
    """The slice as a GPU of its own; the name changes so that no profile of a whole GPU is taken for it."""
    share = profile.compute / 7
    return replace(
        gpu,
        name=f"{gpu.name}-{profile.name}",
        gib=profile.gib,
        bandwidth=gpu.bandwidth * profile.slices / 8,
        bf16=gpu.bf16 * share,
        fp8=gpu.fp8 * share,
        fp4=gpu.fp4 * share,
        per_node=1,
    )


def partition(names: Sequence[str], rows: Sequence[Sequence[Fit]]) -> Partition:
    """The smallest slice that is enough for each, and whether one GPU has them all."""
    chosen = tuple(next((one for one in row if not one.problem), None) for row in rows)
    return Partition(names=tuple(names), fits=chosen, problem=problem_of(names, chosen))


def problem_of(names: Sequence[str], chosen: Sequence[Fit | None]) -> str:
    missing = [name for name, one in zip(names, chosen, strict=True) if one is None]
    if missing:
        return f"no slice is enough for {', '.join(missing)}"
    compute = sum(one.profile.compute for one in chosen if one)
    slices = sum(one.profile.slices for one in chosen if one)
    if compute > 7 or slices > 8:
        return f"{compute} of 7 compute and {slices} of 8 memory slices"
    return ""
