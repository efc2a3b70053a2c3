"""A kubelet small enough to read: StatefulSets become pods, and each engine pod a simulator process.

In: a real apiserver and a namespace. Out: pods that run and are ready, at addresses of their own on loopback; the
simulator gets the very arguments of the pod, beside an address and a model of time. It restarts nothing.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fakes.apiserver import Apiserver, free_ports
from llmfleet import names

MERGE = "application/merge-patch+json"
LOOK_SECONDS = 0.2
Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One running simulator and the pod it stands for."""

    pod: Manifest
    address: str
    port: int
    admin_port: int
    process: subprocess.Popen[bytes]

    @property
    def instance(self) -> str:
        return str(self.pod["metadata"]["labels"][names.CLUSTER_LABEL])

    def up(self) -> bool:
        with suppress(OSError), socket.create_connection((self.address, self.port), timeout=1):
            return True
        return False


class Kubelet:
    """Looks at the namespace a few times a second, on a thread of its own."""

    def __init__(self, server: Apiserver, namespace: str, folder: Path, network: str) -> None:
        self.server, self.namespace, self.folder = server, namespace, folder
        self.engines: dict[str, Engine] = {}
        self.ready: set[str] = set()
        self._addresses = (f"{network}.{number}" for number in itertools.count(1))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Kubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        for engine in self.engines.values():
            engine.process.kill()
            engine.process.wait()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        path = f"/apis/apps/v1/namespaces/{self.namespace}/statefulsets"
        for found in self.server.call("GET", path).body.get("items", ()):
            name = f"{found['metadata']['name']}-0"
            if name not in self.engines:
                self.engines[name] = self._start(self._create(found, name))
        for name, engine in self.engines.items():
            if name not in self.ready and engine.up():
                self._tell(engine)
                self.ready.add(name)

    def _create(self, owner: Manifest, name: str) -> Manifest:
        """The pod that the StatefulSet controller would make."""
        template = owner["spec"]["template"]
        labels = {**template["metadata"].get("labels", {}), names.POD_INDEX_LABEL: "0"}
        reference = {"apiVersion": "apps/v1", "kind": "StatefulSet", "controller": True}
        reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
        metadata = {"name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": [reference]}
        metadata["annotations"] = template["metadata"].get("annotations", {})
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        answer = self.server.call("POST", f"/api/v1/namespaces/{self.namespace}/pods", pod)
        assert answer.status == 201, answer.message
        return answer.body

    def _start(self, pod: Manifest) -> Engine:
        """Run what the pod says: `vllm serve ...`, with the simulator as vllm."""
        [container] = pod["spec"]["containers"]
        address, [admin] = next(self._addresses), free_ports(1)
        port = next(port["containerPort"] for port in container["ports"] if port["name"] == "http")
        own = ["--host", address, "--sim-admin-port", str(admin), "--sim-load-seconds", "0"]
        fields = {"status.podIP": address}
        settings = {
            one["name"]: one.get("value") or fields.get(one["valueFrom"]["fieldRef"]["fieldPath"], "")
            for one in container["env"]
            if one["name"].startswith("VLLM_")
        }
        log = (self.folder / f"{pod['metadata']['name']}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "llmfleet_sim", *container["args"][1:], *own],
            stdout=log,
            stderr=log,
            env={**os.environ, **settings},
        )
        return Engine(pod=pod, address=address, port=port, admin_port=admin, process=process)

    def _tell(self, engine: Engine) -> None:
        """Say what a kubelet says about a pod whose container runs and is ready."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        container = {
            "name": names.ENGINE_CONTAINER,
            "image": "sim",
            "imageID": "sim",
            "containerID": "sim://1",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": now}},
        }
        status = {
            "phase": "Running",
            "podIP": engine.address,
            "podIPs": [{"ip": engine.address}],
            "startTime": now,
            "conditions": [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds],
            "containerStatuses": [container],
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods/{engine.pod['metadata']['name']}/status"
        answer = self.server.call("PATCH", path, {"status": status}, content_type=MERGE)
        assert answer.status == 200, answer.message
