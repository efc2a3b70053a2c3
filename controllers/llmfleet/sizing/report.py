"""Say a plan: as a table, as one JSON object, and line by line with every figure's arithmetic.

In: a plan, its advice and cost. Out: text, or a mapping. It computes nothing that the plan does not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from llmfleet.sizing.advice import Advice, RolePlan
from llmfleet.sizing.cost import Cost
from llmfleet.sizing.gpus import GIB, Gpu
from llmfleet.sizing.mig import Fit, Partition
from llmfleet.sizing.model import Model
from llmfleet.sizing.plan import FRONT_SECONDS, Option, Plan, longest, request_work, stages
from llmfleet.sizing.speed import BANDWIDTH_SHARE, LAYER_SECONDS

NAMED: Final = (("network", 0.05), ("queue contention at 80 % of capacity", 0.03), ("KV transfer, each hop", 0.02))
"""What is known to make up the efficiency; the rest of it is margin."""


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell; all but the first and the last to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def text(plan: Plan, advice: Advice, cost: Cost | None) -> Iterator[str]:
    """What to run, in some twenty lines."""
    yield describe_model(plan.model)
    yield describe_gpu(plan.gpu)
    yield ""
    yield from table([option_head(), *(option_row(plan, option) for option in plan.options)])
    yield ""
    yield from chosen(plan)
    yield from budget(plan)
    if cost:
        yield f"cost      {cost.peak_hour:.2f} an hour at the peak, {cost.mean_hour:.2f} at the mean;"
        yield f"          {cost.million_output:.3f} per 1M output tokens, {cost.million_all:.3f} per 1M of both kinds"
    yield f"mode      {advice.mode}: {advice.reasons[0]}"
    yield from (f"          {reason}" for reason in advice.reasons[1:])
    yield from notes(plan)


def describe_model(model: Model) -> str:
    attention = model.attention
    active = f", {giga(model.active_parameters)} active" if model.experts else ""
    heads = f"{attention.kind} {attention.heads} heads, " + (
        f"latent of {attention.latent}" if attention.latent else f"{attention.kv_heads} of KV"
    )
    source = "checkpoint's index" if model.checkpoint_bytes else "counted"
    size = f"{gib(model.weight_bytes)} of {model.quantization.name} weights ({source})"
    return f"model     {model.family}: {giga(model.parameters)} parameters{active}; {heads}; {size}"


def describe_gpu(gpu: Gpu) -> str:
    return (
        f"GPU       {gpu.name}: {gpu.gib:g} GiB, {gpu.bandwidth:g} GB/s, {gpu.bf16:g} TFLOP/s bf16"
        + (f", {gpu.fp8:g} fp8" if gpu.fp8 else "")
        + f", {gpu.link_name} {gpu.link:g} GB/s, {gpu.per_node} a node"
    )


def option_head() -> tuple[str, ...]:
    return ("cut", "KV tokens", "req/s each", "instances", "GPUs", "TTFT s", "TPOT ms", "")


def option_row(plan: Plan, option: Option) -> tuple[str, ...]:
    sized = option.sized
    if option.problem or sized is None:
        return (str(option.cut), str(option.memory.tokens), *("-" * 5), option.problem)
    return (
        str(option.cut),
        str(option.memory.tokens),
        f"{sized.requests:.2f}",
        str(sized.peak),
        str(option.gpus),
        f"{sized.ttft:.2f}",
        f"{sized.tpot * 1e3:.1f}",
        "<- the fewest GPUs" if option is plan.chosen else "",
    )


def chosen(plan: Plan) -> Iterator[str]:
    option, work = plan.chosen, plan.work
    sized = option.sized
    if sized is None:
        return
    pods = f"{some(option.cut.pipeline, 'pod')} of {some(option.cut.tensor, 'GPU')}"
    yield f"run       {some(sized.peak, 'instance')} of {option.cut} ({pods}) at the peak, {sized.mean} at the mean"
    memory = option.memory
    parts = (("weights", memory.weights), ("activations", memory.activations), ("run time", memory.runtime))
    shown = ", ".join(f"{name} {gib(size)}" for name, size in parts)
    tokens = option.engine.max_num_batched_tokens
    yield f"          steps of at most {tokens} tokens (--max-num-batched-tokens), so that no answer waits for a prompt"
    yield f"memory    of each GPU {gib(memory.usable)} used: {shown}, KV {gib(memory.kv)}"
    yield (
        f"KV        {memory.tokens} tokens an instance: {longest(option)} requests of"
        f" {plan.engine.max_model_len} tokens at once; {sized.concurrency:.0f} are expected"
    )
    peak = work.rate * work.output
    yield (
        f"carries   {sized.requests:.2f} requests/s, {sized.requests * work.output:.0f} output tokens/s an instance"
        f" (limit: {sized.limit}); the peak asks for {work.rate:g} and {peak:.0f}"
    )


def budget(plan: Plan) -> Iterator[str]:
    """Where the time to first token goes."""
    sized, work = plan.chosen.sized, plan.work
    if sized is None:
        return
    queue = sized.ttft - sized.prefill - FRONT_SECONDS
    parts = (("router and network", FRONT_SECONDS), ("prefill", sized.prefill), ("other requests' steps", queue))
    shown = ", ".join(f"{name} {part * 1e3:.0f} ms" for name, part in parts)
    yield f"latency   TTFT {sized.ttft * 1e3:.0f} of {work.ttft * 1e3:.0f} ms: {shown}"
    whole = sized.ttft + sized.tpot * max(work.output - 1, 0)
    yield f"          TPOT {sized.tpot * 1e3:.1f} of {work.tpot * 1e3:.0f} ms; the whole answer {whole:.1f} s"


def notes(plan: Plan) -> Iterator[str]:
    """What a reader must know before buying."""
    speed = plan.chosen.speed
    if speed and not speed.profile:
        yield "note      step times are estimated from the data sheet, not measured: load-test one instance first"
    if plan.chosen.sized and plan.chosen.sized.peak == 1:
        yield "note      one instance: while it restarts or is updated, requests wait"
    if plan.gpu.fp8 == 0 and plan.model.quantization.compute == "fp8":
        yield f"note      {plan.gpu.name} has no FP8 units: weights are FP8 in memory and multiplied as bf16"
    text_only = plan.model.checkpoint_bytes and plan.model.checkpoint_bytes > 1.1 * plan.model.counted_bytes
    if text_only:
        yield "note      the checkpoint is larger than the text model: a vision tower or draft layers may be in it"


def why(plan: Plan, advice: Advice) -> Iterator[str]:
    """Each figure of the chosen cut, with its arithmetic."""
    yield from why_memory(plan)
    yield from why_speed(plan)
    yield from why_size(plan)
    stall, transfer = advice.stall * 1e3, advice.transfer * 1e3
    yield f"P/D: a prompt in one go would hold everybody up for {stall:.1f} ms; its KV travels {transfer:.1f} ms"
    for name, role in (("prefill", advice.prefill), ("decode", advice.decode)):
        if role:
            yield f"P/D: {name} {role.peak} x {role.cut}, {role.requests:.2f} requests/s each"


def why_memory(plan: Plan) -> Iterator[str]:
    model, option, engine = plan.model, plan.chosen, plan.chosen.engine
    memory, cut, attention = option.memory, option.cut, model.attention
    sparse = f" + experts {giga(model.experts.parameters)}" if model.experts else ""
    yield (
        f"parameters = attention {giga(model.attention_parameters)} + dense {giga(model.dense_parameters)}{sparse}"
        f" + embeddings {giga(model.embedding_parameters)} = {giga(model.parameters)}"
    )
    yield (
        f"weights = matrices x {model.quantization.bits:g} bit + the rest x 16 bit = {gib(model.weight_bytes)},"
        f" over {cut.gpus} GPUs {gib(memory.weights)} each"
    )
    each = (
        f"latent of {attention.latent}"
        if attention.latent
        else f"2 x {attention.kv_heads} heads x {attention.head_dim}"
    )
    kv = model.kv_bytes(engine.kv_element, engine.max_model_len)
    yield f"KV of a token = {model.layers} layers x {each} x {engine.kv_element} B = {kv:.0f} B"
    if attention.sliding_layers:
        yield f"  {attention.sliding_layers} layers keep only {attention.window} tokens"
    if (copies := model.kv_copies(cut.tensor)) > 1:
        yield f"  stored {copies:g} times, as {cut.tensor} GPUs share it"
    yield (
        f"KV cache = {engine.utilization:g} x {gib(memory.total)} - weights {gib(memory.weights)} - activations"
        f" {gib(memory.activations)} - run time {gib(memory.runtime)} = {gib(memory.kv)} a GPU"
    )
    yield f"KV tokens = {gib(memory.kv)} / {memory.token:.0f} B a GPU = {memory.tokens}"


def why_speed(plan: Plan) -> Iterator[str]:
    speed, gpu, cut = plan.chosen.speed, plan.gpu, plan.chosen.cut
    if speed is None:
        return
    steps = speed.steps
    source = f"measured, profile {speed.profile}" if speed.profile else "estimated"
    yield (
        f"step = {steps.a * 1e3:.2f} ms + {steps.b * 1e3:.3f} x requests + {steps.c * 1e3:.4f} x prefill tokens"
        f" + {steps.d * 1e3:.3g} x context tokens ({source})"
    )
    if not speed.profile:
        read = plan.model.read_bytes(plan.chosen.sized.concurrency if plan.chosen.sized else 1) / cut.tensor
        yield (
            f"  fixed part = {gib(read)} read at {BANDWIDTH_SHARE:g} x {gpu.bandwidth:g} GB/s"
            f" + {plan.model.layers} layers x {LAYER_SECONDS * 1e6:g} us"
        )
        flops = gpu.flops(plan.model.quantization.compute) / 1e12
        yield (
            f"  prefill token = 2 x {giga(plan.model.active_parameters)} / {cut.tensor} GPUs at {gpu.compute_share:g}"
            f" of {flops:g} TFLOP/s, and all-reduces"
        )


def why_size(plan: Plan) -> Iterator[str]:
    work, option = plan.work, plan.chosen
    speed, sized = option.speed, option.sized
    if speed is None or sized is None:
        return
    steps = speed.steps
    asked = request_work(steps, work)
    yield (
        f"work of a request = {work.computed:.0f} prompt tokens + {work.output:.0f} output tokens at a context of"
        f" {work.context:.0f} = {asked * 1e3:.1f} ms of step time"
    )
    yield (
        f"an instance may sell {sized.rho:.3f} of its time: TPOT allows 1 - {steps.a * 1e3:.2f}/{work.tpot * 1e3:.0f},"
        f" TTFT 1 - {sized.prefill * 1e3:.0f}/{(work.ttft - FRONT_SECONDS) * 1e3:.0f}"
    )
    if option.cut.pipeline > 1:
        yield f"  its pipeline keeps {stages(option.cut):.2f} batches under way"
    yield (
        f"in theory {sized.requests / work.efficiency:.2f} requests/s ({sized.limit}); in practice"
        f" {work.efficiency:g} of it = {sized.requests:.2f}"
    )
    known = ", ".join(f"{name} {share * 100:.0f} %" for name, share in NAMED)
    yield f"  of the missing {(1 - work.efficiency) * 100:.0f} %: {known}; the rest is margin"
    each = f"{sized.requests:.2f}"
    mean = f"mean ceil({work.mean_rate:g} / {each}) = {sized.mean}"
    yield f"instances = ceil({work.rate:g} / {each}) = {sized.peak}; {mean}"


def mig_text(gpu: Gpu, rows: Sequence[Fit]) -> Iterator[str]:
    """Every slice of one GPU."""
    if not rows:
        yield f"MIG       {gpu.name} cannot be cut"
        return
    found = [("slice", "GiB", "KV tokens", "req/s", "")]
    for one in rows:
        carried = one.option.sized.requests if one.option.sized and not one.option.problem else 0.0
        cells = (one.profile.name, f"{one.profile.gib:g}", str(one.option.memory.tokens), f"{carried:.2f}")
        found.append((*cells, one.problem or "enough"))
    yield from table(found)


def partition_text(parts: Partition) -> Iterator[str]:
    for name, one in zip(parts.names, parts.fits, strict=True):
        yield f"slice     {name}: {one.profile.name if one else 'none is enough'}"
    yield f"one GPU   {'does not hold them: ' + parts.problem if parts.problem else 'holds them all'}"


def as_json(plan: Plan, advice: Advice, cost: Cost | None) -> dict[str, Any]:
    """The same as one object; seconds, bytes and tokens."""
    model = plan.model
    return {
        "model": {
            "family": model.family,
            "parameters": model.parameters,
            "activeParameters": model.active_parameters,
            "attention": model.attention.kind,
            "quantization": model.quantization.name,
            "weightBytes": round(model.weight_bytes),
            "kvBytesPerToken": round(model.kv_bytes(plan.engine.kv_element, plan.engine.max_model_len)),
        },
        "gpu": plan.gpu.name,
        "chosen": option_json(plan.chosen),
        "options": [option_json(option) for option in plan.options],
        "cost": None
        if cost is None
        else {
            "peakPerHour": round(cost.peak_hour, 4),
            "meanPerHour": round(cost.mean_hour, 4),
            "perMillionOutputTokens": round(cost.million_output, 4),
            "perMillionTokens": round(cost.million_all, 4),
        },
        "advice": {
            "mode": advice.mode,
            "reasons": list(advice.reasons),
            "prefill": role_json(advice.prefill),
            "decode": role_json(advice.decode),
            "kvTransferSeconds": round(advice.transfer, 6),
            "longestStepSeconds": round(advice.stall, 6),
        },
    }


def option_json(option: Option) -> dict[str, Any]:
    memory, sized, speed = option.memory, option.sized, option.speed
    found: dict[str, Any] = {
        "tensorParallelSize": option.cut.tensor,
        "pipelineParallelSize": option.cut.pipeline,
        "problem": option.problem,
        "memoryBytesPerGPU": {
            "usable": round(memory.usable),
            "weights": round(memory.weights),
            "activations": round(memory.activations),
            "runtime": round(memory.runtime),
            "kv": round(memory.kv),
        },
        "kvTokens": memory.tokens,
        "maxNumBatchedTokens": option.engine.max_num_batched_tokens,
    }
    if option.problem or sized is None or speed is None:
        return found
    steps = speed.steps
    return found | {
        "stepSeconds": {"a": steps.a, "b": steps.b, "c": steps.c, "d": steps.d},
        "profile": speed.profile,
        "requestsPerSecond": round(sized.requests, 4),
        "limit": sized.limit,
        "instances": {"peak": sized.peak, "mean": sized.mean},
        "gpus": option.gpus,
        "ttftSeconds": round(sized.ttft, 4),
        "tpotSeconds": round(sized.tpot, 5),
    }


def role_json(role: RolePlan | None) -> dict[str, Any] | None:
    if role is None:
        return None
    return {
        "tensorParallelSize": role.cut.tensor,
        "requestsPerSecond": round(role.requests, 4),
        "instances": {"peak": role.peak, "mean": role.mean},
        "gpus": role.gpus,
    }


def mig_json(rows: Sequence[Fit]) -> list[dict[str, Any]]:
    return [{"profile": one.profile.name, "kvTokens": one.option.memory.tokens, "problem": one.problem} for one in rows]


def gpu_table(gpus: Sequence[Gpu]) -> Iterator[str]:
    """Every GPU that can be planned with."""
    rows = [("gpu", "GiB", "GB/s", "bf16", "fp8", "link GB/s", "MIG slices")]
    for gpu in gpus:
        figures = (f"{gpu.gib:g}", f"{gpu.bandwidth:g}", f"{gpu.bf16:g}", f"{gpu.fp8:g}" if gpu.fp8 else "-")
        rows.append((gpu.name, *figures, f"{gpu.link:g}", " ".join(one.name for one in gpu.mig)))
    yield from table(rows)


def some(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count != 1 else ''}"


def giga(count: float) -> str:
    return f"{count / 1e9:.2f} G"


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
