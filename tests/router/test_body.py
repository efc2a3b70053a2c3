"""What an engine gets of a body: spliced when it is clean, written again when it is not, bounded in what it may ask."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.router import body, bounds, policy
from llmfleet.router.errors import Refusal
from llmfleet.router.limits import Settings, parse_settings

CHAT = policy.ENGINE_ROUTES[b"/v1/chat/completions"]
COMPLETIONS = policy.ENGINE_ROUTES[b"/v1/completions"]
EMBEDDINGS = policy.ENGINE_ROUTES[b"/v1/embeddings"]
RESPONSES = policy.ENGINE_ROUTES[b"/v1/responses"]
MESSAGES = policy.ENGINE_ROUTES[b"/v1/messages"]
OURS = b',"cache_salt":"c0ffee","priority":10'
SALTED = {"cache_salt": "c0ffee", "priority": 10}


def admit(document, *, route=CHAT, ours=b"", **sections):
    raw = document if isinstance(document, bytes) else json.dumps({"model": "m"} | document).encode()
    return policy.admit(route, raw, parse_settings(sections), ours)


def refused(document, **kwargs):
    with pytest.raises(Refusal) as refusal:
        admit(document, **kwargs)
    return refusal.value


# ---- splicing ----


def test_a_clean_body_keeps_every_byte_and_gains_ours_before_its_final_brace():
    raw = b' { "model" : "m",\n "messages":[{"content":"} \\u00e9 {"}], "seed":7e2 } \r\n\t'
    sent = admit(raw, ours=OURS).body
    assert sent == raw.rstrip()[:-1] + OURS + b"}"
    assert json.loads(sent) == json.loads(raw) | SALTED


def test_a_clean_body_with_nothing_to_add_is_the_same_object():
    raw = b'{"model":"m","messages":[]}'
    assert admit(raw).body is raw


@pytest.mark.parametrize(
    "member",
    [
        b'"cache_salt":"theirs"',
        b'"cache\\u005fsalt":"theirs"',
        b'"\\u0063\\u0061\\u0063\\u0068\\u0065_salt":"theirs","cache_salt":"again"',
        b'"priority":-99,"priority":-98',
        b'"kv_transfer_params":{"cache_salt":"x"}',
        b'"request_id":"\\"}"',
    ],
)
def test_our_fields_are_ours_however_a_client_spells_them(member):
    for raw in (b'{%b,"model":"m","messages":[]}' % member, b'{"model":"m","messages":[],%b}' % member):
        sent = admit(raw, ours=OURS).body
        assert json.loads(sent) == {"model": "m", "messages": []} | SALTED
        for name in SALTED:
            assert sent.count(b'"%b"' % name.encode()) == 1, "an engine that takes the first of two reads ours too"


def test_the_last_of_two_equal_keys_is_judged_and_is_what_an_engine_reads():
    raw = b'{"model":"a","n":1,"model":"m","messages":[],"n":99}'
    assert refused(raw).param == "n"
    sent = admit(b'{"n":99,"model":"a","model":"m","messages":[],"\\u006e":2}', ours=OURS)
    assert (sent.model, sent.choices) == ("m", 2)
    assert json.loads(sent.body) == {"model": "m", "messages": [], "n": 2} | SALTED


allowed = st.sampled_from(sorted(body.ALLOWED_FIELDS - {"model", "stream", "stream_options"}))
noise = st.sampled_from([*body.OWNED_FIELDS, "session_id", "x", "é", 'a"b', "\\"])
values = st.none() | st.booleans() | st.integers(-5, 2**40) | st.text(max_size=8) | st.lists(st.text(max_size=3))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    members=st.lists(st.tuples(allowed | noise, values), max_size=6),
    ours=st.sampled_from([b"", OURS]),
    ascii_only=st.booleans(),
    pad=st.text(" \t\r\n", max_size=4),
)
def test_whatever_the_spelling_the_engine_reads_the_listed_fields_and_ours(members, ours, ascii_only, pad):
    inner = [f"{json.dumps(k, ensure_ascii=ascii_only)}:{json.dumps(v)}" for k, v in [("model", "m"), *members]]
    raw = f"{pad}{{{pad}{(',' + pad).join(inner)}{pad}}}{pad}".encode()
    document = orjson.loads(raw)
    sent, drops = body.prepare(raw, document, asks_usage=False, ours=ours)
    expected = {k: v for k, v in document.items() if k in body.ALLOWED_FIELDS}
    assert json.loads(sent) == expected | (SALTED if ours else {})
    assert drops is False


# ---- usage ----


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_usage_is_always_asked_for_on_streams_and_dropped_unless_the_client_wanted_it(route):
    stream = {"messages": [], "stream": True}
    cases = [
        (stream, True, {"include_usage": True}),
        (stream | {"stream_options": None}, True, {"include_usage": True}),
        (stream | {"stream_options": {}}, True, {"include_usage": True}),
        (stream | {"stream_options": {"include_usage": False, "x": 1}}, True, {"include_usage": True, "x": 1}),
        (stream | {"stream_options": {"continuous_usage_stats": True}}, True, {"include_usage": True}),
        (stream | {"stream_options": {"include_usage": True}}, False, {"include_usage": True}),
    ]
    for document, drops, options in cases:
        admitted = admit(document, route=route, ours=OURS)
        assert admitted.drops_usage is drops, document
        assert json.loads(admitted.body) == {"model": "m"} | document | {"stream_options": options} | SALTED
        assert admitted.body.count(b'"stream_options"') == 1


def test_usage_is_not_asked_for_where_an_answer_carries_it_anyway():
    for route, document in (
        (CHAT, {"messages": []}),
        (CHAT, {"messages": [], "stream": False}),
        (RESPONSES, {"input": "x", "stream": True}),
        (MESSAGES, {"messages": [], "stream": True}),
        (EMBEDDINGS, {"input": "x", "stream": True}),
    ):
        admitted = admit(document, route=route)
        assert not admitted.drops_usage and b"stream_options" not in admitted.body


def test_options_that_an_engine_would_read_otherwise_are_refused():
    for options in ([], "x", 1, {"include_usage": "on"}, {"include_usage": 1}):
        assert refused({"messages": [], "stream": True, "stream_options": options}).param.startswith("stream_options")
    for stream in (1, "true", "yes", [], {}):
        assert refused({"messages": [], "stream": stream}).param == "stream"
    assert admit({"messages": [], "stream": None}).streams is False


# ---- unknown fields ----


def test_unknown_fields_are_dropped_or_refused_by_setting():
    document = {"messages": [], "sampler": 1, "cache_salt": "x"}
    assert json.loads(admit(document).body) == {"model": "m", "messages": []}
    refusal = refused(document, body={"unknownFields": "refuse"})
    assert (refusal.status, refusal.param, refusal.code) == (400, "sampler", "unsupported_parameter")
    document.pop("sampler")
    assert json.loads(admit(document, body={"unknownFields": "refuse"}).body) == {"model": "m", "messages": []}


def test_a_field_of_a_thousand_letters_is_not_echoed_whole():
    refusal = refused({"messages": [], "x" * 5000: 1}, body={"unknownFields": "refuse"})
    assert len(refusal.param) == 100 and len(refusal.message) < 200


# ---- bounds ----

DEEP: dict = {"type": "object"}
for _ in range(40):
    DEEP = {"type": "object", "properties": {"a": DEEP}}
WIDE = {"enum": ["x" * 100] * 6000}
TOO_MUCH = [
    (CHAT, "n", 9),
    (CHAT, "n", "9"),
    (CHAT, "n", " 9 "),
    (CHAT, "n", "1_0"),
    (CHAT, "n", 9.0),
    (CHAT, "n", "9.0"),
    (CHAT, "n", 10**30),
    (CHAT, "best_of", 9),
    (CHAT, "max_tokens", 131073),
    (CHAT, "max_completion_tokens", 10**9),
    (CHAT, "min_tokens", 10**9),
    (RESPONSES, "max_output_tokens", 10**9),
    (CHAT, "top_logprobs", 21),
    (COMPLETIONS, "logprobs", 21),
    (COMPLETIONS, "prompt_logprobs", "21"),
    (CHAT, "stop", ["x"] * 17),
    (MESSAGES, "stop_sequences", ["x"] * 17),
    (CHAT, "logit_bias", {str(i): 1 for i in range(1025)}),
    (CHAT, "allowed_token_ids", list(range(1025))),
    (CHAT, "bad_words", ["x"] * 1025),
    (CHAT, "tools", [{}] * 129),
    (CHAT, "tools", [{"function": {"parameters": DEEP}}]),
    (CHAT, "functions", [{"parameters": DEEP}]),
    (CHAT, "response_format", {"json_schema": {"schema": DEEP}}),
    (CHAT, "response_format", {"json_schema": {"schema": WIDE}}),
    (CHAT, "structured_outputs", {"regex": "(a+)+" * 200_000}),
    (CHAT, "structured_outputs", {"json": DEEP}),
    (RESPONSES, "text", {"format": {"schema": DEEP}}),
    (MESSAGES, "output_config", {"format": {"json_schema": DEEP}}),
    (COMPLETIONS, "prompt", ["x"] * 129),
    (EMBEDDINGS, "input", ["x"] * 2049),
]


@pytest.mark.parametrize(("route", "field", "value"), TOO_MUCH)
def test_a_request_for_too_much_is_a_400_that_names_the_field(route, field, value):
    refusal = refused({field: value}, route=route)
    assert (refusal.status, refusal.code, refusal.param) == (400, "limit_exceeded", field)
    assert "at most" in refusal.message and len(refusal.message) < 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", -1),
        ("n", 1.5),
        ("n", "two"),
        ("n", ""),
        ("n", []),
        ("n", {}),
        ("n", "1e999"),
        ("n", "nan"),
        ("max_tokens", -1),
        ("max_tokens", "lots"),
        ("top_logprobs", -1),
        ("prompt_logprobs", -1),
    ],
)
def test_what_is_no_number_an_engine_takes_is_refused_by_name(field, value):
    refusal = refused({"messages": [], field: value})
    assert (refusal.status, refusal.code, refusal.param) == (400, "invalid_request", field)


def test_what_stays_within_its_bounds_passes_unchanged():
    document = {
        "messages": [{"role": "user", "content": "x"}],
        "n": 8,
        "max_tokens": 131072,
        "logprobs": True,
        "top_logprobs": 20,
        "stop": ["x"] * 16,
        "logit_bias": {str(i): 1 for i in range(1024)},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}] * 128,
        "response_format": {"type": "json_object"},
        "structured_outputs": None,
    }
    admitted = admit(document)
    assert json.loads(admitted.body) == {"model": "m"} | document
    assert (admitted.choices, admitted.max_tokens) == (8, 131072)
    assert admit({"prompt": [1, 2, 3] * 1000}, route=COMPLETIONS).choices == 1
    assert admit({"input": list(range(8000))}, route=EMBEDDINGS).choices == 1


def test_prompts_times_n_are_bounded_together():
    assert admit({"prompt": ["x"] * 64, "n": 2}, route=COMPLETIONS).choices == 128
    assert refused({"prompt": ["x"] * 65, "n": 2}, route=COMPLETIONS).param == "n"


def test_every_bound_is_a_setting():
    assert admit({"messages": [], "n": 9}, limits={"maxChoices": 9}).choices == 9
    assert refused({"messages": [], "n": 2}, limits={"maxChoices": 1}).param == "n"
    assert refused({"messages": [], "max_tokens": 11}, limits={"maxOutputTokens": 10}).param == "max_tokens"


# ---- media ----

PIXEL = "data:image/png;base64," + "A" * 200


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    "part",
    [
        image("http://169.254.169.254/latest"),
        image("HTTPS://example.com/a.png"),
        image("file:///etc/passwd"),
        image("//example.com/a.png"),
        image(" data:x"),
        {"image_url": "http://example.com"},
        {"type": "text", "text": "x", "image_url": {"url": "http://example.com"}},
        {"type": "video_url", "video_url": {"url": "http://example.com"}},
        {"audio_url": {"url": "http://example.com"}},
        {"type": "input_image", "image_url": "http://example.com"},
        {"type": "image", "source": {"type": "url", "url": "http://example.com"}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "http://e.com"}}]},
        {"type": "tool_result", "content": {"type": "image", "source": {"url": "http://example.com"}}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "prompt_embeds", "data": "AAAA"},
        {"type": "text", "text": "x", "audio_embeds": None},
        {"type": "image_pil", "image_pil": {}},
        {"type": "image_url", "image_url": None, "uuid": "left-by-another"},
        {"type": "text", "text": "x", "uuid": 0},
        image("http://example.com") | {"role": "user", "content": "looks like a message of text"},
        {"role": "user", "content": [image("http://example.com")]},
    ],
)
def test_engines_are_never_sent_to_an_address_nor_into_memory_by_a_content_part(part):
    refusal = refused(user({"type": "text", "text": "look"}, part))
    assert (refusal.status, refusal.code, refusal.param) == (400, "unsupported_parameter", "messages")
    embedded = refused({"input": [{"type": "function_call_output", "output": [part]}]}, route=RESPONSES)
    assert embedded.param == "input"


def test_an_item_that_looks_like_text_hides_no_media():
    item = {"type": "function_call_output", "role": "user", "content": "x", "output": [image("http://example.com")]}
    assert refused({"input": [item]}, route=RESPONSES).param == "input"
    assert refused({"input": [image("http://example.com") | {"role": "user", "content": "x"}]}, route=RESPONSES)
    tool = {"role": "tool", "tool_call_id": "1", "name": "f", "content": [image("http://example.com")]}
    assert refused({"messages": [{"role": "user", "content": "x"}, tool]}).param == "messages"


def test_media_as_data_pass_and_are_bounded_in_number_and_size():
    assert admit(user(*[image(PIXEL)] * 16)).model == "m"
    assert refused(user(*[image(PIXEL)] * 17)).param == "messages"
    assert admit(user(image(PIXEL)), limits={"maxMediaBytes": 222}).model == "m"
    refusal = refused(user(image(PIXEL)), limits={"maxMediaBytes": 221})
    assert refusal.code == "limit_exceeded" and "bytes of media" in refusal.message
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 300, "format": "wav"}}
    assert refused(user(sound), limits={"maxMediaBytes": 221}).code == "limit_exceeded"


def test_addresses_are_taken_if_the_setting_says_so_but_only_of_the_web():
    assert admit(user(image("https://example.com/a.png")), body={"mediaUrls": "any"}).model == "m"
    assert refused(user(image("file:///etc/passwd")), body={"mediaUrls": "any"}).param == "messages"


def test_what_a_tool_was_given_is_not_taken_for_media():
    given_to_tool = {"type": "tool_use", "id": "1", "name": "f", "input": {"image_url": "http://e.com", "uuid": "u"}}
    cited = {"type": "search_result", "source": "https://example.com", "content": [{"type": "text", "text": "x"}]}
    assert admit(user(given_to_tool, cited), route=MESSAGES).model == "m"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e9, 1e9) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "content", "image_url", "url", "source", "uuid", "role"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(fields=st.dictionaries(st.sampled_from([*sorted(bounds._CHECKS), "messages", "system"]), json_values))
def test_no_body_raises_anything_but_a_refusal(fields):
    for route in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS):
        try:
            policy.admit(route, json.dumps(fields | {"model": "m"}).encode(), Settings())
        except Refusal as refusal:
            assert refusal.status == 400
