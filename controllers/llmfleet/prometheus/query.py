"""Queries and their answers, without sending any.

In: what to know about a fleet. Out: PromQL; and from Prometheus' JSON the samples, or `QueryError`. A query's answer
has the time of the question, not of the sample: ages come from `timestamp(...)`. It never talks to a server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

Sample = tuple[str, Mapping[str, str], float]


IN_CLUSTER: Final = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9-]+\.svc(\.cluster\.local\.?)?)?")
"""A Service's name, which begins with a letter: an address may be written as a number without a dot."""
LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a Prometheus answers."""

    secure: bool
    host: str
    port: int
    path: str


class QueryError(ValueError):
    """Prometheus answered, and not with what was asked for."""


class PartialAnswer(QueryError):
    """Prometheus says itself that its answer is not whole."""


def server_of(address: str) -> Server:
    """An address as people write it."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise QueryError("the address is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise QueryError("the address is no http or https URL")
    secure = parts.scheme == "https"
    return Server(secure=secure, host=host, port=port or (443 if secure else 80), path=parts.path.rstrip("/"))


def may_have_token(server: Server) -> bool:
    """Whether nobody on the way can read what it is sent, as far as a name can say."""
    return server.secure or server.host in LOOPBACK or IN_CLUSTER.fullmatch(server.host) is not None


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
    data = answer.get("data")
    if not isinstance(data, Mapping):
        raise QueryError("an answer without data")
    kind, result = data.get("resultType"), data.get("result")
    if kind == "scalar":
        yield "", {}, number(result)
        return
    if kind != "vector":
        raise QueryError(f"a {str(kind)[:20]} where a vector was asked for")
    if not isinstance(result, list):
        raise QueryError("a vector that is no list")
    for item in result:
        yield sample_of(item)


def sample_of(item: object) -> Sample:
    """One element of a vector."""
    labels = item.get("metric") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or not isinstance(labels, Mapping):
        raise QueryError("a sample without labels")
    if not all(isinstance(value, str) for value in labels.values()):
        raise QueryError("a label that is no text")
    rest = dict(labels)
    return rest.pop("__name__", ""), rest, number(item.get("value"))


def error_of(answer: object) -> str:
    """Prometheus' own words for what is wrong with a query; of any other answer nothing is shown to anybody."""
    if not isinstance(answer, Mapping) or answer.get("status") != "error" or "errorType" not in answer:
        return ""
    return str(answer.get("error"))[:200]


def number(pair: object) -> float:
    """The value of `[time, "text"]`."""
    text = pair[1] if isinstance(pair, list) and len(pair) == 2 else None
    try:
        if isinstance(text, str):
            return float(text)
    except ValueError:
        pass
    raise QueryError("no number where one was asked for")
