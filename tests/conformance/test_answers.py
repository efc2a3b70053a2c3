"""Every recorded request is answered as real vLLM answered it: status, headers, bodies, events, errors."""

import json
from pathlib import Path

import pytest

from conformance.cases import CASES, LOOSE, Case
from conformance.client import exchange
from conformance.shapes import answer_shape, loose, metric_shape

RECORDED = Path(__file__).resolve().parent / "recorded"
ANSWERS = json.loads((RECORDED / "answers.json").read_text())
METRICS = json.loads((RECORDED / "metrics.json").read_text())
# The real process has fewer or more of these by the moment, never by what it is.
BY_USE = ("http_",)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_answer_has_the_recorded_shape(engine, case: Case):
    answer, expected = answer_shape(exchange(engine.port, case)), ANSWERS[case.name]
    if case.name in LOOSE:
        answer, expected = loose(answer), loose(expected)
    assert json.dumps(answer, indent=1) == json.dumps(expected, indent=1)


def test_every_recorded_answer_belongs_to_a_case():
    assert sorted(ANSWERS) == sorted(case.name for case in CASES)


def test_metric_families_have_the_recorded_names_kinds_help_and_order(engine):
    shown = metric_shape(engine.get("/metrics").body.decode())
    mine = [(name, family["kind"], family["help"]) for name, family in shown.items() if name in METRICS]
    assert mine == [(name, family["kind"], family["help"]) for name, family in METRICS.items()]
    assert [name for name in shown if name not in METRICS and not name.startswith(BY_USE)] == []


@pytest.mark.parametrize("name", [name for name in METRICS if not name.startswith(BY_USE)])
def test_a_metric_has_the_recorded_labels_and_buckets(engine, name):
    shown = metric_shape(engine.get("/metrics").body.decode())[name]
    assert sorted(shown["samples"]) == sorted(METRICS[name]["samples"])


def test_the_scrape_has_the_content_type_of_the_recorded_exposition_format(engine):
    reply = engine.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
