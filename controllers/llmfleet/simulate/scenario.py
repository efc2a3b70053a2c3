"""What a run is under, and what it keeps by tick: the same for both forms of a fleet.

In: nothing. Out: `Scenario`, `Tick`, and the moment a trace begins. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmfleet.api.types import Role
from llmfleet.capacity.profiles import Profile

EPOCH: Final = 1_767_225_600.0
"""A trace begins on 2026-01-01, 00:00 UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is the same for every policy."""

    profile: Profile
    prefill: Profile | None = None
    """Of engines that only prefill: nobody's next token waits for their steps, which may be long."""
    cold_start: float
    ttft: float
    tpot: float
    first: Mapping[Role, int]
    """Instances that are ready when the trace begins."""
    tick: float = 15.0

    def profile_of(self, role: Role) -> Profile:
        return self.prefill if role is Role.PREFILL and self.prefill else self.profile


@dataclass(slots=True, kw_only=True)
class Tick:
    """What happened between two decisions; requests are counted where they arrived."""

    at: float
    ready: int
    size: int
    """Instances held: starting, ready and draining."""
    requests: int = 0
    late: int = 0
    """To the first token."""
    slow: int = 0
    """After it."""
    missed: int = 0
    work: float = 0.0
    """Seconds of step time asked for."""
