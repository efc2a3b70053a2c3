"""Seconds since the epoch and what people and Kubernetes write instead.

In: a moment in one form. Out: the same moment in the other. It never asks what time it is.
"""

from __future__ import annotations

from datetime import UTC, datetime


def moment(seconds: float) -> datetime:
    """A moment as an aware datetime."""
    return datetime.fromtimestamp(seconds, UTC)
