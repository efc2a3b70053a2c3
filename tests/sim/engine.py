"""Simulator processes for tests: start one, talk to it, watch it go.

In: flags. Out: a Process with its port, raw HTTP and metrics. Every process is ended by its own id.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fakes.ports import free_port

CONTROLLERS = Path(__file__).resolve().parents[2] / "controllers"
SMALL = ("--max-model-len", "1024", "--max-num-seqs", "8", "--sim-load-seconds", "0", "--sim-teardown-scale", "0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """Parse the events of a stream; the end mark stays text."""
        data = [part[6:] for part in self.body.decode().split("\n") if part.startswith("data: ")]
        return [part if part == "[DONE]" else json.loads(part) for part in data]


@dataclass(slots=True, kw_only=True)
class Process:
    """One running `vllm serve` of the simulator."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    extra: dict[str, int] = field(default_factory=dict)

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Send one request over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {} if data is None else {"Content-Type": "application/json"}
        connection.request(method, path, data, {**sent, **(headers or {})})
        answer = connection.getresponse()
        reply = Reply(status=answer.status, headers=dict(answer.getheaders()), body=answer.read())
        connection.close()
        return reply

    def get(self, path: str) -> Reply:
        """GET a path."""
        return self.request("GET", path)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
        """POST JSON."""
        return self.request("POST", path, body, headers)

    def complete(self, **fields: Any) -> Reply:
        """Ask for a completion."""
        return self.post("/v1/completions", {"prompt": "hello world", "max_tokens": 4, **fields})

    def open(self, path: str = "/v1/completions", **fields: Any) -> socket.socket:
        """Send a request and leave its answer to the caller."""
        data = json.dumps({"prompt": "hello world", "max_tokens": 1000, "ignore_eos": True, **fields}).encode()
        link = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        link.sendall(head.encode() + data)
        return link

    def metric(self, name: str, **labels: str) -> float:
        """Read one value; the given labels must match, others may be anything."""
        for line in self.get("/metrics").body.decode().splitlines():
            found = re.fullmatch(re.escape(name) + r"(?:\{(.*)\})? (\S+)", line)
            if found and all(f'{k}="{v}"' in (found[1] or "") for k, v in labels.items()):
                return float(found[2])
        raise LookupError(f"no {name} with {labels}")

    def fault(self, **command: Any) -> None:
        """Set a fault through the admin port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.extra["admin"], timeout=60)
        connection.request("POST", "/fault", json.dumps(command))
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == 200, text

    def up(self) -> bool:
        """Whether the port takes connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=10).close()
        except OSError:
            return False
        return True

    def until_up(self, seconds: float = 120) -> "Process":
        """Wait until the engine listens."""
        assert wait_for(self.up, seconds), self.log.read_text()
        return self

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def exit_code(self, seconds: float = 120) -> int:
        """Wait for the end."""
        return self.process.wait(seconds)

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)


def wait_for(condition: Any, seconds: float = 60) -> bool:
    """Ask again and again until it holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def start(folder: Path, *flags: str, env: Mapping[str, str] | None = None, admin: bool = False) -> Process:
    """Start a simulator; it may not listen yet."""
    port = free_port()
    extra = {"admin": free_port()} if admin else {}
    command: Sequence[str] = (
        *(sys.executable, "-m", "llmfleet_sim", "serve", "./tiny", "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port), *SMALL, *flags),
        *(("--sim-admin-port", str(extra["admin"])) if admin else ()),
    )
    log = folder / f"engine-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(CONTROLLERS), **(env or {})},
        )
    return Process(process=process, port=port, log=log, extra=extra)


def process_status(engine: Process) -> dict[str, str]:
    """Read what the kernel says about a process."""
    text = Path(f"/proc/{engine.process.pid}/status").read_text()
    return dict(line.split(":", 1) for line in text.splitlines())


def read_all(link: socket.socket) -> bytes:
    """Read until the peer closes or its last chunk has come."""
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        part = link.recv(65536)
        if not part:
            break
        data += part
    return data


def until_silent(link: socket.socket, seconds: float) -> bytes:
    """Read until the last chunk has come, the peer closes or breaks off, or says nothing for so long."""
    link.settimeout(seconds)
    data = b""
    with suppress(TimeoutError, ConnectionError):
        while not data.endswith(b"0\r\n\r\n") and (part := link.recv(65536)):
            data += part
    return data
