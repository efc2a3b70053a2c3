"""What docs/simulate.md shows is what was run; the engine is near the measured table."""

from __future__ import annotations

import statistics

from benchmarks import simulate_report as report
from benchmarks import simulate_table as table

CELL = {
    "source": "r1",
    "seed": 1,
    "policy": "work-budget",
    "cold_start": 300.0,
    "believed": 1.0,
    "mode": "monolithic",
    "slo_attainment": 0.995,
    "cost_ratio": 1.2,
    "actions_per_day": 150.0,
    "lower_bound_gpu_seconds": 90.0,
    "oracle_gpu_seconds": 100.0,
    "slo_ceiling": 1.0,
    "date": "2026-11-22",
}


def test_the_page_shows_the_committed_results() -> None:
    found = report.read()
    page = report.PAGE.read_text()
    assert found
    assert report.page_with(page, report.rendered(found)) == page


def test_every_committed_result_is_of_a_cell_of_the_grid() -> None:
    assert set(report.read()) <= {cell.key for cell in report.cells()}


def test_a_slice_lies_within_the_half_that_nothing_was_chosen_on() -> None:
    """A trace is twice as long as its half."""
    for source in report.SOURCES.values():
        begins = [source.half + (seed - 1) * source.shift for seed in report.SEEDS]
        assert min(begins) >= source.half
        assert max(begins) + source.seconds <= 2 * source.half + 1


def test_a_line_says_which_goal_was_missed() -> None:
    dear = CELL | {"cost_ratio": 1.3}
    bad = CELL | {"slo_attainment": 0.97}
    shown = [report.rendered({"x": cell}).splitlines()[2] for cell in (CELL, dear, bad)]
    assert shown[0] == (
        "| r1 | cold start 300 s | 1 | 99.500 (99.500) | 1.200 (1.200) | 150 (150) | 0.50 (1 of 1) | met |"
    )
    assert shown[1].endswith("| **missed**: above 1.25x |")
    assert shown[2].endswith("| 3.00 (0 of 1) | **missed**: SLO below 99.0 % |")


def test_a_longer_cold_start_may_cost_more_where_load_comes_in_bursts() -> None:
    slow = CELL | {"cold_start": 600.0, "cost_ratio": 1.3}
    assert report.rendered({"x": slow}).splitlines()[2].endswith("| met |")


def test_peers_are_compared_on_the_seeds_that_all_of_them_have() -> None:
    cells = {
        f"{policy} {seed}": CELL | {"policy": policy, "seed": seed}
        for policy in (report.OURS, *report.PEERS)
        for seed in (1, 4)
        if (policy, seed) != ("hpa", 4)
    }
    assert {row.cells for row in report.rows_of(cells, "r1")} == {1}
    assert len(report.rows_of(cells, "r1")) == 1 + len(report.PEERS)


def test_the_engine_is_near_the_measured_table() -> None:
    """On every shape; the first token is within a fifth, early rather than late."""
    rows = table.compared()
    assert len(rows) == 30
    assert all(abs(row["tpot_off"]) < 0.085 for row in rows)
    assert statistics.fmean(abs(row["tpot_off"]) for row in rows) < 0.035
    assert all(-0.20 < row["ttft_off"] < 0.02 for row in rows)
    assert statistics.fmean(abs(row["ttft_off"]) for row in rows) < 0.10
