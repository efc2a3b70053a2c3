"""What the apiserver refuses in extraArgs is what the operator knows as its own flag: one table, two judges."""

from __future__ import annotations

import pytest

from crds.test_owned_flags import OPTIONS, refused, spellings
from fakes.apiserver import Apiserver
from llmfleet.deploy.flags import owned_flag

pytestmark = pytest.mark.apiserver

NO_FLAGS = ("", "-", "--", "-1", "value", "a=--port", "-O3", "--no-headless", "-tpx", "-nnodes", "--port-like")


def test_the_crd_and_the_operator_refuse_the_same_spellings(server: Apiserver) -> None:
    table = sorted({*NO_FLAGS, *(form for options in OPTIONS for option in options for form in spellings(option))})
    known = {argument for argument in table if owned_flag(argument) is not None}
    assert known == refused(server, table)
    assert 500 < len(known) < len(table)
