"""How much load one instance carries, from its step time and the objective.

In: step-time coefficients, KV tokens, slots, targets. Out: `Capacity`, and how many instances a load needs. Load is
seconds of step time asked for in a second: 1.0 keeps one instance busy without pause. With a share `rho` of its time
sold, a step takes `a / (1 - rho)`, so the objective for the time per output token limits `rho` to `1 - a / TPOT`. An
engine that only prefills has no such objective: there the size of its steps limits what it can sell. It never looks at
what is running.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from llmfleet.api.autoscaler import WorkBudget
from llmfleet.api.types import Role, Spec
from llmfleet.capacity.profiles import FALLBACK, MOST_TOKENS, PROFILES, StepTime, find_profile

LEAST_RHO: Final = 0.05
"""An objective below one step's own time cannot be met; such a fleet still gets a finite size."""
KV_SHARE: Final = 0.9
"""Of KV cache and slots; requests do not come evenly."""
LEARNED_LOW: Final = 0.5
LEARNED_HIGH: Final = 2.0
LEARNED_WIDE: Final = 8.0
"""Without a measured profile the first guess may be far off."""
BUSIEST_PREFILL: Final = 0.85
"""Of what full steps can compute; prompts do not come evenly, and whoever waits has only the time to first token."""
STEP_SPARE: Final = 0.1
LEAST_CHUNK: Final = 256
CHUNK_UNIT: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one instance can do within its objective."""

    steps: StepTime
    kv_tokens: int
    slots: int
    tpot: float
    known: bool
    """False when the coefficients are a guess that learning has to correct."""
    prefill_tokens: int = 0
    """Of a full step, where engines only prefill; 0 where they answer."""

    @property
    def rho(self) -> float:
        """Load of one instance at which its time per output token reaches the objective, or its full steps are busy."""
        if self.prefill_tokens:
            full = self.steps.c * self.prefill_tokens
            return max(LEAST_RHO, BUSIEST_PREFILL * full / (self.steps.a + full))
        return max(LEAST_RHO, 1 - self.steps.a / self.tpot)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How requests look on average, and how many come."""

    requests: float = 0.0
    """Per second."""
    prompt: float = 0.0
    """Tokens that had to be computed, per request."""
    output: float = 0.0

    @property
    def context(self) -> float:
        """Tokens a request holds on average while it is answered."""
        return self.prompt + self.output / 2


def tokens_per_step(steps: StepTime, tpot: float, most: int) -> int:
    """What `--max-num-batched-tokens` should be: no step with a prompt in it lasts longer than the objective.

    A chunk of vLLM's default (8,192) holds everybody's next token up for a quarter of a second on the hardware in the
    table, which a short answer never makes good. A tenth is left for the requests that are decoded beside it.
    """
    if steps.c <= 0:
        return most
    fitting = int(((1 - STEP_SPARE) * tpot - steps.a) / steps.c)
    return min(most, max(LEAST_CHUNK, fitting // CHUNK_UNIT * CHUNK_UNIT))


def build_capacity(spec: Spec, budget: WorkBudget) -> Capacity:
    """Capacity before anything was learned: what is written, else the profile, else a guess."""
    written, profile = budget.capacity, find_profile(budget.capacity.profile)
    base = profile or PROFILES[FALLBACK]
    coefficients = written.coefficients
    steps = StepTime(
        a=float(coefficients.a or base.steps.a),
        b=float(coefficients.b or base.steps.b),
        c=float(coefficients.c or base.steps.c),
        d=float(coefficients.d or base.steps.d),
    )
    given = bool(coefficients.a and (coefficients.b or coefficients.c or coefficients.d))
    return Capacity(
        steps=steps,
        kv_tokens=written.kv_tokens or (profile.kv_tokens if profile else 0),
        slots=spec.slots,
        tpot=float(budget.slo.tpot_seconds),
        known=given or profile is not None,
        prefill_tokens=prefill_tokens(spec) if spec.role is Role.PREFILL else 0,
    )


def prefill_tokens(spec: Spec) -> int:
    """Prompt tokens in one step, as the template has it."""
    return spec.inference_args.max_num_batched_tokens or MOST_TOKENS


def scaled(capacity: Capacity, *, a: float, work: float, kv_tokens: int = 0) -> Capacity:
    """The capacity with learned factors on `a` and on the other coefficients, and the engines' own KV size."""
    steps = capacity.steps
    learned = StepTime(a=steps.a * a, b=steps.b * work, c=steps.c * work, d=steps.d * work)
    return replace(capacity, steps=learned, kv_tokens=capacity.kv_tokens or kv_tokens)


def instances_for(load: float, shape: Shape, capacity: Capacity) -> float:
    """Instances that carry this load: compute, memory and slots; the tightest counts. Not rounded."""
    return max(load / capacity.rho, for_memory(load, shape, capacity), for_slots(load, shape, capacity))


def for_memory(load: float, shape: Shape, capacity: Capacity) -> float:
    """Instances whose KV cache holds all requests that are answered at once."""
    if not capacity.kv_tokens:
        return 0.0
    return sharing(load, shape, capacity, shape.context / (KV_SHARE * capacity.kv_tokens))


def for_slots(load: float, shape: Shape, capacity: Capacity) -> float:
    """Instances whose slots hold them; a small model runs out of slots long before it runs out of time."""
    return sharing(load, shape, capacity, 1 / (KV_SHARE * capacity.slots))


def sharing(load: float, shape: Shape, capacity: Capacity, taken: float) -> float:
    """Instances of which each request takes this share for as long as it is answered.

    With n of them a step takes `a / (1 - load / n)`, so they are within their means when n is above the load by what
    the requests would take if steps took only `a`. Steps never take longer than the objective allows, which bounds it.
    """
    tokens = shape.requests * shape.output
    return min(load + tokens * capacity.steps.a * taken, max(load / capacity.rho, tokens * capacity.tpot * taken))
