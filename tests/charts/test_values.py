"""Values: documented, closed, and refused with a message that says what to write."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import pytest
import yaml

from charts.rendering import CHARTS, OWN_CHARTS, ROOT, find, nested, refusal, render, run
from llmfleet.api.autoscaler import parse_autoscaler
from llmfleet.router.limits import Settings

pytestmark = pytest.mark.helm


def test_schemas_and_readmes_are_generated_from_the_values() -> None:
    sys.path.insert(0, str(ROOT / "ci" / "generate.d"))
    try:
        files = importlib.import_module("make_chart_values").outputs(ROOT)
    finally:
        sys.path.remove(str(ROOT / "ci" / "generate.d"))
    assert len(files) == 2 * (len(OWN_CHARTS) + 1), "and those of llmfleet-crds"
    assert not [path for path, text in files.items() if path.read_text() != text], "run `make generate`"


def closed(schema: Any, path: str) -> list[str]:
    """Objects with named properties that accept others."""
    found = []
    if isinstance(schema, dict):
        if schema.get("properties") and schema.get("additionalProperties") is not False:
            found.append(path)
        for key, part in schema.items():
            found += closed(part, f"{path}/{key}")
    return found


@pytest.mark.parametrize("chart", OWN_CHARTS)
def test_a_schema_is_closed_where_the_shape_is_ours(chart: str) -> None:
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())
    opened = set(closed(schema, ""))
    # Other charts' globals, subcharts that close themselves, and an environment variable's own shape.
    known = {"/properties/global", *(f"/properties/{name}" for name in ("crds", "controllers", "fleet", "monitoring"))}
    assert not {path for path in opened - known if "extraEnv" not in path and "podTemplate" not in path}
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def leaf_keys(values: dict[str, Any]) -> set[str]:
    """The last part of every key that takes a value."""
    found = set()
    for key, value in values.items():
        found |= leaf_keys(value) if isinstance(value, dict) and value else {key}
    return found


@pytest.mark.parametrize("chart", OWN_CHARTS)
def test_every_value_is_read_somewhere(chart: str) -> None:
    folders = [CHARTS / chart / "templates", CHARTS / chart / "rules"]
    files = [*(file for folder in folders for file in folder.rglob("*")), CHARTS / chart / "Chart.yaml"]
    text = "\n".join(file.read_text() for file in files if file.is_file())
    keys = leaf_keys(yaml.safe_load((CHARTS / chart / "values.yaml").read_text()))
    # A group handed over whole: the keys of a resource list and of the monitors' namespace selector.
    passed_through = {"cpu", "memory", "any", "grafana_dashboard", "grafana_folder"}
    assert not {key for key in keys - passed_through if key not in text}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("fleets", {}, "additional properties 'fleets' not allowed"),
        ("fleet.modles", {}, "additional properties 'modles' not allowed"),
        ("fleet.router.replica", 2, "additional properties 'replica' not allowed"),
        ("fleet.router.replicas", 0, "minimum: got 0, want 1"),
        ("fleet.router.replicas", "2", "got string, want integer"),
        ("fleet.router.service.port", 70000, "maximum: got 70,000, want 65,535"),
        ("fleet.router.service.type", "ExternalName", "value must be one of 'ClusterIP', 'NodePort', 'LoadBalancer'"),
        ("fleet.router.podDisruptionBudget.maxUnavailable", 0, "minimum: got 0, want 1"),
        ("fleet.router.podDisruptionBudget.maxUnavailable", "0%", "does not match pattern"),
        ("fleet.router.resources", {"request": {}}, "additional properties 'request' not allowed"),
        ("fleet.image.pullPolicy", "always", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ("fleet.image.digest", "sha256:abc", "does not match pattern"),
        ("fleet.redis.image.tag", 7.0, "want string"),
        ("fleet.redis.maxmemory", "lots", "does not match pattern"),
        ("fleet.redis.persistence.size", "8 GB", "does not match pattern"),
        ("fleet.namespaceOverride", "Team_A", "does not match pattern"),
        ("fleet.router.settings.drain", {"settleSecs": 1}, "additional properties 'settleSecs' not allowed"),
        ("fleet.router.settings.drain.timeoutSeconds", 100000, "maximum: got 100,000, want 86,400"),
        ("fleet.router.settings.resultCache", {"ttl": 5}, "additional properties 'ttl' not allowed"),
        ("fleet.router.settings.resultCache.maxEntryBytes", 10, "minimum: got 10, want 1,024"),
        ("fleet.router.settings.classes", {"high": -2000}, "minimum: got -2,000, want -1,000"),
        ("fleet.tests.apiKeySecretRef", {"secret": "x"}, "additional properties 'secret' not allowed"),
        ("fleet.router.settings.logLevel", "loud", "value must be one of 'debug', 'info', 'warning', 'error'"),
        ("fleet.models", [], "got array, want object"),
        ("fleet.models.Tiny", {"instances": 1}, "'Tiny' does not match pattern"),
        ("fleet.models." + "m" * 31, {"instances": 1}, "maxLength: got 31, want 30"),
        ("fleet.models.tiny.instances", -1, "minimum: got -1, want 0"),
        ("fleet.models.tiny.instances", 1.5, "want null or integer"),
        ("fleet.models.tiny.gpus", 1, "additional properties 'gpus' not allowed"),
        ("fleet.models.tiny.replicas", 0, "minimum: got 0, want 1"),
        ("fleet.models.tiny.role", "leader", "value must be one of 'both', 'prefill', 'decode'"),
        ("fleet.models.tiny.image", "vllm:1", "got string, want object"),
        (
            "fleet.models.tiny.inferenceArgs",
            {"maxModelLength": 1},
            "additional properties 'maxModelLength' not allowed",
        ),
        ("fleet.models.tiny.lifecycle.startupTimeoutSeconds", "10m", "got string, want integer"),
        ("fleet.models.tiny.env", [{"value": "1"}], "missing property 'name'"),
        ("fleet.models.big", {"autoscaling": {"minReplicas": 1}}, "additional properties 'minReplicas' not allowed"),
        ("fleet.models.big", {"autoscaling": {"maxInstances": 0}}, "minimum: got 0, want 1"),
        ("fleet.engine.storage.modelCache", {"kind": "none"}, "additional properties 'kind' not allowed"),
        ("controllers.operator.replicas", 0, "minimum: got 0, want 1"),
        ("controllers.operator.watchNamespaces", "team-a", "got string, want array"),
        ("controllers.operator.watchNamespaces", ["a", "a"], "items at 0 and 1 are equal"),
        ("controllers.operator.podDisruptionBudget.maxUnavailable", 0, "minimum: got 0, want 1"),
        ("controllers.autoscaler", {"enable": True}, "additional properties 'enable' not allowed"),
        ("controllers.autoscaler.intervalSeconds", 0, "minimum: got 0, want 1"),
        ("global.imageRegistry", "https://registry.example.com", "does not match pattern"),
        ("global.imagePullSecrets", ["pull"], "got string, want object"),
    ],
)
def test_the_schema_refuses(path: str, value: Any, message: str) -> None:
    assert message in refusal(nested(path, value)), path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"global": {"imageRegistry": ""}}, "write --set global.imageRegistry=REGISTRY"),
        (nested("fleet.models.tiny.tensorParallelSize", 3), "must equal replicas (2) x gpusPerPod (1)"),
        (nested("fleet.models.tiny.pipelineParallelSize", 2), "tensorParallelSize (2) x pipelineParallelSize (2)"),
        (nested("fleet.models.big", {"instances": 1, "model": "x"}), "models.big.replicas is missing"),
        (nested("fleet.models.big", {"model": "x"}), "models.big has no size: write instances (a fixed number) or"),
        (
            nested("fleet.models.tiny.autoscaling", {"minInstances": 1, "maxInstances": 2}),
            "models.tiny has instances and autoscaling: remove one",
        ),
        (
            nested("fleet.models.tiny", {"instances": None, "autoscaling": {"minInstances": 1}}),
            "needs minInstances and",
        ),
        (
            nested("fleet.models.tiny", {"instances": None, "autoscaling": {"minInstances": 3, "maxInstances": 2}}),
            "models.tiny.autoscaling.minInstances (3) is above maxInstances (2): swap them",
        ),
        (
            nested(
                "fleet.models.tiny",
                {"instances": None, "role": "decode", "autoscaling": {"minInstances": 1, "maxInstances": 2}},
            ),
            "a model with role decode cannot have autoscaling: write prefill and decode blocks",
        ),
        (nested("fleet.models.redis", {"instances": 0}), "give the model another key, such as redis-model"),
        (nested("fleet.models.tiny.image.tag", "latest"), 'engine.image (model tiny).tag is "latest"'),
        (nested("fleet.engine.image.tag", ""), "engine.image (model tiny).tag is empty: write the exact version"),
        (nested("fleet.engine.image.repository", ""), "repository is empty"),
        (nested("fleet.router.autoscaling", {"enabled": True, "minReplicas": 11}), "minReplicas (11) is above"),
        (
            nested("fleet.router", {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}),
            "router.resources.requests.cpu is empty: write one, such as 500m",
        ),
        (
            nested("controllers.operator", {"replicas": 2, "leaderElection": False}),
            "Write operator.leaderElection=true",
        ),
        (
            nested("controllers.autoscaler", {"replicas": 2, "leaderElection": False}),
            "Write autoscaler.leaderElection=true",
        ),
        (
            nested("fleet.router", {"enabled": False, "apiKeys": {"existingSecret": "tenants"}}),
            "engines would answer everybody. Write router.enabled=true, or take router.apiKeys away",
        ),
        (
            nested("fleet", {"redis": {"enabled": False}, "router": {"settings": {"resultCache": {"enabled": True}}}}),
            "keeps answers in Redis, and there is none: write redis.enabled=true, redis.external.url or",
        ),
        (
            nested("fleet.router.enabled", False),
            "nobody would use it. Write router.enabled=true, or redis.enabled=false",
        ),
        (
            nested(
                "fleet",
                {
                    "router": {"enabled": False},
                    "redis": {"enabled": False},
                    "models": {"tiny": {"instances": None, "autoscaling": {"minInstances": 0, "maxInstances": 1}}},
                },
            ),
            "can only wait in the router. Write router.enabled=true, or minInstances=1",
        ),
        (
            {
                "controllers": {"autoscaler": {"enabled": False}},
                "fleet": {
                    "models": {"tiny": {"instances": None, "autoscaling": {"minInstances": 1, "maxInstances": 2}}}
                },
            },
            "nobody would make its instances. Write controllers.autoscaler.enabled=true, or a number of instances",
        ),
        (nested("controllers.enabled", False), "write fleet.operator.release=NAME"),
        (nested("controllers.namespaceOverride", "system"), "write fleet.operator.namespace=system"),
        (nested("monitoring.enabled", True), "write podMonitor.renderMode=skipIfMissing (rules follow it"),
        *[
            (
                nested(f"{chart}.networkPolicy", {"enabled": False, "defaultDeny": True}),
                "nothing would be denied: write networkPolicy.enabled=true, or networkPolicy.defaultDeny=false",
            )
            for chart in ("fleet", "controllers")
        ],
        (
            {"fleet": {"router": {"enabled": False}, "redis": {"enabled": False}, "tests": {"model": "big"}}},
            'tests.model: no instance that the checks could ask serves "big": write one of tiny, or leave it empty',
        ),
        (
            {"fleet": {"models": {"tiny": {"instances": 0}}, "tests": {"model": "tiny"}}},
            'no instance that the checks could ask serves "tiny": write one of none, or leave it empty',
        ),
    ],
)
def test_a_combination_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    assert message in refusal(values)


def test_a_release_name_that_starts_with_a_digit_is_refused() -> None:
    assert "choose a name that starts with a letter, such as llm-7b" in refusal({}, release="7b")


def test_the_fleet_chart_alone_asks_for_its_operator() -> None:
    text = refusal({"global": {"imageRegistry": "localhost"}}, profile="", chart="llmfleet-fleet")
    assert "write operator.release=NAME and operator.namespace=NAMESPACE" in text


def test_a_stopping_router_has_as_long_as_its_default_settings_ask_for() -> None:
    drain = Settings().drain
    pod = find(render("dev"), "Deployment", "demo-router")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == drain.settle_seconds + drain.timeout_seconds + 10


def test_a_model_that_scales_is_one_autoscaler_whose_template_is_the_model() -> None:
    objects = render("autoscaling")
    assert not [o for o in objects if o["kind"] == "LLMCluster"]
    scaler = find(objects, "LLMClusterAutoscaler", "demo-tiny")
    spec = parse_autoscaler(scaler["spec"])
    assert (spec.min_instances, spec.max_instances) == (1, 4)
    fixed = find(render("dev"), "LLMCluster", "demo-tiny-0")
    template = scaler["spec"]["instanceTemplate"]
    assert template["spec"] == fixed["spec"]
    assert template["annotations"] == fixed["metadata"]["annotations"]
    assert template["labels"].items() <= fixed["metadata"]["labels"].items()
    # A label that names a version would patch every instance with each chart.
    assert not [label for label in template["labels"] if "version" in label or "chart" in label]


@pytest.mark.parametrize("name", ["m", "m" * 30])
def test_a_name_prefix_fits_its_kind(name: str) -> None:
    scaled = {"autoscaling": {"minInstances": 0, "maxInstances": 1}, "model": "x", "replicas": 1}
    model = {**scaled, "gpusPerPod": 1, "tensorParallelSize": 1}
    objects = render("dev", nested(f"fleet.models.{name}", model), release="a-release-with-a-long-name")
    for scaler in (o for o in objects if o["kind"] == "LLMClusterAutoscaler"):
        assert len(parse_autoscaler(scaler["spec"]).fleets()) == 1
        assert len(scaler["spec"]["instanceTemplate"]["namePrefix"]) <= 31
        assert scaler["spec"]["instanceTemplate"]["namePrefix"].endswith("-")


def test_a_model_is_switched_off_by_null() -> None:
    assert not [o for o in render("dev", nested("fleet.models.tiny", None)) if o["kind"] == "LLMCluster"]


@pytest.mark.parametrize("chart", OWN_CHARTS)
def test_helm_lint_is_clean(chart: str) -> None:
    values = {
        "llmfleet": "--values=values/dev.yaml",
        "llmfleet-controllers": "--set=global.imageRegistry=localhost",
        "llmfleet-fleet": "--set=global.imageRegistry=localhost,operator.release=llmfleet,operator.namespace=system",
        "llmfleet-monitoring": "--set=podMonitor.renderMode=alwaysRender,rules.renderMode=alwaysRender",
    }[chart].replace("values/", f"{ROOT}/values/")
    assert "[WARNING]" not in run(["lint", "--strict", str(CHARTS / chart), values])


@pytest.mark.parametrize("chart", OWN_CHARTS)
def test_a_chart_version_is_the_project_version(chart: str) -> None:
    meta = yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())
    assert meta["version"] == meta["appVersion"]
    assert all(d["version"] == meta["version"] for d in meta.get("dependencies", []))
    assert all(d["repository"].startswith("file://") for d in meta.get("dependencies", []))
