"""The recipes of docs/recipes: which files there are, what is in them, and how each is checked.

In: the folder. Out: paths, parsed documents, the values that a `helm` line names. It never starts anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from charts.rendering import ROOT, Object

FOLDER = ROOT / "docs" / "recipes"
INDEX = FOLDER / "README.md"
NAMESPACE = "llmfleet"
FENCE = re.compile(r"^```yaml (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Kinds of other projects whose CRDs no Go module holds: the apiserver of the tests does not know them. Each page that
# uses one says so. The list is held to be true by a test: a kind that became known must leave it.
UNKNOWN = {
    ("helm.toolkit.fluxcd.io/v2", "HelmRelease"),
    ("scheduling.volcano.sh/v1beta1", "PodGroup"),
    ("scheduling.volcano.sh/v1beta1", "Queue"),
}


def files() -> list[Path]:
    """Every file of a recipe, beside the pages."""
    return sorted(path for path in FOLDER.rglob("*") if path.is_file() and path.parent != FOLDER)


def pages() -> list[Path]:
    """Every page but the index."""
    return sorted(path for path in FOLDER.glob("*.md") if path != INDEX)


def name_of(path: Path) -> str:
    """A file as its page calls it."""
    return str(path.relative_to(FOLDER))


def is_values(path: Path) -> bool:
    """Values for the chart."""
    return path.suffix == ".yaml" and path.name.startswith("values")


def documents(path: Path) -> list[Any]:
    """The YAML documents of a file that hold something."""
    return [one for one in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader) if one]


@cache
def is_manifest(path: Path) -> bool:
    """Objects for an apiserver, and nothing else."""
    if path.suffix != ".yaml" or is_values(path):
        return False
    return all(isinstance(one, dict) and {"apiVersion", "kind"} <= set(one) for one in documents(path))


def manifests() -> list[Path]:
    return [path for path in files() if is_manifest(path)]


def values_files() -> list[Path]:
    return [path for path in files() if is_values(path)]


def objects(path: Path) -> list[Object]:
    """The objects of a manifest; what names no namespace is in that of the release, as `kubectl -n` would have it."""
    return documents(path)


def helm_line(path: Path) -> str:
    """The command in the comment at the head of a values file, on one line."""
    head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    found = re.search(r"^#\s+(helm (?:install|upgrade) (?:.*\\\n)*.*)$", head, re.MULTILINE)
    assert found, f"{name_of(path)} does not begin with its helm command"
    return re.sub(r"\\\n#\s*", "", found[1])


def arguments(path: Path) -> list[str]:
    """What decides the objects: the chart, the values, the settings of the helm line."""
    line = helm_line(path)
    chart = re.search(r"(charts/[\w-]+)", line)
    assert chart, line
    options = re.findall(r"--(?:values|set|set-string)[ =]\S+", line)
    return [str(ROOT / chart[1]), *(absolute(option) for option in options)]


def absolute(option: str) -> str:
    """`--values docs/x.yaml` as Helm takes it from any folder."""
    flag, value = re.split(r"[ =]", option, maxsplit=1)
    return f"{flag}={ROOT / value}" if flag == "--values" else f"{flag}={value}"


def embedded(page: Path) -> Iterator[tuple[str, str]]:
    """Each file that a page shows: its name and the text that is shown."""
    yield from FENCE.findall(page.read_text())
