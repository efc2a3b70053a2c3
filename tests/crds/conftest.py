"""One real apiserver with the CRDs for all tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.apiserver import Apiserver, install_crds, running_apiserver

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci" / "generate.d"))  # tests read the schema through the generator


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apiserver]:
    """Start it once (about 4 s); tests use dry runs or names of their own."""
    with running_apiserver(tmp_path_factory.mktemp("apiserver")) as running:
        install_crds(running, ROOT / "charts" / "llmfleet-crds" / "crds")
        yield running
