"""How long to wait before the next try.

In: how many tries failed in a row and a random fraction. Out: seconds. It draws no random numbers itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential back-off between `base` and `cap` seconds; the jitter takes away at most half."""

    base: float
    cap: float

    def delay(self, failures: int, fraction: float) -> float:
        """Seconds to wait after `failures` failures in a row; `fraction` is uniform in [0, 1)."""
        full = min(self.cap, self.base * float(1 << min(max(failures, 1) - 1, 30)))
        return full * (0.5 + fraction / 2)


WATCH = Backoff(base=0.5, cap=10.0)
"""An apiserver that was away is found again within 10 s, and is asked at most a few times a minute meanwhile."""

RECONCILE = Backoff(base=0.25, cap=30.0)
CONFLICT = Backoff(base=0.02, cap=5.0)
"""After a conflict the cache is milliseconds behind: look again soon, but not for ever."""
