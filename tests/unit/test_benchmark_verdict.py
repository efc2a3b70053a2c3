"""What the router benchmark says of its figures: ratios of one round, their bound, and when there is no verdict."""

import math

import pytest

from benchmarks.router import chart, verdict

GOAL = verdict.Goal(ours="full", theirs="nginx", test="unary", limit=1.7)


def rounds(*pairs: tuple[float | None, float]) -> list[dict[str, dict[str, dict[str, float]]]]:
    return [
        {"nginx": {"unary": {"cpu_us": theirs}}} | ({} if ours is None else {"full": {"unary": {"cpu_us": ours}}})
        for ours, theirs in pairs
    ]


@pytest.mark.parametrize(("count", "rank"), [(1, None), (4, None), (5, 5), (9, 8), (15, 12), (25, 18)])
def test_the_bound_is_the_first_order_statistic_above_the_median_with_95_percent(count, rank):
    assert verdict.upper_rank(count) == rank
    if rank is not None:
        above = sum(math.comb(count, k) for k in range(rank)) / 2**count
        assert above >= 0.95 > above - math.comb(count, rank - 1) / 2**count


def test_a_busy_round_slows_both_and_moves_no_ratio():
    judged = verdict.judge(rounds(*[(15, 10)] * 8, (150, 100)), GOAL)
    assert (judged.median, judged.upper, judged.rounds, judged.says) == (1.5, 1.5, 9, "met")


def test_one_outlier_of_nine_does_not_decide_and_two_do():
    assert verdict.judge(rounds(*[(15, 10)] * 8, (90, 10)), GOAL).says == "met"
    assert verdict.judge(rounds(*[(15, 10)] * 7, *[(90, 10)] * 2), GOAL).says == "missed"


def test_few_rounds_and_missing_figures_give_no_verdict():
    assert verdict.judge(rounds(*[(15, 10)] * 4), GOAL).says == "too few rounds"
    assert verdict.judge(rounds((None, 10)), GOAL).says == "not measured"
    assert verdict.judge([], GOAL).says == "not measured"


def test_added_latency_is_what_the_router_added_in_its_own_round():
    one = {"direct": {"latency": {"p50": 100.0, "p99": 300.0}}, "full": {"latency": {"p50": 250.0, "p99": 700.0}}}
    added = verdict.with_added(one)["full"]["latency"]
    assert (added["added_p50"], added["added_p99"]) == (150.0, 400.0)


def test_the_table_shows_medians_and_a_dash_for_what_was_not_measured():
    medians = verdict.summary(rounds((12, 10), (14, 11), (90, 12)), ["full", "nginx", "envoy"])
    text = verdict.table(medians, {"full": "ours", "nginx": "nginx"})
    assert "| ours | 14.0 | - |" in text and "| nginx | 11.0 | - |" in text and "envoy" not in text


def test_the_chart_names_every_row_and_escapes_it():
    drawn = chart.bars("CPU", "us", [("a<b", 10.0, True), ("c", 250.0, False)])
    assert "a&lt;b" in drawn and ">250<" in drawn and drawn.count("<rect") == 2
