"""Step-time coefficients of measured models on measured hardware.

In: a profile's name, `<model>-<gpu>-tp<N>`. Out: `StepTime` in seconds, KV tokens, GPUs. One engine step takes
`a + b x batch + c x prefill tokens + d x context tokens`. The figures are fits to published measurements of vLLM (and,
where marked, TensorRT-LLM) in a closed loop; a real fleet differs by tens of percent and the autoscaler learns by how
much. KV tokens are computed: 0.9 of the GPUs' memory less weights and 3 GiB a GPU, over the model's bytes per token.
Nothing but data and a look-up is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST_TOKENS: Final = 8192
"""vLLM's own largest step for serving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one engine step: fixed, for each request in it, for each prefill token, for each context token."""

    a: float
    b: float
    c: float
    d: float

    def step(self, batch: float, prefill: float, context: float) -> float:
        """How long a step takes."""
        return self.a + self.b * batch + self.c * prefill + self.d * context

    def work(self, prompt: float, output: float) -> float:
        """Seconds of step time that one request needs beyond the fixed part."""
        return self.c * prompt + self.b * output + self.d * output * (prompt + output / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One model on one shape of instance."""

    steps: StepTime
    kv_tokens: int
    gpus: int
    sequences: int = 256
    batched_tokens: int = MOST_TOKENS


def _profile(a: float, b: float, c: float, d: float, kv: float, gpus: int) -> Profile:
    """Coefficients as tables write them: milliseconds; KV tokens in thousands."""
    steps = StepTime(a=a / 1e3, b=b / 1e3, c=c / 1e3, d=d / 1e3)
    return Profile(steps=steps, kv_tokens=int(kv * 1000), gpus=gpus)


PROFILES: Final[dict[str, Profile]] = {
    # Llama 3.1 70B, FP8, vLLM.
    "llama-70b-fp8-h100-tp8": _profile(8.82, 0.0630, 0.0298, 1.15e-5, 1460, 8),
    "llama-70b-fp8-h100-tp4": _profile(11.02, 0.0547, 0.0446, 2.79e-5, 640, 4),
    "llama-70b-fp8-h100-tp2": _profile(17.33, 0.0734, 0.0230, 5.26e-5, 200, 2),
    "llama-70b-fp8-h200-tp8": _profile(7.74, 0.0470, 0.0262, 8.96e-6, 2780, 8),
    "llama-70b-fp8-h200-tp4": _profile(9.18, 0.0455, 0.0424, 2.08e-5, 1290, 4),
    "llama-70b-fp8-h200-tp2": _profile(13.16, 0.0375, 0.0704, 3.76e-5, 540, 2),
    "llama-70b-fp8-h200-tp1": _profile(20.73, 0.0770, 0.1061, 6.66e-5, 160, 1),
    "llama-70b-fp8-b200-tp8": _profile(6.00, 0.070, 0.0222, 0.0, 3500, 8),
    "llama-70b-fp8-b200-tp4": _profile(7.57, 0.061, 0.0305, 0.0, 1650, 4),
    "llama-70b-fp8-b200-tp2": _profile(9.97, 0.032, 0.0459, 9.9e-6, 720, 2),
    "llama-70b-fp8-b200-tp1": _profile(15.59, 0.010, 0.0723, 2.5e-5, 260, 1),
    # Qwen3 32B, BF16, vLLM.
    "qwen3-32b-bf16-h100-tp8": _profile(7.02, 0.0659, 0.0180, 1.07e-5, 1860, 8),
    "qwen3-32b-bf16-h100-tp4": _profile(9.26, 0.0608, 0.0288, 2.53e-5, 805, 4),
    "qwen3-32b-bf16-h100-tp2": _profile(15.31, 0.1007, 0.0396, 2.16e-5, 278, 2),
    # Llama 3.1 8B, BF16, TensorRT-LLM.
    "llama-8b-bf16-h100-tp1": _profile(6.42, 0.0, 0.0196, 4.99e-5, 400, 1),
    # gpt-oss 120B, FP4, vLLM.
    "gpt-oss-120b-fp4-h200-tp4": _profile(3.66, 0.085, 0.0133, 0.0, 5800, 4),
    "gpt-oss-120b-fp4-h200-tp8": _profile(3.47, 0.051, 0.0097, 0.0, 12500, 8),
}
FALLBACK: Final = "llama-70b-fp8-h100-tp8"
"""What `auto` starts from when nothing else is known; learning corrects its scale."""


def find_profile(name: str) -> Profile | None:
    """The profile of that name, if it was measured."""
    return PROFILES.get(name)
