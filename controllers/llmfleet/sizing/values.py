"""A plan as values of the chart.

In: a plan, its advice, a name. Out: a mapping that `helm install --values` accepts, with the shape, what vLLM is told,
the fleet's bounds, and what the autoscaler needs to size it the same way. It never writes a file.
"""

from __future__ import annotations

import re
from math import ceil
from typing import Any

from llmfleet.capacity.profiles import MOST_TOKENS
from llmfleet.sizing.advice import Advice, RolePlan
from llmfleet.sizing.memory import Cut
from llmfleet.sizing.plan import Option, Plan, stages

Values = dict[str, Any]


def build_values(plan: Plan, advice: Advice, *, name: str, model: str, image_tag: str, told: str) -> Values:
    """Values for one model; `told` is the quantization vLLM does on load."""
    spec: Values = {
        "model": model,
        "servedModelNames": [name],
        "accelerator": {"resourceName": plan.gpu.resource},
        "inferenceArgs": inference_args(plan.chosen, told),
    }
    if advice.mode == "disaggregated" and advice.prefill and advice.decode:
        spec |= split_values(plan, advice.prefill, advice.decode)
    else:
        spec |= shape(plan.chosen.cut) | {"autoscaling": autoscaling(plan, plan.chosen)}
    return {"fleet": {"engine": {"image": {"tag": image_tag}}, "models": {dns_name(name): spec}}}


def dns_name(name: str) -> str:
    """A key of `models` becomes part of object names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:30].rstrip("-") or "model"


def shape(cut: Cut) -> Values:
    """A pod for each pipeline stage, tensor parallel inside it."""
    found: Values = {"replicas": cut.pipeline, "gpusPerPod": cut.tensor, "tensorParallelSize": cut.tensor}
    return found | ({"pipelineParallelSize": cut.pipeline} if cut.pipeline > 1 else {})


def inference_args(option: Option, told: str) -> Values:
    engine = option.engine
    found: Values = {
        "maxModelLen": engine.max_model_len,
        "maxNumSeqs": engine.max_num_seqs,
        "maxNumBatchedTokens": engine.max_num_batched_tokens,
        "gpuMemoryUtilization": f"{engine.utilization:.2f}",
    }
    if told:
        found["quantization"] = told
    if engine.kv_element == 1:
        found["kvCacheDtype"] = "fp8"
    return found


def autoscaling(plan: Plan, option: Option) -> Values:
    """Bounds from the mean to the peak, with one instance to spare for a cold start or a failure."""
    sized = option.sized
    low, high = (sized.mean, sized.peak) if sized else (1, 1)
    return {"minInstances": low, "maxInstances": high + 1, "workBudget": work_budget(plan, option)}


def work_budget(plan: Plan, option: Option) -> Values:
    """The objective, and the step time that the plan was made with."""
    slo = {"ttftSeconds": decimal(plan.work.ttft), "tpotSeconds": decimal(plan.work.tpot)}
    speed = option.speed
    if speed is None:
        return {"slo": slo}
    if speed.profile:
        return {"slo": slo, "capacity": {"profile": speed.profile}}
    steps, lanes = speed.steps, stages(option.cut)
    work = (("b", steps.b / lanes), ("c", steps.c / lanes), ("d", steps.d / lanes))
    written = {name: decimal(value) for name, value in (("a", steps.a), *work)}
    return {"slo": slo, "capacity": {"coefficients": written, "kvTokens": option.memory.tokens}}


def split_values(plan: Plan, prefill: RolePlan, decode: RolePlan) -> Values:
    """Both sides, and how KV travels between them. Their step times differ with their shape, so the autoscaler starts
    from the decode side's and learns."""
    option = next(one for one in plan.options if one.cut == decode.cut)
    return shape(decode.cut) | {
        "kvTransfer": {"connector": "NixlConnector", "port": 5600, "loadFailurePolicy": "recompute"},
        "autoscaling": {
            "coordination": {"maxPrefillPerDecode": max(1, ceil(prefill.peak / decode.peak))},
            "workBudget": work_budget(plan, option),
        },
        "prefill": shape(prefill.cut) | bounds(prefill) | step_of(MOST_TOKENS),
        "decode": bounds(decode) | step_of(option.engine.max_num_batched_tokens),
    }


def step_of(tokens: int) -> Values:
    """Prefill reads prompts in one go; decode reads what is left of them without holding anybody up."""
    return {"inferenceArgs": {"maxNumBatchedTokens": tokens}}


def bounds(role: RolePlan) -> Values:
    return {"autoscaling": {"minInstances": role.mean, "maxInstances": role.peak + 1}}


def decimal(value: float) -> str:
    """A number as the API's decimals are written: no exponent, four significant digits."""
    text = f"{float(f'{value:.4g}'):.12f}".rstrip("0")
    return text + "0" if text.endswith(".") else text
