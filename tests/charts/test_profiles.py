"""Each profile in values/ is what its first lines say: its command renders, and its parts are there and no others."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml

from charts.rendering import (
    CHARTS,
    PROFILES,
    ROOT,
    VALUES,
    RenderError,
    find,
    images,
    made_from,
    of_kind,
    pod_templates,
    render,
    run,
    title,
)
from llmfleet.api.parse import parse_spec
from llmfleet.router.limits import parse_settings

pytestmark = pytest.mark.helm


def specs(profile: str) -> dict[str, Any]:
    """What the engines of a profile are made from."""
    objects = render(profile)
    clusters = {o["metadata"]["name"]: o["spec"] for o in of_kind(objects, "LLMCluster")}
    return clusters | {name: made["spec"] for name, made in made_from(objects).items()}


def command_of(name: str) -> list[str]:
    """The values files of the `helm install` (or `upgrade`) in the first lines of a profile."""
    head = (VALUES / name).read_text().split("\nfleet:")[0]
    text = re.sub(r"\\\n#\s*", "", "\n".join(line for line in head.splitlines() if line.startswith("#")))
    (line,) = [line for line in text.splitlines() if re.match(r"#\s+helm (install|upgrade --install) ", line)]
    words = shlex.split(line.lstrip("# "))
    return [words[i + 1].removeprefix("values/") for i, word in enumerate(words) if word == "--values"]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_first_lines_of_a_profile_say_how_to_install_it(profile: str) -> None:
    assert tuple(command_of(PROFILES[profile][-1])) == PROFILES[profile]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_clean_under_the_strict_lint_of_helm_3(profile: str) -> None:
    """That of Helm 4 runs under chart-testing, in test_lint.py."""
    files = [f"--values={VALUES / name}" for name in PROFILES[profile]]
    said = run(["lint", "--strict", *files, str(CHARTS / "llmfleet")], binary="helm3")
    assert "0 chart(s) failed" in said and "[WARNING]" not in said


@pytest.mark.parametrize("profile", PROFILES)
def test_engines_and_router_take_what_a_profile_gives_them(profile: str) -> None:
    found = specs(profile)
    assert found and all(parse_spec(spec) for spec in found.values())
    for config in of_kind(render(profile), "ConfigMap"):
        if "settings.yaml" in config.get("data", {}):
            assert parse_settings(yaml.safe_load(config["data"]["settings.yaml"]))


@pytest.mark.parametrize("profile", PROFILES)
def test_engines_of_a_profile_say_what_they_need(profile: str) -> None:
    for name, spec in specs(profile).items():
        assert {"cpu", "memory"} <= set(spec["resources"]["requests"]), name
        assert "memory" in spec["resources"]["limits"], name


@pytest.mark.parametrize("profile", [name for name in PROFILES if not PROFILES[name][0].startswith("dev")])
def test_engines_on_gpus_are_let_onto_tainted_gpu_nodes(profile: str) -> None:
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert all(taint in spec["scheduling"]["tolerations"] for spec in specs(profile).values())


def test_single_is_one_instance_and_nothing_in_front_of_it() -> None:
    objects = render("single")
    assert [o["metadata"]["name"] for o in of_kind(objects, "LLMCluster")] == ["demo-llama-3-70b-0"]
    assert [title(o) for o in of_kind(objects, "Deployment", "StatefulSet")] == ["Deployment/demo-operator"]
    assert not of_kind(objects, "HorizontalPodAutoscaler", "LLMClusterAutoscaler", "Service")
    engines = find(objects, "NetworkPolicy", "demo-llama-3-70b-engine")["spec"]["ingress"]
    assert {"podSelector": {}} in engines[1]["from"], "clients of the namespace come straight to it"


def test_without_a_router_and_without_a_line_about_clients_everybody_reaches_the_engines() -> None:
    objects = render("single", {"fleet": {"networkPolicy": {"clientsFrom": None}}})
    engines = find(objects, "NetworkPolicy", "demo-llama-3-70b-engine")["spec"]["ingress"]
    assert engines[1] == {"ports": [{"port": "http", "protocol": "TCP"}]}


def test_canary_adds_the_trial_and_nothing_else() -> None:
    for name, spec in specs("canary").items():
        assert spec.pop("update") == {
            "canary": {
                "enabled": True,
                "weightPercent": 10,
                "analysisSeconds": 600,
                "maxErrorRatio": "0.01",
                "maxTTFTRatio": "1.5",
            }
        }
        assert spec == specs("production-monolithic")[name]


def test_scale_to_zero_waits_in_the_router_as_long_as_a_start_may_take() -> None:
    objects = render("scale-to-zero")
    spec = find(objects, "LLMClusterAutoscaler", "demo-qwen-32b")["spec"]
    assert (spec["minInstances"], spec["scaleToZero"]) == (0, {"afterSeconds": 1800})
    settings = yaml.safe_load(find(objects, "ConfigMap", "demo-router-settings")["data"]["settings.yaml"])
    start = spec["instanceTemplate"]["spec"]["lifecycle"]["startupTimeoutSeconds"]
    assert parse_settings(settings).queue.wake_timeout_seconds >= start


def test_only_the_engines_of_one_model_go_to_spot_nodes() -> None:
    objects = render("spot")
    pools = {o["metadata"]["name"]: o["spec"]["scheduling"]["nodeSelector"] for o in of_kind(objects, "LLMCluster")}
    kind = "karpenter.sh/capacity-type"
    assert {name: pool[kind] for name, pool in pools.items() if "spot" not in name} == {"demo-llama-8b-0": "on-demand"}
    assert {pool[kind] for name, pool in pools.items() if "spot" in name} == {"spot"}
    for name, template in pod_templates(objects).items():
        if name.startswith("Deployment"):
            assert template["spec"]["nodeSelector"] == {kind: "on-demand"}, name
    assert {tuple(spec["servedModelNames"]) for spec in specs("spot").values()} == {("llama-8b",)}


def test_mig_cuts_one_gpu_into_slices_that_fit() -> None:
    slices = [spec["accelerator"]["resourceName"].removeprefix("nvidia.com/mig-") for spec in specs("mig").values()]
    assert sorted(slices) == ["1g.10gb", "2g.20gb", "3g.40gb"]
    assert sum(int(part[0]) for part in slices) <= 7 and sum(int(part[3:5]) for part in slices) <= 80


def test_every_adapter_is_a_model_that_helm_test_looks_for() -> None:
    lora = specs("lora")["demo-llama-8b-0"]["inferenceArgs"]["lora"]
    wanted = {f"--model={adapter['name']}" for adapter in lora["adapters"]} | {"--model=llama-8b"}
    assert wanted <= set(find(render("lora"), "Pod", "demo-test-models")["spec"]["containers"][0]["args"])


def test_tenants_are_known_by_a_secret_and_the_checks_have_a_key_of_their_own() -> None:
    objects = render("multi-tenant")
    mounted = {v["secret"]["secretName"] for v in find(objects, "Pod", "demo-test-chat")["spec"]["volumes"]}
    assert mounted == {"helm-test"}
    router = find(objects, "Deployment", "demo-router")["spec"]["template"]["spec"]
    assert {v["secret"]["secretName"] for v in router["volumes"] if "secret" in v} == {"tenants", "redis-jobs"}
    assert not of_kind(objects, "Secret"), "the chart never holds one"


def test_rdma_asks_for_a_device_in_every_pod_of_groups_behind_one_switch() -> None:
    for spec in specs("rdma").values():
        assert spec["network"]["resources"] == {"rdma/hca": 1}
        assert spec["scheduling"]["colocation"] == "Required"
        assert spec["scheduling"]["tolerations"], "of the profile below it"


def test_without_a_way_out_every_image_is_of_one_registry() -> None:
    objects = render("air-gapped")
    assert images(objects) and all(i.startswith("registry.internal.example/llmfleet/") for i in images(objects))
    pods = [t["spec"] for t in pod_templates(objects).values()] + list(specs("air-gapped").values())
    assert all(pod["imagePullSecrets"] == [{"name": "registry"}] for pod in pods)


def test_without_a_way_out_no_engine_asks_the_hub_or_reports() -> None:
    for spec in specs("air-gapped").values():
        env = {v["name"]: v.get("value") for v in spec["env"]}
        assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"]) == ("1", "1")
        assert spec["model"].startswith("/models/")
        assert not spec["security"]["huggingFaceTokenSecretRef"]["name"]


def test_without_a_way_out_engines_and_router_are_closed_in_every_direction() -> None:
    policies = of_kind(render("air-gapped"), "NetworkPolicy")
    assert all("Egress" in policy["spec"]["policyTypes"] for policy in policies)


def test_every_profile_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text()
    for profile, files in PROFILES.items():
        assert f"| [`{profile}`](../values/{files[-1]}) |" in page, profile


def block(start: str) -> str:
    """What the page shows after a command."""
    page = (ROOT / "docs" / "profiles.md").read_text()
    return page.split(f"$ {start}", 1)[1].split("\n", 1)[1].split("\n```")[0]


def test_the_notes_in_the_documentation_are_those_of_an_install() -> None:
    words = ["install", "llmfleet", str(CHARTS / "llmfleet"), "--namespace=llmfleet", "--dry-run=client"]
    said = run([*words, f"--values={VALUES / 'single.yaml'}"])
    assert said[said.index("NOTES:") :].strip() == block("helm install").removeprefix("...\n").strip()


def test_the_refusal_in_the_documentation_is_what_helm_says() -> None:
    with pytest.raises(RenderError) as refused:
        render("single", {"fleet": {"redis": {"enabled": True}}})
    sentence = block("helm template").split("): ", 1)[1]
    assert sentence in str(refused.value)


def test_every_check_of_helm_test_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text()
    hooks = {name.rpartition("-test-")[2] for name in pod_templates(render("multi-tenant")) if "-test-" in name}
    assert hooks == set(re.findall(r"`<release>-test-([a-z-]+)`", page))
