"""Tests of `llmfleet top`."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router on a busy machine may answer late; no test is about that limit."""
    monkeypatch.setattr("llmfleet.top.client.SECONDS", 60.0)
