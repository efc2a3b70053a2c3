"""Markdown tables of a kind's fields, of the owned flags and of the columns.

In: a CustomResourceDefinition and the schema source as plain data. Out: Markdown lines.
Pure: it reads and writes no file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from crd_schema import Node

HEAD = ["| field | type | default | meaning |", "|---|---|---|---|"]


def field_table(schema: Node, immutable: frozenset[str] = frozenset()) -> list[str]:
    """One row per described field, in the order of the source."""
    rows = [field_row(path, node, required, immutable) for path, node, required in described(schema)]
    return [*HEAD, *rows]


def described(node: Node, path: str = "") -> Iterator[tuple[str, Node, bool]]:
    """Fields with a description; what Kubernetes describes itself has none and ends the descent."""
    for name, child in node.get("properties", {}).items():
        below = f"{path}.{name}" if path else name
        if "description" in child:
            yield below, child, name in node.get("required", [])
            yield from described(child, below)
    if "items" in node:
        yield from described(node["items"], f"{path}[]")


def field_row(path: str, node: Node, required: bool, immutable: frozenset[str]) -> str:
    """Name, type with its limits, default, and what it means."""
    marks = [word for word, is_so in (("required", required), ("immutable", path in immutable)) if is_so]
    meaning = node["description"] + (f" **{', '.join(marks).capitalize()}.**" if marks else "")
    default = "" if "default" not in node or "properties" in node else f"`{json.dumps(node['default'])}`"
    return f"| `{path}` | {type_text(node)} | {default} | {escape(meaning)} |"


def type_text(node: Node) -> str:
    """A type in words, with its limits."""
    if "x-kubernetes-int-or-string" in node:
        return "integer or string"
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    if node["type"] == "array":
        return f"list of {type_text(node['items'])}, at most {node['maxItems']}"
    if isinstance(node.get("additionalProperties"), dict):
        return f"map of {type_text(node['additionalProperties'])}, at most {node['maxProperties']}"
    return str(node["type"]) + limits(node)


def limits(node: Node) -> str:
    """The bounds of a number or a text."""
    if "maxLength" in node:
        return f", at most {node['maxLength']} characters"
    if "minimum" in node and "maximum" in node:
        return f", {node['minimum']} to {node['maximum']}"
    return ""


def escape(text: str) -> str:
    """A cell ends at a bar."""
    return text.replace("|", "\\|")


def owned_flag_table(owned: Node) -> list[str]:
    """Each owned flag with its other spellings and what to write instead."""
    rows = []
    for flag in owned["flags"]:
        other = [f"`-{flag['short']}`"] if "short" in flag else []
        other += [f"`--{alias}`" for alias in flag.get("aliases", [])]
        other += [f"`--no-{flag['flag']}`"] if flag.get("negation") else []
        rows.append(f"| `--{flag['flag']}` | {', '.join(other)} | {flag['instead']} |")
    return ["| flag | also | write instead |", "|---|---|---|", *rows]


def owned_variable_list(owned: Node) -> list[str]:
    """The variables in one line."""
    names = [f"`{name}`" for name in owned["env"]]
    return [f"{', '.join(names)}, and every name that starts with `{owned['envPrefix']}`."]


def column_table(version: Node) -> list[str]:
    """What kubectl get prints."""
    rows = [
        f"| {column['name'].upper()} | {'-o wide' if column.get('priority') else ''} | `{escape(column['jsonPath'])}` |"
        for column in version["additionalPrinterColumns"]
    ]
    return ["| column | | from |", "|---|---|---|", *rows]
