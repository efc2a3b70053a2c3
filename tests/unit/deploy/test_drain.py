"""The drain handshake: documents, then routers, then the engine; and a deadline over all of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.api.document import Document, Endpoint, Model, State, render
from llmfleet.deploy import traffic
from llmfleet.deploy.drain import DrainFacts, Published, Stage, judge

SINCE = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = DrainFacts(since=SINCE, timeout=timedelta(seconds=300), serving=True, idle_looks=0, published=())


def published(offers: bool = False, generation: int = 7, **routers: int | None) -> tuple[Published, ...]:
    return (Published(name="backends", offers=offers, generation=generation, routers=routers),)


@pytest.mark.parametrize(
    ("case", "facts", "seconds", "stage"),
    [
        ("an offered instance waits for the document", {"published": published(True)}, 1, Stage.DOCUMENT),
        ("a router that is behind is waited for", {"published": published(r1=6)}, 1, Stage.ROUTERS),
        ("a silent router is waited for", {"published": published(r1=7, r2=None)}, 1, Stage.ROUTERS),
        ("an idle engine proves nothing before", {"published": published(r1=6), "idle_looks": 9}, 1, Stage.ROUTERS),
        ("one idle look is not enough", {"published": published(r1=7), "idle_looks": 1}, 1, Stage.ENGINE),
        ("two are", {"published": published(r1=8), "idle_looks": 2}, 1, Stage.DONE),
        ("without routers clients get a moment", {"idle_looks": 2}, 1, Stage.ENGINE),
        ("and no longer", {"idle_looks": 2}, 3, Stage.DONE),
        ("what does not serve is done", {"serving": False, "published": published(True)}, 0, Stage.DONE),
        ("the deadline ends a wait for documents", {"published": published(True)}, 300, Stage.DONE),
        ("and for routers", {"published": published(r1=None)}, 300, Stage.DONE),
        ("and for the engine", {"published": published(r1=7)}, 300, Stage.DONE),
        ("but not a second earlier", {"published": published(r1=7)}, 299, Stage.ENGINE),
    ],
)
def test_judge(case: str, facts: dict[str, Any], seconds: int, stage: Stage) -> None:
    assert judge(replace(FACTS, **facts), SINCE + timedelta(seconds=seconds)).stage is stage, case


def test_a_forced_end_says_what_it_waited_for() -> None:
    verdict = judge(replace(FACTS, published=published(r1=None)), SINCE + timedelta(seconds=301))
    assert verdict.forced
    assert verdict.message == "drain deadline passed while waiting for router r1 to take the new backends"


@given(
    offers=st.booleans(),
    reported=st.lists(st.none() | st.integers(0, 9), max_size=3),
    looks=st.integers(0, 3),
    seconds=st.integers(0, 299),
)
def test_nothing_is_drained_early_while_a_router_may_still_send(
    offers: bool, reported: list[int | None], looks: int, seconds: int
) -> None:
    routers = {f"r{number}": seen for number, seen in enumerate(reported)}
    facts = replace(FACTS, published=published(offers, 7, **routers), idle_looks=looks)
    verdict = judge(facts, SINCE + timedelta(seconds=seconds))
    safe = not offers and all(seen is not None and seen >= 7 for seen in reported) and looks >= 2
    assert verdict.done == safe


def configmap(selector: str = "", document: str | None = None) -> dict[str, Any]:
    annotations = {"serving.ai/cluster-selector": selector, "serving.ai/router-selector": "app=router"}
    data = {} if document is None else {"data": {"backends.json": document}}
    return {"metadata": {"name": "b", "annotations": annotations}, **data}


@pytest.mark.parametrize(
    ("selector", "concerned"),
    [("", True), ("serving.ai/fleet=f", True), ("serving.ai/fleet=g", False), ("not a selector!", False)],
)
def test_a_configmap_concerns_the_instances_it_selects(selector: str, concerned: bool) -> None:
    cluster = {"metadata": {"labels": {"serving.ai/fleet": "f"}}}
    assert bool(list(traffic.concerned([configmap(selector)], cluster))) is concerned


def test_only_a_ready_endpoint_is_offered() -> None:
    def document(state: State) -> Document:
        endpoint = Endpoint(instance="a", address="10.0.0.1:8000", pod_uid="u", state=state)
        return Document(models={"m": Model(endpoints=(endpoint,))})

    assert traffic.offers(document(State.READY), "a")
    assert not traffic.offers(document(State.READY), "b")
    assert not traffic.offers(document(State.DRAINING), "a")
    assert not traffic.offers(None, "a")
    text = render(document(State.READY)).decode()
    assert traffic.read_document(configmap(document=text)) is not None
    assert traffic.read_document(configmap(document="{")) is None
    assert traffic.read_document(configmap()) is None


def test_routers_that_may_have_requests_are_asked_also_unready_and_leaving_ones() -> None:
    def pod(name: str, phase: str, address: str = "10.0.0.1", app: str = "router") -> dict[str, Any]:
        metadata = {"name": name, "labels": {"app": app}, "deletionTimestamp": "2026-01-01T00:00:00Z"}
        return {"metadata": metadata, "status": {"phase": phase, "podIP": address}}

    pods = [pod("r1", "Running"), pod("r2", "Failed"), pod("r3", "Pending", ""), pod("x", "Running", app="other")]
    assert [item["metadata"]["name"] for item in traffic.routers_of(configmap(), pods)] == ["r1"]
