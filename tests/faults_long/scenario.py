"""A scenario: what is broken, what must hold meanwhile, and how long it may take in all.

In: a module's function that takes a World and an Incident. Out: what it found, or why it did not get to its end. A
limit and Ctrl-C end it from outside; what it broke is mended on the way out, because injectors are context managers.
"""

from __future__ import annotations

import os
import platform
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from e2e.bed import ROOT
from faults_long.incident import Incident
from faults_long.world import World


class OutOfTime(Exception):
    """A scenario took longer than it may."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One class of failure."""

    name: str
    title: str
    must_hold: str
    limit: float
    play: Callable[[World, Incident], None]


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise in this thread when the block takes too long."""

    def over(number: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"not over after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(scenario: Scenario, world: World, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Play it once and say what was found; an interruption by a person is not a result and goes on."""
    world.random = random.Random(f"{seed}/{scenario.name}")
    incident = Incident(say)
    begin = time.monotonic()
    try:
        with limited(scenario.limit):
            scenario.play(world, incident)
    except (Exception, OutOfTime) as problem:
        traceback.print_exc()
        incident.expect(
            False, f"{type(problem).__name__}: {str(problem).splitlines()[0][:300] if str(problem) else ''}"
        )
    return {
        "title": scenario.title,
        "must_hold": scenario.must_hold,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(incident.began)),
        "seconds": round(time.monotonic() - begin),
        "seed": seed,
        "load": " ".join(f"{part:.1f}" for part in os.getloadavg()),
        "versions": versions(world),
        "passed": not incident.broken,
        "broken": incident.broken,
        "figures": incident.figures,
        "timeline": sorted(incident.timeline, key=lambda step: step["second"]),
    }


def versions(world: World) -> str:
    """What was tested, on what."""
    commit = ["git", "describe", "--always", "--dirty=+", "--abbrev=7"]
    made = subprocess.run(commit, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return f"commit {made}, Kubernetes {world.kubernetes}, Linux {platform.release()}, {os.cpu_count()} cores"
