"""A real Prometheus that scrapes a fleet as a Prometheus operator would: with the relabelings of the rendered monitors.

In: a running Fleet, and expositions of exporters that are not run. Out: a Prometheus on loopback, and answers of its
API. Targets carry what Kubernetes service discovery says of a pod; what becomes of it is up to the chart.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
import yaml

from charts.rendering import find, render
from dashboards.fleet import CONTROLLERS, NAMESPACE, Fleet
from fakes.apiserver import free_ports, process, tool
from llmfleet import names

EXPOSITIONS = Path(__file__).parent / "exporters"
INTERVAL = 1  # seconds between scrapes
# Who serves a recorded exposition, as the labels of its own pod.
EXPORTERS = {
    "dcgm-exporter": {"namespace": "gpu-operator", "pod": "nvidia-dcgm-exporter-7xk2p", "container": "exporter"},
    "kube-state-metrics": {"namespace": "monitoring", "pod": "kube-state-metrics-0", "container": "metrics"},
    "redis-exporter": {"namespace": NAMESPACE, "pod": "demo-redis-0", "container": "exporter"},
}
# The stack's own monitor of kube-state-metrics keeps the labels of what it speaks of.
HONORS_LABELS = {"kube-state-metrics"}

Target = dict[str, Any]
Json = dict[str, Any]


class Recorded:
    """Serves each file of `exporters/` as a `/metrics` of its own."""

    def __enter__(self) -> Recorded:
        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = (EXPOSITIONS / f"{self.path.split('/')[1]}.prom").read_bytes()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                with suppress(OSError):  # Prometheus waits a second, and a busy machine may need more
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Prometheus:
    """One Prometheus process."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet, self.folder = fleet, folder
        self._stack = ExitStack()

    def __enter__(self) -> Prometheus:
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            recorded = stack.enter_context(Recorded())
            (self.folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(self.folder, recorded.address)))
            self.discover()
            [port] = free_ports(1)
            self.url = f"http://127.0.0.1:{port}"
            words = [str(tool("prometheus")), f"--config.file={self.folder / 'prometheus.yml'}"]
            words += [f"--storage.tsdb.path={self.folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
            stack.enter_context(process([*words, "--log.level=warn"], self.fleet.folder / "prometheus.log"))
            self._stack = stack.pop_all()
        self.fleet.until(self.ready, "Prometheus is ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/-/ready", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def discover(self) -> None:
        """Write down which pods there are; Prometheus looks at the files by itself."""
        for component, targets in pods(self.fleet).items():
            path = self.folder / f"{component}.json"
            path.with_suffix(".new").write_text(json.dumps(targets))
            path.with_suffix(".new").rename(path)

    # ---- its API ----

    def ask(self, path: str, **arguments: Any) -> Json:
        """One call; the whole answer, annotations included."""
        answer: Json = requests.post(f"{self.url}/api/v1/{path}", data=arguments, timeout=60).json()
        return answer

    def value(self, expr: str) -> float:
        """The one value of an expression of now; 0 if there is none."""
        found = self.ask("query", query=expr)["data"]["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def label_values(self, label: str, selector: str) -> list[str]:
        found = requests.get(f"{self.url}/api/v1/label/{label}/values", params={"match[]": selector}, timeout=60)
        return list(found.json()["data"])

    def metrics(self) -> set[str]:
        """Every metric that some target declares, also one that has no series yet."""
        found = requests.get(f"{self.url}/api/v1/targets/metadata", timeout=60).json()["data"]
        return {one["metric"] for one in found} | set(self.label_values("__name__", '{__name__!=""}'))


# ---- configuration ----


def configuration(folder: Path, recorded: str) -> Json:
    """Jobs for the chart's monitors and for the exporters."""
    objects = render(chart="llmfleet-monitoring", apis=["monitoring.coreos.com/v1"])
    components = ("router", "operator", "autoscaler", "engine")
    jobs = [job_of(find(objects, "PodMonitor", f"demo-{component}"), component, folder) for component in components]
    jobs += [job_of_exporter(name, labels, recorded) for name, labels in EXPORTERS.items()]
    return {
        "global": {"scrape_interval": f"{INTERVAL}s", "scrape_timeout": f"{INTERVAL}s"},
        "scrape_configs": jobs,
    }


def job_of(monitor: Json, component: str, folder: Path) -> Json:
    """A PodMonitor as the Prometheus operator translates it."""
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    return {
        "job_name": f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}",
        "honor_labels": bool(endpoint.get("honorLabels")),
        "relabel_configs": [snake(rule) for rule in endpoint.get("relabelings", ())],
        "metric_relabel_configs": [snake(rule) for rule in endpoint.get("metricRelabelings", ())],
        "file_sd_configs": [{"files": [str(folder / f"{component}.json")], "refresh_interval": "1s"}],
    }


def job_of_exporter(name: str, labels: Mapping[str, str], recorded: str) -> Json:
    return {
        "job_name": name,
        "honor_labels": name in HONORS_LABELS,
        "metrics_path": f"/{name}/metrics",
        "static_configs": [{"targets": [recorded], "labels": dict(labels)}],
    }


def snake(rule: Mapping[str, Any]) -> Json:
    """The same rule in Prometheus' own spelling."""
    return {re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), key): value for key, value in rule.items()}


def pods(fleet: Fleet) -> dict[str, list[Target]]:
    """The pods of each component, as service discovery would tell of them."""
    return {
        "router": [target(fleet.admin_port, NAMESPACE, "demo-router-7c9d5-abcde", "router")],
        "operator": [target(fleet.operator_port, CONTROLLERS, "demo-operator-0", "operator")],
        "autoscaler": [target(fleet.autoscaler_port, CONTROLLERS, "demo-autoscaler-0", "autoscaler")],
        "engine": [
            target(
                engine.port,
                NAMESPACE,
                name,
                names.ENGINE_CONTAINER,
                address=engine.address,
                pod_labels=engine.pod["metadata"]["labels"],
            )
            for name, engine in list(fleet.kubelet.engines.items())
        ],
    }


def target(
    port: int,
    namespace: str,
    pod: str,
    container: str,
    *,
    address: str = "127.0.0.1",
    pod_labels: Mapping[str, str] | None = None,
) -> Target:
    """One target with the labels that the Prometheus operator gives a pod's, and the pod's own for relabelings."""
    labels = {"namespace": namespace, "pod": pod, "container": container}
    own = pod_labels or {"app.kubernetes.io/instance": "demo"}
    labels |= {f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9]', '_', key)}": text for key, text in own.items()}
    return {"targets": [f"{address}:{port}"], "labels": labels}
