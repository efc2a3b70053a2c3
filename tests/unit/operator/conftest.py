"""A scripted apiserver per test, a real one per run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
for folder in ("controllers", "tests"):
    if str(ROOT / folder) not in sys.path:
        sys.path.insert(0, str(ROOT / folder))

from fakes.apiserver import Apiserver  # noqa: E402
from fakes.scripted import ScriptedApiserver, scripted_apiserver  # noqa: E402
from fakes.shared import new_namespace, shared_apiserver  # noqa: E402

from llmfleet.kube.client import Api  # noqa: E402
from llmfleet.kube.transport.client import KubeconfigCredentials, Transport  # noqa: E402


@pytest.fixture
def fake() -> Iterator[ScriptedApiserver]:
    with scripted_apiserver() as server:
        yield server


@pytest.fixture(scope="session")
def server() -> Apiserver:
    return shared_apiserver()


@pytest.fixture
def api(server: Apiserver) -> Api:
    return Api(Transport(KubeconfigCredentials(str(server.kubeconfig)), user_agent="test"), manager="llmfleet-operator")


@pytest.fixture
def namespace(server: Apiserver) -> str:
    return new_namespace(server, "kube")
