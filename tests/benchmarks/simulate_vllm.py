"""The simulated engine beside real vLLM on CPU: step times fitted to one run, another one foreseen, under open load.

    python tests/benchmarks/simulate_vllm.py [--seconds S] [--seed N] [--json FILE]

In: nothing but this machine, which should have nothing else to do. A real vLLM serves a tiny model. First N clients at
a time ask again and again (a closed loop), and `a + b x batch + c x prefill tokens + d x context tokens`, with the time
of the front end beside it, is fitted to what they see. Then requests of other lengths arrive by a Poisson process that
waits for nobody, and what the simulated engine gives for the very same arrivals is printed beside what they saw. The
engine, its front end and the client share the machine's cores, so a coefficient is one of all three.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "controllers"), str(ROOT / "tests")]

from conformance.engine import REAL, launch, patience  # noqa: E402
from llmfleet.capacity.profiles import Profile, StepTime  # noqa: E402
from llmfleet.simulate.engine import Engine, Job  # noqa: E402

SEQUENCES = 16
FLAGS = ("--max-num-seqs", str(SEQUENCES), "--no-enable-prefix-caching")
ALONE = ((32, 32), (256, 32), (512, 32), (896, 32))
"""Prompt and answer, one request at a time."""
TOGETHER = ((32, 64, 4), (32, 64, 8), (32, 64, 16), (768, 64, 8), (256, 128, 12))
"""Prompt, answer, clients."""
HELD_OUT = ((128, 48), (400, 96), (640, 24))
"""Lengths that nothing was fitted to."""
SHARES = (0.3, 0.6, 0.8)
"""Of the rate at which the fitted engine is full."""
KV_TOKENS = 1_048_576


@dataclass(slots=True, kw_only=True)
class Seen:
    """What one client saw; seconds since the run began."""

    begun: float
    first: float = math.inf
    ended: float = math.inf
    tokens: int = 0

    @property
    def ttft(self) -> float:
        return self.first - self.begun

    @property
    def tpot(self) -> float:
        return (self.ended - self.first) / max(self.tokens - 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Step times, and what the front end adds to a first token; seconds."""

    steps: StepTime
    front_end: float


class Asker:
    """Streams completions of random tokens, each like no other's."""

    def __init__(self, session: aiohttp.ClientSession, url: str, seed: int) -> None:
        self.session, self.url, self.draw, self.zero = session, url, random.Random(seed), time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self.zero

    async def ask(self, prompt: int, output: int) -> Seen:
        ids = [self.draw.randrange(10, 200) for _ in range(prompt)]
        body = {"model": "tiny", "prompt": ids, "max_tokens": output, "temperature": 0, "ignore_eos": True}
        seen = Seen(begun=self.now())
        async with self.session.post(f"{self.url}/v1/completions", json=body | {"stream": True}) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b'data: {"') and b'"text"' in line:
                    seen.ended = self.now()
                    seen.first = min(seen.first, seen.ended)
                    seen.tokens += 1
        # Several tokens may come in one event: how many there were is known.
        seen.tokens = output
        return seen

    async def closed(self, prompt: int, output: int, clients: int, rounds: int) -> list[Seen]:
        """Each client asks `rounds` times; the first time, in which all ask at once, does not count."""

        async def client() -> list[Seen]:
            return [await self.ask(prompt, output) for _ in range(rounds)][1:]

        return [one for many in await asyncio.gather(*(client() for _ in range(clients))) for one in many]

    async def open(self, prompt: int, output: int, arrivals: Sequence[float]) -> list[Seen]:
        """Requests that come when they come."""
        begin = self.now()

        async def later(at: float) -> Seen:
            await asyncio.sleep(max(0.0, begin + at - self.now()))
            return await self.ask(prompt, output)

        return list(await asyncio.gather(*map(later, arrivals)))


async def measured(asker: Asker) -> tuple[list[list[float]], list[float]]:
    """Rows for a, b, c, d and the front end, and the seconds that each row should be."""
    rows, seconds = list[list[float]](), list[float]()
    for prompt, output in ALONE:
        seen = await asker.closed(prompt, output, 1, 9)
        rows += [[1, 1, prompt, 0, 1], [1, 1, 0, prompt + output / 2, 0]]
        seconds += [statistics.median(one.ttft for one in seen), statistics.median(one.tpot for one in seen)]
    for prompt, output, clients in TOGETHER:
        seen = await asker.closed(prompt, output, clients, 5)
        # Others' prompts are computed in the steps that everybody waits for.
        rows.append([1, clients, prompt * (clients - 1) / output, clients * (prompt + output / 2), 0])
        seconds.append(statistics.fmean(one.tpot for one in seen))
        print(f"fitted to: {prompt:>4} in, {output:>3} out, {clients:>2} clients: TPOT {1000 * seconds[-1]:.2f} ms")
    return rows, seconds


def fitted(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> Fit:
    """Least squares of the relative errors; what comes out below zero is left out, and the rest fitted again."""
    matrix, ones = np.array(rows) / np.array(seconds)[:, None], np.ones(len(seconds))
    used = list(range(matrix.shape[1]))
    while True:
        found = np.linalg.lstsq(matrix[:, used], ones, rcond=None)[0]
        if (found >= 0).all():
            break
        used.remove(used[int(np.argmin(found))])
    a, b, c, d, front_end = (float(dict(zip(used, found, strict=True)).get(number, 0.0)) for number in range(5))
    return Fit(steps=StepTime(a=a, b=b, c=c, d=d), front_end=front_end)


def full_rate(fit: Fit, prompt: int, output: int) -> float:
    """Requests a second at which every sequence of the engine is taken."""
    step = fit.steps.step(SEQUENCES, 0, SEQUENCES * (prompt + output / 2))
    return 1 / (output * step / SEQUENCES + fit.steps.c * prompt)


def foreseen(fit: Fit, prompt: int, output: int, arrivals: Sequence[float]) -> list[Job]:
    """What the simulated engine makes of the same arrivals."""
    profile = Profile(steps=fit.steps, kv_tokens=KV_TOKENS, gpus=1, sequences=SEQUENCES)
    engine, done = Engine(profile, 0.0), list[Job]()
    for at in arrivals:
        engine.advance(at)
        engine.add(Job(at, prompt, output), at)
    while len(done) + len(engine.over) < len(arrivals):
        engine.advance(engine.clock + 1.0)
    return engine.over


def compared(fit: Fit, shape: tuple[int, int], share: float, arrivals: Sequence[float], seen: Sequence[Seen]) -> Any:
    """One row: what was seen, what was foreseen, and how far that is off."""
    jobs, output = foreseen(fit, *shape, arrivals), shape[1]
    ours = {
        "tpot_ms": 1000 * statistics.fmean((job.ended - job.first) / (output - 1) for job in jobs),
        "ttft_ms": 1000 * (fit.front_end + statistics.fmean(job.first - job.arrived for job in jobs)),
        "ttft_p95_ms": 1000 * (fit.front_end + p95([job.first - job.arrived for job in jobs])),
    }
    theirs = {
        "tpot_ms": 1000 * statistics.fmean(one.tpot for one in seen),
        "ttft_ms": 1000 * statistics.fmean(one.ttft for one in seen),
        "ttft_p95_ms": 1000 * p95([one.ttft for one in seen]),
    }
    off = {name: ours[name] / theirs[name] - 1 for name in ours}
    return {"shape": shape, "share": share, "requests": len(seen), "vllm": theirs, "ours": ours, "off": off}


def p95(values: Sequence[float]) -> float:
    """The nearest rank."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def poisson(rate: float, seconds: float, draw: random.Random) -> list[float]:
    """Arrivals, from the beginning on."""
    found = [draw.expovariate(rate)]
    while found[-1] < seconds:
        found.append(found[-1] + draw.expovariate(rate))
    return found[:-1] or [0.0]


async def compare(url: str, seconds: float, seed: int) -> tuple[Fit, list[Any]]:
    """Fit, then foresee."""
    draw, rows = random.Random(seed), list[Any]()
    limits = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=limits, timeout=aiohttp.ClientTimeout(600)) as session:
        asker = Asker(session, url, seed)
        await asker.closed(64, 16, 4, 3)
        fit = fitted(*await measured(asker))
        shown(fit)
        for shape in HELD_OUT:
            for share in SHARES:
                arrivals = poisson(share * full_rate(fit, *shape), seconds, draw)
                rows.append(compared(fit, shape, share, arrivals, await asker.open(*shape, arrivals)))
                print(line(rows[-1]), flush=True)
    return fit, rows


def shown(fit: Fit) -> None:
    """The coefficients, and the head of the table."""
    a, b, c, d = (1000 * value for value in (fit.steps.a, fit.steps.b, fit.steps.c, fit.steps.d))
    print(f"a step takes {a:.2f} + {b:.3f} x batch + {c:.4f} x prefill + {d:.6f} x context ms; ", end="")
    print(f"front end {1000 * fit.front_end:.1f} ms\n")
    print("  in  out  load  requests  TPOT ms   ours     off   TTFT ms   ours     off    p95 ms   ours     off")


def line(row: Any) -> str:
    """One row of the table."""
    figures = "".join(
        f"{row['vllm'][name]:>9.2f} {row['ours'][name]:>7.2f} {100 * row['off'][name]:>+6.1f}%"
        for name in ("tpot_ms", "ttft_ms", "ttft_p95_ms")
    )
    return f"{row['shape'][0]:>4} {row['shape'][1]:>4} {row['share']:>5.0%} {row['requests']:>9}{figures}"


def verdict(rows: Sequence[Any]) -> None:
    """How many rows are near."""
    for name, most in (("tpot_ms", 0.05), ("ttft_ms", 0.20), ("ttft_p95_ms", 0.20)):
        offs = [abs(row["off"][name]) for row in rows]
        near = sum(off <= most for off in offs)
        print(f"{name}: within {most:.0%} on {near} of {len(offs)}, ", end="")
        print(f"mean off {statistics.fmean(offs):.1%}, at most {max(offs):.1%}")


def main() -> None:
    """Start real vLLM, compare, end it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each open load")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows there too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, launch(REAL, Path(folder), *FLAGS) as engine:
        engine.until_up(patience(REAL))
        fit, rows = asyncio.run(compare(f"http://127.0.0.1:{engine.port}", asked.seconds, asked.seed))
    verdict(rows)
    if asked.json:
        asked.json.write_text(json.dumps({**asdict(fit), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
