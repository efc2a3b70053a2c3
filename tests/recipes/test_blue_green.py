"""The steps of the blue/green recipe and the way back, under load: a real router, simulated engines, their weights."""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from charts.rendering import ROOT, of_kind
from recipes.building import rendered
from recipes.recipes import FOLDER
from sim.engine import start

sys.path.insert(0, str(ROOT / "tests" / "router"))
from bed import Bed
from test_disagg_sim import Outside, launch

from llmfleet.api.document import Role

RECIPE = FOLDER / "blue-green"
STEPS = ["values-1-beside.yaml", "values-2-green.yaml", "values-3-idle.yaml", "values-4-gone.yaml"]
# Engine -> which instances of the release it stands for.
BLUE, PREFILL, DECODE = "blue", "prefill", "decode"
PROMPT = "The quick brown fox jumps over the lazy dog. " * 10
CLIENTS = 8
# Against a hang; nothing is asserted about speed.
WALK_SECONDS = 600


def weights(step: str) -> dict[str, int | None]:
    """Weight of blue and of both roles of green after a step; None: it is not there."""
    found: dict[str, int | None] = dict.fromkeys((BLUE, PREFILL, DECODE))
    for one in of_kind(rendered(RECIPE / step), "LLMCluster"):
        assert one["spec"]["servedModelNames"] == ["llama-3-70b"]
        role = one["spec"].get("role", "both")
        found[BLUE if role == "both" else role] = one["spec"].get("router", {}).get("weight", 100)
    return found


class Fleets(Bed):
    """A router before one engine of each sort."""

    def __init__(self, engines: dict[str, Any]) -> None:
        super().__init__()
        self.engines = [Outside(engine) for engine in engines.values()]

    def publish(self, **_: Any) -> int:
        """Begin with blue alone."""
        return self.step({BLUE: 100, PREFILL: None, DECODE: None})

    def step(self, given: dict[str, int | None]) -> int:
        """What the operator would publish of a step."""
        roles = {BLUE: Role.BOTH, PREFILL: Role.PREFILL, DECODE: Role.DECODE}
        changes: dict[str, Any] = {}
        for number, (name, weight) in enumerate(given.items()):
            revision = "blue" if name == BLUE else "green"
            entry = {"role": roles[name], "weight": weight, "engine_revision": revision}
            changes[f"e{number}"] = None if weight is None else entry
        return super().publish(**changes)


class Load:
    """Clients that ask without a pause, every other one for a stream, until they are told to stop."""

    def __init__(self, bed: Fleets) -> None:
        self.bed, self.stopping = bed, False
        self.whole, self.failed = [0] * CLIENTS, list[str]()

    async def client(self, number: int) -> None:
        stream = bool(number % 2)
        body = {"model": "m", "prompt": PROMPT, "max_tokens": 4, "ignore_eos": True, "stream": stream}
        while not self.stopping and not self.failed:
            answer = await self.bed.ask(body, path="/v1/completions")
            ended = answer.body.endswith(b"data: [DONE]\n\n") if stream else b'"usage"' in answer.body
            if (answer.status, answer.ended) == (200, "whole") and ended and b'"error"' not in answer.body:
                self.whole[number] += 1
            else:
                self.failed.append(f"{answer.status} {answer.ended} {answer.body[:200]!r}")

    async def rounds(self, count: int) -> None:
        """Wait until every client has so many more answers."""
        goal = [one + count for one in self.whole]

        def reached() -> bool:
            return bool(self.failed) or all(one >= wanted for one, wanted in zip(self.whole, goal, strict=True))

        while not reached():
            await asyncio.sleep(0.02)
        assert self.failed == []


async def asked(engines: dict[str, Any]) -> dict[str, float]:
    """Requests that each engine has ended, as itself counts them."""
    label = {"finished_reason": "length"}
    return {
        name: await asyncio.to_thread(partial(engine.metric, "vllm:request_success_total", **label))
        for name, engine in engines.items()
    }


def test_no_request_fails_on_the_way_there_and_back_and_at_each_step_the_right_engines_work(tmp_path: Path) -> None:
    # And back: after the last step blue is there again, and green without weight.
    steps = [(step, weights(step)) for step in [*STEPS, STEPS[0]]]
    green = {PREFILL, DECODE}
    with ExitStack() as stack:
        engines = {
            BLUE: stack.enter_context(start(tmp_path, "--served-model-name", "m", "--sim-step-a", "3")),
            PREFILL: launch(stack, tmp_path, "kv_producer"),
            DECODE: launch(stack, tmp_path, "kv_consumer"),
        }
        for engine in engines.values():
            engine.until_up()
        uvloop.run(walk(engines, steps, [{BLUE}, green, green, green, {BLUE}]))


async def walk(
    engines: dict[str, Any], steps: list[tuple[str, dict[str, int | None]]], working: list[set[str]]
) -> None:
    """Take every step while clients ask, and look who works after it."""
    async with asyncio.timeout(WALK_SECONDS), Fleets(engines) as bed:
        load = Load(bed)
        clients = [asyncio.create_task(load.client(number)) for number in range(CLIENTS)]
        for (step, given), expected in zip(steps, working, strict=True):
            await bed.adopted(bed.step(given))
            # What began before the step may end where it began; the second answer began after it.
            await load.rounds(2)
            before = await asked(engines)
            await load.rounds(3)
            after = await asked(engines)
            assert {name for name in engines if after[name] > before[name]} == expected, step
        load.stopping = True
        await asyncio.gather(*clients)
    assert load.failed == []
    assert sum(load.whole) >= 5 * 5 * CLIENTS
