"""The objects of an instance: one golden for each behaviour, and the rules that no spec may break.

A golden is `<case>.in.yaml` (an LLMCluster) beside `<case>.out.yaml` (what the operator makes of it). Programs are
shown by their hash: their text is in deploy/scripts. `--golden` rewrites the outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmfleet import names
from llmfleet.api.parse import SpecError, parse_spec
from llmfleet.deploy import programs
from llmfleet.deploy.objects.budget import Holder, budget_name, build_fleet_budget, build_own_budget
from llmfleet.deploy.objects.claim import build_claim
from llmfleet.deploy.objects.identity import Identity, identify
from llmfleet.deploy.objects.pod import Template, build_template
from llmfleet.deploy.objects.services import build_group_service, build_service
from llmfleet.deploy.objects.statefulset import build_statefulset

GOLDENS = Path(__file__).parents[2] / "golden/deploy"
CASES = sorted(path.name.removesuffix(".in.yaml") for path in GOLDENS.glob("*.in.yaml"))
SMALLEST: Mapping[str, Any] = {
    "model": "org/model",
    "image": "vllm:1",
    "replicas": 2,
    "gpusPerPod": 1,
    "tensorParallelSize": 2,
}
IDENTITY = Identity(namespace="d", name="a", uid="u", fleet="f", manager="system/llmfleet")


def template(**change: Any) -> Template:
    return build_template(IDENTITY, parse_spec({**SMALLEST, **change}))


def engine(built: Template) -> Mapping[str, Any]:
    found: Mapping[str, Any] = built.manifest["spec"]["containers"][0]
    return found


def env(built: Template) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in engine(built)["env"]}


def shown(value: Any) -> Any:
    """A manifest with programs replaced by their hash."""
    if isinstance(value, Mapping):
        return {name: shown(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    if isinstance(value, str) and "\n" in value:
        return f"<program {hashlib.sha256(value.encode()).hexdigest()[:8]}>"
    return value


def objects_of(cluster: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    identity = identify(cluster, "system/llmfleet")
    spec = parse_spec(cluster["spec"])
    built = build_template(identity, spec)
    statefulset = build_statefulset(
        identity,
        replicas=spec.replicas,
        template=built.manifest,
        template_hash=built.hash,
        annotations={},
        queue=spec.scheduling.queue_name,
    )
    optional = (build_own_budget(identity, spec), build_claim(identity, spec))
    return [
        statefulset,
        build_group_service(identity, spec),
        build_service(identity, spec),
        build_fleet_budget(identity, [Holder(name=identity.name, uid=identity.uid)]),
        *(item for item in optional if item is not None),
    ]


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, request: pytest.FixtureRequest) -> None:
    cluster = yaml.safe_load((GOLDENS / f"{case}.in.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump_all([shown(item) for item in objects_of(cluster)], sort_keys=True, width=120)
    path = GOLDENS / f"{case}.out.yaml"
    if request.config.getoption("--golden", default=False):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "look at the difference; `make golden` accepts it"


def test_every_golden_output_has_its_input() -> None:
    assert {path.name.removesuffix(".out.yaml") for path in GOLDENS.glob("*.out.yaml")} == set(CASES)


def test_the_same_spec_gives_the_same_bytes() -> None:
    assert yaml.safe_dump(dict(template().manifest)) == yaml.safe_dump(dict(template().manifest))


@pytest.mark.parametrize(
    "change",
    [
        {"router": {"weight": 1}},
        {"lifecycle": {"startupTimeoutSeconds": 9, "restartBackoffSeconds": 9, "warmup": {"enabled": False}}},
        {"update": {"paused": True}},
        {"podDisruptionBudget": {"maxUnavailable": 2}},
        {"servedModelNames": ["org/model"]},
    ],
)
def test_what_no_pod_sees_restarts_no_pod(change: Mapping[str, Any]) -> None:
    assert template(**change).hash == template().hash


def test_prefill_and_decode_share_a_revision_and_another_dtype_does_not() -> None:
    kv = {"connector": "NixlConnector", "port": 5600}
    prefill, decode = template(role="prefill", kvTransfer=kv), template(role="decode", kvTransfer=kv)
    other = template(role="decode", kvTransfer=kv, inferenceArgs={"dtype": "float32"})
    assert prefill.engine_revision == decode.engine_revision != other.engine_revision
    assert prefill.hash != decode.hash


def test_pods_carry_only_labels_that_somebody_selects_by() -> None:
    assert set(template().manifest["metadata"]["labels"]) == {
        names.APP_NAME_LABEL,
        names.APP_INSTANCE_LABEL,
        names.APP_COMPONENT_LABEL,
        names.CLUSTER_LABEL,
        names.FLEET_LABEL,
        names.ROLE_LABEL,
    }


def test_a_single_pod_has_no_gate_and_no_node_flags() -> None:
    container = engine(template(replicas=1, tensorParallelSize=1))
    assert container["command"] == programs.start()
    assert container["args"][:2] == ["vllm", "serve"]
    assert not {"--nnodes", "--node-rank", "--master-addr"} & set(container["args"])
    assert "startupProbe" not in container


def test_the_default_template_meets_the_restricted_standard() -> None:
    pod = template().manifest["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 2000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert engine(template())["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert env(template())["HOME"] == "/home/vllm"


def test_the_grace_period_covers_the_drain_and_the_engines_end() -> None:
    pod = template(lifecycle={"drainTimeoutSeconds": 30}).manifest["spec"]
    assert pod["terminationGracePeriodSeconds"] == 70


@pytest.mark.parametrize(
    ("accelerator", "limits", "claims"),
    [
        ({}, {"nvidia.com/gpu": "1"}, None),
        ({"resourceName": "nvidia.com/mig-3g.40gb"}, {"nvidia.com/mig-3g.40gb": "1"}, None),
        ({"resourceName": ""}, None, None),
        ({"resourceClaimTemplateName": "gpus"}, None, [{"name": "accelerator"}]),
    ],
)
def test_every_pod_asks_for_its_accelerators(accelerator: Any, limits: Any, claims: Any) -> None:
    resources = engine(template(accelerator=accelerator))["resources"]
    assert (resources.get("limits"), resources.get("claims")) == (limits, claims)


@pytest.mark.parametrize(
    ("model", "argument", "volume"),
    [
        ("org/model", "org/model", None),
        ("hf://org/model", "org/model", None),
        ("/models/x", "/models/x", None),
        ("s3://bucket/x", "s3://bucket/x", None),
        ("pvc://c/dir/x", "/model-claim/dir/x", {"persistentVolumeClaim": {"claimName": "c", "readOnly": True}}),
        ("oci://reg/img:1", "/model-image", {"image": {"reference": "reg/img:1"}}),
    ],
)
def test_a_model_comes_from_where_it_says(model: str, argument: str, volume: Any) -> None:
    built = template(model=model)
    arguments = engine(built)["args"]
    assert arguments[arguments.index("serve") + 1] == argument
    volumes = {item["name"]: item for item in built.manifest["spec"]["volumes"]}
    found = [item for name, item in volumes.items() if name.startswith("model-")]
    assert [{key: item[key] for key in item if key != "name"} for item in found] == ([volume] if volume else [])
    assert ("runai_streamer" in arguments) == model.startswith("s3://")


@pytest.mark.parametrize("name", ["RANK", "VLLM_HOST_IP", "LLMFLEET_PORT"])
def test_env_that_the_group_owns_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=rf"spec.env\[0\].name: {name} is set by the operator"):
        template(env=[{"name": name, "value": "x"}])


def test_the_users_env_is_merged_by_name() -> None:
    assert env(template(env=[{"name": "HOME", "value": "/x"}, {"name": "FOO", "value": "1"}]))["HOME"] == "/x"


def test_an_extra_argument_that_the_operator_owns_is_refused() -> None:
    with pytest.raises(SpecError, match=r"spec.inferenceArgs.extraArgs\[1\]: --tensor_par=4 is --tensor-parallel-size"):
        template(inferenceArgs={"extraArgs": ["--max-log-len=0", "--tensor_par=4"]})


@pytest.mark.parametrize(
    ("fleet", "name"),
    [("prod-llama", "prod-llama"), ("Prod_Llama", "prod-llama-"), ("a.b", "a.b")],
)
def test_a_budget_gets_a_name_that_an_object_may_have(fleet: str, name: str) -> None:
    assert budget_name(fleet).startswith(name)


def test_a_pod_has_its_fleets_budget_or_its_own_never_both() -> None:
    own = template(podDisruptionBudget={"minAvailable": 1}).manifest["metadata"]["labels"]
    fleet = build_fleet_budget(IDENTITY, [Holder(name="a", uid="u")])["spec"]["selector"]
    assert own[names.OWN_BUDGET_LABEL] == "true"
    assert fleet["matchExpressions"] == [{"key": names.OWN_BUDGET_LABEL, "operator": "DoesNotExist"}]
    assert build_own_budget(IDENTITY, parse_spec(SMALLEST)) is None


OVERLAYS: list[tuple[Any, str]] = [
    ({"metadata": {"labels": {names.CLUSTER_LABEL: "x"}}}, "spec.podTemplate.metadata.labels[serving.ai/cluster]"),
    ({"metadata": {"labels": "x"}}, "spec.podTemplate.metadata.labels"),
    ({"spec": {"enableServiceLinks": True}}, "spec.podTemplate.spec.enableServiceLinks"),
    ({"spec": {"terminationGracePeriodSeconds": 1}}, "spec.podTemplate.spec.terminationGracePeriodSeconds"),
    ({"spec": {"restartPolicy": "Never"}}, "spec.podTemplate.spec.restartPolicy"),
    ({"spec": {"containers": [{"name": "engine", "args": []}]}}, "spec.podTemplate.spec.containers[engine].args"),
    (
        {"spec": {"containers": [{"name": "engine", "command": None}]}},
        "spec.podTemplate.spec.containers[engine].command",
    ),
    ({"spec": {"containers": [{"name": "engine", "$patch": "delete"}]}}, "spec.podTemplate.spec.containers"),
    ({"spec": {"containers": None}}, "spec.podTemplate.spec.containers"),
    ({"spec": {"containers": "x"}}, "spec.podTemplate.spec.containers"),
    ({"spec": {"containers": [{"image": "x"}]}}, "spec.podTemplate.spec.containers"),
    ({"spec": {"containers": [{"name": "engine", "image": ""}]}}, "spec.podTemplate.spec.containers[engine].image"),
    (
        {"spec": {"containers": [{"name": "engine", "env": [{"name": "LLMFLEET_RANK", "value": "0"}]}]}},
        "spec.podTemplate.spec.containers[engine].env[LLMFLEET_RANK]",
    ),
    (
        {"spec": {"containers": [{"name": "engine", "ports": [{"containerPort": 8000, "name": "x"}]}]}},
        "spec.podTemplate.spec.containers[engine].ports[http]",
    ),
    (
        {"spec": {"containers": [{"name": "engine", "volumeMounts": [{"mountPath": "/tmp", "$patch": "delete"}]}]}},
        "spec.podTemplate.spec.containers[engine].volumeMounts[/tmp]",
    ),
    ({"spec": {"volumes": [{"name": "run", "$patch": "delete"}]}}, "spec.podTemplate.spec.volumes[run]"),
    ({"spec": None}, "spec.podTemplate.spec"),
    ({"status": {}}, "spec.podTemplate"),
]


@pytest.mark.parametrize(("overlay", "path"), OVERLAYS, ids=[path for _, path in OVERLAYS])
def test_an_overlay_that_breaks_the_group_is_refused(overlay: Any, path: str) -> None:
    with pytest.raises(SpecError) as error:
        template(podTemplate=overlay)
    assert error.value.path == path


def test_an_overlay_adds_and_changes_what_is_the_users() -> None:
    overlay = {
        "metadata": {"annotations": {"team": "x"}},
        "spec": {
            "priorityClassName": "high",
            "containers": [
                {"name": "engine", "image": "mine:2", "env": [{"name": "HF_HOME", "value": "/cache"}]},
                {"name": "sidecar", "image": "side:1"},
            ],
        },
    }
    built = template(podTemplate=overlay)
    assert built.manifest["metadata"]["annotations"]["team"] == "x"
    assert [c["name"] for c in built.manifest["spec"]["containers"]] == ["engine", "sidecar"]
    assert (engine(built)["image"], env(built)["HF_HOME"]) == ("mine:2", "/cache")
    assert built.engine_revision != template().engine_revision


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["spec", "containers", "name", "env", "metadata", "labels", "volumes"]), inner
        )
    ),
    max_leaves=8,
)


@given(overlay=st.dictionaries(st.sampled_from(["spec", "metadata"]), JSON))
def test_no_overlay_does_worse_than_a_spec_error(overlay: Mapping[str, Any]) -> None:
    try:
        template(podTemplate=overlay)
    except SpecError as error:
        assert error.path.startswith("spec.podTemplate")
