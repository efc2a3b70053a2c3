"""Makes `bed`, `engine` and the servers of `jobs` importable in any import mode of pytest, and has a Redis at hand."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "jobs")]

from redis_server import RedisServer, command  # noqa: E402


@pytest.fixture(scope="session")
def redis_command() -> list[str]:
    return command()


@pytest.fixture
def redis_server(redis_command: list[str], tmp_path: Path) -> Iterator[RedisServer]:
    """An empty Redis of its own, set up as the chart sets it up."""
    server = RedisServer(redis_command, tmp_path / "redis")
    server.start()
    yield server
    server.stop()


def pytest_sessionstart() -> None:
    """Where machine code is to be tested, its sources are not tested in its place."""
    from llmfleet.router import relay

    wanted, path = bool(os.environ.get("LLMFLEET_NATIVE")), str(relay.__file__)
    assert not wanted or path.endswith(".so"), f"LLMFLEET_NATIVE is set, and {path} is no machine code"
