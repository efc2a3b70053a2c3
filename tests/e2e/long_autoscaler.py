"""A day in twenty minutes: two fleets follow it while their autoscaler is killed twenty times. Not part of the check.

The day is the second of the Azure LLM inference trace of 2024 (code; CC BY 4.0), in twelve-minute means, 72 times as
fast. Engines take 20 s to load, as if a real one took 24 minutes: following the day is harder than it ever is.

    make autoscaler-long
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from e2e.bed import Bed, eventually, has_ready, stays
from e2e.figures import Figures
from e2e.load import COMPLETE, Load, connector, kept, stream, unary
from e2e.test_autoscaler import upgrade
from e2e.test_autoscaler_fleets import (
    ALONE,
    BUDGET,
    MODELS,
    ROLES,
    ROUTER,
    STEPS,
    Watch,
    all_answered,
    count,
    watching,
    why,
)
from e2e.torment import Controller, at_rest

SEED = 20263
KILLS = 20
LIVES = 40.0, 70.0  # seconds
POINT_SECONDS = 10.0
# Requests in each twelve minutes of that day, in hundredths of the most.
DAY = [
    *(87, 77, 81, 79, 79, 80, 74, 69, 81, 68, 60, 64, 68, 76, 62, 65, 65, 64, 62, 58, 57, 55, 52, 50, 48, 50, 46, 34),
    *(41, 32, 36, 36, 31, 39, 40, 31, 27, 21, 20, 19, 16, 18, 20, 18, 20, 15, 18, 16, 13, 14, 15, 11, 12, 14, 17, 18),
    *(24, 24, 25, 25, 23, 30, 33, 32, 43, 42, 37, 46, 56, 56, 53, 46, 58, 60, 56, 60, 64, 62, 57, 74, 72, 56, 63, 67),
    *(68, 74, 79, 67, 78, 81, 72, 75, 79, 81, 100, 88, 73, 75, 93, 73, 80, 64, 67, 81, 75, 71, 71, 71, 61, 64, 68, 78),
    *(76, 76, 72, 66, 71, 55, 57, 73),
]
PEAKS = {"alone": 2.2, "roles": 1.8}
SLOW = {"inferenceArgs": {"extraArgs": [*STEPS[:-1], "--sim-load-seconds=20"]}}
CALM = {"scaleDown": {"stabilizationSeconds": 40, "cooldownSeconds": 5, "step": 1}}


def slower(name: str, **autoscaling: Any) -> dict[str, Any]:
    """A model of the other tests whose engines take 20 s to load."""
    made: dict[str, Any] = json.loads(json.dumps(MODELS[name]))
    budget = BUDGET | {"coldStartSeconds": 25}
    made["autoscaling"] |= {"workBudget": budget, "behavior": CALM, **autoscaling}
    return made | SLOW


@pytest.fixture
def day(bed: Bed, tmp_path: Path) -> Iterator[None]:
    """The release with one fleet of both roles in one and one of two roles."""
    roles = slower("roles")
    roles["prefill"]["autoscaling"]["maxInstances"] = 4
    roles["decode"]["autoscaling"]["maxInstances"] = 4
    models = {"tiny": None, "alone": slower("alone", maxInstances=5), "roles": roles}
    values = tmp_path / "values.json"
    controllers = {"autoscaler": {"intervalSeconds": 5}}
    values.write_text(json.dumps({"controllers": controllers, "fleet": {"models": models, "router": ROUTER}}))
    upgrade(bed.kubeconfig, f"--values={values}")
    yield
    upgrade(bed.kubeconfig, "--set", "fleet.models=null")
    for fleet in (ALONE, ROLES):
        eventually(lambda fleet=fleet: not bed.instances(fleet), 180, lambda fleet=fleet: bed.why(fleet))


@dataclass
class Victims(Watch):
    """Also: every ready instance that was sent away while one that did not serve stayed."""

    wrong: list[str] = field(default_factory=list)
    leaving: set[str] = field(default_factory=set)
    idle: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    actions: dict[str, int] = field(default_factory=dict)

    def look(self, bed: Bed) -> None:
        super().look(bed)
        for fleet in (ALONE, ROLES):
            items = bed.instances(fleet)
            for role in {item["spec"].get("role", "both") for item in items}:
                self.judge(fleet, role, [item for item in items if item["spec"].get("role", "both") == role])

    def judge(self, fleet: str, role: str, items: list[dict[str, Any]]) -> None:
        idle = {item["metadata"]["name"] for item in items if stays(item) and not has_ready(item)}
        for item in items:
            name, uid = item["metadata"]["name"], item["metadata"]["uid"]
            if not stays(item) and uid not in self.leaving:
                self.leaving.add(uid)
                self.actions[fleet] = self.actions.get(fleet, 0) + 1
                # Both looks: one that was made a moment ago was not there to be chosen.
                others = idle & self.idle.get((fleet, role), set())
                if has_ready(item) and others:
                    self.wrong.append(f"{name} was sent away, and {sorted(others)} did not serve")
        self.idle[fleet, role] = idle


async def follow_day(load: Load, url: str, model: str) -> None:
    """Requests at the day's pace; the next one never waits for the last answer."""
    tasks, begin, owed = set[asyncio.Task[Any]](), time.monotonic(), 0.0
    async with connector() as session:
        while (point := (time.monotonic() - begin) / POINT_SECONDS) < len(DAY):
            owed += 0.1 * PEAKS[model] * DAY[int(point)] / 100
            while owed >= 1:
                owed -= 1
                kind = stream if load.sent % 10 < 7 else unary
                task = asyncio.create_task(kept(load, kind(session, url, model, 20)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                load.sent += 1
            await asyncio.sleep(0.1)
        await asyncio.gather(*tasks)


@contextmanager
def a_day(url: str, model: str) -> Iterator[Load]:
    """The day goes on while the block runs, and to its end after it."""
    load = Load()
    thread = threading.Thread(target=lambda: asyncio.run(follow_day(load, url, model)))
    thread.start()
    try:
        yield load
    finally:
        thread.join()


@pytest.mark.usefixtures("day")
def test_a_day_in_twenty_minutes_with_twenty_killed_autoscalers_loses_nothing(
    bed: Bed, figures: Figures, tmp_path: Path
) -> None:
    autoscaler = Controller(bed, "autoscaler", tmp_path / "autoscaler.log", "--interval=2")
    url = bed.router_url()
    with at_rest(bed, "autoscaler"):
        try:
            autoscaler.start()
            for fleet, ready in ((ALONE, 1), (ROLES, 2)):
                eventually(lambda f=fleet, ready=ready: count(bed, f) >= ready, 300, lambda f=fleet: why(bed, f))
            autoscaler.kill()
            with watching(bed, Victims()) as watch, a_day(url, "alone") as alone, a_day(url, "roles") as roles:
                autoscaler.torment(random.Random(SEED), LIVES, KILLS)
            assert autoscaler.runs(), autoscaler.last_words()
        finally:
            autoscaler.kill()
    for load in (alone, roles):
        assert all_answered(load), load.failures()[:5]
    assert (watch.broken, watch.wrong) == ([], [])
    for fleet, load in ((ALONE, alone), (ROLES, roles)):
        sizes = watch.sizes[fleet]
        figures.count(f"a day in 20 minutes, {fleet}", summary(sizes, load, watch.actions.get(fleet, 0)))
        # Night and noon are not the same.
        assert max(sizes) > min(sizes)
    figures.count("a day in 20 minutes, autoscaler killed, times", autoscaler.kills)


def summary(sizes: list[int], load: Load, deletions: int) -> dict[str, float]:
    """What a person wants to know of the day."""
    seconds = sorted(outcome.end - outcome.begin for outcome in load.outcomes if outcome.kind == COMPLETE)
    turns = sum(before != after for before, after in itertools.pairwise(sizes))
    return {
        "requests": load.sent,
        "lost": load.sent - load.kinds()[COMPLETE],
        "fewest instances": min(sizes),
        "most": max(sizes),
        "mean": round(sum(sizes) / len(sizes), 2),
        "changes of size seen": turns,
        "instances drained": deletions,
        "seconds per request, median": round(seconds[len(seconds) // 2], 2),
        "p95": round(seconds[int(0.95 * len(seconds))], 2),
    }
