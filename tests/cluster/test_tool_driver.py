"""`ci/tools/tool`: one build per content, however often and from wherever it is asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DRIVER = Path(__file__).resolve().parents[2] / "ci" / "tools" / "tool"
FAKE_GO = """#!/bin/sh
echo build >> "$CALLS"
while [ "$1" != -o ]; do shift; done
sleep 0.3
echo broken sources >&2
[ -z "$BROKEN" ] || exit 1
printf '#!/bin/sh\\necho hello\\n' > "$2/hello"
chmod +x "$2/hello"
"""


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one tool, a compiler that takes notes, and an empty cache; all paths have a space."""
    tools = tmp_path / "my checkout" / "ci" / "tools"
    (tools / "hello").mkdir(parents=True)
    shutil.copy(DRIVER, tools / "tool")
    (tools / "hello/go.mod").write_text("module hello\n")
    (tools / "hello/tool.json").write_text('{"version": "v1", "packages": {"hello": "example.com/cmd/hello"}}')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/go").write_text(FAKE_GO)
    (tmp_path / "bin/go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LLMFLEET_CACHE", str(tmp_path / "the cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tools


def start(tools: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([tools / "tool", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(tools: Path, *arguments: str) -> tuple[int, str, str]:
    child = start(tools, *arguments)
    out, said = child.communicate(timeout=60)
    return child.returncode, out, said


def builds(tools: Path) -> int:
    calls = Path(os.environ["CALLS"])
    return calls.read_text().count("build") if calls.exists() else 0


def test_a_tool_is_built_once_and_runs(workshop: Path) -> None:
    first, second = run(workshop, "hello"), run(workshop, "hello")
    assert first[:2] == second[:2]
    assert first[1].count("\n") == 1
    assert subprocess.check_output([first[1].strip()], text=True) == "hello\n"
    assert (builds(workshop), second[2]) == (1, "")


def test_callers_at_the_same_time_share_one_build(workshop: Path) -> None:
    children = [start(workshop, "hello") for _ in range(4)]
    paths = {child.communicate(timeout=60)[0] for child in children}
    assert ({child.returncode for child in children}, len(paths), builds(workshop)) == ({0}, 1, 1)


@pytest.mark.parametrize("file", ["go.mod", "go.sum", "tool.json", "main.go"])
def test_every_input_of_a_build_is_in_its_key(workshop: Path, file: str) -> None:
    before = run(workshop, "hello")[1]
    path = workshop / "hello" / file
    path.write_text((path.read_text() if path.exists() else "") + "\n")
    assert run(workshop, "hello")[1] != before
    assert Path(before.strip()).exists(), "another checkout may still use the old one"


def test_a_failed_build_shows_why_and_leaves_nothing_that_looks_built(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    status, out, said = run(workshop, "hello")
    assert (status, out) == (1, "")
    assert "broken sources" in said
    assert "whole log: " in said
    monkeypatch.delenv("BROKEN")
    assert run(workshop, "hello")[0] == 0


def test_a_killed_driver_leaves_no_half_tool(workshop: Path) -> None:
    child = start(workshop, "hello")
    assert child.stderr is not None
    child.stderr.readline()
    child.kill()
    child.communicate()
    status, out, _ = run(workshop, "hello")
    assert (status, builds(workshop)) == (0, 2)
    assert subprocess.check_output([out.strip()], text=True) == "hello\n"
    left = [path.name for path in Path(out.strip()).parents[1].iterdir() if path.name.endswith(".tmp")]
    assert left == []


@pytest.mark.parametrize(
    ("arguments", "advice"), [(["nonsense"], "there are hello"), ([], "--list"), (["hello", "nonsense"], "there are")]
)
def test_wrong_names_build_nothing(workshop: Path, arguments: list[str], advice: str) -> None:
    status, out, said = run(workshop, *arguments)
    assert (status, out, advice in said, builds(workshop)) == (1, "", True, 0)


def test_the_list_says_what_is_built(workshop: Path) -> None:
    assert "not built" in run(workshop, "--list")[1]
    assert run(workshop, "--all")[0] == 0
    assert "not built" not in run(workshop, "--list")[1]


def test_every_pinned_tool_is_complete() -> None:
    folders = [path.parent for path in DRIVER.parent.glob("*/go.mod")]
    assert len(folders) >= 12
    for folder in folders:
        # What is not compiled, but only fetched at its pinned version, says how.
        assert (folder / "tool.json").exists() or os.access(folder / "fetch", os.X_OK), folder.name
        text = (folder / "go.mod").read_text()
        assert "require" not in text or (folder / "go.sum").exists(), folder.name
        assert " latest" not in text
