"""Figures of the simulator: `python -m sim.benchmark` from the folder `tests` prints them.

In: this machine. Out: start-up, memory, and CPU seconds per request and per streamed token. CPU time is
the process's own, so other work on the machine changes the figures little.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sim.engine import CONTROLLERS, Process, process_status, start

INSTANT = ("--sim-profile", "instant", "--max-num-seqs", "256")
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(engine: Process) -> float:
    """Read the CPU time of a process."""
    words = Path(f"/proc/{engine.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / TICKS


async def ask(port: int, count: int, body: dict[str, object]) -> int:
    """Send requests one after another over one connection; gives the bytes received."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    received = 0
    for _ in range(count):
        writer.write(head.encode() + data)
        end = b"0\r\n\r\n" if body.get("stream") else b'"metrics":null}'
        received += len(await reader.readuntil(end))
    writer.close()
    return received


async def load(port: int, clients: int, count: int, body: dict[str, object]) -> None:
    """Ask from several connections at once."""
    await asyncio.gather(*(ask(port, count, body) for _ in range(clients)))


def measure(engine: Process, label: str, clients: int, count: int, tokens: int, *, stream: bool) -> None:
    """Print requests and tokens per second of wall time and of CPU time."""
    body = {"prompt": "hello world", "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    before, began = cpu_seconds(engine), time.monotonic()
    asyncio.run(load(engine.port, clients, count, body))
    wall, cpu, requests = time.monotonic() - began, cpu_seconds(engine) - before, clients * count
    print(f"{label}: {requests / wall:.0f} requests/s, {requests * tokens / wall:.0f} tokens/s; ", end="")
    print(f"{cpu / requests * 1e6:.0f} us CPU a request, {cpu / requests / tokens * 1e6:.1f} us CPU a token")


def import_seconds() -> float:
    """Measure how long the process takes to import everything."""
    code = "import time; t = time.process_time(); import llmfleet_sim.main, llmfleet_sim.flags, uvloop; "
    code += "print(time.process_time() - t)"
    environment = {**os.environ, "PYTHONPATH": str(CONTROLLERS)}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(printed.stdout)


def main() -> None:
    """Print every figure."""
    print(f"imports: {import_seconds() * 1000:.0f} ms CPU")
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        with start(Path(folder), *INSTANT) as engine:
            engine.until_up()
            print(f"start to listening: {time.monotonic() - began:.2f} s, {cpu_seconds(engine):.2f} s CPU")
            print(f"resident: {int(process_status(engine)['VmRSS'].split()[0]) / 1024:.1f} MiB")
            measure(engine, "unary, 1 token, 8 clients", 8, 200, 1, stream=False)
            measure(engine, "streams of 64 tokens, 32 clients", 32, 10, 64, stream=True)
            print(f"resident after: {int(process_status(engine)['VmRSS'].split()[0]) / 1024:.1f} MiB")


if __name__ == "__main__":
    main()
