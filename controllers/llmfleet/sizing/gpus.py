"""GPUs that can be planned with: what their makers state, and the memory a driver shows.

In: a name. Out: `Gpu`, with its MIG profiles. Nothing but data and look-ups is here.

Sources: memory is what `nvidia-smi` (or `rocm-smi`) shows as total; bandwidth, dense compute and interconnect (both
directions together) are of the makers' data sheets: NVIDIA H100 (SXM5, NVL), H200, HGX B200, A100, L40S, L4, A10 and
AMD Instinct MI300X. MIG profiles: NVIDIA Multi-Instance GPU User Guide, table of supported profiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GIB: Final = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class MigProfile:
    """One way to cut a GPU: compute sevenths, memory eighths, memory in GiB."""

    name: str
    compute: int
    slices: int
    gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One type of GPU."""

    name: str
    gib: float
    """Memory as the driver shows it."""
    bandwidth: float
    """GB/s of memory."""
    bf16: float
    """Dense TFLOP/s."""
    fp8: float = 0.0
    """0: FP8 weights are multiplied as bf16."""
    fp4: float = 0.0
    compute_share: float = 0.69
    """Share of the data sheet's FLOP/s that prefill was seen to reach: `speed.py` says where from."""
    link: float = 64.0
    """GB/s between GPUs of a node, both directions together."""
    link_name: str = "PCIe 4.0 x16"
    per_node: int = 8
    resource: str = "nvidia.com/gpu"
    mig: tuple[MigProfile, ...] = ()

    def flops(self, compute: str) -> float:
        """Dense FLOP/s for this precision, or for the next wider one that the GPU has."""
        fast = {"fp4": self.fp4 or 0.0, "fp8": self.fp8}.get(compute, 0.0)
        return (fast or self.bf16) * 1e12

    @property
    def bytes(self) -> float:
        return self.gib * GIB


def _mig(*rows: tuple[str, int, int, float]) -> tuple[MigProfile, ...]:
    return tuple(MigProfile(name=name, compute=compute, slices=slices, gib=gib) for name, compute, slices, gib in rows)


MIG_40: Final = _mig(
    ("1g.5gb", 1, 1, 4.75), ("1g.10gb", 1, 2, 9.75), ("2g.10gb", 2, 2, 9.75), ("3g.20gb", 3, 4, 19.62),
    ("4g.20gb", 4, 4, 19.62), ("7g.40gb", 7, 8, 39.5),
)  # fmt: skip
MIG_80: Final = _mig(
    ("1g.10gb", 1, 1, 9.5), ("1g.20gb", 1, 2, 19.5), ("2g.20gb", 2, 2, 19.5), ("3g.40gb", 3, 4, 39.25),
    ("4g.40gb", 4, 4, 39.25), ("7g.80gb", 7, 8, 79.0),
)  # fmt: skip
MIG_141: Final = _mig(
    ("1g.18gb", 1, 1, 16.0), ("1g.35gb", 1, 2, 32.75), ("2g.35gb", 2, 2, 32.75), ("3g.71gb", 3, 4, 69.5),
    ("4g.71gb", 4, 4, 69.5), ("7g.141gb", 7, 8, 139.5),
)  # fmt: skip
MIG_180: Final = _mig(
    ("1g.23gb", 1, 1, 21.62), ("1g.45gb", 1, 2, 43.75), ("2g.45gb", 2, 2, 43.75), ("3g.90gb", 3, 4, 88.25),
    ("4g.90gb", 4, 4, 88.25), ("7g.180gb", 7, 8, 177.5),
)  # fmt: skip
NVLINK: Final = "NVLink"

SOLD: Final = (
    Gpu(
        name="b200",
        gib=179.1,
        bandwidth=8000,
        bf16=2250,
        fp8=4500,
        fp4=9000,
        compute_share=0.43,
        link=1800,
        link_name=NVLINK,
        mig=MIG_180,
    ),
    Gpu(name="h200", gib=140.4, bandwidth=4800, bf16=989, fp8=1979, link=900, link_name=NVLINK, mig=MIG_141),
    Gpu(name="h100", gib=79.6, bandwidth=3350, bf16=989, fp8=1979, link=900, link_name=NVLINK, mig=MIG_80),
    Gpu(name="h100-nvl", gib=93.6, bandwidth=3900, bf16=835, fp8=1671, link=128, link_name="PCIe 5.0 x16"),
    Gpu(name="a100-80", gib=80.0, bandwidth=2039, bf16=312, link=600, link_name=NVLINK, mig=MIG_80),
    Gpu(name="a100-40", gib=40.0, bandwidth=1555, bf16=312, link=600, link_name=NVLINK, mig=MIG_40),
    Gpu(name="l40s", gib=45.0, bandwidth=864, bf16=362, fp8=733),
    Gpu(name="l4", gib=22.5, bandwidth=300, bf16=121, fp8=242),
    Gpu(name="a10", gib=22.5, bandwidth=600, bf16=125, per_node=4),
    Gpu(
        name="mi300x",
        gib=191.9,
        bandwidth=5300,
        bf16=1307,
        fp8=2615,
        link=896,
        link_name="Infinity Fabric",
        resource="amd.com/gpu",
    ),
)
GPUS: Final[dict[str, Gpu]] = {gpu.name: gpu for gpu in SOLD}


def find_gpu(name: str) -> Gpu | None:
    """The GPU of that name; a data sheet's way to write it is understood too."""
    plain = name.lower().replace("_", "-").removeprefix("nvidia-").removesuffix("-sxm").removesuffix("-sxm5")
    return GPUS.get({"a100": "a100-80", "h100-80": "h100", "a10g": "a10"}.get(plain, plain))
