"""Options that every layer of tests shares; generated cases that are the same in every run, however slow it is."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("usual", derandomize=True, database=None, deadline=None)
if "LLMFLEET_FUZZ" not in os.environ:
    settings.load_profile("usual")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run rewrite the golden files instead of comparing with them."""
    parser.addoption("--golden", action="store_true", help="rewrite golden files; the diff is the review")
