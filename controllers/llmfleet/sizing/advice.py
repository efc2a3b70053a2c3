"""Whether prefill and decode belong on engines of their own for this workload, and why.

In: a plan and the network between engines. Out: `Advice`: a mode, the two roles' fleets, and one sentence a reason.
In one engine a prompt is read in small steps, or it would hold up everybody's next token; apart it is read in one go.
Splitting pays when that matters for the first token or saves GPUs, when both sides are large enough to be sized apart,
and when moving the KV is quick. It decides nothing for the fleet: it is read by people.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

from llmfleet.capacity.capacity import BUSIEST_PREFILL
from llmfleet.capacity.profiles import MOST_TOKENS
from llmfleet.sizing.memory import Cut
from llmfleet.sizing.plan import FRONT_SECONDS, KV_SHARE, Option, Plan, Workload
from llmfleet.sizing.speed import Speed

NETWORK_SHARE: Final = 0.82
"""What a KV transfer was seen to reach: 8 us a token of 320 KiB on 400 Gbit/s."""
LATE: Final = 0.4
"""A first token that takes more of its objective than this gains from prompts that are read in one go."""
FEWER: Final = 0.9
"""GPUs of the split fleet over those of the whole one that are a gain by themselves."""
MOST_TRANSFER: Final = 0.25
"""Of the time to first token."""
MOST_EXTRA: Final = 1.1
"""GPUs of the split fleet over those of the whole one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """One side of a split fleet."""

    cut: Cut
    requests: float
    """Per second that one instance carries."""
    peak: int
    mean: int

    @property
    def gpus(self) -> int:
        return self.cut.gpus * self.peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Which mode, and what each reason says."""

    mode: str
    reasons: tuple[str, ...]
    prefill: RolePlan | None
    decode: RolePlan | None
    transfer: float
    """Seconds to move a prompt's KV."""
    stall: float
    """Seconds that a prompt read in one go would hold everybody else up."""


def advise(plan: Plan, *, network_gbit: float) -> Advice:
    """Look at all that speaks for one mode or the other; every objection is named."""
    transfer = transfer_seconds(plan, network_gbit)
    stall = longest_step(plan)
    prefill, decode = split(plan, transfer)
    gain = [*gains(plan, prefill, decode, stall)]
    against = [*objections(plan, prefill, decode, transfer)]
    if not gain:
        against.append(enough(plan))
    return Advice(
        mode="monolithic" if against else "disaggregated",
        reasons=tuple(against) or (*gain, *numbers(plan, prefill, decode, transfer)),
        prefill=prefill,
        decode=decode,
        transfer=transfer,
        stall=stall,
    )


def transfer_seconds(plan: Plan, network_gbit: float) -> float:
    """The whole prompt's KV over the network, once."""
    size = plan.model.kv_bytes(plan.engine.kv_element, plan.work.prompt) * plan.work.prompt
    return size / (network_gbit / 8 * 1e9 * NETWORK_SHARE)


def longest_step(plan: Plan) -> float:
    """A step that takes in as much of a prompt as vLLM's own limit lets it."""
    steps = speed_of(plan.chosen).steps
    return steps.a + steps.c * min(plan.work.computed, MOST_TOKENS)


def gains(plan: Plan, prefill: RolePlan | None, decode: RolePlan | None, stall: float) -> list[str]:
    """What speaks for splitting."""
    found, work, sized = [], plan.work, plan.chosen.sized
    if sized and sized.ttft > LATE * work.ttft:
        found.append(
            f"in steps of {plan.chosen.engine.max_num_batched_tokens} tokens a prompt of {work.computed:.0f} takes"
            f" {sized.ttft * 1e3:.0f} of {work.ttft * 1e3:.0f} ms, and in one go it would hold answers up for"
            f" {stall * 1e3:.0f} ms; apart, neither waits for the other"
        )
    if prefill and decode and prefill.gpus + decode.gpus <= FEWER * plan.chosen.gpus:
        found.append(f"split takes {prefill.gpus + decode.gpus} GPUs, whole {plan.chosen.gpus}")
    return found


def enough(plan: Plan) -> str:
    sized, work = plan.chosen.sized, plan.work
    ttft = sized.ttft if sized else 0.0
    return (
        f"in steps of {plan.chosen.engine.max_num_batched_tokens} tokens a first token takes {ttft * 1e3:.0f} of"
        f" {work.ttft * 1e3:.0f} ms and no answer waits for a prompt: splitting gains nothing"
    )


def split(plan: Plan, transfer: float) -> tuple[RolePlan | None, RolePlan | None]:
    """The cheapest cut of each side; KV heads of a wider prefill side could not be mapped, so it is never wider."""
    usable = [option for option in plan.options if not option.problem and option.cut.pipeline == 1]
    decode = cheapest(role for option in usable if (role := decode_role(plan, option)))
    widest = decode.cut.tensor if decode else 0
    prefill = cheapest(
        role for option in usable if option.cut.tensor <= widest and (role := prefill_role(plan, option, transfer))
    )
    return prefill, decode


def cheapest(roles: object) -> RolePlan | None:
    return min(roles, key=lambda role: (role.gpus, role.cut.gpus), default=None)  # type: ignore[call-overload,no-any-return]


def prefill_role(plan: Plan, option: Option, transfer: float) -> RolePlan | None:
    """Prompts only: a step's own time is shared by the prompts in it."""
    work, steps, batch = plan.work, speed_of(option).steps, MOST_TOKENS
    seconds = steps.c * work.computed + steps.a * ceil(max(work.computed, 1) / batch)
    spare = work.ttft - FRONT_SECONDS - transfer
    if seconds >= spare:
        return None
    rho = min(BUSIEST_PREFILL, 1 - seconds / spare)
    return role(option.cut, work, work.efficiency * rho / (steps.c * work.computed + steps.a * work.computed / batch))


def decode_role(plan: Plan, option: Option) -> RolePlan | None:
    """Answers only: compute, KV cache and slots; the tightest counts."""
    work, steps = plan.work, speed_of(option).steps
    rho = 1 - steps.a / work.tpot
    if rho <= 0:
        return None
    compute = (steps.b * work.output + steps.d * work.output * work.context) / rho
    at_once = work.output * work.tpot
    memory = at_once * work.context / (KV_SHARE * option.memory.tokens)
    return role(option.cut, work, work.efficiency / max(compute, memory, at_once / plan.engine.max_num_seqs))


def role(cut: Cut, work: Workload, requests: float) -> RolePlan:
    peak, mean = (max(1, ceil(rate / requests - 1e-9)) for rate in (work.rate, work.mean_rate))
    return RolePlan(cut=cut, requests=requests, peak=peak, mean=mean)


def objections(plan: Plan, prefill: RolePlan | None, decode: RolePlan | None, transfer: float) -> list[str]:
    """What speaks against splitting, the strongest first."""
    found = []
    sized = plan.chosen.sized
    whole = sized.peak if sized else 0
    if prefill is None or decode is None:
        found.append("no cut meets the objectives with prefill and decode apart")
    if whole < 3:
        found.append(
            f"{whole} whole instances carry the peak: split, each role would have one, and one failure ends it"
        )
    if transfer > MOST_TRANSFER * plan.work.ttft:
        found.append(f"moving a prompt's KV takes {transfer * 1e3:.0f} ms of {plan.work.ttft * 1e3:.0f} ms")
    if prefill and decode and prefill.gpus + decode.gpus > MOST_EXTRA * plan.chosen.gpus:
        found.append(f"split takes {prefill.gpus + decode.gpus} GPUs, whole {plan.chosen.gpus}")
    return found


def numbers(plan: Plan, prefill: RolePlan | None, decode: RolePlan | None, transfer: float) -> list[str]:
    """The figures behind a split."""
    if prefill is None or decode is None:
        return []
    return [
        f"prefill {prefill.peak} x {prefill.cut}, decode {decode.peak} x {decode.cut}:"
        f" {prefill.gpus + decode.gpus} GPUs, whole {plan.chosen.gpus}",
        f"moving a prompt's KV takes {transfer * 1e3:.1f} ms",
    ]


def speed_of(option: Option) -> Speed:
    """The speed of an option that was looked at to its end."""
    assert option.speed is not None
    return option.speed
