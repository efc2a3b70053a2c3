"""How long one engine step takes: T = a + b * batch + c * prefill tokens + d * context tokens.

In: what a step computes. Out: seconds. Pure. The profiles are fits to published measurements of
vLLM (and TensorRT-LLM) on the named hardware; their errors are a few per cent.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """Coefficients in milliseconds: per step, per running request, per prefill token, per context token."""

    a: float
    b: float
    c: float
    d: float

    def seconds(self, *, batch: int, prefill_tokens: int, context_tokens: int) -> float:
        """Give the duration of a step."""
        return (self.a + self.b * batch + self.c * prefill_tokens + self.d * context_tokens) / 1000

    def with_overrides(self, *, a: float | None, b: float | None, c: float | None, d: float | None) -> "StepModel":
        """Replace the coefficients that are given."""
        given = {"a": a, "b": b, "c": c, "d": d}
        return replace(self, **{k: v for k, v in given.items() if v is not None})


def _model(a: float, b: float, c: float, d: float) -> StepModel:
    return StepModel(a=a, b=b, c=c, d=d)


PROFILES = {
    "llama-3.1-70b-fp8-h100-tp8": _model(8.82, 0.0630, 0.0298, 1.15e-5),
    "llama-3.1-70b-fp8-h100-tp4": _model(11.02, 0.0547, 0.0446, 2.79e-5),
    "llama-3.1-70b-fp8-h100-tp2": _model(17.33, 0.0734, 0.0230, 5.26e-5),
    "llama-3.1-70b-fp8-h200-tp8": _model(7.74, 0.0470, 0.0262, 8.96e-6),
    "llama-3.1-70b-fp8-h200-tp4": _model(9.18, 0.0455, 0.0424, 2.08e-5),
    "qwen3-32b-bf16-h100-tp8": _model(7.02, 0.0659, 0.0180, 1.07e-5),
    "qwen3-32b-bf16-h100-tp4": _model(9.26, 0.0608, 0.0288, 2.53e-5),
    "qwen3-32b-bf16-h100-tp2": _model(15.31, 0.1007, 0.0396, 2.16e-5),
    "llama-3.1-8b-bf16-h100-tp1": _model(6.42, 0.0, 0.0196, 4.99e-5),
    "gpt-oss-120b-fp4-h200-tp4": _model(3.66, 0.085, 0.0133, 0.0),
    "gpt-oss-120b-fp4-h200-tp8": _model(3.47, 0.051, 0.0097, 0.0),
    "instant": _model(0.0, 0.0, 0.0, 0.0),
}
