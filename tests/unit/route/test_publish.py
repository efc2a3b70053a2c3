"""What is written into the ConfigMap, and what is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.api.document import Document, Endpoint, Model, parse_document, render
from llmfleet.route.publish import GENERATION_ANNOTATION, Publication, plan_publication

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)


def document(address: str = "10.0.0.1:8000") -> Document:
    return Document(models={"m": Model(endpoints=(Endpoint(instance="a", address=address, pod_uid="u"),))})


def configmap(text: str | None, **annotations: str) -> dict[str, Any]:
    data = {} if text is None else {"data": {"backends.json": text}}
    metadata = {"name": "b", "namespace": "ns", "resourceVersion": "7", "annotations": annotations}
    return {"metadata": metadata, **data}


def after(before: dict[str, Any], publication: Publication) -> dict[str, Any]:
    """The ConfigMap with the patch merged in."""
    body = publication.patch.body
    annotations = {**before["metadata"]["annotations"], **body["metadata"]["annotations"]}
    return {
        "metadata": {**before["metadata"], "annotations": annotations},
        "data": {**before.get("data", {}), **body["data"]},
    }


def test_an_empty_configmap_gets_a_valid_document_bound_to_the_version_that_was_read() -> None:
    publication = plan_publication(configmap(None), document(), NOW)
    assert publication is not None
    assert publication.patch.resource_version == "7"
    written = parse_document(publication.patch.body["data"]["backends.json"].encode())
    assert written.generation == publication.generation == NOW_MS
    assert written.models == document().models


def test_a_document_that_says_the_same_is_left_alone_whatever_its_generation_or_spelling() -> None:
    first = plan_publication(configmap(None), document(), NOW)
    assert first is not None
    there = after(configmap(None), first)
    assert plan_publication(there, document(), NOW + timedelta(days=1)) is None
    there["data"]["backends.json"] = json.dumps(json.loads(there["data"]["backends.json"]), indent=3)
    assert plan_publication(there, document(), NOW) is None


BROKEN = [
    "",
    "{",
    "[]",
    "null",
    '{"version":1}',
    '{"version":99,"generation":5,"models":{}}',
    "\x00",
    '{"generation":"x"}',
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_document_that_cannot_be_used_is_replaced(text: str) -> None:
    publication = plan_publication(configmap(text), document(), NOW)
    assert publication is not None
    assert publication.generation >= NOW_MS


def test_a_document_whose_hash_lies_is_replaced() -> None:
    good = render(document("10.0.0.9:8000")).decode()
    claimed = json.loads(render(document()))["hash"]
    lying = good.replace(json.loads(good)["hash"], claimed)
    assert plan_publication(configmap(lying), document(), NOW) is not None


def test_a_generation_from_the_future_is_passed_not_lowered() -> None:
    future = NOW_MS + 10**9
    text = json.dumps({"version": 1, "generation": future, "models": {}})
    publication = plan_publication(configmap(text), document(), NOW)
    assert publication is not None
    assert publication.generation == future + 1


def test_a_damaged_document_does_not_lower_the_generation() -> None:
    """The clock stands an hour behind, and somebody emptied the data by hand: the annotation remembers."""
    first = plan_publication(configmap(None), document(), NOW)
    assert first is not None
    damaged = after(configmap(None), first)
    damaged["data"] = {"backends.json": "oops"}
    second = plan_publication(damaged, document(), NOW - timedelta(hours=1))
    assert second is not None
    assert second.generation > first.generation


@given(
    st.lists(
        st.tuples(st.integers(-(10**6), 10**6), st.integers(1, 9), st.sampled_from(["keep", "damage", "remove"])),
        max_size=12,
    )
)
def test_the_generation_only_grows(steps: list[tuple[int, int, str]]) -> None:
    """Whatever the clock does and whatever people do to the data."""
    here, last = configmap(None), 0
    for seconds, host, damage in steps:
        if damage == "damage":
            here["data"] = {"backends.json": "{"}
        elif damage == "remove":
            here.pop("data", None)
        publication = plan_publication(here, document(f"10.0.0.{host}:8000"), NOW + timedelta(seconds=seconds))
        if publication is not None:
            assert publication.generation > last
            last = publication.generation
            here = after(here, publication)
            assert here["metadata"]["annotations"][GENERATION_ANNOTATION] == str(last)


@pytest.mark.parametrize(("there", "believed"), [(1 << 60, True), (1 << 63, False), (-5, False)])
def test_a_generation_is_believed_up_to_what_a_router_may_have_adopted(there: int, believed: bool) -> None:
    text = json.dumps({"version": 1, "generation": there, "models": {}})
    publication = plan_publication(configmap(text), document(), NOW)
    assert publication is not None
    assert publication.generation == (there + 1 if believed else NOW_MS)


@pytest.mark.parametrize("noted", ["9" * 5000, str(1 << 62), str(1 << 63), "-4", "\u0669\u0669", "x", ""])
def test_a_noted_generation_that_no_router_can_have_adopted_is_not_believed(noted: str) -> None:
    publication = plan_publication(configmap(None, **{GENERATION_ANNOTATION: noted}), document(), NOW)
    assert publication is not None
    assert publication.generation == NOW_MS
