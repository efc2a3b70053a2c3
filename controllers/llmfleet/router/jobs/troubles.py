"""What stands in the way of storing jobs, in words for whoever reads a 503 or a log line.

In: what went wrong. Out: `Unavailable`, or `Doubtful` when nobody knows what became of a call, and a few words. No word
holds a password. It asks nobody.
"""

from __future__ import annotations

from typing import Any

from redis.exceptions import AuthenticationError, ReadOnlyError, ResponseError

from llmfleet.router.jobs.primary.agree import NoPrimary


class Unavailable(Exception):
    """Redis cannot be used now; the message says why."""


class Doubtful(Unavailable):
    """It was asked and did not answer: what was to be stored may be stored.

    With an `answer` it is stored, at one server at least, and a failover may forget it.
    """

    def __init__(self, reason: str, answer: Any = None) -> None:
        super().__init__(reason)
        self.answer = answer


def reason_of(error: BaseException) -> str:
    """Say in a few words what stands in the way; never an address with a password, as there is none in it."""
    if isinstance(error, Unavailable | NoPrimary):
        return str(error)
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "Redis does not answer in time"
    if isinstance(error, ReadOnlyError):
        return "this Redis became a replica"
    if isinstance(error, AuthenticationError):
        return "Redis refuses the password"
    if isinstance(error, ResponseError):
        return f"Redis refuses: {' '.join(str(error).split()[:12])}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return "Redis cannot be reached"
