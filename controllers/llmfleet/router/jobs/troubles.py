"""What stands in the way of storing jobs, with the reason in words for whoever reads a 503 or a log line.

In: nothing. Out: `Unavailable`, or `Doubtful` when nobody knows what became of a call. It asks nobody.
"""

from __future__ import annotations

from typing import Any


class Unavailable(Exception):
    """Redis cannot be used now; the message says why."""


class Doubtful(Unavailable):
    """It was asked and did not answer: what was to be stored may be stored.

    With an `answer` it is stored, at one server at least, and a failover may forget it.
    """

    def __init__(self, reason: str, answer: Any = None) -> None:
        super().__init__(reason)
        self.answer = answer
