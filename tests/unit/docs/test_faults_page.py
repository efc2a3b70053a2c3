"""The page about faults shows what was measured, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from faults_long import results
from faults_long.catalogue import SCENARIOS

ROOT = Path(__file__).resolve().parents[3]
ORDER = [scenario.name for scenario in SCENARIOS]
ONE = {
    "title": "a thing breaks",
    "must_hold": "all",
    "date": "2026-11-22 00:00 UTC",
    "seconds": 12,
    "seed": 1,
    "load": "1.0 1.0 1.0",
    "versions": "v",
    "passed": True,
    "broken": [],
    "figures": {"requests": 1234, "lost requests": ["2 x reset"], "ends": {"complete": 7}},
    "timeline": [{"second": 1.5, "what": "it broke"}],
}
BAD = ONE | {"passed": False, "broken": ["it hung"]}


def test_the_page_shows_the_committed_results():
    found = results.read(ROOT / "docs/faults.json")
    page = (ROOT / "docs/faults.md").read_text()
    assert found and results.page_with(page, results.rendered(found, ORDER)) == page


def test_every_committed_result_is_of_a_scenario_that_exists():
    assert set(results.read(ROOT / "docs/faults.json")) <= set(ORDER)


def test_a_row_says_what_fell_short_and_leaves_lists_to_the_incident():
    good, bad = results.row("x", [ONE]), results.row("x", [BAD])
    assert good == "| `x`: a thing breaks | all | 1 | requests: 1,234; ends: complete 7 |"
    assert "**falls short**: it hung" in bad
    assert "lost: 2 x reset" in results.incident([ONE]) and "it broke" in results.incident([ONE])


def test_pairs_of_figures_are_figures_and_no_words_about_requests():
    pair = ONE | {"figures": {"ranks lost, groups that came back": [3, 3], "lost requests": []}}
    assert results.row("x", [pair]).endswith("| ranks lost, groups that came back: 3 and 3 |")
    assert "lost:" not in results.incident([pair])


def test_figures_of_several_runs_stand_beside_each_other():
    other = ONE | {"figures": ONE["figures"] | {"requests": 1300}, "seed": 2}
    row = results.row("x", [ONE, other])
    assert "| 2 | requests: 1,234 / 1,300; ends: complete 7 |" in row
    assert "seed 2" in results.incident([ONE, other]) and "seed 1" in results.incident([ONE, other])


def test_three_runs_in_a_row_are_kept_and_a_broken_one_begins_the_row_anew():
    runs: results.Runs = []
    for seed in (1, 2, 3, 4):
        runs = results.after(runs, ONE | {"seed": seed})
    assert [one["seed"] for one in runs] == [2, 3, 4]
    broken = results.after(runs, BAD)
    assert broken == [*runs[1:], BAD] and not results.held(broken)
    assert results.after(broken, ONE) == [ONE]


def test_a_machine_that_was_never_here_continues_the_rows_that_were_published():
    first, second, later = (ONE | {"date": f"2026-11-{day} 00:00 UTC"} for day in (22, 23, 24))
    published = {"x": [first], "y": [BAD], "z": [first]}
    assert results.joined(published, {"x": [first, second], "y": [later]}) == {
        "x": [first, second],
        "y": [later],
        "z": [first],
    }
    broken = BAD | {"date": later["date"]}
    assert results.joined(published, {"x": [second, broken]})["x"] == [first, second, broken]
    assert published["x"] == [first]


def test_a_scenario_that_did_not_hold_is_run_again_and_one_that_did_is_not(tmp_path):
    path = tmp_path / "deep" / "results.json"
    assert results.read(path) == {} and not results.finished({}, "x")
    results.write(path, {"x": [ONE], "y": [ONE, BAD]})
    assert json.loads(path.read_text())["x"] == [ONE]
    assert results.finished(results.read(path), "x") and not results.finished(results.read(path), "y")
    assert not results.finished(results.read(path), "x", rounds=2)


def test_scenarios_have_names_of_their_own_and_an_end():
    assert len(set(ORDER)) == len(ORDER)
    assert all(0 < scenario.limit <= 6 * 3600 for scenario in SCENARIOS)
