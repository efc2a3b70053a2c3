"""Choose how to cut a model and how many instances carry a workload within its objectives.

In: model, GPU, workload, what the engine is told. Out: a `Plan`: the chosen `Option` and all others with the reason
they were not, or a `CannotPlan` that says what to change. The load an instance carries is the autoscaler's own
arithmetic (`llmfleet.capacity`), so a fleet that is planned here is sized the same way when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

from llmfleet.capacity.capacity import Capacity, Shape, for_memory, for_slots, tokens_per_step
from llmfleet.capacity.profiles import MOST_TOKENS, StepTime
from llmfleet.sizing.gpus import GIB, Gpu
from llmfleet.sizing.memory import Cut, Engine, Memory, split_memory
from llmfleet.sizing.model import Model
from llmfleet.sizing.speed import Speed, find_speed

FRONT_SECONDS: Final = 0.03
"""Router, network and the engine's front end together, before and after its steps."""
KV_SHARE: Final = 0.9
"""Of the KV cache that requests can count on, as they do not come evenly."""
PIPELINE_SHARE: Final = 0.85
"""What bubbles leave of a pipeline's stages."""
LEAST_FIRST: Final = 0.05
"""A prompt that takes nearly all of the objective leaves little to sell; such a cut still gets a finite size."""
ROUNDS: Final = 8
TENSOR_SIZES: Final = (1, 2, 4, 8, 16)
PIPELINE_SIZES: Final = (1, 2, 3, 4, 6, 8)


class CannotPlan(ValueError):
    """No way to cut this model meets the objectives; the message lists why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What clients ask for, and what they are promised."""

    rate: float
    """Requests per second at the peak."""
    mean_rate: float
    prompt: float
    output: float
    cached: float = 0.0
    """Share of prompt tokens that the prefix cache knows already."""
    ttft: float = 2.0
    tpot: float = 0.05
    efficiency: float = 0.85
    """What a real fleet reaches of what its engines could."""

    @property
    def computed(self) -> float:
        """Prompt tokens of a request that are not cached."""
        return self.prompt * (1 - self.cached)

    @property
    def context(self) -> float:
        return self.prompt + self.output / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """One instance under the workload: how busy it may be, what it carries, how many are needed."""

    rho: float
    """Share of its step time that may be sold."""
    requests: float
    """Per second that one instance carries in practice: theory times efficiency."""
    limit: str
    """What ends its capacity: compute, first token, memory, slots."""
    peak: int
    mean: int
    concurrency: float
    """Requests in one instance at that load."""
    tpot: float
    prefill: float
    """Seconds an idle instance takes for the prompt."""
    ttft: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to cut the model; `problem` says why it cannot be used."""

    cut: Cut
    engine: Engine
    """What vLLM is told, its largest step included."""
    memory: Memory
    speed: Speed | None = None
    sized: Sized | None = None
    problem: str = ""

    @property
    def gpus(self) -> int:
        """GPUs of the whole fleet at the peak."""
        return self.cut.gpus * self.sized.peak if self.sized and not self.problem else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run, and what else was looked at."""

    model: Model
    gpu: Gpu
    engine: Engine
    work: Workload
    chosen: Option
    options: tuple[Option, ...]


def make_plan(model: Model, gpu: Gpu, engine: Engine, work: Workload, cuts: Sequence[Cut] = ()) -> Plan:
    """The cut that carries the workload on the fewest GPUs; on a tie the smaller instance."""
    options = tuple(look(model, gpu, engine, work, cut) for cut in cuts or cuts_of(model, gpu, engine))
    usable = [option for option in options if not option.problem]
    if not usable:
        raise CannotPlan("; ".join(f"{option.cut}: {option.problem}" for option in options))
    chosen = min(usable, key=lambda option: (option.gpus, option.cut.gpus, option.cut.pipeline))
    return Plan(model=model, gpu=gpu, engine=engine, work=work, chosen=chosen, options=options)


def cuts_of(model: Model, gpu: Gpu, engine: Engine) -> Iterator[Cut]:
    """Tensor parallel inside a node; over nodes a pipeline, and only when one node is too small."""
    widest = Cut()
    for tensor in TENSOR_SIZES:
        if tensor <= gpu.per_node:
            yield Cut(tensor=tensor)
            widest = widest if model.splits(tensor) else Cut(tensor=tensor)
    if has_room(model, gpu, widest, engine):
        return
    yield from (replace(widest, pipeline=size) for size in PIPELINE_SIZES[1:] if size <= model.layers)


def has_room(model: Model, gpu: Gpu, cut: Cut, engine: Engine) -> bool:
    return split_memory(model, gpu, cut, engine).tokens >= engine.max_model_len


def look(model: Model, gpu: Gpu, engine: Engine, work: Workload, cut: Cut) -> Option:
    """Whether this cut can be used, and how many instances of it are needed."""
    if problem := model.splits(cut.tensor):
        return Option(cut=cut, engine=engine, memory=split_memory(model, gpu, cut, engine), problem=problem)
    option = settle(model, gpu, engine, work, cut)
    return replace(option, problem=too_little(option.memory, engine) or too_slow(option, work))


def too_little(memory: Memory, engine: Engine) -> str:
    """Why not even one request has room."""
    if memory.kv <= 0:
        return f"{-memory.kv / GIB:.1f} GiB too little memory on each GPU"
    if memory.tokens < engine.max_model_len:
        return f"KV for {memory.tokens} tokens, one request may have {engine.max_model_len}"
    return ""


def too_slow(option: Option, work: Workload) -> str:
    """Why no load at all is fast enough."""
    if option.speed is None or option.sized is None:
        return ""
    if (fixed := option.speed.steps.a) >= work.tpot:
        return f"a step takes {fixed * 1e3:.1f} ms by itself, the objective is {work.tpot * 1e3:.0f} ms"
    alone = option.sized.prefill + FRONT_SECONDS
    if alone >= work.ttft:
        return f"the prompt alone takes {alone:.2f} s, the objective is {work.ttft:.2f} s"
    return ""


def settle(model: Model, gpu: Gpu, engine: Engine, work: Workload, cut: Cut) -> Option:
    """Step time depends on the batch (which experts are read) and the batch on step time: go round until it rests."""
    batch = 16.0
    for _ in range(ROUNDS):
        speed = find_speed(model, gpu, cut, engine, batch=batch, context=work.context)
        told = replace(engine, max_num_batched_tokens=largest_step(engine, speed, work))
        memory = split_memory(model, gpu, cut, told)
        sized = size(speed, told, work, cut, memory)
        batch = max(1.0, sized.concurrency / cut.pipeline)
    return Option(cut=cut, engine=told, memory=memory, speed=speed, sized=sized)


def largest_step(engine: Engine, speed: Speed, work: Workload) -> int:
    """So many tokens that no step with a prompt in it outlasts the objective; vLLM wants one for each sequence."""
    if engine.max_num_batched_tokens:
        return engine.max_num_batched_tokens
    return max(engine.max_num_seqs, tokens_per_step(speed.steps, work.tpot, MOST_TOKENS))


def size(speed: Speed, engine: Engine, work: Workload, cut: Cut, memory: Memory) -> Sized:
    """How many instances the peak and the mean need. All needs grow in proportion to the rate."""
    steps, lanes = speed.steps, stages(cut)
    prefill = prefill_seconds(speed, work, engine.max_num_batched_tokens)
    capacity = Capacity(
        steps=StepTime(a=steps.a, b=steps.b / lanes, c=steps.c / lanes, d=steps.d / lanes),
        kv_tokens=memory.tokens,
        slots=engine.max_num_seqs,
        tpot=work.tpot,
        known=bool(speed.profile),
    )
    first = max(LEAST_FIRST, 1 - prefill / max(work.ttft - FRONT_SECONDS, 1e-3))
    asked = request_work(steps, work) / lanes
    need = {
        "compute": asked / capacity.rho,
        "first token": asked / first,
        "memory": for_memory(asked, per_request(work), capacity),
        "slots": for_slots(asked, per_request(work), capacity),
    }
    limit = max(need, key=lambda name: need[name])
    requests = work.efficiency / need[limit]
    peak = max(1, ceil(work.rate / requests - 1e-9))
    sold = min(capacity.rho, work.rate / peak * asked)
    step = steps.a / (1 - sold)
    return Sized(
        rho=min(capacity.rho, first),
        requests=requests,
        limit=limit,
        peak=peak,
        mean=max(1, ceil(work.mean_rate / requests - 1e-9)),
        concurrency=work.rate / peak * work.output * step,
        tpot=step,
        prefill=prefill,
        ttft=prefill / (1 - sold) + FRONT_SECONDS,
    )


def stages(cut: Cut) -> float:
    """Batches that a pipeline works on at once, less its bubbles."""
    return 1.0 if cut.pipeline == 1 else cut.pipeline * PIPELINE_SHARE


def request_work(steps: StepTime, work: Workload) -> float:
    """Step time one request asks for: cached tokens are not computed, but every output token attends to them."""
    return steps.work(work.computed, work.output) + steps.d * work.output * (work.prompt - work.computed)


def per_request(work: Workload) -> Shape:
    """One request per second; a prefix that is cached takes its place in the KV cache all the same."""
    return Shape(requests=1.0, prompt=work.prompt, output=work.output)


def prefill_seconds(speed: Speed, work: Workload, batched_tokens: int) -> float:
    """The prompt on an idle instance, in as many steps as chunks of a batch need."""
    return speed.steps.a * ceil(max(work.computed, 1) / batched_tokens) + speed.steps.c * work.computed


def longest(option: Option) -> int:
    """Requests of the longest context that fit at once."""
    return int(KV_SHARE * option.memory.tokens / option.engine.max_model_len)
