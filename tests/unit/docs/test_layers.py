"""The I/O rule of ARCHITECTURE.md, held for every module by its file name: pure unless the name says I/O."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ROOT / "controllers"
# Modules that wait, look at a clock, draw lots, or reach files, processes and networks.
REACHING = frozenset(
    {
        "aiohttp",
        "asyncio",
        "concurrent",
        "kubernetes",
        "logging",
        "multiprocessing",
        "os",
        "pathlib",
        "random",
        "redis",
        "requests",
        "select",
        "selectors",
        "signal",
        "socket",
        "ssl",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "urllib3",
        "uvloop",
    }
)
CLOCKS = frozenset({"now", "utcnow", "today"})


def io_names() -> frozenset[str]:
    """The file names that the rule in ARCHITECTURE.md allows to do I/O."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rule = text.split("## I/O rule")[1].split("Every other module is pure")[0]
    return frozenset(re.findall(r"`([\w.]+\.py)`", rule))


def modules() -> list[Path]:
    return sorted(PACKAGES.rglob("*.py"))


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def calls_of(tree: ast.AST) -> Iterator[str]:
    """`open`, `print`, `input`, and every `something.now()`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input"):
            yield node.func.id
        if isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
            yield node.func.attr


def reaches(source: str) -> set[str]:
    tree = ast.parse(source)
    return (set(imports_of(tree)) & REACHING) | set(calls_of(tree))


def test_the_rule_names_its_files() -> None:
    assert {"controller.py", "client.py", "settings.py", "telemetry.py"} <= io_names()
    assert "decide.py" not in io_names()


PURE = [path for path in modules() if path.name not in io_names()]


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(PACKAGES)))
def test_a_module_with_another_name_is_pure(path: Path) -> None:
    assert reaches(path.read_text()) == set()


def test_there_are_pure_modules_in_every_flow() -> None:
    folders = {path.relative_to(PACKAGES).parts[1] for path in PURE if path.name != "__init__.py"}
    assert {"api", "deploy", "route", "router", "kube"} <= folders


@pytest.mark.parametrize(
    "source",
    ["import time", "from os import environ", "import urllib3.util", "x = datetime.now(UTC)", "open('f')"],
)
def test_the_look_finds_what_it_looks_for(source: str) -> None:
    assert reaches(source)


def test_a_now_that_is_given_is_no_clock() -> None:
    assert not reaches("def decide(now: datetime) -> bool:\n    return facts.now < now")
