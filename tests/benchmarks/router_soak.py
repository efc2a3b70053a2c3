"""Send a million requests through one router and look whether what it holds grows.

    python tests/benchmarks/router_soak.py [--requests N] [--output FILE.json]

In: nothing but this machine; the router has every feature on, as in the table of costs. Out: resident memory, open
files and threads after each batch, their growth once caches are warm, and status 1 if memory grew by more than 1 %, or
files or threads at all. Batches are unary requests and streams of ten chunks in turn, each batch with prompts of its
own, every answer checked. Engine and load generator are small C programs: the router is what takes the time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "router"))

import measure
import peers

BATCH = 10_000
WARM = 0.3  # of the requests, in which caches fill
MOST_GROWTH = 0.01
CONNECTIONS = 32


def body(batch: int) -> bytes:
    """Return a request that no other batch sends; the engine reads in it how many chunks to answer."""
    text = f"[chunks=10 interval_us=0] batch {batch}: " + "The quick brown fox jumps over the lazy dog. " * (batch % 40)
    asked = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 10}
    return json.dumps(asked | ({"stream": True} if batch % 2 else {})).encode()


def held(pid: int) -> dict[str, int]:
    """Return resident KiB, open files and threads of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return {"kib": int(status["VmRSS"].split()[0]), "files": files, "threads": int(status["Threads"])}


def played(requests: int, folder: str) -> list[dict[str, int]]:
    """Send the batches; what the router holds before the first and after each."""
    bench = measure.Bench(folder, seconds=1.0)
    try:
        bench.open()
        ours = peers.Peer(name="ours", title="llmfleet", start=peers._full, header=f"Authorization: Bearer {peers.KEY}")
        bench.start(ours)
        if "ours" not in bench.running:
            raise SystemExit(f"the router does not run: {bench.missing}")
        process = bench.running["ours"].process
        assert process is not None
        samples = [{"requests": 0} | held(process.pid)]
        for batch in range(requests // BATCH):
            options = ["--connections", CONNECTIONS, "--requests", BATCH, *(["--events", 10] if batch % 2 else [])]
            bench.load("ours", body(batch), *options, "--seconds", 110)
            samples.append({"requests": (batch + 1) * BATCH} | held(process.pid))
            print(
                f"\r{samples[-1]['requests']:>9,} requests, {samples[-1]['kib'] / 1024:.1f} MiB",
                end="",
                file=sys.stderr,
            )
        print(file=sys.stderr)
        return samples
    finally:
        bench.close()


def judged(samples: list[dict[str, int]]) -> list[str]:
    """Say what grew."""
    warm, last = samples[int(len(samples) * WARM)], samples[-1]
    bad = []
    if last["kib"] > warm["kib"] * (1 + MOST_GROWTH):
        bad.append(f"memory grew by {100 * (last['kib'] / warm['kib'] - 1):.1f} % once warm")
    half = len(samples) // 2
    for what in ("files", "threads"):  # a batch of streams holds more files than one of unary requests
        if max(one[what] for one in samples[half:]) > max(one[what] for one in samples[:half]) + CONNECTIONS:
            bad.append(f"{what} grew")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, help="write every sample there")
    options = parser.parse_args()
    if options.requests < 10 * BATCH:
        parser.error(f"at least {10 * BATCH} requests: fewer say nothing about growth")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        samples = played(options.requests, folder)
    print(f"{'requests':>10} {'MiB':>7} {'files':>6} {'threads':>8}")
    for sample in samples[:: max(1, len(samples) // 10)]:
        print(f"{sample['requests']:>10,} {sample['kib'] / 1024:>7.1f} {sample['files']:>6} {sample['threads']:>8}")
    bad = judged(samples)
    seconds = time.monotonic() - begin
    print(f"{samples[-1]['requests']:,} requests in {seconds:.0f} s, every answer right; {'; '.join(bad) or 'flat'}")
    if options.output:
        options.output.write_text(json.dumps({"commit": peers.commit(), "samples": samples}) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
