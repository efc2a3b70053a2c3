"""Read what a router says of itself on its admin port.

In: the texts of `/metrics` and `/fleet`. Out: `Samples`, which can be summed by labels. Text that is not what it should
be reads as nothing. It asks nobody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line of an exposition."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Every sample of one router, by name."""

    by_name: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)

    def of(self, name: str, **labels: str) -> Iterator[Sample]:
        """Those of a name whose labels hold all these."""
        for sample in self.by_name.get(name, ()):
            if labels.items() <= sample.labels.items():
                yield sample

    def total(self, name: str, **labels: str) -> float:
        return sum(sample.value for sample in self.of(name, **labels))

    def sums(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Totals of a name by the values of these labels: one walk, however many are asked for."""
        found: dict[tuple[str, ...], float] = {}
        for sample in self.by_name.get(name, ()):
            key = tuple(sample.labels.get(label, "") for label in labels)
            found[key] = found.get(key, 0.0) + sample.value
        return found

    def known(self, name: str) -> bool:
        return name in self.by_name


def parse_metrics(text: str) -> Samples:
    """Every finite sample of a text; a broken exposition reads as far as it is whole."""
    found: dict[str, list[Sample]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                if math.isfinite(one.value):
                    found.setdefault(one.name, []).append(Sample(labels=one.labels, value=one.value))
    except (ValueError, IndexError, KeyError):
        return Samples(by_name={name: tuple(samples) for name, samples in found.items()})
    return Samples(by_name={name: tuple(samples) for name, samples in found.items()})


def samples_of(families: Iterable[Metric]) -> Samples:
    """The same from families that were never written down; cheaper than a text, and once a look."""
    found: dict[str, list[Sample]] = {}
    for family in families:
        for one in family.samples:
            found.setdefault(one.name, []).append(Sample(labels=one.labels, value=one.value))
    return Samples(by_name={name: tuple(samples) for name, samples in found.items()})


def parse_fleet(text: str) -> Mapping[str, Any]:
    """The object behind `/fleet`; empty when it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterState:
    """One router pod, and what it answered."""

    namespace: str
    pod: str
    fleet: Mapping[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    problem: str = ""
    """Why it could not be asked."""
