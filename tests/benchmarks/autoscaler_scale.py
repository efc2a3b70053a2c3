"""How the autoscaler scales: 200 fleets and 1,000 engines on a real apiserver, looked at by one process.

In: how many fleets, how many instances each. Out: a table: CPU and memory of the process, decisions per fleet in a time
that would give each one exactly one per interval, scrapes that failed, writes. The autoscaler makes the instances
itself; this script plays operator and kubelet (Ready conditions, pods with addresses) and answers as every engine and
router: pages as long as a real vLLM's, with counters that grow as served requests make them grow. The autoscaler gets
one CPU core. Nothing is asserted: this prints figures.

    make bench-autoscaler
    .venv/bin/python tests/benchmarks/autoscaler_scale.py --fleets 20 --seconds 60
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import math
import multiprocessing
import os
import re
import socketserver
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests/benchmarks"))

from operator_scale import await_http, cpu_seconds, create, memory, pod_environment, scratch  # noqa: E402

from fakes.apiserver import Apiserver, free_ports, install_crds, process, running_apiserver  # noqa: E402

NAMESPACE = "bench"
BASE = f"/apis/serving.ai/v1alpha1/namespaces/{NAMESPACE}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
MERGE = "application/merge-patch+json"
ENGINES, ROUTERS = ipaddress.ip_address("127.16.0.0"), ipaddress.ip_address("127.17.0.0")
ADMIN_PORT = 9090
RECORDED = ROOT / "tests/conformance/recorded/metrics.json"
# Requests of 800 prompt and 200 output tokens: what an engine's counters say of each of them.
GROWS = {
    "vllm:prompt_tokens_total": 800.0,
    "vllm:generation_tokens_total": 200.0,
    "vllm:iteration_tokens_total_count": 40.0,
    "vllm:request_success_total": 1.0,
    "vllm:inter_token_latency_seconds_sum": 5.0,
    "vllm:inter_token_latency_seconds_count": 199.0,
}
GAUGES = {"vllm:num_requests_running": 8.0, "vllm:num_requests_waiting": 0.0, "vllm:kv_cache_usage_perc": 0.2}


@dataclass(slots=True, kw_only=True)
class Figures:
    """The table."""

    fleets: int
    engines: int
    seconds: float
    cpu: float = 0.0
    rss: float = 0.0
    peak: float = 0.0
    fewest: int = 0
    most: int = 0
    asked: int = 0
    failed: int = 0
    writes: Counter[str] = field(default_factory=Counter)


def main() -> None:
    options = parse_options()
    prefer("self", options.nice)
    with tempfile.TemporaryDirectory(prefix="llmfleet bench ", dir=scratch()) as folder, pages(options) as port:
        print(table(measure(Path(folder), port, options)))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleets", type=int, default=200)
    parser.add_argument("--instances", type=int, default=5, help="of each fleet")
    parser.add_argument("--seconds", type=float, default=150.0, help="how long CPU and decisions are counted")
    parser.add_argument("--interval", type=float, default=15.0, help="the autoscaler's --interval")
    parser.add_argument("--nice", type=int, default=0, help="niceness of all of it; below 0 as root")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds an engine takes for its page")
    parser.add_argument("--keep-log", type=Path, help="copy the autoscaler's log here")
    return parser.parse_args()


def prefer(pid: int | str, niceness: int) -> None:
    """A busy machine shares its cores by session first, where the kernel groups them so, and by niceness inside one."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def measure(folder: Path, port: int, options: argparse.Namespace) -> Figures:
    """Everything from nothing to the figures of a steady state."""
    total = options.fleets * options.instances
    figures = Figures(fleets=options.fleets, engines=total, seconds=options.seconds)
    with running_apiserver(folder, arguments=["--max-requests-inflight=2000"]) as server:
        install_crds(server, ROOT / "charts" / "llmfleet-crds" / "crds")
        create(server, "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for number in range(2):
            make_pod(server, router_pod(number), str(ROUTERS + number + 1))
        with ThreadPoolExecutor(4) as pool:
            list(
                pool.map(
                    lambda n: create(server, f"{BASE}/llmclusterautoscalers", scaler(n, options)), range(options.fleets)
                )
            )
        with autoscaler(server, folder, options) as (pid, metrics):
            become_ready(server, port, total)
            say(f"{total} engines answer; two intervals to settle, then {options.seconds:.0f} s are counted")
            time.sleep(2 * options.interval)
            count(figures, pid, metrics)
        if options.keep_log:
            options.keep_log.write_bytes((folder / "autoscaler.log").read_bytes())
    return figures


def count(figures: Figures, pid: int, metrics: str) -> None:
    """What the process does in the given time."""
    before, cpu = read(metrics), cpu_seconds(pid)
    time.sleep(figures.seconds)
    figures.cpu = (cpu_seconds(pid) - cpu) / figures.seconds
    after = read(metrics)
    grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
    decisions = Counter[str]()
    for (name, labels), value in grown.items():
        if name == "llmfleet_autoscaler_decisions_total":
            decisions[labels["fleet"]] += int(value)
        elif name == "llmfleet_autoscaler_scrapes_total" and labels["result"] == "ok":
            figures.asked += int(value)
        elif name == "llmfleet_autoscaler_scrapes_total":
            figures.failed += int(value)
        elif name == "llmfleet_autoscaler_writes_total" and value:
            figures.writes[f"{labels['resource']} {labels['verb']}"] += int(value)
    figures.fewest, figures.most = min(decisions.values(), default=0), max(decisions.values(), default=0)
    figures.peak, figures.rss = memory(pid)


class Labels(dict[str, str]):
    """Labels that can be a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def read(url: str) -> dict[tuple[str, Labels], float]:
    text = requests.get(url, timeout=60).text
    found = re.findall(r"^(llmfleet_autoscaler_\w+_total)\{(.*)\} (\S+)$", text, re.M)
    return {(name, Labels(re.findall(r'(\w+)="([^"]*)"', labels))): float(value) for name, labels, value in found}


# The world.


def scaler(number: int, options: argparse.Namespace) -> dict[str, Any]:
    """A fleet whose load lies well within its bounds."""
    labels = {"serving.ai/fleet": f"fleet-{number}"}
    spec = {
        "model": "org/bench",
        "servedModelNames": [f"model-{number}"],
        "replicas": 1,
        "gpusPerPod": 8,
        "tensorParallelSize": 8,
        "image": "localhost/bench:1",
    }
    return {
        "apiVersion": "serving.ai/v1alpha1",
        "kind": "LLMClusterAutoscaler",
        "metadata": {"name": f"fleet-{number}", "namespace": NAMESPACE},
        "spec": {
            "mode": "monolithic",
            "scaleTargetRef": {"labelSelector": {"matchLabels": labels}},
            "minInstances": options.instances,
            "maxInstances": options.instances + 5,
            "instanceTemplate": {"namePrefix": f"fleet-{number}-", "labels": labels, "spec": spec},
            "workBudget": {"capacity": {"profile": "llama-70b-fp8-h100-tp8"}},
        },
    }


def become_ready(server: Apiserver, port: int, total: int) -> None:
    """Play operator and kubelet for every instance the autoscaler makes, until all are there."""
    done: set[str] = set()
    while len(done) < total:
        items = server.call("GET", f"{BASE}/llmclusters", params={"resourceVersion": "0"}).body["items"]
        new = [item["metadata"]["name"] for item in items if item["metadata"]["name"] not in done]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda pair: serve(server, *pair, port), enumerate(new, start=len(done) + 1)))
        done |= set(new)
        say(f"{len(done)} of {total} instances")
        time.sleep(0.5)


def serve(server: Apiserver, number: int, name: str, port: int) -> None:
    """Rank 0 with an address, and the condition that says it answers."""
    make_pod(server, engine_pod(name, port), str(ENGINES + number))
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ready = {"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": now}
    status = {"status": {"observedGeneration": 1, "conditions": [ready], "modelLoadSeconds": 120}}
    patch(server, f"{BASE}/llmclusters/{name}/status", status)


def make_pod(server: Apiserver, pod: dict[str, Any], address: str) -> None:
    create(server, PODS, pod)
    ready = {"type": "Ready", "status": "True"}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [ready]}
    patch(server, f"{PODS}/{pod['metadata']['name']}/status", {"status": status})


def patch(server: Apiserver, path: str, body: dict[str, Any]) -> None:
    answer = server.call("PATCH", path, body, content_type=MERGE)
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.message}")


def engine_pod(name: str, port: int) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "llmfleet-engine", "serving.ai/cluster": name}
    labels |= {"apps.kubernetes.io/pod-index": "0"}
    ports = [{"name": "http", "containerPort": port}]
    return pod(f"{name}-0", labels, {"name": "engine", "image": "i", "ports": ports})


def router_pod(number: int) -> dict[str, Any]:
    return pod(f"router-{number}", {"app.kubernetes.io/component": "router"}, {"name": "router", "image": "i"})


def pod(name: str, labels: dict[str, str], container: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
    spec = {"containers": [container], "automountServiceAccountToken": False}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@contextlib.contextmanager
def autoscaler(server: Apiserver, folder: Path, options: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """The real process, on the last core only."""
    metrics, health = free_ports(2)
    command = [
        "nice",
        "-n",
        str(options.nice),
        "env",
        *pod_environment(server, folder),
        sys.executable,
        "-m",
        "llmfleet",
        "autoscaler",
    ]
    command += [f"--identity={NAMESPACE}/bench", f"--lease-namespace={NAMESPACE}", f"--interval={options.interval}"]
    command += [f"--metrics-port={metrics}", f"--health-port={health}"]
    with process(command, folder / "autoscaler.log") as running:
        os.sched_setaffinity(running.pid, {max(os.sched_getaffinity(0))})
        prefer(running.pid, options.nice)
        await_http(f"http://127.0.0.1:{health}/readyz", "leading")
        yield running.pid, f"http://127.0.0.1:{metrics}/metrics"


# The pages.


@contextlib.contextmanager
def pages(options: argparse.Namespace) -> Iterator[int]:
    """Every engine and router, in a process of their own, told apart by the address they are asked at; their port."""
    (port,) = free_ports(1)
    server = multiprocessing.get_context("spawn").Process(target=answer_all, args=(port, options), daemon=True)
    server.start()
    try:
        yield port
    finally:
        server.terminate()
        server.join()


def answer_all(port: int, options: argparse.Namespace) -> None:
    """Serve on the port of engines and on that of routers."""
    os.nice(options.nice)
    engine, router = engine_template(), router_page(options.fleets).encode()

    def engine_answer(address: str) -> bytes:
        time.sleep(options.delay)
        return engine_page(engine, int(ipaddress.ip_address(address)) - int(ENGINES), time.time())

    with (
        Listening(("0.0.0.0", port), asked(engine_answer)) as engines,
        Listening(("0.0.0.0", ADMIN_PORT), asked(lambda address: router)) as routers,
        ThreadPoolExecutor(1) as pool,
    ):
        pool.submit(routers.serve_forever)
        engines.serve_forever()


class Listening(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512


def asked(page: Callable[[str], bytes]) -> type[socketserver.StreamRequestHandler]:
    """A handler of one GET, whose page depends on the address that was asked."""

    class Asked(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            body = page(self.connection.getsockname()[0])
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            self.wfile.write(head.encode() + body)

    return Asked


def engine_template() -> str:
    """A page as a real vLLM wrote it, with room for the figures that grow."""
    lines = []
    for name, family in json.loads(RECORDED.read_text()).items():
        lines += [f"# HELP {name} {family['help']}", f"# TYPE {name} {family['kind']}"]
        for sample in family["samples"]:
            bare = sample.partition("{")[0]
            value = f"<{bare}>" if bare in GROWS else str(GAUGES.get(bare, 1.0))
            lines.append(f"{sample} {value}")
    return "\n".join(lines) + "\n"


def engine_page(template: str, number: int, now: float) -> bytes:
    """Some three requests a second, more in some minutes than in others, not the same at every engine."""
    served = 3 * now + 60 * math.sin(now / 120 + number)
    return re.sub(r"<([\w:]+)>", lambda found: f"{GROWS[found[1]] * served:.1f}", template).encode()


def router_page(fleets: int) -> str:
    lines = []
    for number in range(fleets):
        model = f'model="model-{number}"'
        lines += [f"llmfleet_queue_requests{{{model}}} 0.0", f"llmfleet_router_in_flight_requests{{{model}}} 20.0"]
        lines.append(f'llmfleet_router_refusals_total{{{model},reason="server_is_overloaded"}} 0.0')
        lines += [f'llmfleet_router_requests_total{{{model},code="{code}"}} 5.0' for code in (200, 400, 429, 503)]
        lines += [f'llmfleet_router_seconds_bucket{{{model},le="{edge}"}} 9.0' for edge in range(20)]
    return "\n".join(lines) + "\n"


# The table.


def table(one: Figures) -> str:
    head = (
        "fleets  engines     CPU       RSS   RSS peak  decisions per fleet and interval  scrapes/s  failed  writes/min"
    )
    intervals = one.seconds / 15.0
    row = (
        f"{one.fleets:6d} {one.engines:8d} {100 * one.cpu:5.1f} % {one.rss:6.0f} MiB {one.peak:6.0f} MiB "
        f"{one.fewest / intervals:16.2f} to {one.most / intervals:.2f}       "
        f"{one.asked / one.seconds:13.1f} {one.failed:7d} {60 * one.writes.total() / one.seconds:11.0f}"
    )
    writes = ", ".join(f"{name} {number}" for name, number in sorted(one.writes.items()))
    return f"{head}\n{row}\n  writes in {one.seconds:.0f} s: {writes or 'none'}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
