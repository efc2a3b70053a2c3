"""Figures measured while the end-to-end tests run: kept in a file and printed, never asserted.

In: a name and samples in seconds, or a count. Out: `build/figures/e2e.json`, which the documentation quotes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


class Figures:
    """What this run measured, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, object] = {}

    def samples(self, name: str, seconds: Sequence[float]) -> None:
        """Keep the spread of a set of durations in seconds."""
        ordered = sorted(seconds)
        spread = {"n": len(ordered), "p50": ordered[len(ordered) // 2], "max": ordered[-1]}
        spread["p99"] = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        self.found[name] = {key: round(value, 3) for key, value in spread.items()}
        print(f"figure: {name}: {self.found[name]}")

    def count(self, name: str, value: object) -> None:
        """Keep one number, or a small table of them."""
        self.found[name] = value
        print(f"figure: {name}: {value}")

    def merge(self, paths: Sequence[Path]) -> list[str]:
        """Write what was left in other files, if anything was; a line for each figure of theirs."""
        for path in paths:
            self.found |= json.loads(path.read_text())
        if self.found:
            self.write()
        return [f"figure: {name}: {value}" for name, value in sorted(self.found.items())]

    def write(self) -> None:
        """Write the file, merged over what an earlier part of the run left."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.path.write_text(json.dumps(earlier | self.found, indent=2, sort_keys=True) + "\n")
