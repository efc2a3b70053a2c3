"""How much of its peak the router still delivers when asked for twice, five and ten times of what its engines can.

    python tests/benchmarks/router_overload.py [--seconds S] [--deadline S]

In: nothing but this machine. Two engines of 8 slots that take 100 ms for an answer can do 160 requests a second. Out:
for each load the goodput (whole answers within the deadline) as a share of the peak, how fast refusals came, how many
of them were requests that had waited in vain, and how soon after the load the router was as fast as before.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "router"))

import measure
import peers
import programs

from llmfleet.api.document import Document, Endpoint, Model, render, with_generation

SLOTS, ENGINES, SERVICE_MS = 8, 2, 100
PEAK = SLOTS * ENGINES * 1000 / SERVICE_MS
LOADS = (1.0, 2.0, 5.0, 10.0)


class Overload:
    def __init__(self, folder: str, deadline: float) -> None:
        self.folder, self.deadline = folder, deadline
        self.body = Path(folder) / "body.json"
        wish = f"[delay_us={SERVICE_MS * 1000}] " + "words " * 100
        self.body.write_text(json.dumps({"model": "m", "messages": [{"role": "user", "content": wish}]}))

    def __enter__(self) -> Overload:
        self.load = str(programs.compiled("load"))
        base = measure.free_ports(ENGINES)
        self.engine = subprocess.Popen([str(programs.compiled("engine")), str(base), str(ENGINES)])
        self.engine_port = base
        for _ in range(100):  # until it listens, its ports look free
            try:
                self.most_at_once()
                break
            except OSError:
                time.sleep(0.1)
        self.port = measure.free_ports(2)
        endpoints = tuple(
            Endpoint(instance=f"e{i}", address=f"127.0.0.1:{base + i}", pod_uid=f"uid-{i}", slots=SLOTS)
            for i in range(ENGINES)
        )
        document = with_generation(Document(models={"m": Model(endpoints=endpoints)}), previous=0, now_ms=1)
        backends = Path(self.folder) / "backends.json"
        backends.write_bytes(render(document))
        options = ["--backends", str(backends), "--host", "127.0.0.1"]
        options += ["--port", str(self.port), "--admin-port", str(self.port + 1)]
        with open(Path(self.folder) / "router.log", "wb") as log:
            command = [sys.executable, "-m", "llmfleet", "router", *options]
            self.router = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(600):
            try:
                if self.metrics():
                    return self
            except OSError:
                time.sleep(0.1)
        raise SystemExit("the router did not start")

    def __exit__(self, *_: object) -> None:
        measure.stop(self.router)
        measure.stop(self.engine)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port + 1}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def counters(self) -> dict[str, float]:
        """Return the router's refusals by reason."""
        found = re.findall(r'^llmfleet_router_refusals_total\{.*?reason="([^"]+)"\} (\S+)', self.metrics(), re.M)
        return {reason: float(value) for reason, value in found}

    def most_at_once(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.engine_port}/__stats", timeout=5) as answer:
            return int(json.loads(answer.read())["most"])

    def at(self, rate: float, seconds: float) -> dict[str, float]:
        """Ask at a rate for so long, and wait for every answer."""
        requests = int(rate * seconds)
        options = ["--connections", 9000, "--requests", requests, "--rate", rate, "--good-ms", self.deadline * 1000]
        command = [self.load, str(self.port), str(self.body), *map(str, options), "--seconds", str(seconds + 90)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures: dict[str, float] = json.loads(done.stdout)
        return figures | {"asked": requests}

    def recovered(self, usual_p99: float) -> float:
        """Return the seconds until one second of half the peak is answered wholly, and as fast as usual."""
        began = time.monotonic()
        while time.monotonic() - began < 60:
            figures = self.at(PEAK / 2, 1.0)
            if figures["good"] == figures["asked"] and figures["p99"] <= max(2 * usual_p99, 1000 * 2 * SERVICE_MS):
                return time.monotonic() - began - 1.0
        return float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds in which an answer is of use")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmfleet-overload-") as folder, Overload(folder, options.deadline) as bed:
        usual = bed.at(PEAK / 2, 5.0)
        print(f"commit {peers.commit()}; {PEAK:.0f} requests/s is all the engines can; at half of that p99 is ", end="")
        print(f"{usual['p99'] / 1000:.0f} ms")
        print(
            "| load | goodput of peak | refused | refusal p50 ms | refusal p99 ms | expired of refused | recovered s |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|")
        for load in LOADS:
            before = bed.counters()
            figures = bed.at(PEAK * load, options.seconds)
            after = bed.counters()
            gone = {key: after[key] - before.get(key, 0.0) for key in after}
            refused = sum(gone.values())
            expired = sum(value for key, value in gone.items() if "expired" in key or "ttl" in key.lower())
            goodput = figures["inTime"] / min(figures["wall"], options.seconds + options.deadline) / PEAK
            share = f"{expired / refused:.1%}" if refused else "-"
            print(
                f"| {load:g}x | {goodput:.1%} | {figures['badStatus']:.0f} of {figures['asked']:.0f} "
                f"| {figures['refusal50'] / 1000:.1f} | {figures['refusal99'] / 1000:.1f} | {share} "
                f"| {bed.recovered(usual['p99']):.1f} |",
                flush=True,
            )
        print(f"requests at the engines at once: {bed.most_at_once()} of {SLOTS * ENGINES} slots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
