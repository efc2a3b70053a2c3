"""Which engine is under test: the simulator, or real vLLM on CPU with `--engine vllm-cpu`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.engine import REAL, SIM, launch, patience
from sim.engine import Process


def pytest_addoption(parser: pytest.Parser) -> None:
    """Choose the engine; the variable LLMFLEET_TEST_ENGINE does the same from outside this folder."""
    parser.addoption("--engine", choices=(SIM, REAL), help="engine the conformance tests run against")


@pytest.fixture(scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    """Name the engine under test."""
    return request.config.getoption("--engine", None) or os.environ.get("LLMFLEET_TEST_ENGINE", SIM)


@pytest.fixture(scope="module")
def engine(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One engine with default flags."""
    folder: Path = tmp_path_factory.mktemp(kind)
    with launch(kind, folder) as process:
        yield process.until_up(patience(kind))
