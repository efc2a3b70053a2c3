"""How long a step of an engine takes on a GPU, measured or estimated.

In: a model, a GPU, how it is cut. Out: `Speed`: coefficients of `a + b x batch + c x prefill tokens + d x context
tokens`, and whether they were measured. An estimate reads weights and KV at the memory's bandwidth, multiplies at a
share of the stated FLOP/s and pays for every layer's launches and for two all-reduces a layer. Its four constants are
least-squares fits to the measured profiles of `llmfleet.capacity`; a test holds how far it is from each of them.
It never measures anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llmfleet.capacity.profiles import StepTime, find_profile
from llmfleet.sizing.gpus import Gpu
from llmfleet.sizing.memory import Cut, Engine
from llmfleet.sizing.model import ELEMENT, Model

BANDWIDTH_SHARE: Final = 0.96
LAYER_SECONDS: Final = 70.5e-6
"""Launches and small collectives of one layer in one step; the same from one to eight GPUs."""
COLLECTIVE_SHARE: Final = 0.55
"""Of the link's one-way bandwidth that an all-reduce of a prefill reaches."""
SEQUENCE_SECONDS: Final = 60e-6
"""Sampling and bookkeeping of one sequence in one step."""
SPARSE_SHARE: Final = 0.35
"""Small multiplications of many experts reach a third of what one big one does."""
HOP_SECONDS: Final = 100e-6
"""Handing activations from one pipeline stage to the next."""
REDUCES: Final = 2

# Shapes of the models that were measured: hidden size, layers, quantization -> the profile's name without GPU and TP.
MEASURED: Final = {
    (8192, 80, "fp8"): "llama-70b-fp8",
    (5120, 64, "bf16"): "qwen3-32b-bf16",
    (4096, 32, "bf16"): "llama-8b-bf16",
    (2880, 36, "mxfp4"): "gpt-oss-120b-fp4",
}
DOUBTFUL: Final = frozenset({"llama-70b-fp8-h100-tp2", "qwen3-32b-bf16-h100-tp2"})
"""Measured with a KV cache that was full: their prefill coefficient is too small to plan with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Step time of an instance; a pipeline keeps as many batches under way as it has stages."""

    steps: StepTime
    profile: str = ""
    """Name of the measured profile; empty: estimated."""


def find_speed(model: Model, gpu: Gpu, cut: Cut, engine: Engine, *, batch: float, context: float) -> Speed:
    """The measured profile of this model on this GPU, else an estimate for this batch."""
    name = f"{MEASURED.get((model.hidden, model.layers, model.quantization.name), '')}-{gpu.name}-tp{cut.tensor}"
    profile = find_profile(name) if cut.pipeline == 1 and name not in DOUBTFUL else None
    if profile is not None and engine.kv_element == ELEMENT:
        return Speed(steps=profile.steps, profile=name)
    return Speed(steps=estimate(model, gpu, cut, engine, batch=batch, context=context))


def estimate(model: Model, gpu: Gpu, cut: Cut, engine: Engine, *, batch: float, context: float) -> StepTime:
    """Step time from the data sheet. A batch walks through all stages of a pipeline, so they are added up."""
    bandwidth = gpu.bandwidth * 1e9 * BANDWIDTH_SHARE
    tensor = cut.tensor
    kv = model.kv_bytes(engine.kv_element, context) * model.kv_copies(tensor) / tensor
    hops = (cut.pipeline - 1) * HOP_SECONDS
    return StepTime(
        a=model.read_bytes(batch) / tensor / bandwidth + model.layers * LAYER_SECONDS + hops,
        b=SEQUENCE_SECONDS,
        c=compute_seconds(model, gpu, tensor) + collective_seconds(model, gpu, tensor),
        d=kv / bandwidth,
    )


def compute_seconds(model: Model, gpu: Gpu, tensor: int) -> float:
    """Multiplications of one prefill token."""
    share = gpu.compute_share * (SPARSE_SHARE if model.experts else 1.0)
    return 2 * model.active_parameters / tensor / (gpu.flops(model.quantization.compute) * share)


def collective_seconds(model: Model, gpu: Gpu, tensor: int) -> float:
    """All-reduces of one prefill token: each GPU sends and receives twice its part of the others' sums."""
    moved = REDUCES * model.layers * model.hidden * ELEMENT * 2 * (tensor - 1) / tensor
    return moved / (gpu.link / 2 * 1e9 * COLLECTIVE_SHARE)
