"""Installing and updating the CRDs: by kubectl's both ways, twice, and under existing objects."""

from __future__ import annotations

import copy
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from crds.crd_objects import CLUSTERS, cluster, monolithic
from fakes.apiserver import Apiserver, await_served, running_apiserver, tool
from fakes.scripted import eventually

pytestmark = pytest.mark.apiserver

ROOT = Path(__file__).resolve().parents[2]
CRDS = ROOT / "charts" / "llmfleet-crds" / "crds"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAMES = ["llmclusterautoscalers.serving.ai", "llmclusters.serving.ai"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apiserver]:
    """An apiserver without the CRDs."""
    with running_apiserver(tmp_path_factory.mktemp("bare")) as running:
        yield running


def kubectl(server: Apiserver, *arguments: str, must: bool = True) -> str:
    """What it prints; a failure fails the test with it, unless it is asked again."""
    environment = {**os.environ, "KUBECONFIG": str(server.kubeconfig)}
    command = [str(tool("kubectl")), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0 or not must, done.stdout
    return done.stdout if done.returncode == 0 else ""


def definitions(server: Apiserver) -> dict[str, dict[str, Any]]:
    """The stored CRDs by name."""
    return {item["metadata"]["name"]: item for item in server.call("GET", DEFINITIONS).body["items"]}


def versions(server: Apiserver) -> dict[str, tuple[str, int]]:
    """What a write would change."""
    found = definitions(server)
    return {n: (c["metadata"]["resourceVersion"], c["metadata"]["generation"]) for n, c in found.items()}


def test_client_side_apply_takes_them_and_a_second_changes_nothing(bare: Apiserver) -> None:
    assert kubectl(bare, "apply", "-f", str(CRDS)).count("created") == 2
    kubectl(bare, "wait", "--for=condition=Established", "--timeout=180s", *(f"crd/{name}" for name in NAMES))
    before = versions(bare)
    assert kubectl(bare, "apply", "-f", str(CRDS)).count("unchanged") == 2
    assert versions(bare) == before


def test_server_side_apply_of_the_same_files_is_no_new_generation(bare: Apiserver) -> None:
    kubectl(bare, "apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    before = versions(bare)
    kubectl(bare, "apply", "--server-side", "-f", str(CRDS))
    assert versions(bare) == before


def test_the_apiserver_finds_nothing_to_complain_about(bare: Apiserver) -> None:
    kubectl(bare, "apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    for name, crd in definitions(bare).items():
        conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
        assert (conditions["NamesAccepted"], conditions["Established"]) == ("True", "True"), name
        assert conditions.get("NonStructuralSchema", "False") == "False", name


def test_the_dearest_rule_leaves_room_for_more_owned_flags(bare: Apiserver) -> None:
    """The apiserver estimates every rule at its worst; extraArgs costs most, and its list of flags will grow."""
    crd = yaml.safe_load((CRDS / "serving.ai_llmclusterautoscalers.yaml").read_text())
    crd["metadata"]["name"], crd["spec"]["group"] = "llmclusterautoscalers.example.com", "example.com"
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    for owner in (spec, spec["prefill"]["properties"], spec["decode"]["properties"]):
        template = owner["instanceTemplate"]["properties"]["spec"]["properties"]
        template["inferenceArgs"]["properties"]["extraArgs"]["maxItems"] = 64 * 3 // 2
    answer = bare.call("POST", DEFINITIONS, crd, params={"dryRun": "All"})
    assert answer.status == 201, answer.message


def test_kubectl_knows_short_names_categories_and_descriptions(bare: Apiserver) -> None:
    kubectl(bare, "apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    for path, made in (
        (CLUSTERS, cluster(name="known")),
        (CLUSTERS.replace("llmclusters", "llmclusterautoscalers"), monolithic(name="known")),
    ):
        await_served(bare, path, 180)
        assert bare.call("POST", path, made).status == 201
    # Discovery and the descriptions are put together in the background, after a kind is served.
    explained = "Share of requests in relation to the other instances"
    eventually(lambda: explained in kubectl(bare, "explain", "llmc.spec.router.weight", must=False))
    eventually(lambda: kubectl(bare, "get", "llmc", "known", "-o", "name", must=False) != "")
    assert kubectl(bare, "get", "llmc", "known", "-o", "name") == "llmcluster.serving.ai/known\n"
    assert kubectl(bare, "get", "llmfleet", "-o", "name").split() == [
        "llmclusterautoscaler.serving.ai/known",
        "llmcluster.serving.ai/known",
    ]


def test_an_object_that_a_stricter_release_would_refuse_can_still_be_changed_elsewhere(bare: Apiserver) -> None:
    """Ratcheting: a rule on a field that does not change does not block the change of another."""
    strict = yaml.safe_load((CRDS / "serving.ai_llmclusters.yaml").read_text())
    lax = copy.deepcopy(strict)
    properties = lax["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    properties["inferenceArgs"]["properties"]["gpuMemoryUtilization"].pop("x-kubernetes-validations")
    path = f"{DEFINITIONS}/{NAMES[1]}"
    assert bare.apply(path, lax, manager="kubectl").status == 200
    created = await_created(bare, cluster({"inferenceArgs.gpuMemoryUtilization": "90%"}, name="old"))
    assert bare.apply(path, strict, manager="kubectl").status == 200
    await_refused(bare, cluster({"inferenceArgs.gpuMemoryUtilization": "90%"}, name="new"))
    patch = {"spec": {"router": {"weight": 1}}}
    answer = bare.call("PATCH", f"{CLUSTERS}/old", patch, content_type="application/merge-patch+json")
    assert answer.status == 200, answer.message
    assert answer.body["metadata"]["generation"] == created["metadata"]["generation"] + 1


def await_created(server: Apiserver, made: dict[str, Any]) -> dict[str, Any]:
    """Create, as soon as the new schema is in force."""
    return await_status(server, made, 201, dry=False)


def await_refused(server: Apiserver, made: dict[str, Any]) -> None:
    """Wait until the stricter schema is in force."""
    await_status(server, made, 422, dry=True)


def await_status(server: Apiserver, made: dict[str, Any], status: int, *, dry: bool) -> dict[str, Any]:
    """A changed CRD is in force a moment after its write."""
    for _ in range(600):
        answer = server.call("POST", CLUSTERS, made, params={"dryRun": "All"} if dry else None)
        if answer.status == status:
            return answer.body
        time.sleep(0.1)
    raise AssertionError(f"still {answer.status}: {answer.message}")
