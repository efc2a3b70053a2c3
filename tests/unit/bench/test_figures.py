"""Statistics, verdict, prompts and addresses: everything of a bench that talks to nobody."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.bench.figures import Level, Window, spread, summarize
from llmfleet.bench.plot import page, picture, round_marks
from llmfleet.bench.report import as_json, notes
from llmfleet.bench.request import TargetError, parse_target, prompt_text, words_for
from llmfleet.bench.stream import Kind, Problem, Sample
from llmfleet.bench.verdict import Objective, duration, kept, misses

TIMES = st.floats(0, 1e4, allow_nan=False)


def sample(begin: float = 0.0, ttft: float = 1.0, tpot: float = 0.1, tokens: int = 11) -> Sample:
    first = begin + ttft
    last = first + tpot * (tokens - 1)
    return Sample(begin=begin, end=last, first=first, last=last, prompt_tokens=100, output_tokens=tokens)


def failed(kind: Kind = Kind.REFUSED, code: str = "429 overloaded", said: str = "busy", begin: float = 0.0) -> Sample:
    return Sample(begin=begin, end=begin + 1, problem=Problem(kind=kind, code=code, said=said))


def level(*samples: Sample, users: int = 4, begin: float = 0.0, end: float = 10.0, cpu: float = 0.0) -> Level:
    window = Window(begin=begin, end=end)
    return summarize(users=users, samples=samples, window=window, cut=0, cpu=cpu, wall=10.0)


# ---- percentiles ----


@pytest.mark.parametrize(
    ("case", "values", "percent", "found"),
    [
        ("one value is every percentile", [3], 1, 3),
        ("the middle of an odd number", [1, 2, 3], 50, 2),
        ("the lower middle of an even number, never an invented one", [1, 2, 3, 4], 50, 2),
        ("p99 of a hundred is the second slowest", range(1, 101), 99, 99),
        ("p99 of ninety-nine is the slowest", range(1, 100), 99, 99),
        ("p95 of twenty is the second slowest", range(1, 21), 95, 19),
        ("p100 is the slowest", [1, 2, 9], 100, 9),
        ("order does not matter", [9, 1, 2], 100, 9),
    ],
)
def test_percentiles_are_nearest_ranks(case: str, values: list[float], percent: float, found: float) -> None:
    values_of = spread([float(value) for value in values])
    assert values_of is not None
    assert values_of.at(percent) == found, case


@given(values=st.lists(TIMES, min_size=1, max_size=200), percent=st.floats(1, 100))
def test_a_percentile_was_measured_and_so_many_values_are_not_above_it(values: list[float], percent: float) -> None:
    found = spread(values)
    assert found is not None
    at = found.at(percent)
    assert at in values
    assert sum(value <= at for value in values) >= math.floor(percent / 100 * len(values))
    assert found.at(1) <= at <= found.at(100) == max(values)


def test_no_value_has_no_spread() -> None:
    assert spread([]) is None


# ---- windows and rates ----


@given(
    begin=TIMES,
    length=st.floats(0.001, 1e3),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=8),
)
def test_windows_that_follow_each_other_share_a_request_without_loss(
    begin: float, length: float, cuts: list[float]
) -> None:
    edges = [begin - 1, *(begin + length * cut for cut in sorted(cuts)), begin + length + 1]
    shares = [Window(begin=left, end=right).share(begin, begin + length) for left, right in pairwise(edges)]
    assert all(share >= 0 for share in shares)
    assert math.isclose(sum(shares), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("case", "requests", "rate", "tokens"),
    [
        ("whole inside", [sample(1.0)], 0.1, 1.1),
        ("two users in step until the end", [sample(8.0), sample(8.0)], 0.2, 2.2),
        ("begun before the window: a half of it counts", [sample(-1.0)], 0.05, 1.1),
        ("ended after the window: a half of it counts, and the tokens that came", [sample(9.0, tpot=0.1)], 0.05, 0.0),
        ("errors are no throughput", [failed()], 0.0, 0.0),
        ("an answer of one token", [sample(1.0, tokens=1)], 0.1, 0.1),
    ],
)
def test_rates_are_of_what_happened_inside_the_window(
    case: str, requests: list[Sample], rate: float, tokens: float
) -> None:
    found = level(*requests)
    assert found.requests_per_second == pytest.approx(rate), case
    assert found.output_tokens_per_second == pytest.approx(tokens), case


def test_what_began_before_the_window_is_not_measured_but_its_errors_count() -> None:
    found = level(sample(-1.0, ttft=9.0), sample(1.0), failed(begin=-1.0))
    assert (found.requests, found.warmups, found.errors) == (1, 1, 1)
    assert found.ttft is not None
    assert found.ttft.values == (1.0,)


def test_an_empty_window_divides_by_nothing() -> None:
    found = level(end=0.0)
    assert (found.requests, found.requests_per_second, found.ttft) == (0, 0.0, None)


def test_tpot_is_the_time_after_the_first_token_for_each_further_one() -> None:
    assert sample(tpot=0.02, tokens=101).tpot == pytest.approx(0.02)
    assert sample(tokens=1).tpot is None


def test_errors_are_grouped_by_kind_and_code_and_keep_the_first_words() -> None:
    found = level(failed(said="first"), failed(said="second"), failed(Kind.BROKEN_OFF, "", "reset"))
    assert [(one.kind, one.code, one.count, one.said) for one in found.faults] == [
        (Kind.REFUSED, "429 overloaded", 2, "first"),
        (Kind.BROKEN_OFF, "", 1, "reset"),
    ]


# ---- verdict ----


@pytest.mark.parametrize(
    ("case", "requests", "objective", "found"),
    [
        ("no objective and no error", [sample()], Objective(), []),
        ("an error alone is a miss", [sample(), failed()], Objective(), ["1 errors"]),
        ("nothing measured is a miss", [], Objective(), ["no request was measured"]),
        ("exactly on the limit is kept", [sample(ttft=1.0)], Objective(ttft=1.0), []),
        ("above the limit", [sample(ttft=1.5)], Objective(ttft=1.0), ["TTFT p99 1.50 s > 1.00 s"]),
        (
            "both times",
            [sample(ttft=1.5, tpot=0.0625)],
            Objective(ttft=1.0, tpot=0.05),
            ["TTFT p99 1.50 s > 1.00 s", "TPOT p99 62.5 ms > 50 ms"],
        ),
        ("a median may hide the slow one", [sample(), sample(), sample(ttft=9)], Objective(ttft=2, percentile=50), []),
        ("another level is judged", [failed()], Objective(users=frozenset({9})), []),
        ("one token has no TPOT to miss", [sample(tokens=1)], Objective(tpot=0.001), []),
    ],
)
def test_verdict(case: str, requests: list[Sample], objective: Objective, found: list[str]) -> None:
    assert misses(level(*requests), objective) == found, case


@given(ttfts=st.lists(st.floats(0.001, 10), min_size=1, max_size=50), limit=st.floats(0.001, 10))
def test_p100_is_kept_exactly_when_every_request_keeps_it(ttfts: list[float], limit: float) -> None:
    found = level(*(sample(ttft=ttft) for ttft in ttfts))
    objective = Objective(ttft=limit, percentile=100)
    assert (misses(found, objective) == []) == (kept(found, objective) == 1.0)


@pytest.mark.parametrize(("percentile", "least"), [(99, 100), (95, 20), (50, 2), (99.9, 1000), (100, 1)])
def test_how_many_requests_a_percentile_needs(percentile: float, least: int) -> None:
    assert Objective(percentile=percentile).least_requests() == least


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00005, "0.05 ms"), (0.0501, "50.1 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"), (75.0, "75.00 s")],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- what is sent ----


@pytest.mark.parametrize(
    ("text", "url", "host"),
    [
        ("http://localhost:8080", "http://localhost:8080", "localhost:8080"),
        ("http://localhost:8080/v1/", "http://localhost:8080", "localhost:8080"),
        ("https://api.example.com/v1", "https://api.example.com", "api.example.com"),
        ("http://[::1]:8080", "http://[::1]:8080", "[::1]:8080"),
        ("https://gate.example.com/llm/v1", "https://gate.example.com/llm", "gate.example.com"),
        ("http://h:80", "http://h", "h"),
    ],
)
def test_addresses(text: str, url: str, host: str) -> None:
    target = parse_target(text)
    assert (target.url, target.authority) == (url, host)


@pytest.mark.parametrize(
    "text", ["localhost:8080", "ftp://h", "http://", "http://h:99999", "http://h/ x", "http://h?q=1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(TargetError):
        parse_target(text)


@given(first=st.text(max_size=20), second=st.text(max_size=20), words=st.integers(8, 300))
def test_prompts_have_their_length_and_two_keys_share_no_beginning(first: str, second: str, words: int) -> None:
    one, other = prompt_text(words, first), prompt_text(words, second)
    assert len(one.split()) == words
    assert (one == other) == (first == second)
    assert first == second or one.split()[:8] != other.split()[:8]


@given(template=st.integers(0, 60), each=st.floats(0.7, 3.0), tokens=st.integers(100, 5000))
def test_the_prompt_is_as_long_as_asked_whatever_the_tokenizer(template: int, each: float, tokens: int) -> None:
    def count(words: int) -> int:
        return template + round(words * each)

    shorter, longer = tokens // 4, tokens // 2
    words = words_for(tokens, (shorter, count(shorter)), (longer, count(longer)))
    assert abs(count(words) - tokens) <= max(6, 0.05 * tokens)


@pytest.mark.parametrize(
    ("case", "tokens", "counts", "words"),
    [
        ("a template longer than the prompt leaves one word", 5, ((4, 34), (8, 38)), 1),
        ("an endpoint that counts nothing is taken at a token a word", 512, ((128, 0), (256, 0)), 512),
    ],
)
def test_odd_counts(case: str, tokens: int, counts: tuple[tuple[int, int], tuple[int, int]], words: int) -> None:
    assert words_for(tokens, *counts) == words, case


# ---- what is shown ----


def three_levels() -> list[Level]:
    return [
        level(*(sample(0.1 * place) for place in range(5)), users=1),
        level(*(sample(0.1 * place, ttft=2) for place in range(5)), failed(), users=5),
        level(failed(), users=10),
    ]


def test_the_picture_is_xml_with_a_mark_for_every_figure() -> None:
    objective = Objective(ttft=1.5, tpot=0.2)
    root = ElementTree.fromstring(picture("a <model> & more", three_levels(), objective))
    kinds = [one.tag.rpartition("}")[2] for one in root.iter()]
    # Two levels have times, in two panels of three percentiles; three have a throughput.
    assert kinds.count("circle") == 2 * 3 * 2 + 3
    assert kinds.count("polyline") == 2 * 3 + 1
    marks = [one.get("class") for one in root.iter() if one.get("class")]
    assert (marks.count("objective"), marks.count("errors")) == (2, 2 * 3)
    words = [one.text for one in root.iter() if one.tag.endswith("text")]
    assert {"a <model> & more", "1", "5", "10", "p50", "p95", "p99", "users"} <= set(words)


@pytest.mark.parametrize(
    ("highest", "marks"),
    [
        (2000, [0, 500, 1000, 1500, 2000]),
        (50, [0, 10, 20, 30, 40, 50]),
        (2569, [0, 500, 1000, 1500, 2000, 2500, 3000]),
        (0, [0, 1]),
    ],
)
def test_marks_are_round(highest: float, marks: list[float]) -> None:
    assert round_marks(highest) == pytest.approx(marks)


@given(highest=st.floats(1e-3, 1e7))
def test_marks_reach_over_the_highest_value_and_are_few(highest: float) -> None:
    marks = round_marks(highest)
    assert marks[0] == 0
    assert marks[-2] < highest * (1 + 1e-6) and marks[-1] >= highest * (1 - 1e-6)
    assert 4 <= len(marks) - 1 <= 8


def test_the_picture_puts_a_higher_value_higher_and_more_users_further_right() -> None:
    root = ElementTree.fromstring(picture("t", three_levels()[:2], Objective()))
    circles = [one for one in root.iter() if one.tag.endswith("circle")][:2]
    (x1, y1), (x2, y2) = ((float(one.get("cx", "")), float(one.get("cy", ""))) for one in circles)
    assert x1 < x2
    assert y1 > y2, "TTFT p50 of 5 users is twice that of 1"


def test_a_picture_of_errors_only_can_be_drawn() -> None:
    ElementTree.fromstring(picture("t", [level(failed(), users=1)], Objective()))
    assert "<svg" in page(picture("t", [level(failed(), users=1)], Objective()))


def test_notes_name_every_error_a_thin_percentile_and_a_busy_client() -> None:
    lines = notes([level(sample(), failed(), users=1, cpu=9.0)], Objective(), interrupted=True)
    assert lines == [
        "1 user: 1 x refused 429 overloaded: busy",
        "p99 of fewer than 100 requests is the slowest one: 1 user; measure longer",
        "this client was busy itself, its own speed may be what you see: 1 user (90 %)",
        "stopped by you: 0 requests under way are not in it, nor levels that are not listed",
    ]


@pytest.mark.parametrize(
    ("levels", "interrupted", "passed"),
    [([level(sample())], False, True), ([level(sample())], True, False), ([level(failed())], False, False)],
)
def test_json_says_whether_it_passed(levels: list[Level], interrupted: bool, passed: bool) -> None:
    assert as_json(levels, Objective(), asked={}, interrupted=interrupted)["passed"] is passed
