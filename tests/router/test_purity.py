"""Waiting, clocks, sockets and logs live in five files of the router; every other module only computes."""

import ast
from pathlib import Path

import pytest

import llmfleet.router

FOLDER = Path(llmfleet.router.__file__).parent
SHELL = {"app.py", "client.py", "main.py", "proxy.py", "relay.py"}
FORBIDDEN = {"asyncio", "threading", "logging", "os", "random", "secrets", "socket", "subprocess", "time", "aiohttp"}
PURE = sorted(path.name for path in FOLDER.glob("*.py") if path.name not in SHELL)


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("name", PURE)
def test_modules_that_decide_import_nothing_that_waits(name):
    modules = imported(ast.parse((FOLDER / name).read_text()))
    assert not {module.partition(".")[0] for module in modules} & FORBIDDEN
    shell = {f"llmfleet.router.{file.removesuffix('.py')}" for file in SHELL}
    assert not modules & (shell | {"llmfleet.settings"})


def test_the_shell_is_no_larger_than_it_says():
    assert {
        "answer.py",
        "errors.py",
        "limits.py",
        "http1.py",
        "request.py",
        "response.py",
        "pick.py",
        "policy.py",
        "sse.py",
    } <= set(PURE)
    assert all((FOLDER / name).is_file() for name in SHELL)
