"""Options and fixtures that every layer of tests shares."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run rewrite the golden files instead of comparing with them."""
    parser.addoption("--golden", action="store_true", help="rewrite golden files; the diff is the review")
