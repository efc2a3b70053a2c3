"""`ci/*-values.yaml` of the charts that people install, from the profiles in values/.

In: the profiles, each with its own `helm` command in its first lines, which names the files it is laid over. Out: what
Helm makes of those files, one file for each profile and chart, so that `ct lint` checks what users install. It writes
nothing and knows no profile by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

Values = dict[str, Any]
HEAD = "# Written by ci/generate from values/; for `ct lint`.\n"
# A chart that is installed apart needs what the umbrella tells it.
OPERATOR: Values = {"release": "llmfleet", "namespace": "llmfleet-system"}


def outputs(root: Path) -> dict[Path, str]:
    """One file for each profile, and for the charts apart those of one."""
    files: dict[Path, str] = {}
    for source in sorted(root.glob("values/*.yaml")):
        files[root / "charts" / "llmfleet" / "ci" / f"{source.stem}-values.yaml"] = text(merged(source))
    whole = merged(root / "values" / "production-monolithic.yaml")
    for part, more in (("controllers", {}), ("fleet", {"operator": OPERATOR})):
        own = {"global": whole["global"], **whole[part], **more}
        files[root / "charts" / f"llmfleet-{part}" / "ci" / "production-values.yaml"] = text(own)
    return files


def text(values: Values) -> str:
    """Dump, lists indented as everywhere here."""

    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)

    return HEAD + yaml.dump(values, Dumper=Dumper, sort_keys=False, width=118)


def merged(source: Path) -> Values:
    """The values of a profile: every file of its own command, later ones over earlier ones."""
    result: Values = {}
    for name in layers(source):
        result = over(result, yaml.safe_load((source.parent / name).read_text(encoding="utf-8")))
    return result


def layers(source: Path) -> list[str]:
    """The files of the first `helm` command that installs, in the comments at the top."""
    lines = source.read_text(encoding="utf-8").splitlines()
    head = "\n".join(line for line in lines[:30] if line.startswith("#"))
    joined = re.sub(r"\\\n#\s*", "", head)
    command = re.search(r"^#\s+helm (?:install|upgrade --install) .*$", joined, re.MULTILINE)
    if not command:
        raise SystemExit(f"{source.name}: say in the first lines how to install it: # helm install ...")
    return [name.removeprefix("values/") for name in re.findall(r"--values (\S+)", command[0])]


def over(below: Values, above: Mapping[str, Any]) -> Values:
    """Merge as Helm does: maps key by key, everything else as a whole."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
