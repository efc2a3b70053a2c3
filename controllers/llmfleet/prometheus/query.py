"""Queries and their answers, without sending any.

In: what to know about a fleet. Out: PromQL; and from Prometheus' JSON the samples, or `QueryError`. A query's answer
has the time of the question, not of the sample: ages come from `timestamp(...)`. It never talks to a server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Sample = tuple[str, Mapping[str, str], float]


class QueryError(ValueError):
    """Prometheus answered, and not with what was asked for."""


class PartialAnswer(QueryError):
    """Prometheus says itself that its answer is not whole."""


def quoted(text: str) -> str:
    """A string as PromQL writes it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def one_of(values: Iterable[str]) -> str:
    """A regular expression that matches exactly these words, quoted."""
    return quoted("|".join(re.escape(value) for value in sorted(values)))


def select(names: Iterable[str], namespace: str, **labels: Iterable[str]) -> str:
    """Every series of these names in a namespace whose labels are among these."""
    terms = [f"__name__=~{one_of(names)}", f"namespace={quoted(namespace)}"]
    terms += [f"{label}=~{one_of(values)}" for label, values in sorted(labels.items())]
    return "{" + ",".join(terms) + "}"


def read_vector(answer: object) -> Iterator[Sample]:
    """The samples of an instant query's answer."""
    if not isinstance(answer, Mapping) or answer.get("status") != "success":
        raise QueryError(error_of(answer) or "an answer that is not Prometheus'")
    data = answer.get("data") or {}
    if data.get("resultType") == "scalar":
        yield "", {}, number(data.get("result"))
        return
    if data.get("resultType") != "vector":
        raise QueryError(f"a {str(data.get('resultType'))[:20]} where a vector was asked for")
    for item in data.get("result") or ():
        labels = dict(item.get("metric") or {})
        yield labels.pop("__name__", ""), labels, number(item.get("value"))


def error_of(answer: object) -> str:
    """Prometheus' own words for what is wrong with a query; of any other answer nothing is shown to anybody."""
    if not isinstance(answer, Mapping) or answer.get("status") != "error" or "errorType" not in answer:
        return ""
    return str(answer.get("error"))[:200]


def number(pair: Any) -> float:
    """The value of `[time, "text"]`."""
    try:
        return float(pair[1])
    except (TypeError, ValueError, IndexError, KeyError):
        raise QueryError("no number where one was asked for") from None
