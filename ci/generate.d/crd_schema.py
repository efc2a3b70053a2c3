"""Turn the schema source of charts/llmfleet-crds/schema into structural OpenAPI schemas.

In: plain data as read from the YAML source. Out: plain data that a CustomResourceDefinition can hold.
Pure: it never reads or writes a file and never changes its arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Node = dict[str, Any]

# Bounds of borrowed shapes that give none themselves: above anything Kubernetes itself accepts there.
BORROWED_STRING = 1024
BORROWED_ITEMS = 64


class SourceError(Exception):
    """The schema source contradicts itself; the message names the path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Everything that a property may refer to."""

    types: Mapping[str, Node]
    borrowed: Mapping[str, Node] = field(default_factory=dict)
    templates: Mapping[str, Node] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    # A template carries neither defaults nor transition rules: both belong to the object made from it.
    as_template: bool = False


def expand(node: Node, source: Source, path: str) -> Node:
    """Resolve one source node, its name being the last part of `path`, into an OpenAPI schema."""
    node = with_defaults(resolve(node, source, path), path)
    rules = [render_rule(rule, source, path) for rule in node.pop("rules", [])]
    if node.pop("immutable", False) and not source.as_template:
        rules.append(immutability_rule(path))
    if source.as_template:
        node.pop("default", None)
    if rules:
        node["x-kubernetes-validations"] = rules
    return expand_children(node, source, path)


def resolve(node: Node, source: Source, path: str) -> Node:
    """Replace `$type` and `$template` by what they name; the node's own keys win, its rules are added."""
    node = copy.deepcopy(node)
    if "$template" in node:
        return expand_template(node, source, path)
    while "$type" in node:
        name = node.pop("$type")
        node = merged(named_type(name, source, path), node)
    return node


def named_type(name: str, source: Source, path: str) -> Node:
    """Find a type; a borrowed one gets its bounds here, and its parts inherit them by being borrowed too."""
    if name in source.borrowed:
        return bounded(copy.deepcopy(source.borrowed[name]))
    if name not in source.types:
        raise SourceError(f"{path}: there is no type {name}")
    return copy.deepcopy(source.types[name])


def merged(base: Node, own: Node) -> Node:
    """Lay a property's own keys over its type."""
    rules = base.pop("rules", []) + own.pop("rules", [])
    return {**base, **own, **({"rules": rules} if rules else {})}


def expand_template(node: Node, source: Source, path: str) -> Node:
    """Embed another kind's spec: expanded as a template, so nothing is left to resolve below it."""
    inside = Source(types=source.types, borrowed=source.borrowed, words=source.words, as_template=True)
    spec = expand(source.templates[node.pop("$template")], inside, path)
    return {**spec, **node, "$expanded": True}


def with_defaults(node: Node, path: str) -> Node:
    """Spread `$defaults`, a tree of values, over the leaves it names, so that a partial object is completed."""
    defaults = node.pop("$defaults", None)
    if defaults is None:
        return node
    if not isinstance(defaults, dict):
        return {**node, "default": defaults}
    node["default"] = {}
    for name, value in defaults.items():
        if name not in node["properties"]:
            raise SourceError(f"{path}: $defaults names {name}, which is no property")
        node["properties"][name]["$defaults"] = value
    return node


def expand_children(node: Node, source: Source, path: str) -> Node:
    """Descend into properties, items and map values, unless a template has done so already."""
    if node.pop("$expanded", False):
        return node
    if "properties" in node:
        node["properties"] = {k: expand(v, source, f"{path}.{k}") for k, v in node["properties"].items()}
    for inner in ("items", "additionalProperties"):
        if inner in node:
            node[inner] = expand(node[inner], source, path)
    return node


def bounded(node: Node) -> Node:
    """Bound every string, list and map of a borrowed shape."""
    if node.get("type") == "string" and not node.keys() & {"enum", "maxLength", "format"}:
        node["maxLength"] = BORROWED_STRING
    if node.get("type") == "array":
        node.setdefault("maxItems", BORROWED_ITEMS)
    if "x-kubernetes-int-or-string" in node:
        node.setdefault("maxLength", 32)
    if "additionalProperties" in node:
        node.setdefault("maxProperties", BORROWED_ITEMS)
    for child in [*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")]:
        if child is not None:
            bounded(child)
    return node


def immutability_rule(path: str) -> Node:
    """Refuse any change, with the way out."""
    name = path.rsplit(".", 1)[-1]
    return {
        "rule": "self == oldSelf",
        "message": f"{name} is immutable: create a new LLMCluster with the other value, then delete this one",
    }


def render_rule(rule: Node, source: Source, path: str) -> Node:
    """Fill the words of the source and the property's name into a rule."""
    words = {**source.words, "field": path.rsplit(".", 1)[-1]}
    return {key: fill(value, words) for key, value in rule.items()}


def fill(value: Any, words: Mapping[str, str]) -> Any:
    """Replace {word}; other braces belong to CEL and its regular expressions."""
    if isinstance(value, str):
        for word, text in words.items():
            value = value.replace("{" + word + "}", text)
    return value


def owned_words(owned: Node) -> dict[str, str]:
    """The flags and variables of owned.yaml as CEL lists."""
    flags = owned["flags"]
    letters = [f["short"] for f in flags if len(f.get("short", "")) == 1]
    return {
        "owned_flags": quoted(long_spellings(flags)),
        "owned_short": quoted(f"-{f['short']}" for f in flags if "short" in f),
        "owned_letters": "".join(sorted(letters)),
        "owned_env_prefix": owned["envPrefix"],
        "owned_env": quoted(owned["env"]),
    }


def quoted(names: Iterable[str]) -> str:
    """The items of a list in CEL."""
    return ", ".join(f"'{name}'" for name in names)


def long_spellings(flags: list[Node]) -> list[str]:
    """Every long option of the owned flags: name, aliases and negation."""
    names: list[str] = []
    for flag in flags:
        names += [f"--{flag['flag']}", *(f"--{alias}" for alias in flag.get("aliases", []))]
        names += [f"--no-{flag['flag']}"] if flag.get("negation") else []
    return names
