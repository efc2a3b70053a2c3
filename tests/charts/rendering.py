"""Render charts with the pinned Helm and take the objects apart.

In: a chart, values, a release name. Out: parsed objects. The same arguments are rendered once for a whole test run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHARTS = ROOT / "charts"
VALUES = ROOT / "values"
GOLDENS = Path(__file__).parent / "golden"
OWN_CHARTS = ("llmfleet", "llmfleet-controllers", "llmfleet-fleet", "llmfleet-monitoring")

# Each profile as a user gives it to `helm install --values`.
PROFILES: dict[str, tuple[str, ...]] = {
    "dev": ("dev.yaml",),
    "dev-vllm-cpu": ("dev.yaml", "dev-vllm-cpu.yaml"),
    "autoscaling": ("dev.yaml", "autoscaling.yaml"),
    "production-monolithic": ("production-monolithic.yaml",),
    "production-disaggregated": ("production-disaggregated.yaml",),
    "single": ("single.yaml",),
    "canary": ("production-monolithic.yaml", "canary.yaml"),
    "scale-to-zero": ("scale-to-zero.yaml",),
    "spot": ("spot.yaml",),
    "mig": ("mig.yaml",),
    "lora": ("lora.yaml",),
    "multi-tenant": ("production-monolithic.yaml", "multi-tenant.yaml"),
    "rdma": ("production-monolithic.yaml", "rdma.yaml"),
    "air-gapped": ("production-monolithic.yaml", "air-gapped.yaml"),
}

# A profile of these is best read beside another one: its golden holds only what differs from that.
BESIDE: dict[str, str] = {
    **dict.fromkeys(("single", "canary", "scale-to-zero", "spot", "mig"), "production-monolithic"),
    **dict.fromkeys(("lora", "multi-tenant", "rdma", "air-gapped"), "production-monolithic"),
    "production-disaggregated": "production-monolithic",
    "dev-vllm-cpu": "dev",
    "autoscaling": "dev",
}

# What a cluster with Prometheus' operator says that it serves.
PROMETHEUS_OPERATOR = tuple(f"monitoring.coreos.com/v1{kind}" for kind in ("", "/PodMonitor", "/PrometheusRule"))

Object = dict[str, Any]


def nested(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} from "a.b"."""
    tree: Any = value
    for key in reversed(path.split(".")):
        tree = {key: tree}
    return dict(tree)


class RenderError(Exception):
    """Helm refused; the text is what a user reads."""


@cache
def helm(name: str = "helm") -> str:
    """Path of the pinned Helm, `helm` (4) or `helm3`."""
    found = subprocess.run([ROOT / "ci/tools/tool", name], check=True, stdout=subprocess.PIPE, text=True)
    return found.stdout.strip()


def run(arguments: Sequence[str], *, binary: str = "helm") -> str:
    """Run Helm without a cluster; stdout, or RenderError with what it said."""
    done = subprocess.run([helm(binary), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderError(done.stderr)
    return done.stdout


def render(
    profile: str = "",
    values: Mapping[str, Any] | None = None,
    *,
    release: str = "demo",
    namespace: str = "team-a",
    chart: str = "llmfleet",
    charts: Path = CHARTS,
    apis: Sequence[str] = (),
    kubernetes: str = "1.36.3",
    binary: str = "helm",
) -> list[Object]:
    """Every object of a release, hooks included, sorted by kind and name; the caller may change them."""
    text = json.dumps(values or {}, sort_keys=True)
    return deepcopy(rendered(profile, text, release, namespace, charts / chart, tuple(apis), kubernetes, binary))


@cache
def rendered(
    profile: str,
    values: str,
    release: str,
    namespace: str,
    chart: Path,
    apis: tuple[str, ...],
    kubernetes: str,
    binary: str,
) -> list[Object]:
    """`render` with arguments that can be remembered."""
    files = [f"--values={VALUES / name}" for name in PROFILES[profile]] if profile else []
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as extra:
        extra.write(values)
        extra.flush()
        arguments = [f"--namespace={namespace}", f"--kube-version={kubernetes}", *files, f"--values={extra.name}"]
        arguments += [f"--api-versions={api}" for api in apis]
        text = run(["template", release, str(chart), *arguments], binary=binary)
    objects = [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]
    return sorted(objects, key=lambda o: (o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]))


def refusal(values: Mapping[str, Any], profile: str = "dev", *, release: str = "demo", chart: str = "llmfleet") -> str:
    """What Helm says when it refuses these values; it must refuse."""
    try:
        render(profile, values, release=release, chart=chart)
    except RenderError as error:
        return str(error)
    raise AssertionError(f"these values were accepted: {json.dumps(values)}")


def find(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
    return found[0]


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    """All objects of these kinds."""
    return [o for o in objects if o["kind"] in kinds]


def pod_templates(objects: Sequence[Object]) -> dict[str, Object]:
    """Each pod the chart makes, by what makes it: {metadata, spec}."""
    workloads = of_kind(objects, "Deployment", "StatefulSet", "Job")
    templates = {title(o): o["spec"]["template"] for o in workloads}
    return templates | {title(o): o for o in of_kind(objects, "Pod")}


def made_from(objects: Sequence[Object]) -> dict[str, Object]:
    """What each autoscaler makes instances from, one template or one for each role."""
    scalers = {title(o): o["spec"] for o in of_kind(objects, "LLMClusterAutoscaler")}
    blocks = {name: [spec, spec.get("prefill", {}), spec.get("decode", {})] for name, spec in scalers.items()}
    return {
        f"{name}/{number}": part["instanceTemplate"]
        for name, parts in blocks.items()
        for number, part in enumerate(parts)
        if "instanceTemplate" in part
    }


def title(thing: Object) -> str:
    """Kind/name."""
    return f"{thing['kind']}/{thing['metadata']['name']}"


def collection(thing: Object) -> str:
    """The path under which an apiserver keeps objects like this one."""
    group = "/api/v1" if thing["apiVersion"] == "v1" else f"/apis/{thing['apiVersion']}"
    lower = thing["kind"].lower()
    plural = f"{lower[:-1]}ies" if lower.endswith("y") else f"{lower}s"
    namespace = thing["metadata"].get("namespace")
    return f"{group}/namespaces/{namespace}/{plural}" if namespace else f"{group}/{plural}"


def strings(value: Any) -> Iterator[str]:
    """Every string in a tree."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def images(objects: Sequence[Object]) -> set[str]:
    """Every image any pod of the release runs, engines included."""
    specs = [template["spec"] for template in pod_templates(objects).values()]
    containers = [c for spec in specs for c in [*spec["containers"], *spec.get("initContainers", [])]]
    made = {template["spec"]["image"] for template in made_from(objects).values()}
    return {c["image"] for c in containers} | {o["spec"]["image"] for o in of_kind(objects, "LLMCluster")} | made


def copy_charts(target: Path) -> Path:
    """A copy of the charts that a test may change."""
    return Path(shutil.copytree(CHARTS, target / "charts", symlinks=True))
