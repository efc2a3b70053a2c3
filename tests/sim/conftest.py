"""One shared simulator for the tests that leave it as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.engine import Process, start


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A fast engine: every step takes two milliseconds."""
    folder: Path = tmp_path_factory.mktemp("engine")
    with start(folder, "--sim-step-a", "2", "--sim-step-b", "0", "--sim-step-c", "0", "--sim-step-d", "0") as process:
        yield process.until_up()
