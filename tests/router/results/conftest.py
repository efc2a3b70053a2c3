"""A real Redis and the router's own `bed` for the tests of the result cache."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROUTER = Path(__file__).parents[1]
sys.path[:0] = [str(ROUTER), str(ROUTER / "jobs"), str(ROUTER.parent)]

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
