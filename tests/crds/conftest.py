"""The apiserver of the run, with the CRDs."""

from __future__ import annotations

import sys

import pytest

from fakes.apiserver import ROOT, Apiserver
from fakes.shared import shared_apiserver

sys.path.insert(0, str(ROOT / "ci" / "generate.d"))  # tests read the schema through the generator


@pytest.fixture(scope="session")
def server() -> Apiserver:
    """Tests use dry runs, or names of their own in the default namespace."""
    return shared_apiserver()
