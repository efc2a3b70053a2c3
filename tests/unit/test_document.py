"""The backends document: read strictly, written canonically."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.api.document import (
    Document,
    DocumentError,
    Endpoint,
    Model,
    ModelState,
    Peer,
    Role,
    State,
    content_hash,
    parse_document,
    render,
    with_generation,
)

ENDPOINT = {"instance": "a", "address": "10.0.0.9:8000", "podUID": "u", "slots": 4}
MINIMAL = {"version": 1, "generation": 7, "models": {"m": {"endpoints": [ENDPOINT]}}}


def changed(**changes) -> dict:
    return MINIMAL | {"models": {"m": {"endpoints": [ENDPOINT | changes]}}}


def read(raw: object) -> Document:
    return parse_document(json.dumps(raw).encode())


words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)
numbers = st.integers(1, 60_000)
endpoints = st.builds(
    Endpoint,
    instance=words,
    address=st.builds(lambda a, p: f"10.{a % 250}.0.1:{p}", numbers, numbers),
    pod_uid=words,
    role=st.sampled_from(Role),
    tier=st.integers(0, 9),
    weight=st.integers(0, 1_000_000),
    slots=st.just(8),
    engine_revision=st.text(max_size=4),
    served_revision=st.text(max_size=4),
    state=st.sampled_from(State),
)
documents = st.builds(
    Document,
    generation=st.integers(0, 2**53),
    peers=st.lists(st.builds(Peer, name=words, address=st.just("a:1")), unique_by=lambda p: p.name, max_size=3).map(
        tuple
    ),
    models=st.dictionaries(
        words,
        st.builds(
            Model,
            state=st.sampled_from(ModelState),
            endpoints=st.lists(endpoints, unique_by=lambda e: e.address, max_size=3).map(tuple),
        ),
        max_size=3,
    ),
)


def consistent(document: Document) -> bool:
    pods: dict[str, str] = {}
    return all(
        pods.setdefault(e.address, e.pod_uid) == e.pod_uid for m in document.models.values() for e in m.endpoints
    )


@settings(max_examples=40, deadline=None)
@given(document=documents.filter(consistent))
def test_what_is_rendered_reads_back_equal_and_canonical(document):
    data = render(document)
    assert parse_document(data) == document
    assert render(parse_document(data)) == data


@settings(max_examples=40, deadline=None)
@given(document=documents.filter(consistent), generation=st.integers(0, 2**53))
def test_the_hash_covers_everything_but_the_generation(document, generation):
    again = with_generation(document, previous=generation, now_ms=0)
    assert content_hash(again) == content_hash(document)
    assert content_hash(Document(models=document.models | {"another one": Model()})) != content_hash(document)


def test_defaults_fill_what_an_older_writer_leaves_out():
    (endpoint,) = read(MINIMAL).models["m"].endpoints
    assert (endpoint.role, endpoint.tier, endpoint.weight, endpoint.state) == (Role.BOTH, 0, 100, State.READY)


def test_fields_of_a_newer_writer_are_ignored():
    raw = changed(gpu="h200") | {"zone": "a", "hash": "whatever"}
    assert read(raw) == read(MINIMAL)


def test_no_models_and_no_endpoints_are_valid():
    assert read({"version": 1, "generation": 0, "models": {}}).models == {}
    assert read({"version": 1, "generation": 0, "models": {"m": {"state": "asleep"}}}).models["m"].endpoints == ()


def test_generations_grow_over_restarts_and_clock_steps():
    document = read(MINIMAL)
    assert with_generation(document, previous=5, now_ms=1_000).generation == 1_000
    assert with_generation(document, previous=2_000, now_ms=1_000).generation == 2_001


def test_one_engine_may_serve_several_models():
    both = MINIMAL | {"models": {"m": {"endpoints": [ENDPOINT]}, "lora": {"endpoints": [ENDPOINT]}}}
    assert len(read(both).models) == 2


REFUSED = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    ([], "document: [] is not an object"),
    ({"generation": 1, "models": {}}, "version: null is not a whole number"),
    (MINIMAL | {"version": 2}, "version: 2 is not 1"),
    (MINIMAL | {"version": "1"}, 'version: "1" is not a whole number'),
    ({"version": 1, "models": {}}, "generation: null is not a whole number"),
    (MINIMAL | {"generation": -1}, "generation: -1 is not between 0"),
    (MINIMAL | {"generation": 1.5}, "generation: 1.5 is not a whole number"),
    (MINIMAL | {"generation": True}, "generation: true is not a whole number"),
    (MINIMAL | {"hash": 1}, "hash: 1 is not a string"),
    ({"version": 1, "generation": 1}, "models: null is not an object"),
    (MINIMAL | {"models": []}, "models: [] is not an object"),
    (MINIMAL | {"models": {"m": None}}, "models.m: null is not an object"),
    (MINIMAL | {"models": {"m": {"state": "dead"}}}, 'models.m.state: "dead" is not one of serving, waking'),
    (MINIMAL | {"models": {"m": {"endpoints": {}}}}, "models.m.endpoints: {} is not a list"),
    (MINIMAL | {"models": {"m": {"endpoints": [1]}}}, "models.m.endpoints[0]: 1 is not an object"),
    (changed(instance=""), 'models.m.endpoints[0].instance: "" is not a non-empty string'),
    (changed(podUID=None), "models.m.endpoints[0].podUID: null is not a non-empty string"),
    (changed(address="10.0.0.9"), 'models.m.endpoints[0].address: "10.0.0.9" is not HOST:PORT'),
    (changed(address=":80"), "is not HOST:PORT"),
    (changed(address="a:0"), "is not HOST:PORT"),
    (changed(address="a:65536"), "is not HOST:PORT"),
    (changed(address="a:\u0663"), "is not HOST:PORT"),
    (changed(address="a\r\nx: y:80"), "is not HOST:PORT"),
    (changed(address="a b:80"), "is not HOST:PORT"),
    (changed(address="http://a:80"), "is not HOST:PORT"),
    (changed(role="boss"), 'role: "boss" is not one of both, prefill, decode'),
    (changed(tier=-1), "tier: -1 is not between 0"),
    (changed(weight=-1), "weight: -1 is not between 0 and 1000000"),
    (changed(weight=1_000_001), "weight: 1000001 is not between"),
    (changed(weight="100"), 'weight: "100" is not a whole number'),
    (changed(slots=0), "slots: 0 is not between 1"),
    (changed(slots=None), "slots: null is not a whole number"),
    (changed(state="gone"), 'state: "gone" is not one of ready, draining'),
    (changed(state=[]), "state: [] is not one of"),
    (
        MINIMAL | {"models": {"m": {"endpoints": [ENDPOINT, ENDPOINT]}}},
        "endpoints[1].address: 10.0.0.9:8000 appears twice",
    ),
    (
        MINIMAL | {"models": {"a": {"endpoints": [ENDPOINT]}, "b": {"endpoints": [ENDPOINT | {"podUID": "v"}]}}},
        "models.b.endpoints[0].podUID: 10.0.0.9:8000 already belongs to pod u",
    ),
    (
        MINIMAL | {"models": {"a": {"endpoints": [ENDPOINT]}, "b": {"endpoints": [ENDPOINT | {"slots": 5}]}}},
        "models.b.endpoints[0].slots: 5, but 10.0.0.9:8000 has 4 elsewhere",
    ),
    (MINIMAL | {"peers": {}}, "peers: {} is not a list"),
    (MINIMAL | {"peers": [{"name": "r"}]}, "peers[0].address: null is not a non-empty string"),
    (MINIMAL | {"peers": [{"name": "r", "address": "a:1"}] * 2}, "peers[1].name: r appears twice"),
]


@pytest.mark.parametrize(("raw", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_a_fault_is_refused_with_its_path(raw, message):
    with pytest.raises(DocumentError) as refused:
        parse_document(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    assert message in str(refused.value)


@given(noise=st.binary(max_size=200))
def test_noise_raises_nothing_but_a_document_error(noise):
    with pytest.raises(DocumentError):
        parse_document(noise)
