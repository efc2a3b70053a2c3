"""A scripted apiserver per test, a real one per run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.apiserver import Apiserver
from fakes.scripted import ScriptedApiserver, scripted_apiserver
from fakes.shared import new_namespace, shared_apiserver
from llmfleet.kube.client import Api
from llmfleet.kube.transport.client import KubeconfigCredentials, Transport


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
