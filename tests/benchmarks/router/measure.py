"""Run routers, put load on them, and read from the kernel what that cost.

In: commands. Out: figures. CPU time is the scheduler's own account of every thread of every process of a router
(/proc/PID/task/*/schedstat, in nanoseconds), with utime+stime as the floor so that threads that have ended count too.
An answer that is not right fails the measurement: there is no figure for work that was not done.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import peers
import programs

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 300
READY_SECONDS = 20
BAD = ("badStatus", "badEnd", "badEvents", "cut", "reset", "refused", "timedOut")


class Failed(Exception):
    """A router that does not answer as it should."""


def request_body(*, stream: bool, chunks: int = 100, interval_us: int = 0, size: int = 1024) -> bytes:
    """Return a chat request of about `size` bytes; the engine reads in its prompt what to answer."""
    wish = f"[chunks={chunks} interval_us={interval_us}] "
    words = "The quick brown fox jumps over the lazy dog. "
    body = {"model": "m", "messages": [{"role": "user", "content": wish + words * (size // len(words))}]}
    return json.dumps(body | {"max_tokens": chunks, "temperature": 0.7} | ({"stream": True} if stream else {})).encode()


def free_ports(count: int) -> int:
    """Return the first of so many free ports in a row."""
    for base in range(21000 + os.getpid() % 5000, 32000, count):
        with suppress(OSError):
            for port in range(base, base + count):
                socket.create_server(("127.0.0.1", port)).close()
            return base
    raise Failed("no free ports between 21000 and 32000")


def descendants(pid: int) -> list[int]:
    """Return a process and everything below it."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in path.read_text().split():
                found += descendants(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    total = 0.0
    for process in descendants(pid):
        with suppress(OSError):
            threads = Path(f"/proc/{process}/task").glob("*/schedstat")
            exact = sum(int(path.read_text().split()[0]) for path in threads) / 1e9
            ticked = sum(map(int, Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11:13])) / TICKS
            total += max(exact, ticked - 2 / TICKS)
    return total


def memory_kib(pid: int) -> int:
    """Return the proportional set size of a process and everything below it."""
    total = 0
    for process in descendants(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything below it, by their ids."""
    family = descendants(process.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)
    process.wait()


@dataclass
class Running:
    """A router that answers."""

    peer: peers.Peer
    port: int
    version: str
    features: str
    process: subprocess.Popen[bytes] | None  # None: the engine itself, with nothing before it


@dataclass
class Bench:
    """The engines, the load generator and every running router."""

    folder: str
    seconds: float
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    running: dict[str, Running] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def open(self) -> None:
        self.load_program = str(programs.compiled("load"))
        engine = str(programs.compiled("engine"))
        self.engines = {kind: free_ports(4) for kind in ("plain",)}
        self._spawn([engine, str(self.engines["plain"]), "4"], {}, "engine")
        self._listens(self.engines["plain"])
        self.engines["pd"] = free_ports(4)
        self._spawn([engine, str(self.engines["pd"]), "4"], {}, "engine-pd")
        self._listens(self.engines["pd"])
        direct = peers.Peer(name="direct", title="no router", start=peers._nginx, tests=("latency", "paced"))
        self.running["direct"] = Running(direct, self.engines["plain"], "", "", None)

    def close(self) -> None:
        for process in reversed(self.started):
            stop(process)

    def _spawn(self, command: list[str], environment: dict[str, str], name: str) -> subprocess.Popen[bytes]:
        with open(os.path.join(self.folder, f"{name}.log"), "wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
            )
        self.started.append(process)
        return process

    def _listens(self, port: int, process: subprocess.Popen[bytes] | None = None) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and (process is None or process.poll() is None):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                return
            time.sleep(0.1)
        raise Failed(f"nothing listens on port {port}")

    def start(self, peer: peers.Peer) -> None:
        """Start a router and see one right answer of each kind, or note why it is missing."""
        pair = free_ports(2)
        base = self.engines["pd" if "pd" in peer.tests else "plain"]
        folder = os.path.join(self.folder, peer.name)
        os.mkdir(folder)
        place = peers.Place(port=pair, spare_port=pair + 1, engines=range(base, base + 4), folder=folder)
        process = None
        try:
            start = peer.start(place)
            process = self._spawn(start.command, dict(start.environment), peer.name)
            self._listens(pair, process)
            self.running[peer.name] = Running(peer, pair, start.version, start.features, process)
            self._answers(peer)
        except (programs.Missing, Failed) as error:
            self.running.pop(peer.name, None)
            self.missing[peer.name] = str(error)
            if process is not None:
                stop(process)
                self.started.remove(process)

    def _answers(self, peer: peers.Peer) -> None:
        """Wait until the router knows its engines: some take health checks first."""
        ask = self.pd if "pd" in peer.tests else self.unary
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                ask(peer.name, 0.05)
                return
            except Failed:
                if time.monotonic() > end:
                    raise
            time.sleep(0.5)

    # ---- load ----

    def load(self, name: str, body: bytes, *options: object) -> dict[str, float]:
        """Run the load generator; anything but right answers is a failure."""
        running = self.running[name]
        path = os.path.join(self.folder, "body.json")
        with open(path, "wb") as file:
            file.write(body)
        command = [self.load_program, str(running.port), path, *map(str, options)]
        if running.peer.header:
            command += ["--header", running.peer.header]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise Failed(f"{name}: load: {done.stderr.strip()}")
        figures: dict[str, float] = json.loads(done.stdout)
        if any(figures[cause] for cause in BAD) or not figures["good"]:
            raise Failed(f"{name}: {done.stdout.strip()}")
        return figures

    def _cost(self, name: str, body: bytes, options: list[object], unit: str) -> dict[str, float]:
        process = self.running[name].process
        before = cpu_seconds(process.pid) if process else 0.0
        figures = self.load(name, body, *options)
        used = cpu_seconds(process.pid) - before if process else 0.0
        return figures | {"cpu_us": used / figures[unit] * 1e6}

    def unary(self, name: str, seconds: float | None = None) -> dict[str, float]:
        """32 clients that ask again at once; 1 KiB in, 0.5 KiB out."""
        return self._closed(name, request_body(stream=False), [], "good", seconds)

    def fast(self, name: str, seconds: float | None = None) -> dict[str, float]:
        """32 streams of 100 chunks that come as fast as they are taken."""
        return self._closed(name, request_body(stream=True), ["--events", 100], "events", seconds)

    def pd(self, name: str, seconds: float | None = None) -> dict[str, float]:
        """32 clients, prefill then a decode stream of 10 chunks; it counts only if every decode had the blocks."""
        self.engine_says("pd", "/__reset")
        figures = self._closed(name, request_body(stream=True, chunks=10), ["--events", 10], "good", seconds)
        seen = self.engine_says("pd", "/__stats")
        if seen["badDecodes"] or seen["decodes"] < figures["good"] or seen["prefills"] < figures["good"]:
            raise Failed(f"{name}: a decode without a prefill's blocks: {seen}")
        return figures

    def _closed(
        self, name: str, body: bytes, extra: list[object], unit: str, seconds: float | None
    ) -> dict[str, float]:
        least = self.running[name].peer.least // (30 if unit == "events" else 1)
        options = ["--connections", 32, "--requests", 500_000, *extra]
        if seconds is not None:
            return self._cost(name, body, [*options, "--for", seconds], unit)
        self.load(name, body, *options, "--for", self.seconds / 6)
        return self._cost(name, body, [*options, "--for", self.seconds, "--least", least], unit)

    def paced(self, name: str) -> dict[str, float]:
        """200 streams of 20 chunks a second: each chunk is a wake-up of its own."""
        chunks = max(20, int(20 * 1.5 * self.seconds))
        body = request_body(stream=True, chunks=chunks, interval_us=50_000)
        options = ["--connections", 200, "--requests", 200, "--ramp-ms", 900, "--events", chunks]
        return self._cost(name, body, list(options), "events")

    def latency(self, name: str) -> dict[str, float]:
        """150 unary requests a second, whether answered or not."""
        options = ["--connections", 64, "--requests", int(300 * self.seconds), "--rate", 150]
        return self._cost(name, request_body(stream=False), list(options), "good")

    def engine_says(self, kind: str, path: str) -> dict[str, int]:
        connection = http.client.HTTPConnection("127.0.0.1", self.engines[kind], timeout=10)
        try:
            connection.request("GET", path)
            answer: dict[str, int] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def open_streams(self, name: str, count: int) -> dict[str, float]:
        """Hold so many streams open, one event in 30 s each, and read what they take of the router's memory."""
        running = self.running[name]
        assert running.process is not None
        path = os.path.join(self.folder, "hold.json")
        with open(path, "wb") as file:
            file.write(request_body(stream=True, chunks=1000, interval_us=30_000_000))
        before = memory_kib(running.process.pid)
        options = ["--connections", count, "--requests", count, "--ramp-ms", count, "--events", 1000, "--seconds", 100]
        options += ["--header", running.peer.header] if running.peer.header else []
        command = [self.load_program, str(running.port), path, "--hold", *map(str, options)]
        load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + count / 1000 * 3 + 30
            active = 0
            while active < count and time.monotonic() < end:
                time.sleep(0.5)
                active = self.engine_says("plain", "/__stats")["active"]
            time.sleep(1)
            used = memory_kib(running.process.pid) - before
        finally:
            load.terminate()
            load.wait()
        end = time.monotonic() + 30
        while self.engine_says("plain", "/__stats")["active"] and time.monotonic() < end:
            time.sleep(0.2)
        return {"streams": active, "kib_each": used / max(1, active), "asked": count}
