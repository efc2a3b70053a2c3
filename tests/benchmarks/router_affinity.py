"""Time what prefix affinity adds to a request: its keys, the look-up among 8 engines, and what is learnt.

    python tests/benchmarks/router_affinity.py

In: nothing but this machine. Out: microseconds of CPU per request, the best of 15 runs, for several
shapes of body.
"""

from __future__ import annotations

import time
import timeit
from types import SimpleNamespace
from typing import Any

from llmfleet.router.affinity import PrefixIndex, nearest, prefix_keys, seed_of
from llmfleet.router.sse import Dialect


def chat(messages: int, size: int) -> dict[str, Any]:
    roles = ("system", "user", "assistant")
    return {
        "messages": [
            {"role": roles[min(i, 1 + (i + 1) % 2)], "content": (f"{i} " + "word " * size)[:size]}
            for i in range(messages)
        ]
    }


SHAPES: dict[str, tuple[Dialect, dict[str, Any]]] = {
    "chat, 2 messages, 1 KiB": (Dialect.CHAT, chat(2, 512)),
    "chat, 20 messages, 10 KiB": (Dialect.CHAT, chat(20, 512)),
    "chat, 1 message, 32 KiB": (Dialect.CHAT, chat(1, 32768)),
    "completion, 512 KiB of text": (Dialect.COMPLETIONS, {"prompt": "x" * (512 << 10)}),
    "completion, 8192 token ids": (Dialect.COMPLETIONS, {"prompt": list(range(8192))}),
}


def best(what: Any, number: int) -> float:
    return min(timeit.repeat(what, timer=time.process_time, number=number, repeat=15)) / number * 1e6


def main() -> None:
    seed = seed_of("tenant", "model")
    fleet: list[Any] = [
        SimpleNamespace(weight=100, backend=SimpleNamespace(number=n, in_flight=3, slots=256, limit=256))
        for n in range(8)
    ]
    print("| request | keys | hash | look up | learn |\n|---|---|---|---|---|")
    for name, (dialect, document) in SHAPES.items():
        index = PrefixIndex(65536)
        keys = prefix_keys(dialect, document, seed, 1024)
        index.learn(keys, 0)
        number = 2000 if len(keys) < 30 else 200
        hashed = best(lambda: prefix_keys(dialect, document, seed, 1024), number)  # noqa: B023
        found = best(lambda: nearest(index, keys, fleet, 1.25), number)  # noqa: B023
        learnt = best(lambda: index.learn(keys, 0), number)  # noqa: B023
        print(f"| {name} | {len(keys)} | {hashed:.1f} us | {found:.1f} us | {learnt:.1f} us |")


if __name__ == "__main__":
    main()
