"""How far a test with generated cases looks.

A usual run makes the same few cases every time, and does not make them smaller when one fails: the cases kept by
`@example` are what must not come back. `LLMFLEET_FUZZ=3000 pytest tests/unit/deploy/test_crashes.py -k no_order` looks
at that many new ones, makes a failing one small, and says what to write down as `@example`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

RANDOM_CASES = int(os.environ.get("LLMFLEET_FUZZ", "0"))


def cases(usual: int) -> settings:
    """Settings for a test that makes `usual` cases in a usual run."""
    if RANDOM_CASES:
        slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
        return settings(max_examples=RANDOM_CASES, deadline=None, print_blob=True, suppress_health_check=slow)
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=usual, derandomize=True, database=None, deadline=None, phases=phases)
