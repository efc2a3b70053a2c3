"""One incident as it is written down: what happened when, what was measured, and what should have held and did not.

In: notes, figures and expectations from a scenario while it runs. Out: plain values for the result file. A broken
expectation does not end the scenario, so that one run shows all that is wrong.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from e2e.load import COMPLETE, ERROR_EVENT, REFUSED, RESET, SILENT, STATUS, Load, Outcome


@dataclass
class Incident:
    """What a scenario says of itself."""

    say: Callable[[str], None]
    began: float = field(default_factory=time.time)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def note(self, what: str, at: float | None = None) -> float:
        """Write down that something happened, now or at a Unix time; returns that time."""
        moment = time.time() if at is None else at
        self.timeline.append({"second": round(moment - self.began, 1), "what": what})
        self.say(f"{moment - self.began:7.1f} s  {what}")
        return moment

    def figure(self, name: str, value: Any) -> None:
        """Keep one figure."""
        self.figures[name] = round(value, 2) if isinstance(value, float) else value
        self.say(f"           {name}: {self.figures[name]}")

    def expect(self, holds: bool, sentence: str) -> None:
        """Write down what should hold, if it does not."""
        if not holds:
            self.broken.append(sentence)
            self.note(f"BROKEN: {sentence}")


def count(incident: Incident, load: Load, what: str = "requests") -> None:
    """Keep how the requests of a load ended; none may end silently or not at all."""
    kinds = load.kinds()
    incident.figure(what, load.sent)
    names = {COMPLETE: "complete", ERROR_EVENT: "told by an error event", RESET: "reset", REFUSED: "never connected"}
    for kind, name in {**names, STATUS: "answered with an error status"}.items():
        if kinds[kind]:
            incident.figure(f"{what}: {name}", kinds[kind])
    incident.figure(f"{what}: silently cut", kinds[SILENT])
    incident.expect(kinds[SILENT] == 0, f"{kinds[SILENT]} of the {what} ended silently")
    incident.expect(load.sent == len(load.outcomes), f"{load.sent - len(load.outcomes)} of the {what} never ended")


def named(outcomes: Sequence[Outcome], began: float) -> list[str]:
    """Say of lost requests what became of them, alike ones together."""
    words = Counter(f"{one.kind} {one.status or ''} {one.detail[:60]}".strip() for one in outcomes)
    first: dict[str, float] = {}
    for one in outcomes:
        word = f"{one.kind} {one.status or ''} {one.detail[:60]}".strip()
        first[word] = min(first.get(word, one.begin), one.begin)
    return [f"{number} x {word} (first begun at {first[word] - began:.1f} s)" for word, number in words.most_common(12)]


def within(outcomes: Iterable[Outcome], span: tuple[float, float]) -> list[Outcome]:
    """Those that were open at some time of a span."""
    return [one for one in outcomes if one.begin <= span[1] and one.end >= span[0]]


def spread(seconds: Iterable[float]) -> Mapping[str, float]:
    """Middle, 99th percentile and most of some durations."""
    ordered = sorted(seconds) or [0.0]
    ninety_nine = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {
        "n": len(ordered),
        "p50": round(ordered[len(ordered) // 2], 3),
        "p99": round(ninety_nine, 3),
        "max": round(ordered[-1], 3),
    }
