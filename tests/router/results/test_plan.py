"""Which requests may be answered from the cache, under which name, and what is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from engine import DONE, UNARY, chat_event, chat_events, error_event, json_answer
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.api.document import Document, Endpoint, Model, Role, State
from llmfleet.router import http1, policy
from llmfleet.router.limits import Settings
from llmfleet.router.pick import Fleet
from llmfleet.router.results import plan
from llmfleet.router.results.plan import Entry, Wish
from llmfleet.router.sse import Dialect

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
TEXT = {"model": "m", "prompt": "hi", "temperature": 0}
CHAT_ROUTE = policy.ENGINE_ROUTES[b"/v1/chat/completions"]
TEXT_ROUTE = policy.ENGINE_ROUTES[b"/v1/completions"]


def admitted(body: dict[str, Any], route: policy.Route = CHAT_ROUTE) -> policy.Admitted:
    return policy.admit(route, json.dumps(body).encode(), Settings())


def message(**changes: Any) -> dict[str, Any]:
    return CHAT | {"messages": [{"role": "user", "content": "hi"} | changes]}


@pytest.mark.parametrize(
    ("case", "body"),
    [
        ("greedy", CHAT),
        ("greedy in another spelling", CHAT | {"temperature": 0.0}),
        ("a stream", CHAT | {"stream": True}),
        ("one choice by name", CHAT | {"n": 1}),
        ("no tools", CHAT | {"tools": []}),
        ("a schema", CHAT | {"response_format": {"type": "json_object"}}),
        ("text in parts", message(content=[{"type": "text", "text": "hi"}])),
        ("log probabilities", CHAT | {"logprobs": True, "top_logprobs": 2}),
    ],
)
def test_a_request_for_one_greedy_text_may_be_answered_from_the_cache(case, body):
    assert plan.eligible(CHAT_ROUTE, admitted(body)), case


@pytest.mark.parametrize(
    ("case", "body"),
    [
        ("no temperature: the model's own, mostly 1", {k: v for k, v in CHAT.items() if k != "temperature"}),
        ("a seed is not enough beside other requests", CHAT | {"temperature": 0.7, "seed": 1}),
        ("hardly greedy", CHAT | {"temperature": 0.01}),
        ("null is the default", CHAT | {"temperature": None}),
        ("what engines may read as 0", CHAT | {"temperature": "0"}),
        ("false is no number", CHAT | {"temperature": False}),
        ("two choices", CHAT | {"n": 2}),
        ("the best of two", CHAT | {"best_of": 2}),
        ("beams", CHAT | {"use_beam_search": True}),
        ("tools", CHAT | {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("functions", CHAT | {"functions": [{"name": "f"}]}),
        ("called tools", message(role="assistant", content="x", tool_calls=[{"id": "1"}])),
        ("sound", CHAT | {"modalities": ["text", "audio"]}),
        ("an image", message(content=[{"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}}])),
        (
            "an image that says it is text",
            message(content=[{"type": "text", "text": "", "image_url": {"url": "data:"}}]),
        ),
        ("no content", message(content=None)),
    ],
)
def test_any_other_request_is_asked_of_an_engine(case, body):
    assert not plan.eligible(CHAT_ROUTE, admitted(body)), case


def test_completions_have_one_prompt_of_text_or_tokens():
    for prompt in ("hi", ["hi"], [1, 2], [[1, 2]]):
        assert plan.eligible(TEXT_ROUTE, admitted(TEXT | {"prompt": prompt}, TEXT_ROUTE)), prompt
    for prompt in (["hi", "ho"], [[1], [2]], None):
        assert not plan.eligible(TEXT_ROUTE, admitted(TEXT | {"prompt": prompt}, TEXT_ROUTE)), prompt


@pytest.mark.parametrize("path", [b"/v1/responses", b"/v1/messages", b"/v1/embeddings"])
def test_other_routes_are_never_answered_from_the_cache(path):
    route = policy.ENGINE_ROUTES[path]
    body = {"model": "m", "input": "hi", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    assert not plan.eligible(route, admitted(body, route))


@pytest.mark.parametrize(
    ("head", "wish"),
    [
        (b"\r\nhost: a", Wish()),
        (b"\r\nCache-Control: no-store", Wish(store=False)),
        (b"\r\ncache-control: no-cache", Wish(max_age=-1)),
        (b"\r\ncache-control:max-age=60, NO-CACHE", Wish(max_age=-1)),
        (b"\r\ncache-control: max-age=60\r\ncache-control: no-store", Wish(store=False, max_age=60)),
        (b"\r\ncache-control: max-age=x, only-if-cached", Wish()),
    ],
)
def test_clients_say_what_they_want_of_caches(head, wish):
    assert plan.wish(b"POST / HTTP/1.1" + head + b"\r\n") == wish


# ---- keys ----


def key(body: dict[str, Any] = CHAT, *, tenant: str = "", fields: bytes = b"", revision: str = "=r", **kw: Any) -> str:
    found = plan.key_of(tenant, admitted(body, **kw), kw.get("route", CHAT_ROUTE), fields, revision)
    assert found is not None
    return found


def test_a_key_is_the_same_however_a_body_is_spelt_and_whatever_the_router_drops():
    turned = dict(reversed(CHAT.items()))
    assert key() == key(turned) == key(CHAT | {"cache_salt": "x", "priority": 1, "nonsense": [1]})


def test_a_key_differs_by_all_that_an_answer_depends_on():
    others = [
        key(tenant="a"),
        key(tenant="b"),
        key(revision="=s"),
        key(CHAT | {"model": "n"}),
        key(CHAT | {"stream": True}),
        key(CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
        key(CHAT | {"max_tokens": 5}),
        key(CHAT | {"seed": 5}),
        key(message(content="ho")),
        key(fields=b"\r\nauthorization: Bearer a"),
        key(fields=b"\r\nauthorization: Bearer b"),
        key(TEXT, route=TEXT_ROUTE),
    ]
    assert len({key(), *others}) == len(others) + 1


def test_a_key_holds_no_word_and_does_not_change_with_a_trace():
    assert key() == key(fields=b"\r\ntraceparent: 00-1\r\nuser-agent: curl")
    assert len(key()) == 64
    assert set(key()) <= set("0123456789abcdef")


@given(a=st.text(max_size=6), b=st.text(max_size=6), c=st.text(max_size=6), d=st.text(max_size=6))
def test_two_tenants_never_share_a_key(a, b, c, d):
    first = plan.key_of(a, admitted(CHAT | {"user": b}), CHAT_ROUTE, b"", "=r")
    second = plan.key_of(c, admitted(CHAT | {"user": d}), CHAT_ROUTE, b"", "=r")
    assert (first == second) == ((a, b) == (c, d))


def test_a_body_too_deep_to_be_written_has_no_key():
    deep = b'{"model":"m","temperature":0,"messages":[],"metadata":' + b"[" * 300 + b"]" * 300 + b"}"
    assert plan.key_of("", policy.admit(CHAT_ROUTE, deep, Settings()), CHAT_ROUTE, b"", "=r") is None


# ---- revisions ----


def pool(*endpoints: Endpoint) -> Any:
    fleet = Fleet()
    fleet.apply(Document(models={"m": Model(endpoints=endpoints)}))
    return fleet.models["m"]


def engine(name: str, revision: str = "", **changes: Any) -> Endpoint:
    return Endpoint(instance=name, address=f"{name}:1", pod_uid=name, engine_revision=revision, **changes)


def test_the_revision_is_that_of_all_engines_that_take_requests():
    assert plan.revision_of(pool()) == ""
    assert plan.revision_of(pool(engine("a"))) == "=."
    assert plan.revision_of(pool(engine("a", "r"), engine("b", "r"))) == "=r."
    assert plan.revision_of(pool(engine("a", "r"), engine("b", "s"))) is None
    assert plan.revision_of(pool(engine("a", "r", served_revision="1"), engine("b", "r", served_revision="2"))) is None
    assert plan.revision_of(pool(engine("a", "r"), engine("b", "s", weight=0))) == "=r."
    assert (
        plan.revision_of(pool(engine("a", "r", state=State.DRAINING), engine("b", "s", served_revision="2"))) == "=s.2"
    )
    pair = (engine("p", "r", role=Role.PREFILL), engine("d", "r", role=Role.DECODE, served_revision="d"))
    assert plan.revision_of(pool(*pair)) == "=r./=r.d"


def test_an_answer_is_kept_only_if_nothing_changed_under_way():
    old, new = pool(engine("a", "r")), pool(engine("a", "s"))
    answered = old.candidates[0].backend
    assert plan.still("=r.", "=r.", answered)
    assert plan.still("=r./=r.", "=r./=r.", answered)
    assert not plan.still("=r.", "=s.", answered)
    assert not plan.still("=r.", None, answered)
    assert not plan.still("=s.", "=s.", answered)
    assert not plan.still("=r.", "=r.", None)
    assert not plan.still("=r.", "=r.", new.candidates[0].backend)


# ---- answers ----


def stream(*events: bytes, end: bytes = http1.LAST_CHUNK) -> bytes:
    head = http1.stream_head(b"req-1", b"\r\ntransfer-encoding: chunked", True)
    return head + b"".join(map(http1.chunk, events)) + end


def unary(**changes: Any) -> bytes:
    choice = UNARY["choices"][0] | changes
    return http1.reply(200, json.dumps(UNARY | {"choices": [choice]}).encode(), request_id=b"r", keep_alive=True)


def test_a_stream_is_kept_as_its_events_were():
    events = [*chat_events(), DONE]
    found = plan.answer_in(stream(*events), Dialect.CHAT)
    assert found == Entry(b"text/event-stream; charset=utf-8", b"".join(events))


def test_a_unary_answer_is_kept_with_its_type():
    found = plan.answer_in(unary(), Dialect.CHAT)
    assert found is not None
    assert (found.content_type, json.loads(found.body)) == (b"application/json", UNARY)
    assert plan.answer_in(unary(finish_reason="length"), Dialect.CHAT) is not None


@pytest.mark.parametrize(
    ("case", "raw"),
    [
        ("nothing", b""),
        ("another status", json_answer(400, {"error": {}})),
        ("a unary answer that was cut", unary()[:-1]),
        ("a unary answer with more behind it", unary() + b"x"),
        ("a call of a tool", unary(finish_reason="tool_calls")),
        ("given up", unary(finish_reason="abort")),
        ("filtered", unary(finish_reason="content_filter")),
        ("not over", unary(finish_reason=None)),
        ("no choice", http1.reply(200, b'{"choices":[]}', request_id=b"r", keep_alive=True)),
        ("no JSON", http1.reply(200, b"hello", request_id=b"r", keep_alive=True)),
        ("no end", stream(*chat_events())),
        ("no last chunk", stream(*chat_events(), DONE, end=b"")),
        ("half a chunk", stream(*chat_events(), DONE, end=b"5\r\nab")),
        ("no finish", stream(chat_event("a"), DONE)),
        ("an error", stream(chat_event("a"), error_event(), chat_event(None, finish="stop"), DONE)),
        ("a stream of a call", stream(chat_event("a"), chat_event(None, finish="tool_calls"), DONE)),
        ("two ends", stream(chat_event(None, finish="stop"), chat_event(None, finish="stop"), DONE)),
        ("comments of ours", stream(b": waiting for an engine\n\n", *chat_events(), DONE)),
    ],
)
def test_any_other_answer_is_not_kept(case, raw):
    assert plan.answer_in(raw, Dialect.CHAT) is None, case


@given(cut=st.integers(0, len(stream(*chat_events(), DONE)) - 1))
def test_no_part_of_a_stream_is_kept(cut):
    assert plan.answer_in(stream(*chat_events(), DONE)[:cut], Dialect.CHAT) is None


# ---- Redis ----


@given(body=st.binary(max_size=200), at=st.floats(0, 2e9))
def test_an_entry_comes_back_as_it_was_written(body, at):
    entry = Entry(b"application/json", body)
    assert plan.read(plan.written(entry, "k", at), "k") == entry._replace(at=at)


@given(st.data())
def test_an_entry_that_was_changed_is_none(data):
    whole = plan.written(Entry(b"application/json", b'{"a":1}'), "k", 5.5)
    place = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    assert plan.read(whole[:place] + bytes([other]) + whole[place + 1 :], "k") is None


@pytest.mark.parametrize("data", [b"", b"x", b"llmfleet-result-1 {}\n", b"llmfleet-result-2 {}\n", b"[]\n\n"])
def test_what_is_no_entry_is_none(data):
    assert plan.read(data, "k") is None


def test_an_entry_of_another_key_is_none():
    assert plan.read(plan.written(Entry(b"text/plain", b"x"), "k", 1.0), "other") is None


def test_clocks_of_routers_may_differ():
    assert Entry(b"", b"", 100.0).age(103.9) == 3
    assert Entry(b"", b"", 100.0).age(90.0) == 0


def test_answers_leave_room_for_jobs():
    assert plan.may_grow({"used_memory": 49, "maxmemory": 100}, 0.5)
    assert not plan.may_grow({"used_memory": 50, "maxmemory": 100}, 0.5)
    assert not plan.may_grow({"used_memory": 50, "maxmemory": 0, "total_system_memory": 60}, 0.5)
    assert plan.may_grow({}, 0.5)
