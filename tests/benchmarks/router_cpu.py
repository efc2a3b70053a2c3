"""Measure the router's CPU time per unary request and per streamed chunk, next to nginx if it is installed.

    python tests/benchmarks/router_cpu.py [--rounds N] [--seconds S]

In: nothing but this machine. Out: a table of microseconds of CPU (user and system) of the proxy process alone, taken
from /proc/PID/schedstat, and the ratio to nginx from the same interleaved rounds. Engine and load generator are small
uvloop programs in processes of their own; what they cost is not counted. Wall-clock speed is not judged. Run it on a
quiet machine: Python code pays more than nginx for caches that others keep emptying.
"""

from __future__ import annotations

import argparse
import asyncio
import glob
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import uvloop

CHUNKS = 100
EVENT = (
    b'data: {"id":"chatcmpl-ab1dbad4f39c9ba1","object":"chat.completion.chunk","created":1795204814,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
)
FINISH = EVENT.replace(b'"finish_reason":null', b'"finish_reason":"stop"')
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 20:00:14 GMT\r\nserver: uvicorn\r\n"
JSON_BODY = json.dumps(
    {"id": "c", "object": "chat.completion", "choices": [{"message": {"content": "x" * 350}, "finish_reason": "stop"}]}
).encode()
UNARY = HEAD + b"content-length: %d\r\ncontent-type: application/json\r\n\r\n" % len(JSON_BODY) + JSON_BODY
STREAM_HEAD = HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


EVENTS = [framed(EVENT)] * (CHUNKS - 2) + [framed(FINISH), framed(DONE) + b"0\r\n\r\n"]


class Engine(asyncio.Protocol):
    """Answers by the last bytes of a request: unary, a fast stream or a paced one."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if b'"unary"' in data:
            self.transport.write(UNARY)
        elif b'"fast"' in data:
            self.transport.write(STREAM_HEAD + b"".join(EVENTS))
        else:
            self.transport.write(STREAM_HEAD)
            self.left = iter(EVENTS)
            self.tick()

    def tick(self) -> None:
        event = next(self.left, None)
        if event is not None and not self.transport.is_closing():
            self.transport.write(event)
            asyncio.get_running_loop().call_later(0.02, self.tick)


class Load(asyncio.Protocol):
    """One closed-loop client: sends the next request when the answer is over."""

    def __init__(self, request: bytes, end: bytes, counts: list[int]) -> None:
        self.request, self.end, self.counts = request, end, counts

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.tail = b""
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.counts[2] += data.count(b"data: ")
        self.tail = (self.tail + data)[-64:]
        if self.tail.endswith(self.end):
            self.counts[0] += 1
            self.tail = b""
            self.transport.write(self.request)

    def connection_lost(self, exc: Exception | None) -> None:
        self.counts[1] += 1


def request(kind: str) -> bytes:
    body = json.dumps({"user": kind, "model": "m", "stream": kind != "unary", "messages": [{"content": "y" * 900}]})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    fields = f"Content-Length: {len(body)}\r\nUser-Agent: bench\r\nAuthorization: Bearer k\r\nAccept: */*\r\n\r\n"
    return (head + fields + body).encode()


async def engine_main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Engine, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


async def load_main(port: int, kind: str, seconds: float) -> None:
    """Print how many answers came whole and how many connections broke."""
    loop = asyncio.get_running_loop()
    end = JSON_BODY[-20:] if kind == "unary" else b"0\r\n\r\n"
    counts = [0, 0, 0]
    width = 100 if kind == "paced" else 32
    made = [
        await loop.create_connection(lambda: Load(request(kind), end, counts), "127.0.0.1", port) for _ in range(width)
    ]
    await asyncio.sleep(seconds)
    answered, broken, chunks = counts
    for transport, _ in made:
        transport.abort()
    print(json.dumps({"units": answered if kind == "unary" else chunks, "broken": broken}))


def cpu_seconds(pid: int) -> float:
    threads = glob.glob(f"/proc/{pid}/task/*/schedstat")
    return sum(int(pathlib.Path(path).read_text().split()[0]) for path in threads) / 1e9


def children(pid: int) -> list[int]:
    text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 0.1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


NGINX = """
daemon off; worker_processes 1; error_log stderr error; pid {dir}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;
  uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e; client_body_buffer_size 1m; client_max_body_size 64m;
  keepalive_requests 1000000;
  upstream engines {{ least_conn; {servers} keepalive 512; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }} }}
}}
"""


class Bench:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.started: list[subprocess.Popen[bytes]] = []
        self.engines = [free_port() for _ in range(2)]
        for port in self.engines:
            self.spawn(sys.executable, __file__, "--engine", str(port))
        for port in self.engines:
            wait_for(port)
        self.proxies = {"llmfleet": self.router()}
        if shutil.which("nginx"):
            self.proxies["nginx"] = self.nginx()

    def spawn(self, *command: str) -> int:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.started.append(process)
        return process.pid

    def router(self) -> tuple[int, int]:
        path = os.path.join(self.directory, "backends.json")
        urls = ",".join(f"http://127.0.0.1:{port}" for port in self.engines)
        made = subprocess.run(
            [sys.executable, "-m", "llmfleet", "backends", "--model", f"m={urls}"], capture_output=True
        )
        with open(path, "wb") as file:
            file.write(made.stdout)
        port, admin = free_port(), free_port()
        options = ["--backends", path, "--host", "127.0.0.1", "--port", str(port), "--admin-port", str(admin)]
        pid = self.spawn(sys.executable, "-m", "llmfleet", "router", *options)
        wait_for(port)
        return pid, port

    def nginx(self) -> tuple[int, int]:
        path, port = os.path.join(self.directory, "nginx.conf"), free_port()
        servers = " ".join(f"server 127.0.0.1:{p};" for p in self.engines)
        with open(path, "w") as file:
            file.write(NGINX.format(dir=self.directory, port=port, servers=servers))
        pid = self.spawn("nginx", "-c", path, "-p", self.directory)
        wait_for(port)
        (worker, *_) = children(pid)
        return worker, port

    def measure(self, name: str, kind: str, seconds: float) -> float:
        """Return CPU microseconds per request, or per chunk of a stream."""
        pid, port = self.proxies[name]
        before = cpu_seconds(pid)
        command = [sys.executable, __file__, "--load", str(port), kind, str(seconds)]
        answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        used = cpu_seconds(pid) - before
        if answer["broken"] or not answer["units"]:
            raise SystemExit(f"{name} {kind}: {answer}")
        return float(used / answer["units"] * 1e6)

    def close(self) -> None:
        for process in reversed(self.started):
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def report(figures: dict[tuple[str, str], list[float]], names: list[str]) -> None:
    print(
        f"{'CPU us':24}"
        + "".join(f"{name:>12}" for name in names)
        + ("   ratio (median of rounds)" if len(names) > 1 else "")
    )
    for kind, unit in (("unary", "per request"), ("fast", "per coalesced chunk"), ("paced", "per paced chunk")):
        medians = [statistics.median(figures[name, kind]) for name in names]
        line = f"{kind + ' ' + unit:24}" + "".join(f"{value:12.2f}" for value in medians)
        if len(names) > 1:
            pairs = [a / b for a, b in zip(figures["llmfleet", kind], figures["nginx", kind], strict=True)]
            line += f"   {statistics.median(pairs):.2f}  [{min(pairs):.2f}..{max(pairs):.2f}]"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="load per measurement")
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        uvloop.run(engine_main(args.engine))
        return
    if args.load:
        uvloop.run(load_main(int(args.load[0]), args.load[1], float(args.load[2])))
        return
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(directory)
        names = list(bench.proxies)
        figures: dict[tuple[str, str], list[float]] = {}
        try:
            for index in range(args.rounds):
                for kind in ("unary", "fast", "paced"):
                    for name in names if index % 2 == 0 else reversed(names):
                        figures.setdefault((name, kind), []).append(bench.measure(name, kind, args.seconds))
        finally:
            bench.close()
    report(figures, names)


if __name__ == "__main__":
    main()
