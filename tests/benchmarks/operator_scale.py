"""How the operator scales: instances on a real apiserver, scheduler and StatefulSet controller, with fake nodes.

In: sizes. Out: one table row per size: seconds from the first create to every status being right, the operator's CPU
seconds and memory, its writes by kind, and every write the apiserver saw while the fleet rests. Pods are made Ready by
kwok, so nothing serves and warm-up is off; everything the operator reads and writes is real. The operator gets one CPU
core. Nothing is asserted: this prints figures.

    make bench-operator
    .venv/bin/python tests/benchmarks/operator_scale.py --sizes 100 --rest-seconds 60
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from fakes.apiserver import Apiserver, free_ports, install_crds, process, running_apiserver, tool  # noqa: E402

NAMESPACE = "bench"
PODS_PER_NODE = 100
FLEET_SIZE = 10
STAGES = Path(__file__).parent / "kwok" / "stages.yaml"
LLMCLUSTERS = f"/apis/serving.ai/v1alpha1/namespaces/{NAMESPACE}/llmclusters"


@dataclass(slots=True, kw_only=True)
class Figures:
    """One row of the table."""

    size: int
    seconds: float = 0.0
    cpu: float = 0.0
    peak_mib: float = 0.0
    rest_mib: float = 0.0
    rest_cpu: float = 0.0
    writes: Counter[str] = field(default_factory=Counter)
    rest_own: int = 0
    rest_seen: Counter[str] = field(default_factory=Counter)
    converged: bool = False


def main() -> None:
    options = parse_options()
    rows = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="llmfleet bench ", dir=scratch()) as folder:
            rows.append(measure(size, Path(folder), options))
        print(table(rows), flush=True)
        print(details(rows[-1], options.rest_seconds), flush=True)
    sys.exit(0 if all(row.converged for row in rows) else 1)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: [int(part) for part in text.split(",")], default=[100, 300, 1000])
    parser.add_argument("--rest-seconds", type=float, default=300.0, help="how long writes at rest are counted")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a size counts as failed")
    parser.add_argument("--workers", type=int, default=8, help="the operator's --workers")
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="the operator's niceness; below 0 (as root) its core is its own on a busy machine",
    )
    parser.add_argument("--keep-log", type=Path, help="copy the operator's log here")
    return parser.parse_args()


def scratch() -> Path | None:
    """Memory, where there is some: the disk of a build machine is not what is measured."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30 else None


def measure(size: int, folder: Path, options: argparse.Namespace) -> Figures:
    """One world of this size, from nothing."""
    figures = Figures(size=size)
    with world(folder, size) as server, operator(server, folder, options.workers, options.nice) as running:
        say(f"{size}: everything runs, creating instances")
        began = time.monotonic()
        cpu = cpu_seconds(running.pid)
        create_clusters(server, size)
        say(f"{size}: created after {time.monotonic() - began:.1f} s")
        figures.converged = await_right(server, size, began + options.timeout)
        figures.seconds = time.monotonic() - began
        figures.cpu = cpu_seconds(running.pid) - cpu
        figures.writes = own_writes(running.metrics)
        say(f"{size}: all statuses right after {figures.seconds:.1f} s, waiting for the rest to settle")
        time.sleep(min(30.0, options.rest_seconds))
        rest(server, running, figures, options.rest_seconds)
        figures.peak_mib, figures.rest_mib = memory(running.pid)
    if options.keep_log:
        options.keep_log.write_bytes((folder / "operator.log").read_bytes())
    return figures


def rest(server: Apiserver, running: Running, figures: Figures, seconds: float) -> None:
    """Nothing changes: count what is written all the same."""
    own, seen, cpu = own_writes(running.metrics), seen_writes(server), cpu_seconds(running.pid)
    time.sleep(seconds)
    figures.rest_own = (own_writes(running.metrics) - own).total()
    figures.rest_seen = seen_writes(server) - seen
    figures.rest_cpu = (cpu_seconds(running.pid) - cpu) / seconds


# The world.


@contextlib.contextmanager
def world(folder: Path, size: int) -> Iterator[Apiserver]:
    """apiserver, scheduler, the StatefulSet and disruption controllers, garbage collection, fake nodes."""
    # Nobody here takes the taint off that a new node is given until it is Ready.
    limits = ["--disable-admission-plugins=TaintNodesByCondition"]
    limits += ["--max-requests-inflight=2000", "--max-mutating-requests-inflight=2000"]
    with running_apiserver(folder, arguments=limits) as server, contextlib.ExitStack() as stack:
        install_crds(server, ROOT / "charts" / "llmfleet-crds" / "crds")
        create(server, "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        create(server, f"/api/v1/namespaces/{NAMESPACE}/configmaps", backends())
        kubeconfig = str(server.kubeconfig)
        for name, command in {
            "controllers": controllers_command(kubeconfig),
            "scheduler": scheduler_command(kubeconfig),
            "kwok": kwok_command(kubeconfig),
        }.items():
            stack.enter_context(process(command, folder / f"{name}.log"))
        for number in range(2 * size // PODS_PER_NODE + 1):
            create(server, "/api/v1/nodes", node(f"node-{number}"))
        await_nodes(server)
        yield server


def controllers_command(kubeconfig: str) -> list[str]:
    controllers = "statefulset-controller,disruption-controller,garbage-collector-controller"
    return [
        str(tool("kube-controller-manager")),
        f"--kubeconfig={kubeconfig}",
        f"--controllers={controllers}",
        "--leader-elect=false",
        "--kube-api-qps=1000",
        "--kube-api-burst=2000",
        "--concurrent-statefulset-syncs=20",
        f"--secure-port={free_ports(1)[0]}",
        "--bind-address=127.0.0.1",
    ]


def scheduler_command(kubeconfig: str) -> list[str]:
    return [
        str(tool("kube-scheduler")),
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--kube-api-qps=1000",
        "--kube-api-burst=2000",
        f"--secure-port={free_ports(1)[0]}",
        "--bind-address=127.0.0.1",
    ]


def kwok_command(kubeconfig: str) -> list[str]:
    return [
        str(tool("kwok")),
        f"--kubeconfig={kubeconfig}",
        f"--config={STAGES}",
        "--manage-all-nodes=true",
        "--node-lease-duration-seconds=40",
        "--cidr=10.0.0.1/16",
    ]


def node(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "type": "kwok"}},
        "status": {
            "allocatable": {"cpu": "64", "memory": "512Gi", "pods": str(PODS_PER_NODE + 20)},
            "capacity": {"cpu": "64", "memory": "512Gi", "pods": str(PODS_PER_NODE + 20)},
        },
    }


def backends() -> dict[str, Any]:
    annotations = {
        "serving.ai/cluster-selector": "",
        "serving.ai/router-selector": "app.kubernetes.io/component=router",
    }
    labels = {"serving.ai/backends": "true"}
    metadata = {"name": "bench-router-backends", "namespace": NAMESPACE, "labels": labels, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def llmcluster(number: int) -> dict[str, Any]:
    """Two pods of four devices' worth of parallelism, without devices, warm-up or a model."""
    spec = {
        "model": "org/bench",
        "servedModelNames": [f"model-{number // FLEET_SIZE}"],
        "replicas": 2,
        "gpusPerPod": 4,
        "tensorParallelSize": 8,
        "image": "localhost/bench:1",
        "accelerator": {"resourceName": ""},
        "lifecycle": {"warmup": {"enabled": False}},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
    }
    metadata = {
        "name": f"bench-{number}",
        "namespace": NAMESPACE,
        "labels": {"serving.ai/fleet": f"fleet-{number // FLEET_SIZE}"},
    }
    return {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": metadata, "spec": spec}


def create(server: Apiserver, path: str, body: Mapping[str, Any]) -> None:
    answer = server.call("POST", path, body)
    if answer.status != 201:
        raise SystemExit(f"{path}: {answer.message}")


def create_clusters(server: Apiserver, size: int) -> None:
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda number: create(server, LLMCLUSTERS, llmcluster(number)), range(size)))


def await_nodes(server: Apiserver) -> None:
    deadline = time.monotonic() + 120
    while True:
        nodes = server.call("GET", "/api/v1/nodes").body["items"]
        if nodes and all(condition(item, "Ready") for item in nodes):
            return
        if time.monotonic() > deadline:
            raise SystemExit("kwok's nodes did not become Ready")
        time.sleep(0.5)


def await_right(server: Apiserver, size: int, deadline: float) -> bool:
    """Every endpoint in the document, and then every instance Ready with all its pods.

    The document is one small read; listing all instances every second would be most of the apiserver's work."""
    said = -1
    while time.monotonic() < deadline:
        found = published(server)
        if found != said:
            say(f"{found} of {size} published")
            said = found
        if found == size:
            items = server.call("GET", LLMCLUSTERS, params={"resourceVersion": "0"}).body["items"]
            if sum(is_right(item) for item in items) == size:
                return True
        time.sleep(0.5)
    return False


def is_right(item: Mapping[str, Any]) -> bool:
    status = item.get("status") or {}
    current = status.get("observedGeneration") == item["metadata"]["generation"]
    return current and condition(item, "Ready") and status.get("readyReplicas") == 2


def condition(item: Mapping[str, Any], kind: str) -> bool:
    conditions = (item.get("status") or {}).get("conditions") or ()
    return any(entry["type"] == kind and entry["status"] == "True" for entry in conditions)


def published(server: Apiserver) -> int:
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/bench-router-backends"
    text = (server.call("GET", path).body.get("data") or {}).get("backends.json")
    models = json.loads(text)["models"] if text else {}
    return sum(len(model["endpoints"]) for model in models.values())


# The operator.


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    pid: int
    metrics: str


@contextlib.contextmanager
def operator(server: Apiserver, folder: Path, workers: int, niceness: int) -> Iterator[Running]:
    """The real process, on the last core only."""
    metrics, health = free_ports(2)
    command = [
        "nice",
        "-n",
        str(niceness),
        "env",
        *pod_environment(server, folder),
        sys.executable,
        "-m",
        "llmfleet",
        "operator",
    ]
    command += [f"--identity={NAMESPACE}/bench", f"--lease-namespace={NAMESPACE}", f"--workers={workers}"]
    command += [f"--metrics-port={metrics}", f"--health-port={health}"]
    with process(command, folder / "operator.log") as running:
        os.sched_setaffinity(running.pid, {max(os.sched_getaffinity(0))})
        await_http(f"http://127.0.0.1:{health}/readyz", "leading")
        yield Running(pid=running.pid, metrics=f"http://127.0.0.1:{metrics}/metrics")


def pod_environment(server: Apiserver, folder: Path) -> list[str]:
    """What a pod finds: the apiserver's address and a mounted token. Reading a kubeconfig would cost 17 MiB."""
    account = folder / "serviceaccount"
    account.mkdir()
    (account / "token").write_text(server.token, encoding="utf-8")
    shutil.copy(server.ca_file, account / "ca.crt")
    host, _, port = server.url.removeprefix("https://").rpartition(":")
    return [
        f"KUBERNETES_SERVICE_HOST={host}",
        f"KUBERNETES_SERVICE_PORT={port}",
        f"LLMFLEET_KUBE_SERVICEACCOUNT={account}",
        "POD_NAME=bench-operator",
    ]


def await_http(url: str, text: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            answer = requests.get(url, timeout=5)
            if answer.status_code == 200 and text in answer.text:
                return
        time.sleep(0.2)
    raise SystemExit(f"{url} did not say {text!r}")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> tuple[float, float]:
    """Peak and present resident memory in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    peak, now = (int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024 for name in ("VmHWM", "VmRSS"))  # type: ignore[index]
    return peak, now


def own_writes(url: str) -> Counter[str]:
    """Writes by resource, from the operator's own metrics; leases are not counted there."""
    text = requests.get(url, timeout=30).text
    pattern = re.compile(
        r'^llmfleet_operator_writes_total\{code="(\d+)",resource="([^"]+)",verb="([^"]+)"\} (\S+)', re.M
    )
    counts: Counter[str] = Counter()
    for code, resource, verb, count in pattern.findall(text):
        counts[f"{resource} {verb}" + ("" if code == "200" else f" {code}")] += int(float(count))
    return counts


def seen_writes(server: Apiserver) -> Counter[str]:
    """Every write the apiserver answered, by resource; leases and kwok's nodes aside."""
    text = server.session.get(server.url + "/metrics", timeout=60).text
    counts: Counter[str] = Counter()
    for labels, count in re.findall(r"^apiserver_request_total\{(.*?)\} (\S+)", text, re.M):
        found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if found["verb"] in ("POST", "PUT", "PATCH", "APPLY", "DELETE") and found["resource"] not in (
            "leases",
            "nodes",
        ):
            counts[found["resource"]] += int(float(count))
    return counts


# The table.


def table(rows: Sequence[Figures]) -> str:
    head = "instances  pods  all right after  operator CPU  ms CPU/instance  RSS peak  RSS at rest"
    head += "  CPU at rest  writes at rest"
    lines = [head]
    for row in rows:
        seconds = f"{row.seconds:.1f} s" if row.converged else "never"
        lines.append(
            f"{row.size:9d} {2 * row.size:5d} {seconds:>16s} {row.cpu:11.1f} s {1000 * row.cpu / row.size:16.1f} "
            f"{row.peak_mib:5.0f} MiB {row.rest_mib:8.0f} MiB {100 * row.rest_cpu:10.1f} % "
            f"{row.rest_own:3d} own, {row.rest_seen.total()} in all"
        )
    return "\n".join(lines)


def details(row: Figures, rest_seconds: float) -> str:
    writes = ", ".join(f"{name} {count}" for name, count in sorted(row.writes.items()))
    seen = ", ".join(f"{name} {count}" for name, count in sorted(row.rest_seen.items())) or "none"
    period = f"seen by the apiserver in {rest_seconds:.0f} s at rest, besides leases and fake nodes"
    return f"  writes: {writes}\n  {period}: {seen}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
