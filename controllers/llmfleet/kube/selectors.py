"""Label selectors, parsed from their text form and matched against labels.

In: `a=b,c!=d,e in (f,g),h,!i` and a mapping of labels. Out: whether they match, or `SelectorError`. Empty text matches
everything, as in the Kubernetes API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

Matcher = Callable[[Mapping[str, str]], bool]

_LABEL: Final = r"[A-Za-z0-9][-A-Za-z0-9_./]*"
_SET: Final = re.compile(rf"^({_LABEL})\s+(in|notin)\s+\(([^()]*)\)$")
_EQUAL: Final = re.compile(rf"^({_LABEL})\s*(==|=|!=)\s*({_LABEL}|)$")
_EXISTS: Final = re.compile(rf"^(!?)\s*({_LABEL})$")
_COMMA: Final = re.compile(r",(?![^(]*\))")


class SelectorError(ValueError):
    """The text is no label selector."""


def parse_selector(text: str) -> Matcher:
    """A function that says whether labels match."""
    terms = [_parse_term(term.strip()) for term in _COMMA.split(text)] if text.strip() else []
    return lambda labels: all(term(labels) for term in terms)


def _parse_term(term: str) -> Matcher:
    if found := _SET.match(term):
        return _in_set(found[1], {value.strip() for value in found[3].split(",")}, found[2] == "in")
    if found := _EQUAL.match(term):
        return _in_set(found[1], {found[3]}, found[2] != "!=")
    if found := _EXISTS.match(term):
        name, wanted = found[2], not found[1]
        return lambda labels: (name in labels) == wanted
    raise SelectorError(f"{term!r} is no label selector; write for example serving.ai/fleet=prod-llama")


def _in_set(name: str, values: set[str], wanted: bool) -> Matcher:
    if wanted:
        return lambda labels: labels.get(name) in values
    return lambda labels: labels.get(name) not in values
