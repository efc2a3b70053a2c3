"""How many bytes a weight takes, from a checkpoint's `quantization_config` or from what vLLM is told to do on load.

In: that object, and a method's name. Out: `Quantization`, or a `ConfigError` that lists the methods known. Scales and
zero points are counted; what a method leaves alone (embedding, head, routers, sometimes attention) is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


class ConfigError(ValueError):
    """A file that cannot be planned with; the message starts with the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How matrices are stored and computed."""

    name: str = "bf16"
    bits: float = 16.0
    """Of one weight, scales and zero points included."""
    compute: str = "bf16"
    """Precision of the multiplications where the GPU has it: bf16, fp8 or fp4."""
    attention: bool = True
    """Whether attention matrices are quantized too."""
    on_load: bool = False
    """vLLM quantizes a 16-bit checkpoint while it loads it."""

    @property
    def bytes(self) -> float:
        return self.bits / 8


ON_LOAD: Final = {
    "fp8": Quantization(name="fp8", bits=8, compute="fp8", on_load=True),
    "bitsandbytes": Quantization(name="bitsandbytes", bits=4.127, on_load=True),
}
KNOWN: Final = "awq, gptq, fp8, mxfp4, modelopt (FP8, NVFP4), compressed-tensors, bitsandbytes"


def read_quantization(config: Any, told: str) -> Quantization:
    """The one of the checkpoint; a 16-bit checkpoint can be quantized on load."""
    if isinstance(config, Mapping) and config:
        found = of_checkpoint(config)
        if told and told != found.name and told not in str(config.get("quant_method")):
            raise ConfigError(f"quantization_config: the checkpoint is {found.name} already; leave {told} out")
        return found
    if not told:
        return Quantization()
    if told not in ON_LOAD:
        raise ConfigError(f"quantization: a 16-bit checkpoint can be quantized on load to {' or '.join(ON_LOAD)}")
    return ON_LOAD[told]


def of_checkpoint(config: Mapping[str, Any]) -> Quantization:
    method = str(config.get("quant_method") or "").lower().replace("_", "-")
    skipped = str(config.get("modules_to_not_convert") or config.get("ignore") or "")
    if method in ("awq", "gptq", "gptq-marlin", "awq-marlin", "auto-round"):
        bits = number(config, "bits", 4)
        return Quantization(name=method, bits=grouped(bits, number(config, "group_size", 128), zero=bits))
    if method in ("fp8", "fbgemm-fp8"):
        return Quantization(name="fp8", bits=8, compute="fp8", attention="self_attn" not in skipped)
    if method == "mxfp4":
        return Quantization(name="mxfp4", bits=4 + 8 / 32, compute="fp4", attention="self_attn" not in skipped)
    if method == "modelopt":
        return of_modelopt(str(config.get("quant_algo") or "").upper())
    if method == "compressed-tensors":
        return of_compressed(config)
    if method == "bitsandbytes":
        return Quantization(name="bitsandbytes", bits=8 if config.get("load_in_8bit") else 4.127)
    raise ConfigError(f"quantization_config.quant_method: {method or 'missing'} is not one of {KNOWN}")


def of_modelopt(algorithm: str) -> Quantization:
    if algorithm.startswith("FP8"):
        return Quantization(name="fp8", bits=8, compute="fp8")
    if algorithm.startswith("NVFP4"):
        return Quantization(name="nvfp4", bits=4 + 8 / 16, compute="fp4")
    raise ConfigError(f"quantization_config.quant_algo: {algorithm or 'missing'} is not FP8 or NVFP4")


def of_compressed(config: Mapping[str, Any]) -> Quantization:
    """The first group's weights; activations decide what is multiplied."""
    first = mapping(next(iter(mapping(config.get("config_groups")).values()), {}))
    weights = mapping(first.get("weights"))
    bits = number(weights, "num_bits", 0)
    if not bits:
        raise ConfigError("quantization_config.config_groups: no weights.num_bits in the first group")
    kind, inputs = str(weights.get("type")), first.get("input_activations")
    if kind == "float" and bits == 8:
        return Quantization(name="fp8", bits=8, compute="fp8" if inputs else "bf16")
    if kind == "float" and bits == 4:
        return Quantization(name="nvfp4", bits=4 + 8 / 16, compute="fp4" if inputs else "bf16")
    return Quantization(
        name=f"w{bits:.0f}a{'8' if inputs else '16'}", bits=grouped(bits, number(weights, "group_size", 128))
    )


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def grouped(bits: float, group: float, *, zero: float = 0.0) -> float:
    """A 16-bit scale, and perhaps a zero point, for each group of weights; -1 means one for each row."""
    return bits + (16 + zero) / group if group > 0 else bits


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if value is None:
        return default
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"quantization_config.{key}: {value!r} is not a number")
    if not -1 <= value <= 1024:
        raise ConfigError(f"quantization_config.{key}: {value!r} is not between -1 and 1024")
    return float(value)
