"""What every pod and object of a release obeys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.rendering import (
    CHARTS,
    OWN_CHARTS,
    PROFILES,
    Object,
    copy_charts,
    find,
    images,
    made_from,
    of_kind,
    pod_templates,
    render,
    strings,
    title,
)

pytestmark = pytest.mark.helm

TOKEN_HOLDERS = (
    "Deployment/demo-operator",
    "Deployment/demo-autoscaler",
    "Job/demo-uninstall",
    "Job/demo-operator-uninstall",
)
SELECTORS = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}


def pod_specs(objects: list[Object]) -> dict[str, Any]:
    """What would restart a pod when it changed: long-lived pod templates and LLMCluster specs."""
    templates = {
        name: t for name, t in pod_templates(objects).items() if name.startswith(("Deployment", "StatefulSet"))
    }
    return templates | {title(o): o["spec"] for o in of_kind(objects, "LLMCluster")} | made_from(objects)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_pod_meets_the_restricted_standard(profile: str) -> None:
    for name, template in pod_templates(render(profile)).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all(set(v) & {"configMap", "emptyDir", "projected", "secret"} for v in spec.get("volumes", [])), name
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert not any("hostPort" in port for port in container.get("ports", [])), name


@pytest.mark.parametrize("profile", PROFILES)
def test_every_container_says_what_memory_and_cpu_it_needs(profile: str) -> None:
    for name, template in pod_templates(render(profile)).items():
        for container in template["spec"]["containers"]:
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name


@pytest.mark.parametrize("profile", PROFILES)
def test_pods_and_selectors_carry_selector_labels_only(profile: str) -> None:
    for workload in of_kind(render(profile), "Deployment", "StatefulSet"):
        assert set(workload["spec"]["selector"]["matchLabels"]) == SELECTORS, title(workload)
        assert workload["spec"]["template"]["metadata"]["labels"] == workload["spec"]["selector"]["matchLabels"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_chart_bump_restarts_no_pod(profile: str, tmp_path: Path) -> None:
    charts = copy_charts(tmp_path)
    for file in charts.glob("llmfleet*/Chart.yaml"):
        file.write_text(re.sub(r"^(\s*version:) 0\.1\.0$", r"\1 9.9.9", file.read_text(), flags=re.MULTILINE))
    before, after = render(profile), render(profile, charts=charts)
    assert "llmfleet-fleet-9.9.9" in set(strings(after))
    assert pod_specs(before) == pod_specs(after)


def test_a_label_on_every_object_restarts_no_pod() -> None:
    labels = {"commonLabels": {"team": "blue"}}
    before, after = render("dev"), render("dev", {"fleet": labels, "controllers": labels})
    assert all(o["metadata"]["labels"]["team"] == "blue" for o in after)
    assert pod_specs(before) == pod_specs(after)


def test_changed_router_settings_roll_the_router_and_nothing_else() -> None:
    before, after = render("dev"), render("dev", {"fleet": {"router": {"settings": {"logLevel": "debug"}}}})
    changed = {name for name, spec in pod_specs(after).items() if spec != pod_specs(before)[name]}
    assert changed == {"Deployment/demo-router"}
    settings = find(after, "ConfigMap", "demo-router-settings")["data"]["settings.yaml"]
    redis = {"url": "redis://demo-redis.team-a.svc:6379/0", "prefix": "team-a/demo"}
    assert yaml.safe_load(settings) == {"logLevel": "debug", "redis": redis}


@pytest.mark.parametrize("profile", PROFILES)
def test_objects_carry_the_labels_that_describe_them(profile: str) -> None:
    wanted = SELECTORS | {"app.kubernetes.io/version", "app.kubernetes.io/managed-by", "app.kubernetes.io/part-of"}
    for thing in render(profile):
        assert wanted | {"helm.sh/chart"} <= set(thing["metadata"]["labels"]), title(thing)


def test_one_registry_reaches_every_image() -> None:
    objects = render("dev", {"global": {"imageRegistry": "registry.example.com/mirror"}})
    assert {image.rpartition("/")[0] for image in images(objects)} == {"registry.example.com/mirror/llmfleet"}


def test_an_image_of_its_own_registry_keeps_it() -> None:
    found = images(render("production-monolithic"))
    assert found == {
        "registry.example.com/llmfleet/llmfleet/llmfleet:0.1.0",
        "docker.io/vllm/vllm-openai:v0.33.0",
    }


def test_a_digest_stands_behind_the_tag() -> None:
    digest = "sha256:" + "a" * 64
    values = {"fleet": {"image": {"digest": digest}, "models": {"tiny": {"image": {"digest": digest}}}}}
    found = images(render("dev", values))
    assert f"localhost/llmfleet/llmfleet:0.1.0@{digest}" in found
    assert f"localhost/llmfleet/engine-sim:0.1.0@{digest}" in found


def test_pull_secrets_reach_every_pod() -> None:
    objects = render("dev", {"global": {"imagePullSecrets": [{"name": "pull"}]}})
    specs = [t["spec"] for t in pod_templates(objects).values()] + [o["spec"] for o in of_kind(objects, "LLMCluster")]
    assert all(spec["imagePullSecrets"] == [{"name": "pull"}] for spec in specs)


def test_placement_and_extra_environment_keep_kubernetes_shapes() -> None:
    component = {
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "podLabels": {"sidecar.istio.io/inject": "false"},
        "podAnnotations": {"note": "yes"},
    }
    env = {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}
    values = {"fleet": {"router": component | env, "redis": component}, "controllers": {"operator": component | env}}
    templates = pod_templates(render("dev", values))
    for name in ("Deployment/demo-router", "StatefulSet/demo-redis", "Deployment/demo-operator"):
        template = templates[name]
        assert {k: template["spec"][k] for k in list(component)[:4]} == {k: component[k] for k in list(component)[:4]}
        assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
        assert template["metadata"]["annotations"]["note"] == "yes"
    for name in ("Deployment/demo-router", "Deployment/demo-operator"):
        given = [e for e in templates[name]["spec"]["containers"][0]["env"] if e["name"] == "A"]
        assert given == [{"name": "A", "value": "2"}], "a repeated name is an error under server-side apply"


def test_only_route_sync_and_controllers_hold_a_token() -> None:
    for name, template in pod_templates(render("dev")).items():
        automatic = template["spec"]["automountServiceAccountToken"]
        assert automatic is (name in TOKEN_HOLDERS), name
    router = pod_templates(render("dev"))["Deployment/demo-router"]["spec"]
    projected = {v["name"] for v in router["volumes"] if "projected" in v}
    holders = {c["name"] for c in router["containers"] if projected & {m["name"] for m in c["volumeMounts"]}}
    assert holders == {"route-sync"}


def test_no_template_reads_the_release_namespace_but_the_helpers() -> None:
    for chart in OWN_CHARTS:
        for file in sorted((CHARTS / chart / "templates").rglob("*")):
            if file.is_file():
                count = file.read_text().count(".Release.Namespace")
                assert count == (1 if file.name == "_common.tpl" else 0), file


def test_namespace_override_moves_every_object() -> None:
    values = {
        "fleet": {"namespaceOverride": "fleets", "operator": {"namespace": "system"}},
        "controllers": {"namespaceOverride": "system"},
    }
    objects = render("dev", values)
    assert {o["metadata"]["namespace"] for o in objects if not o["kind"].startswith("ClusterRole")} == {
        "fleets",
        "system",
    }
    binding = find(objects, "RoleBinding", "demo-fleet-operator")
    assert binding["metadata"]["namespace"] == "fleets"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "demo-operator", "namespace": "system"}]


def test_two_releases_in_one_namespace_share_no_object_and_no_selector() -> None:
    names = [{(o["kind"], o["metadata"]["name"]) for o in render("dev", release=release)} for release in ("one", "two")]
    assert not names[0] & names[1]
    selectors = [
        {
            str(w["spec"]["selector"])
            for w in of_kind(render("dev", release=release), "Deployment", "StatefulSet", "Service")
        }
        for release in ("one", "two")
    ]
    assert not selectors[0] & selectors[1]


def test_two_releases_of_one_name_in_two_namespaces_share_no_cluster_object() -> None:
    kinds = ("ClusterRole", "ClusterRoleBinding")
    names = [
        {(o["kind"], o["metadata"]["name"]) for o in of_kind(render("dev", namespace=namespace), *kinds)}
        for namespace in ("team-a", "team-b")
    ]
    assert names[0]
    assert not names[0] & names[1]


@pytest.mark.parametrize("release", ["a" * 53, "team.blue." + "x" * 40])
def test_long_and_dotted_release_names_stay_valid(release: str) -> None:
    model = "m" * 30
    values = {
        "fleet": {
            "models": {
                "tiny": None,
                model: {"instances": 2, "model": "x", "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1},
            }
        }
    }
    objects = render("dev", values, release=release)
    for thing in objects:
        assert re.fullmatch(r"[a-z]([-a-z0-9.]*[a-z0-9])?", thing["metadata"]["name"]), title(thing)
        assert len(thing["metadata"]["name"]) <= 63 or thing["kind"].startswith("ClusterRole"), title(thing)
        assert all(len(value) <= 63 for value in thing["metadata"]["labels"].values()), title(thing)
    clusters = of_kind(objects, "LLMCluster")
    assert len({o["metadata"]["name"] for o in clusters}) == 2
    assert all(re.fullmatch(r"[a-z][-a-z0-9]{0,39}", o["metadata"]["name"]) for o in clusters)


def test_two_long_names_with_one_start_stay_different() -> None:
    names = [{title(o) for o in render("dev", release="r" * 52 + end)} for end in "ab"]
    assert not {n for n in names[0] & names[1] if not n.startswith("ClusterRole")}


def test_extra_objects_are_maps_or_templated_strings() -> None:
    as_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-map"}}
    as_text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-text'}"
    for chart in ("fleet", "controllers", "monitoring"):
        values: Object = {chart: {"extraObjects": [as_map, as_text]}}
        if chart == "monitoring":
            values["monitoring"] |= {"enabled": True, "podMonitor": {"enabled": False}, "rules": {"kind": "ConfigMap"}}
        objects = render("dev", values)
        find(objects, "ConfigMap", "demo-map")
        find(objects, "ConfigMap", "demo-text")


@pytest.mark.parametrize("name", ["_common.tpl", "_rules.tpl", "extraobjects.yaml"])
def test_templates_that_charts_share_are_the_same_bytes(name: str) -> None:
    copies = list(CHARTS.glob(f"llmfleet*/templates/{name}"))
    assert len(copies) > 1
    assert len({copy.read_bytes() for copy in copies}) == 1
