"""Measure what a request costs in our router and in the others, in one run on one machine.

    python tests/benchmarks/router [--rounds N] [--only NAMES] [--seconds S] [--fresh] [--output FILE]

Every round measures every router once per test, in turn and in the reverse turn next time. After each round the figures
are kept, so a run that was ended goes on where it was. Out: tables, and with enough rounds tests/benchmarks/router.json
and the charts in docs/images. Status 1 if a goal was missed or a router that a goal needs could not be had.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import chart
import measure
import peers
import programs
import verdict

TESTS = ("unary", "fast", "paced", "latency", "pd")
ROUNDS = 9
RESULT = programs.ROOT / "tests" / "benchmarks" / "router.json"
IMAGES = programs.ROOT / "docs" / "images"


def identity(options: argparse.Namespace) -> str:
    """Name what decides the figures: our code, the benchmark's, and the options."""
    digest = hashlib.sha256(f"{options.only} {options.seconds}".encode())
    for folder, pattern in ((programs.ROOT / "controllers" / "llmfleet", "**/*.py"), (programs.HERE, "**/*.*")):
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write(path: Path, data: Any) -> None:
    """Replace a file by one rename."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(data if isinstance(data, str) else json.dumps(data, indent=1) + "\n")
    scratch.rename(path)


def load_of_machine() -> float:
    return os.getloadavg()[0]


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    return {
        "cpu": cpu.split(":", 1)[1].strip(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "secondsPerMeasurement": options.seconds,
        "network": "loopback",
    }


def one_round(bench: measure.Bench, index: int) -> dict[str, dict[str, dict[str, float]]]:
    """Measure every router once per test."""
    made: dict[str, dict[str, dict[str, float]]] = {}
    for test in TESTS:
        names = [name for name, r in bench.running.items() if test in r.peer.tests and index < r.peer.rounds]
        for name in names if index % 2 == 0 else reversed(names):
            try:
                figures = getattr(bench, test)(name)
            except measure.Failed as error:
                programs.say(f"bench: round {index + 1}: {test}: {error}")
                made.setdefault(name, {})[test] = {"failed": 1}
                continue
            kept = ("cpu_us", "p50", "p99", "first50", "delay50", "delay99", "good", "events", "late")
            made.setdefault(name, {})[test] = {key: round(figures[key], 3) for key in kept}
    for name, running in bench.running.items():
        if running.process is not None and name in made:
            made[name]["memory"] = {"mib": round(measure.memory_kib(running.process.pid) / 1024, 1)}
    return verdict.with_added(made)


def run_rounds(bench: measure.Bench, options: argparse.Namespace, progress: Path) -> list[dict[str, Any]]:
    rounds: list[dict[str, Any]] = json.loads(progress.read_text()) if progress.exists() and not options.fresh else []
    begun, done_before = time.monotonic(), len(rounds)
    while len(rounds) < options.rounds:
        index = len(rounds)
        made = one_round(bench, index)
        rounds.append({"load": load_of_machine(), "figures": made})
        write(progress, rounds)
        each = (time.monotonic() - begun) / (len(rounds) - done_before)
        short = " ".join(f"{n} {t['unary']['cpu_us']:.1f}" for n, t in made.items() if "cpu_us" in t.get("unary", {}))
        left = each * (options.rounds - len(rounds))
        programs.say(f"bench: round {index + 1} of {options.rounds} ({left:.0f} s left): unary us: {short}")
    return rounds


def open_streams(bench: measure.Bench, count: int) -> dict[str, dict[str, float]]:
    made = {}
    for name, running in bench.running.items():
        if running.peer.streams and count:
            programs.say(f"bench: {count} open streams through {name} ...")
            made[name] = bench.open_streams(name, count)
    return made


def draw(medians: dict[str, dict[str, float]], titles: dict[str, str]) -> None:
    for figure, title, file in (
        ("unary us", "CPU per request", "router-cpu-unary.svg"),
        ("fast chunk us", "CPU per streamed chunk", "router-cpu-chunk.svg"),
    ):
        rows = [(titles[n], v[figure], n in ("parity", "full")) for n, v in medians.items() if figure in v]
        rows.sort(key=lambda row: row[1])
        if rows:
            write(IMAGES / file, chart.bars(title, "microseconds of the router process", rows))


def report(bench: measure.Bench, rounds: list[dict[str, Any]], streams: dict[str, Any], options: Any) -> int:
    figures = [one["figures"] for one in rounds]
    titles = {peer.name: peer.title for peer in peers.PEERS}
    names = [peer.name for peer in peers.PEERS]
    medians = verdict.summary(figures, names)
    verdicts = [verdict.judge(figures, goal) for goal in verdict.GOALS]
    load = statistics.median(one["load"] for one in rounds)
    print(f"\n{len(rounds)} interleaved rounds; load average of the machine {load:.1f} on {os.cpu_count()} cores\n")
    print(verdict.table(medians, titles))
    print("\n" + verdict.verdict_table(verdicts, titles))
    for name, got in streams.items():
        print(f"\n{titles[name]}: {got['streams']:.0f} open streams, {got['kib_each']:.1f} KiB each", end="")
    print()
    for name, why in bench.missing.items():
        print(f"missing: {titles[name]}: {why}")
    result = {
        "conditions": conditions(options) | {"rounds": len(rounds), "loadAverage": load},
        "peers": {n: {"version": r.version, "features": r.features} for n, r in bench.running.items() if r.version},
        "missing": bench.missing,
        "medians": {n: {k: round(v, 3) for k, v in values.items()} for n, values in medians.items()},
        "ratios": [
            {"ours": v.goal.ours, "theirs": v.goal.theirs, "test": v.goal.test, "figure": v.goal.figure}
            | {"goal": v.goal.limit, "median": v.median, "upper95": v.upper, "rounds": v.rounds, "verdict": v.says}
            for v in verdicts
        ],
        "openStreams": streams,
        "rounds": figures,
    }
    if options.output:
        write(Path(options.output), result)
    elif not options.only and len(rounds) >= ROUNDS:
        write(RESULT, result)
        draw(medians, titles)
    needed = [peer.name for peer in peers.PEERS if peer.needed and peer.name in bench.missing]
    return 1 if needed or any(one.says in ("missed", "not measured") for one in verdicts) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=1.0, help="load per measurement")
    parser.add_argument("--only", default="", help="routers, by name and with commas; then no file is written")
    parser.add_argument("--streams", type=int, default=9000, help="open streams to hold; 0 leaves that out")
    parser.add_argument("--fresh", action="store_true", help="forget the rounds of a run that was ended")
    parser.add_argument("--output", help="where to write the figures")
    return parser.parse_args()


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended then, too
    options = parse()
    progress = programs.cache() / f"rounds-{identity(options)}.json"
    chosen = [p for p in peers.PEERS if not options.only or p.name in options.only.split(",")]
    with tempfile.TemporaryDirectory(prefix="llmfleet-bench-") as folder:
        bench = measure.Bench(folder, options.seconds)
        try:
            bench.open()
            for peer in chosen:
                programs.say(f"bench: starting {peer.title} ...")
                bench.start(peer)
                if peer.name in bench.missing:
                    programs.say(f"bench: missing: {peer.title}: {bench.missing[peer.name]}")
            rounds = run_rounds(bench, options, progress)
            streams = open_streams(bench, options.streams)
        except programs.Missing as error:
            raise SystemExit(f"bench: {error}") from None
        finally:
            bench.close()
    status = report(bench, rounds, streams, options)
    progress.unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
