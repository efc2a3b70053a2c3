"""The runner of the check, with stages that only say who they are: what runs beside what, and what makes it red."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[3] / "ci/check"
STAGES = (
    "lint unit tools crds charts recipes rules dashboards images native cluster policies profiles e2e faults demo vllm"
)


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """A copy of the check whose stages are shell functions of two words; `bodies` in its folder replaces some."""
    text = CHECK.read_text()
    head, rest = text.split("\npytest() {", 1)
    stages = "".join(f'{name}() {{ echo "here is {name}"; }}\n' for name in STAGES.split())
    tail = rest[rest.index("\nfor word in") :]
    check = tmp_path / "ci/check"
    check.parent.mkdir()
    check.write_text(f"{head}\n{stages}\n. ci/bodies\n{tail}")
    (tmp_path / "ci/setup").write_text("#!/bin/sh\n")
    (tmp_path / "ci/bodies").write_text("")
    for path in (check, tmp_path / "ci/setup"):
        path.chmod(0o755)
    return check


def with_bodies(runner: Path, bodies: Mapping[str, str]) -> Path:
    """The runner with other bodies for some of its stages."""
    (runner.parent / "bodies").write_text("".join(f"{name}() {{\n{body}\n}}\n" for name, body in bodies.items()))
    return runner


def checked(runner: Path, *words: str) -> tuple[int, str, dict[str, str]]:
    """Status, all that was printed, and what the table says of each stage."""
    done = subprocess.run([runner, *words], capture_output=True, text=True, timeout=60, check=False)
    table = dict(re.findall(r"^(\w+) +\d+ s  (\w+)$", done.stdout.split("== check")[-1], re.MULTILINE))
    return done.returncode, done.stdout + done.stderr, table


def test_without_a_word_every_stage_runs_once(runner: Path) -> None:
    status, text, table = checked(runner)
    assert (status, set(table.values())) == (0, {"passed"})
    assert sorted(table) == sorted(STAGES.split())
    assert sorted(re.findall(r"here is (\w+)", text)) == sorted(STAGES.split())


@pytest.mark.parametrize("words", [("crds", "charts"), ("e2e", "+", "crds", "charts", ".", "faults")])
@pytest.mark.parametrize("red", ["crds", "charts"])
def test_one_red_stage_makes_it_red_and_the_others_run_all_the_same(
    runner: Path, words: tuple[str, ...], red: str
) -> None:
    status, text, table = checked(with_bodies(runner, {red: "echo broken; return 3"}), *words)
    assert (status, table.pop(red), set(table.values())) == (1, "FAILED", {"passed"})
    assert "broken" in text


@pytest.mark.parametrize("words", [("e2e", "+", "crds", ".", "faults"), ("e2e", "+", "crds")])
def test_a_red_stage_beside_the_others_makes_it_red_and_its_words_are_printed_whole(
    runner: Path, words: tuple[str, ...]
) -> None:
    status, text, table = checked(with_bodies(runner, {"e2e": "echo first; sleep 1; echo last; false"}), *words)
    assert (status, table.pop("e2e"), set(table.values())) == (1, "FAILED", {"passed"})
    assert "== e2e (ran beside the above)\nfirst\nlast\n" in text


def test_what_runs_beside_others_really_does(runner: Path) -> None:
    """Each waits for a file of the other: one after the other would never end."""
    meet = {
        "e2e": "touch a; until [ -e b ]; do sleep 0.05; done",
        "crds": "touch b; until [ -e a ]; do sleep 0.05; done",
    }
    status, _, table = checked(with_bodies(runner, meet), "e2e", "+", "crds")
    assert (status, table) == (0, {"e2e": "passed", "crds": "passed"})


def test_behind_the_dot_nothing_runs_beside(runner: Path) -> None:
    bodies = {"e2e": "sleep 1; touch ended", "faults": "[ -e ended ]"}
    status, _, table = checked(with_bodies(runner, bodies), "e2e", "+", "crds", ".", "faults")
    assert (status, table["faults"]) == (0, "passed")


def test_interrupted_it_ends_what_runs_beside_and_waits_until_that_has_cleaned_up(runner: Path) -> None:
    bodies = {
        "e2e": "trap 'touch cleaned; exit 1' INT; touch begun; while :; do sleep 0.05; done",
        "crds": "until [ -e begun ]; do sleep 0.05; done; echo ready; while [ ! -e over ]; do sleep 0.05; done",
    }
    with_bodies(runner, bodies)
    # Whoever runs the tests in the background may have SIGINT ignored, and a shell cannot trap what was ignored before.
    command = ["env", "--default-signal=INT", runner, "e2e", "+", "crds"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        pass
    os.kill(process.pid, signal.SIGINT)
    (runner.parents[1] / "over").touch()
    assert process.wait(timeout=60) == 130
    process.stdout.close()
    assert (runner.parents[1] / "cleaned").exists()


def test_a_stage_that_does_not_exist_is_refused_before_anything_runs(runner: Path) -> None:
    status, text, _ = checked(runner, "crds", "crd")
    assert status == 2
    assert "no stage 'crd'; choose from: lint unit" in text
    assert "here is" not in text
