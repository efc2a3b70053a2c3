"""Where targets come from: PodMonitors, or scrape_configs that say the same to a Prometheus without an operator."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.rendering import find, of_kind, render
from llmfleet import names
from rules.rules import OPERATOR_APIS, promtool

pytestmark = pytest.mark.helm
PLAIN = {"scrapeConfig": {"enabled": True}, "podMonitor": {"enabled": False}, "rules": {"kind": "ConfigMap"}}


def monitors() -> dict[str, dict[str, Any]]:
    """The endpoint of each component's PodMonitor."""
    objects = of_kind(render(chart="llmfleet-monitoring", apis=OPERATOR_APIS), "PodMonitor")
    return {o["metadata"]["name"].removeprefix("demo-"): o["spec"]["podMetricsEndpoints"][0] for o in objects}


def scrape_text(**monitor: Any) -> str:
    """What a Prometheus without an operator reads."""
    values = {**PLAIN, "podMonitor": {"enabled": False, **monitor}}
    objects = render(values=values, chart="llmfleet-monitoring")
    return str(find(objects, "ConfigMap", "demo-scrape")["data"]["scrape.yaml"])


def jobs(**monitor: Any) -> dict[str, dict[str, Any]]:
    """Scrape configurations by component."""
    found = yaml.safe_load(scrape_text(**monitor))["scrape_configs"]
    return {job["job_name"].removeprefix("llmfleet-"): job for job in found}


def snake(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Relabelings of a PodMonitor as Prometheus itself spells them."""
    return [{re.sub("[A-Z]", lambda m: "_" + m[0].lower(), key): value for key, value in one.items()} for one in rules]


def test_promtool_accepts_the_scrape_configuration(tmp_path: Path) -> None:
    path = tmp_path / "prometheus.yml"
    path.write_text(scrape_text())
    done = promtool("check", "config", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_plain_prometheus_gives_targets_the_labels_that_monitors_give() -> None:
    assert set(jobs()) == set(monitors()) == {"router", "operator", "autoscaler", "engine"}
    for component, monitor in monitors().items():
        ours = snake(monitor["relabelings"])
        assert jobs()[component]["relabel_configs"][-len(ours) :] == ours
        assert jobs()[component].get("metric_relabel_configs", []) == snake(monitor.get("metricRelabelings", []))
        labels = {one.get("target_label") for one in jobs()[component]["relabel_configs"]}
        assert {"namespace", "pod", "container", "component"} <= labels


@pytest.mark.parametrize(
    ("selector", "names_said"),
    [
        ({"any": True}, None),
        ({"any": True, "matchNames": ["a"]}, None),
        ({"any": False, "matchNames": ["a", "b"]}, {"names": ["a", "b"]}),
        ({"any": False}, {"names": ["team-a"]}),
    ],
)
def test_a_plain_prometheus_looks_into_the_namespaces_of_the_monitors(
    selector: dict[str, Any], names_said: dict[str, Any] | None
) -> None:
    for job in jobs(namespaceSelector=selector).values():
        assert [one.get("namespaces") for one in job["kubernetes_sd_configs"]] == [names_said]


def test_a_plain_prometheus_has_the_relabelings_that_a_user_adds_to_the_monitors(tmp_path: Path) -> None:
    ours = {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node", "action": "Replace"}
    samples = {"sourceLabels": ["__name__"], "regex": "go_.*", "action": "drop"}
    added: dict[str, Any] = {"relabelings": [ours], "metricRelabelings": [samples]}
    for job in jobs(**added).values():
        assert job["relabel_configs"][-1] == {**snake([ours])[0], "action": "replace"}
        assert job["metric_relabel_configs"][-1] == snake([samples])[0]
    path = tmp_path / "prometheus.yml"
    path.write_text(scrape_text(**added, namespaceSelector={"any": False, "matchNames": ["a"]}))
    done = promtool("check", "config", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_plain_prometheus_keeps_the_pods_and_ports_of_the_monitors() -> None:
    for component, monitor in monitors().items():
        kept = {
            one["source_labels"][0].removeprefix("__meta_kubernetes_pod_"): one["regex"]
            for one in jobs()[component]["relabel_configs"]
            if one.get("action") == "keep"
        }
        assert kept["container_port_name"] == monitor["port"]
        assert kept["label_app_kubernetes_io_name"] == f"llmfleet-{component}"
        assert kept["label_app_kubernetes_io_component"] == component


def test_targets_are_named_by_the_labels_that_engine_pods_have() -> None:
    sources = {source for one in monitors()["engine"]["relabelings"] for source in one.get("sourceLabels", ())}
    labels = (names.CLUSTER_LABEL, names.ROLE_LABEL, names.FLEET_LABEL, names.POD_INDEX_LABEL)
    assert sources == {"__meta_kubernetes_pod_label_" + re.sub(r"[./-]", "_", label) for label in labels}


def test_neither_way_needs_a_kind_that_only_a_prometheus_operator_has() -> None:
    assert {o["kind"] for o in render(values=PLAIN, chart="llmfleet-monitoring")} == {"ConfigMap"}


def test_helm_3_renders_the_rules_and_monitors_that_helm_4_renders() -> None:
    ours, theirs = (render(chart="llmfleet-monitoring", apis=OPERATOR_APIS, binary=name) for name in ("helm", "helm3"))
    assert ours == theirs


def test_the_umbrella_hands_its_values_to_the_rules() -> None:
    monitoring: dict[str, Any] = {"enabled": True, **PLAIN, "alerts": {"LlmfleetRouterPanic": {"for": "9m"}}}
    objects = render("dev", {"monitoring": monitoring})
    text = find(objects, "ConfigMap", "demo-rules")["data"]["llmfleet.rules.yaml"]
    found = {rule.get("alert"): rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]}
    assert found["LlmfleetRouterPanic"]["for"] == "9m"
    assert find(objects, "ConfigMap", "demo-scrape")


def test_everything_together_stays_far_below_what_a_release_may_weigh() -> None:
    objects = render("dev", {"monitoring": {"enabled": True, **PLAIN}})
    assert len(gzip.compress(yaml.safe_dump_all(objects).encode())) < 700_000
