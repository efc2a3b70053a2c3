"""What is taken and what is cleaned, as pure functions."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.router import errors, policy
from llmfleet.router.body import ALLOWED_FIELDS, OWNED_FIELDS
from llmfleet.router.errors import Code, Refusal
from llmfleet.router.limits import Settings
from llmfleet.router.sse import Dialect

CHAT = policy.ENGINE_ROUTES[b"/v1/chat/completions"]
COMPLETIONS = policy.ENGINE_ROUTES[b"/v1/completions"]
DEFAULTS = Settings()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([*OWNED_FIELDS, "metadata", "logit_bias", "user", "x", "session_id"])


@settings(max_examples=50, deadline=None)
@given(fields=st.dictionaries(names, json_values))
def test_only_fields_on_the_list_survive_and_they_are_unchanged(fields):
    admitted = policy.admit(CHAT, orjson.dumps(fields | {"model": "m"}), DEFAULTS)
    kept = orjson.loads(admitted.body)
    assert kept == {k: v for k, v in fields.items() if k in ALLOWED_FIELDS} | {"model": "m"}
    assert admitted.choices >= 1


@given(noise=st.binary(max_size=60))
def test_any_body_is_admitted_or_refused_with_a_400(noise):
    for route in policy.ENGINE_ROUTES.values():
        try:
            policy.admit(route, noise, DEFAULTS)
        except Refusal as refusal:
            assert refusal.status == 400


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({"prompt": "x"}, 1),
        ({"prompt": ["x", "y"]}, 2),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": ["x", "y"], "n": 3}, 6),
        ({"prompt": []}, 1),
        ({"prompt": "x", "n": None}, 1),
        ({"prompt": "x", "n": "2"}, 2),
        ({"prompt": "x", "n": 2.0}, 2),
    ],
)
def test_the_choices_of_an_answer_follow_from_the_request(body, choices):
    assert policy.admit(COMPLETIONS, orjson.dumps(body | {"model": "m"}), DEFAULTS).choices == choices


@given(path=st.binary(max_size=40) | st.sampled_from([b"/v1/requests/", b"/v1/models/", b"/v1/requests/x/result"]))
def test_the_list_of_paths_is_exact(path):
    method = policy.allowed_method(path)
    known = path in policy.ENGINE_ROUTES or path in policy.LOCAL_PATHS
    named = any(path.startswith(prefix) and path != prefix for prefix in (b"/v1/models/", b"/v1/requests/"))
    assert (method is not None) == (known or named)


@pytest.mark.parametrize("dialect", list(Dialect))
def test_every_error_has_the_four_keys_of_the_openai_shape(dialect):
    for code in Code:
        status, extra, body = errors.render(errors.overloaded(code, "why"), dialect)
        error = orjson.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["code"] == code
        assert status in (503, 529) and extra.startswith(b"retry-after: ")
        event = errors.event(errors.lost(code, "why"), dialect)
        data = next(line for line in event.split(b"\n") if line.startswith(b"data: "))
        assert orjson.loads(data[6:])["error"]["code"] == code and event.endswith(b"\n\n")


def test_an_engines_own_status_is_used_only_if_it_is_one():
    for code, status in ((400, 400), (503, 503), ("x", 500), (None, 500), (True, 500), (200, 500), (999, 500)):
        assert errors.engine_status({"code": code}) == status


PLAIN_VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 7, -1, 2**40, 1.5, "", "m", "x", "2", [], {}, ["x"], [1], [{}]]),
    st.sampled_from(
        [
            *({"include_usage": True}, {"include_usage": False}, {"include_usage": 1}, {"other": 1}),
            *([{"role": "user", "content": "hi"}], [{"role": "user", "content": ["hi"]}], [{"content": "hi"}]),
            [{"role": "user", "content": "hi", "name": "n"}],
        ]
    ),
)
FIELDS = sorted({*ALLOWED_FIELDS, *OWNED_FIELDS, "chat_template", "nobody's"})
LIKELY = [
    "model",
    "messages",
    "prompt",
    "input",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "n",
]


def verdict(admit, *args):
    try:
        return admit(*args)
    except Refusal as refusal:
        return (refusal.status, refusal.code, refusal.message, refusal.param)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    route=st.sampled_from(list(policy.ENGINE_ROUTES.values())),
    fields=st.dictionaries(st.sampled_from(LIKELY) | st.sampled_from(FIELDS), PLAIN_VALUES, max_size=6),
    model=st.sampled_from(["m", "m", "m", "", None]),
    ours=st.sampled_from([b"", b',"cache_salt":"c"']),
)
def test_a_plain_request_is_admitted_as_a_closer_look_would_admit_it(route, fields, model, ours):
    document = fields if model is None else fields | {"model": model}
    raw = orjson.dumps(document)
    plain = policy.admit_plain(route, raw, document, DEFAULTS.limits, ours)
    if plain is not None:
        assert plain == verdict(policy.admit_closely, route, raw, document, DEFAULTS, ours)


def test_what_most_clients_send_needs_no_closer_look():
    talk = [{"role": "user", "content": "hi"}]
    for route, body in (
        (CHAT, {"model": "m", "messages": talk, "max_tokens": 9, "temperature": 0.7}),
        (CHAT, {"model": "m", "messages": talk, "stream": True, "stream_options": {"include_usage": True}}),
        (CHAT, {"model": "m", "messages": talk, "max_completion_tokens": 9, "top_p": 1, "user": "u"}),
        (COMPLETIONS, {"model": "m", "prompt": "hi", "max_tokens": 9, "stream": False, "stop": "x"}),
    ):
        assert policy.admit_plain(route, orjson.dumps(body), body, DEFAULTS.limits, b"") is not None, body
