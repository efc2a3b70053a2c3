"""A whole running fleet without a cluster: control plane, router, Redis and engines as processes on loopback.

In: a folder. Out: `Fleet`, which says where everything listens and which pod each process stands for. The apiserver,
the operator, the autoscaler, route-sync and the router are the real ones; only the kubelet is ours (kubelet.py), and
engines are simulators. Every process is ended by its own id.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import requests
import yaml

from dashboards.kubelet import MERGE, Kubelet
from fakes.apiserver import ROOT, free_ports, install_crds, process, running_apiserver

sys.path.append(str(Path(__file__).resolve().parents[1] / "router" / "jobs"))

from redis_server import RedisServer, command

NAMESPACE = "serving"
CONTROLLERS = "llmfleet-system"
IDENTITY = f"{CONTROLLERS}/demo"
ROUTES = "demo-router-backends"
RELEASE = {"app.kubernetes.io/instance": "demo"}
START_SECONDS = 600  # of a machine that is busy with other things
# What tenants send, and what the keys file says of them. The third may have one request open at once.
TENANTS: dict[str, dict[str, Any]] = {
    "team-a": {},
    "team-b": {"class": "low"},
    "trial": {"concurrency": 1},
}
# Steps like a large model's on a few GPUs; a KV cache so small that four long answers do not fit.
ENGINE = ["--sim-kv-blocks=48", "--sim-step-a=6", "--disable-access-log-for-endpoints=/metrics"]

Object = dict[str, Any]


def key_of(tenant: str) -> str:
    """The API key of a tenant of this fleet."""
    return f"sk-{tenant}-of-the-dashboards"


def scaler(name: str, mode: str, **spec: Any) -> Object:
    """An LLMClusterAutoscaler over the instances with its fleet's label."""
    target = {"labelSelector": {"matchLabels": {"serving.ai/fleet": name}}}
    metadata = {"name": name, "namespace": NAMESPACE}
    return {
        "apiVersion": "serving.ai/v1alpha1",
        "kind": "LLMClusterAutoscaler",
        "metadata": metadata,
        "spec": {"mode": mode, "scaleTargetRef": target, **spec},
    }


def template(fleet: str, prefix: str, port: int, **spec: Any) -> Object:
    """What instances of a fleet are made from."""
    shape = {
        "model": f"org/{fleet}",
        "servedModelNames": [fleet],
        "image": "vllm/vllm-openai:v0.33.0",
        "replicas": 1,
        "gpusPerPod": 2,
        "tensorParallelSize": 2,
        "network": {"basePort": port},
        "inferenceArgs": {"maxNumSeqs": 4, "maxModelLen": 640, "extraArgs": ENGINE},
    }
    return {"namePrefix": prefix, "labels": {**RELEASE, "serving.ai/fleet": fleet}, "spec": {**shape, **spec}}


def monolithic(port: int) -> Object:
    """Two instances to begin with."""
    made = template("llama", "llama-", port)
    return scaler("llama", "monolithic", minInstances=2, maxInstances=3, instanceTemplate=made)


def disaggregated(port: int, transfer_port: int) -> Object:
    """One instance of each role."""
    transfer = {"connector": "NixlConnector", "port": transfer_port, "loadFailurePolicy": "fail"}
    roles = {
        role: {
            "minInstances": 1,
            "maxInstances": 1,
            "instanceTemplate": template("qwen", f"qwen-{role}-", port, role=role, kvTransfer=transfer),
        }
        for role in ("prefill", "decode")
    }
    return scaler("qwen", "disaggregated", **roles)


class Fleet:
    """Everything that runs; use it as a context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = f"127.0.{os.getpid() % 200 + 20}"
        self._stack = ExitStack()

    def __enter__(self) -> Fleet:
        with ExitStack() as started:
            self._start(started)
            self._stack = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.redis = RedisServer(command(), self.folder / "redis")
        stack.callback(self.redis.stop)
        self.redis.start()
        self.server = stack.enter_context(running_apiserver(self.folder / "apiserver"))
        install_crds(self.server, ROOT / "charts" / "llmfleet-crds" / "crds")
        self.kubelet = Kubelet(self.server, NAMESPACE, self.folder, self.network)
        self._create_objects()
        stack.enter_context(self.kubelet)
        self.operator_port = self._controller(stack, "operator")
        self.autoscaler_port = self._controller(stack, "autoscaler", "--interval", "1")
        self._route_sync(stack)
        self._router(stack)
        self.until(lambda: len(self.endpoints()) == 4, "four engines in the router")

    def _create_objects(self) -> None:
        port, transfer_port = free_ports(2)
        selectors = {
            "serving.ai/cluster-selector": "app.kubernetes.io/instance=demo",
            "serving.ai/router-selector": "app.kubernetes.io/instance=demo,app.kubernetes.io/component=router",
        }
        routes = {"name": ROUTES, "labels": {"serving.ai/backends": "true"}, "annotations": selectors}
        api = f"/apis/serving.ai/v1alpha1/namespaces/{NAMESPACE}/llmclusterautoscalers"
        core = "/api/v1/namespaces"
        self._post(core, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self._post(f"{core}/{NAMESPACE}/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": routes})
        self._post(api, monolithic(port))
        self._post(api, disaggregated(port, transfer_port))

    def _post(self, path: str, body: Object) -> None:
        answer = self.server.call("POST", path, body)
        assert answer.status == 201, answer.message

    def _controller(self, stack: ExitStack, role: str, *more: str) -> int:
        metrics, health = free_ports(2)
        words = [sys.executable, "-m", "llmfleet", role, "--kubeconfig", str(self.server.kubeconfig)]
        words += ["--namespace", NAMESPACE, "--identity", IDENTITY, "--lease-namespace", NAMESPACE]
        words += ["--metrics-port", str(metrics), "--health-port", str(health), *more]
        stack.enter_context(process(words, self.folder / f"{role}.log"))
        return metrics

    def _route_sync(self, stack: ExitStack) -> None:
        self.backends = self.folder / "backends.json"
        words = [sys.executable, "-m", "llmfleet", "route-sync", "--kubeconfig", str(self.server.kubeconfig)]
        words += ["--namespace", NAMESPACE, "--configmap", ROUTES, "--output", str(self.backends)]
        words += ["--health-port", str(free_ports(1)[0])]
        stack.enter_context(process(words, self.folder / "route-sync.log"))

    def _router(self, stack: ExitStack) -> None:
        settings = {
            "redis": {"url": self.redis.url, "timeoutSeconds": 1},
            "queue": {"capacity": 6},
            "disaggregation": {"bypassPrefill": {"minPromptTokens": 64}},
            "health": {"ejectionSeconds": 2},
        }
        tenants = {
            name: {"keys": [hashlib.sha256(key_of(name).encode()).hexdigest()], **rules}
            for name, rules in TENANTS.items()
        }
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        (self.folder / "keys.yaml").write_text(yaml.safe_dump({"tenants": tenants}))
        self.port, self.admin_port = free_ports(2)
        words = [sys.executable, "-m", "llmfleet", "router", "--settings", str(self.folder / "settings.yaml")]
        words += ["--backends", str(self.backends), "--keys", str(self.folder / "keys.yaml")]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--admin-port", str(self.admin_port)]
        stack.enter_context(process(words, self.folder / "router.log"))

    # ---- looking at it ----

    def endpoints(self) -> set[str]:
        """Instances the router has adopted."""
        try:
            text = requests.get(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=5).text
        except requests.RequestException:
            return set()
        lines = [line for line in text.splitlines() if line.startswith("llmfleet_router_endpoint_slots{")]
        return {line.partition('llmcluster="')[2].partition('"')[0] for line in lines}

    def until(self, condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not so after {seconds:.0f} s: {what}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The ends of all logs, for a failure."""
        return "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log")))

    # ---- what is done to it ----

    def grow(self, fleet: str, instances: int) -> None:
        """Ask for more instances, as a person does."""
        path = f"/apis/serving.ai/v1alpha1/namespaces/{NAMESPACE}/llmclusterautoscalers/{fleet}"
        answer = self.server.call("PATCH", path, {"spec": {"minInstances": instances}}, content_type=MERGE)
        assert answer.status == 200, answer.message

    def fault(self, instance: str, **what: Any) -> None:
        """Break one engine for a moment, through the simulator's admin port."""
        engine = self.kubelet.engines[f"{instance}-0"]
        answer = requests.post(f"http://127.0.0.1:{engine.admin_port}/fault", data=json.dumps(what), timeout=30)
        assert answer.status_code == 200, answer.text
