"""Models as their makers publish them (the fields that matter), and a usual workload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmfleet.sizing.memory import Engine
from llmfleet.sizing.model import Model, read_model
from llmfleet.sizing.plan import Workload

CONFIGS = Path(__file__).parent / "configs"
ENGINE = Engine(max_model_len=8192)


def config(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIGS / name / "config.json").read_text(encoding="utf-8"))
    return found


def model(name: str, quantization: str = "") -> Model:
    return read_model(config(name), quantization=quantization)


def workload(**changes: float) -> Workload:
    usual: dict[str, float] = {"rate": 20, "mean_rate": 8, "prompt": 1500, "output": 250}
    return Workload(**{**usual, **changes})
