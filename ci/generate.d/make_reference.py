"""The generated parts of docs/reference: field tables, owned flags and columns of both kinds.

In: the schema source and the pages, where `<!-- generated: NAME -->` and `<!-- end -->` hold a part. Out: the
pages with their parts renewed. Text between the parts is written by hand and stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from crd_schema import Node
from make_crds import build_crds, load_source
from reference import column_table, field_table, owned_flag_table, owned_variable_list

PAGES = Path("docs/reference")
PART = re.compile(r"(<!-- generated: (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
TEMPLATE_SPEC = "As in [LLMCluster](llmcluster.md#spec), without defaults of its own."


def outputs(root: Path) -> dict[Path, str]:
    """Path and text of both pages."""
    source = load_source(root)
    pages = {}
    for crd in build_crds(source):
        page = root / PAGES / f"{crd['spec']['names']['singular']}.md"
        pages[page] = renew(page.read_text(encoding="utf-8"), parts_of(crd, source), page.name)
    return pages


def parts_of(crd: Node, source: Mapping[str, Node]) -> dict[str, list[str]]:
    """Every part that a page may hold."""
    version = crd["spec"]["versions"][0]
    fields = version["schema"]["openAPIV3Schema"]["properties"]
    spec = without_templates(fields["spec"])
    return {
        "spec": field_table(spec, immutable_fields(spec)),
        "status": field_table(fields["status"]),
        "columns": column_table(version),
        "owned flags": owned_flag_table(source["owned"]),
        "owned variables": owned_variable_list(source["owned"]),
    }


def without_templates(node: Node, path: str = "") -> Node:
    """Fold the spec of every instance template into one row that points to the other page."""
    if path.endswith("instanceTemplate.spec"):
        return {"type": "object", "description": TEMPLATE_SPEC}
    properties = {k: without_templates(v, f"{path}.{k}") for k, v in node.get("properties", {}).items()}
    return {**node, **({"properties": properties} if properties else {})}


def immutable_fields(spec: Node) -> frozenset[str]:
    """Fields whose every change is refused."""
    rules = {name: node.get("x-kubernetes-validations", []) for name, node in spec["properties"].items()}
    return frozenset(name for name, found in rules.items() if any(rule["rule"] == "self == oldSelf" for rule in found))


def renew(text: str, parts: Mapping[str, list[str]], page: str) -> str:
    """Put the parts where the page has room for them."""

    def fill(found: re.Match[str]) -> str:
        if found["name"] not in parts:
            raise KeyError(f"{page}: there is no generated part {found['name']!r}")
        return f"{found[1]}" + "\n".join(parts[found["name"]]) + f"\n{found[3]}"

    return PART.sub(fill, text)
