"""What time it is by the apiserver's clock, told from the Date of its answers.

In: what we believe, the Date header of an answer, when its request was sent and when the answer came on our steady
clock. Out: what to believe now. Pure: it never asks what time it is.

Deletions, drains, starts and restarts carry times that the cluster wrote. Measured by the clock of a node that is an
hour ahead, a drain that has just begun is over its deadline, and a group that loads is over its startup timeout.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime


def parse_date(text: str) -> float | None:
    """The moment of a Date header in seconds since the epoch; None when it says none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def corrected(offset: float, date: float, sent: float, received: float) -> float:
    """From our steady clock to the apiserver's, changed only as far as this answer proves it wrong.

    The Date was written after the request was sent and before its answer came, and has no part of a second: so it was
    not before `date`, and before `date + 1`. A slow answer proves less, and never anything that is not so.
    """
    return min(max(offset, date - received), date + 1 - sent)
