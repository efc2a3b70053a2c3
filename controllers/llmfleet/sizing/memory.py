"""Split the memory of one GPU: weights, activations, run time, and what is left for the KV cache.

In: a model, a GPU, how it is cut, what the engine is told. Out: `Memory`, which may have no room. vLLM takes its share
of the GPU (`gpuMemoryUtilization`), loads its weights, runs its largest step once to see what activations need, and
makes KV blocks of the rest; the same is done here with figures. It never asks a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

from llmfleet.capacity.profiles import MOST_TOKENS
from llmfleet.sizing.gpus import GIB, Gpu
from llmfleet.sizing.model import ELEMENT, Model

RUNTIME_GIB: Final = 1.5
"""CUDA context, NCCL buffers and CUDA graphs of one GPU."""
HIDDEN_COPIES: Final = 4
"""Residual, attention input, its output and one spare, alive at once while a step runs."""
INNER_COPIES: Final = 3
"""Gate, up and their product."""
LOGIT_BYTES: Final = 8
"""Of one logit: float32, and a sorted copy of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What vLLM is told; the defaults are its own where it has one."""

    max_model_len: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 0
    """Tokens of the largest step; 0: sized for the objective, by `plan.py`."""
    utilization: float = 0.9
    kv_element: int = ELEMENT
    """Bytes of one value in the KV cache: 2, or 1 for fp8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How an instance is spread over GPUs."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"TP{self.tensor}" + (f" x PP{self.pipeline}" if self.pipeline > 1 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on the fullest GPU of an instance."""

    total: float
    usable: float
    weights: float
    activations: float
    runtime: float
    token: float
    """KV of one token on this GPU."""

    @property
    def kv(self) -> float:
        """What is left; negative when the rest does not fit."""
        return self.usable - self.weights - self.activations - self.runtime

    @property
    def tokens(self) -> int:
        """Tokens whose KV the instance holds."""
        return max(0, int(self.kv / self.token))


def split_memory(model: Model, gpu: Gpu, cut: Cut, engine: Engine) -> Memory:
    """The memory of the fullest GPU: with a pipeline, the one with the most layers."""
    layers = ceil(model.layers / cut.pipeline) / model.layers
    return Memory(
        total=gpu.bytes,
        usable=gpu.bytes * engine.utilization,
        weights=model.weight_bytes * layers / cut.tensor,
        activations=activations(model, cut, engine),
        runtime=RUNTIME_GIB * GIB,
        token=model.kv_bytes(engine.kv_element, engine.max_model_len)
        * layers
        * model.kv_copies(cut.tensor)
        / cut.tensor,
    )


def activations(model: Model, cut: Cut, engine: Engine) -> float:
    """The largest step: as many tokens as a batch may have, and the logits of every sequence."""
    inner = INNER_COPIES * model.intermediate / cut.tensor
    return (engine.max_num_batched_tokens or MOST_TOKENS) * ELEMENT * (
        HIDDEN_COPIES * model.hidden + inner
    ) + engine.max_num_seqs * model.vocabulary * LOGIT_BYTES
