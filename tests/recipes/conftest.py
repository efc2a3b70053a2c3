"""One apiserver with the kinds of this project and of those the recipes speak to."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from charts.rendering import CHARTS, ROOT
from fakes.apiserver import Apiserver, running_apiserver
from recipes.asking import Kinds

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# A busy machine takes its time over thirty CRDs; nothing is asserted about it.
PATIENCE = 900.0
# A CRD with many rules is compiled before it is answered, which may take longer than the usual minute.
LONG_REQUESTS = ("--request-timeout=15m",)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apiserver]:
    """Nothing acts on what it stores: no operator of another project runs, nor any webhook."""
    with running_apiserver(tmp_path_factory.mktemp("recipes"), arguments=LONG_REQUESTS) as running:
        own = sorted((CHARTS / "llmfleet-crds" / "crds").glob("*.yaml"))
        install(running, [*own, *sorted(foreign_crds().iterdir())])
        yield running


@pytest.fixture(scope="session")
def kinds(server: Apiserver) -> Kinds:
    return Kinds(server)


def install(server: Apiserver, crds: Sequence[Path]) -> None:
    """Create all CRDs, then wait for all of their kinds."""
    lists = []
    for file in crds:
        # As it is, in YAML: the apiserver reads it faster than Python would.
        headers = {"Content-Type": "application/yaml", "Accept": "application/json"}
        answer = server.session.post(server.url + CRDS, data=file.read_bytes(), headers=headers, timeout=PATIENCE)
        assert answer.status_code == 201, f"{file.name}: {answer.text}"
        spec = answer.json()["spec"]
        # Objects are written in the stored version, so that nobody needs a webhook that would convert them.
        version = next(one["name"] for one in spec["versions"] if one["storage"])
        lists.append(f"/apis/{spec['group']}/{version}/{spec['names']['plural']}")
    deadline = time.monotonic() + PATIENCE
    for path in lists:
        while server.session.get(server.url + path, timeout=PATIENCE).status_code != 200:
            assert time.monotonic() < deadline, f"{path} is not served"
            time.sleep(0.1)


def foreign_crds() -> Path:
    """The folder with the CRDs of the pinned versions."""
    found = subprocess.run([ROOT / "ci/tools/recipe-crds/fetch"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(found.stdout.strip())
