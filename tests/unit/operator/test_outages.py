"""The operator process when the apiserver is away, slow to come, or behind a partition."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from fakes.apiserver import Apiserver, free_ports, kubeconfig_content
from fakes.scripted import eventually
from fakes.tcp_proxy import Mode, TcpProxy, tcp_proxy
from llmfleet.kube.client import Api
from llmfleet.kube.refs import STATEFULSET


def cluster(namespace: str, name: str) -> dict[str, Any]:
    spec = {"model": "m", "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1, "image": "i:1"}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": metadata, "spec": spec}


@contextmanager
def operator(server: Apiserver, proxy: TcpProxy, namespace: str, folder: Path) -> Iterator[tuple[Any, int]]:
    """An operator that reaches the apiserver only through the proxy; yields the process and its health port."""
    kubeconfig = folder / "kubeconfig"
    url = f"https://127.0.0.1:{proxy.port}"
    kubeconfig.write_text(json.dumps(kubeconfig_content(url, server.token, server.ca_file)))
    metrics, health = free_ports(2)
    command = [sys.executable, "-m", "llmfleet", "operator", "--kubeconfig", str(kubeconfig), "--namespace", namespace]
    command += ["--identity", "sys/rel", "--lease-namespace", namespace, "--metrics-port", str(metrics)]
    command += ["--health-port", str(health)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "POD_NAME": "operator"})
    try:
        yield process, health
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def says(health: int, text: str, path: str = "/readyz") -> bool:
    try:
        return text in requests.get(f"http://127.0.0.1:{health}{path}", timeout=5).text
    except requests.RequestException:
        return False


def has_statefulset(server: Apiserver, namespace: str, name: str) -> bool:
    return server.call("GET", STATEFULSET.path(namespace, name)).status == 200


def port_of(server: Apiserver) -> int:
    return int(server.url.rpartition(":")[2])


def test_a_cut_is_survived_and_what_happened_meanwhile_is_done(
    api: Api, server: Apiserver, namespace: str, tmp_path: Path
) -> None:
    with tcp_proxy(port_of(server)) as proxy, operator(server, proxy, namespace, tmp_path) as (process, health):
        eventually(lambda: says(health, "leading"), seconds=180)
        for mode in (Mode.REFUSE, Mode.STALL):
            name = f"during-{mode}"
            proxy.set(mode)
            api.create(cluster(namespace, name))
            time.sleep(3.0)
            assert not has_statefulset(server, namespace, name)
            assert says(health, "ok", "/healthz")
            proxy.set(Mode.PASS)
            eventually(lambda name=name: has_statefulset(server, namespace, name), seconds=180)
        assert process.poll() is None
        # Ten watches, the lease and the writes: a few connections each, not a flood.
        assert proxy.connections < 150


def test_an_operator_that_starts_before_its_apiserver_waits_for_it(
    api: Api, server: Apiserver, namespace: str, tmp_path: Path
) -> None:
    with tcp_proxy(port_of(server)) as proxy:
        proxy.set(Mode.REFUSE)
        with operator(server, proxy, namespace, tmp_path) as (process, health):
            eventually(lambda: says(health, "standing by"), seconds=180)
            api.create(cluster(namespace, "early"))
            time.sleep(3.0)
            assert process.poll() is None
            assert proxy.connections < 20
            proxy.set(Mode.PASS)
            eventually(lambda: says(health, "leading"), seconds=180)
            eventually(lambda: has_statefulset(server, namespace, "early"), seconds=180)
