"""Counters, gauges, histograms and summaries, and the Prometheus text format as prometheus_client writes it.

In: observations. Out: bytes. Pure: `now` is an argument. Written by hand because a whole scrape must
match vLLM's byte for byte in names, order and labels, at a start-up cost near zero.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

Labels = Mapping[str, str]


def number(value: float) -> str:
    """Write a float as prometheus_client does: Go's format, always with a point or an exponent."""
    if value == math.inf:
        return "+Inf"
    text = repr(float(value))
    dot = text.find(".")
    if "e" in text or dot <= 6 or value <= 0:
        return text
    mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
    return f"{mantissa}e+0{dot - 1}"


def label_text(labels: Labels) -> str:
    """Write labels sorted by name, values escaped."""
    if not labels:
        return ""
    escaped = (
        f'{k}="{v.replace(chr(92), chr(92) * 2).replace(chr(10), chr(92) + "n").replace(chr(34), chr(92) + chr(34))}"'
        for k, v in sorted(labels.items())
    )
    return "{" + ",".join(escaped) + "}"


class Child:
    """One labelled series of a counter or gauge."""

    __slots__ = ("created", "value")

    def __init__(self, created: float) -> None:
        self.value = 0.0
        self.created = created

    def inc(self, by: float = 1.0) -> None:
        """Add."""
        self.value += by

    def set(self, value: float) -> None:
        """Replace."""
        self.value = value


class HistogramChild:
    """One labelled series of a histogram; without buckets it is a summary."""

    __slots__ = ("bounds", "counts", "created", "sum")

    def __init__(self, created: float, bounds: Sequence[float]) -> None:
        self.created = created
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)


class Family:
    """All series of one metric name."""

    def __init__(self, name: str, kind: str, text: str, bounds: Sequence[float] = ()) -> None:
        self.name = name
        self.kind = kind
        self.text = text
        self.bounds = tuple(bounds)
        self.children: dict[str, Child | HistogramChild] = {}
        self._labels: dict[str, dict[str, str]] = {}

    def scalar(self, now: float, **labels: str) -> Child:
        """Give the counter or gauge with these labels, made at first use."""
        child = self._child(labels, lambda: Child(now))
        assert isinstance(child, Child)
        return child

    def histogram(self, now: float, **labels: str) -> HistogramChild:
        """Give the histogram or summary with these labels, made at first use."""
        child = self._child(labels, lambda: HistogramChild(now, self.bounds))
        assert isinstance(child, HistogramChild)
        return child

    def _child(self, labels: dict[str, str], make):  # type: ignore[no-untyped-def]
        key = label_text(labels)
        if key not in self.children:
            self.children[key] = make()
            self._labels[key] = labels
        return self.children[key]

    def lines(self) -> list[str]:
        """Write the family: HELP, TYPE, samples, and the `_created` gauges."""
        shown = self.name + "_total" if self.kind == "counter" else self.name
        out = [f"# HELP {shown} {self.text}", f"# TYPE {shown} {self.kind}"]
        for key, child in self.children.items():
            out += self._samples(shown, key, child)
        if self.kind == "gauge" or not self.children:
            return out
        out += [f"# HELP {self.name}_created {self.text}", f"# TYPE {self.name}_created gauge"]
        out += [f"{self.name}_created{key} {number(c.created)}" for key, c in self.children.items()]
        return out

    def _samples(self, shown: str, key: str, child: Child | HistogramChild) -> list[str]:
        if isinstance(child, Child):
            return [f"{shown}{key} {number(child.value)}"]
        out, seen = [], 0
        if self.kind == "histogram":
            for bound, count in zip((*self.bounds, math.inf), child.counts, strict=True):
                seen += count
                labels = label_text({**self._labels[key], "le": number(bound)})
                out.append(f"{self.name}_bucket{labels} {number(seen)}")
        return [*out, f"{self.name}_count{key} {number(child.count)}", f"{self.name}_sum{key} {number(child.sum)}"]
